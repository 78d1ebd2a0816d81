"""Simple schedulers to compare with; each has the interface of ``Scheduler``.

:class:`FirstCome` is what a server does that knows of memory only that it must not be exceeded.
:class:`Static` gives each model a part of it for good.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from vessels.schedule.decisions import Assign, Decision, Launch, Reason, Refuse, Run, Stop
from vessels.schedule.events import Arrived, Ended, Event, Finished, Gone, Ready, Wanted
from vessels.schedule.model import Machine, ModelSpec, Shape

RETRY_SECONDS = 1.0


@dataclass
class _Request:
    ticket: int
    number: int
    deadline: float


@dataclass
class _Environment:
    number: int
    model: ModelSpec
    shape: Shape
    ready: bool = False
    running: bool = False
    stopping: bool = False
    used: float = 0.0
    queue: deque[_Request] = field(default_factory=deque)


class _Simple(ABC):
    """One environment a model, requests in order of arrival over all models.

    A queue is bounded, and that is all there is of admission; ``punctual`` ones also refuse, at
    its turn, a request that would not be answered by its deadline.
    """

    def __init__(
        self, machine: Machine, models: Sequence[ModelSpec], *, punctual: bool = False
    ) -> None:
        self.machine, self.models, self.punctual = machine, list(models), punctual
        self.by_name = {m.name: m for m in models}
        self.environments: dict[int, _Environment] = {}
        self.launched = 0
        self.arrivals = 0

    def wake(self) -> float | None:
        return None

    def handle(self, event: Event) -> list[Decision]:
        return [*self._note(event), *self._place(event.now), *self._dispatch(event.now)]

    @property
    def free_size(self) -> float:
        capacity = self.machine.epc_size
        used = sum(e.shape.size for e in self.environments.values())
        return float("inf") if capacity is None else capacity - used

    def environment_of(self, model: str) -> _Environment | None:
        found = (e for e in self.environments.values() if e.model.name == model and not e.stopping)
        return next(found, None)

    def _note(self, event: Event) -> Iterator[Decision]:
        match event:
            case Arrived():
                yield from self._arrived(event)
            case Gone(ticket=ticket):
                for environment in self.environments.values():
                    kept = [r for r in environment.queue if r.ticket != ticket]
                    environment.queue = deque(kept)
            case Ready(environment=number) | Finished(environment=number):
                self.environments[number].ready = True
                self.environments[number].running = False
            case Ended(environment=number):
                for request in self.environments.pop(number).queue:
                    yield Refuse(request.ticket, Reason.ENDED, 0.0)

    def _arrived(self, event: Arrived) -> Iterator[Decision]:
        environment = self.environments.get(event.environment)
        if environment is None or environment.stopping:
            yield Refuse(event.ticket, Reason.ELSEWHERE, 0.0)
        elif len(environment.queue) >= environment.model.queue_count:
            yield Refuse(event.ticket, Reason.OVERLOADED, RETRY_SECONDS)
        else:
            self.arrivals += 1
            deadline = float("inf") if event.deadline is None else event.deadline
            environment.queue.append(_Request(event.ticket, self.arrivals, deadline))

    @abstractmethod
    def _place(self, now: float) -> Iterator[Decision]:
        """Launches, stops and assignments."""

    def _launch(self, model: ModelSpec, shape: Shape, now: float) -> Launch:
        self.launched += 1
        made = _Environment(self.launched, model, shape, used=now)
        self.environments[made.number] = made
        return Launch(made.number, model.name, shape)

    def _dispatch(self, now: float) -> Iterator[Decision]:
        free = self.machine.core_count
        free -= sum(e.shape.threads for e in self.environments.values() if e.running)
        idle = [e for e in self.environments.values() if e.ready and not (e.running or e.stopping)]
        if self.punctual:
            for environment in idle:
                yield from self._refuse_late(environment, now)
        for environment in sorted((e for e in idle if e.queue), key=lambda e: e.queue[0].number):
            if environment.shape.threads <= free:
                free -= environment.shape.threads
                count = min(len(environment.queue), environment.shape.slots)
                batch = tuple(environment.queue.popleft().ticket for _ in range(count))
                environment.running, environment.used = True, now
                yield Run(environment.number, batch)

    def _refuse_late(self, environment: _Environment, now: float) -> Iterator[Decision]:
        while environment.queue:
            count = min(len(environment.queue), environment.shape.slots)
            if now + environment.model.run_time.seconds(count) <= environment.queue[0].deadline:
                break
            yield Refuse(environment.queue.popleft().ticket, Reason.OVERLOADED, RETRY_SECONDS)


class FirstCome(_Simple):
    """First come, first served: an environment is launched when its model is asked for.

    It has one slot, and keeps as many parameters resident as fit the model's even share of the
    memory. The one used least recently makes room, of those with nothing to do if there are any.
    """

    def __init__(
        self, machine: Machine, models: Sequence[ModelSpec], *, punctual: bool = False
    ) -> None:
        super().__init__(machine, models, punctual=punctual)
        self.wishes: deque[Wanted] = deque()

    def _note(self, event: Event) -> Iterator[Decision]:
        if isinstance(event, Wanted):
            self.wishes.append(event)
        elif isinstance(event, Gone):
            self.wishes = deque(w for w in self.wishes if w.ticket != event.ticket)
        yield from super()._note(event)

    def _place(self, now: float) -> Iterator[Decision]:
        while self.wishes:
            wish = self.wishes[0]
            environment = self.environment_of(wish.model)
            if environment is None:
                model = self.by_name[wish.model]
                shape = self._shape(model)
                if shape.size > self.free_size:
                    yield from self._make_room(shape.size)
                    return
                yield self._launch(model, shape, now)
                environment = self.environments[self.launched]
            self.wishes.popleft()
            yield Assign(wish.ticket, environment.number)

    def _shape(self, model: ModelSpec) -> Shape:
        if self.machine.epc_size is None:
            share = float("inf")
        else:
            share = self.machine.epc_size / len(self.models)
        narrow = _narrow(self.machine, model, len(self.models))
        fitting = [s for s in narrow if s.slots == 1 and s.size <= share]
        return max(fitting or narrow[:1], key=lambda s: s.size)

    def _make_room(self, size: int) -> Iterator[Decision]:
        missing = size - self.free_size
        missing -= sum(e.shape.size for e in self.environments.values() if e.stopping)
        victims = [e for e in self.environments.values() if e.ready and not e.running]
        victims = [e for e in victims if not e.stopping]
        for victim in sorted(victims, key=lambda e: (bool(e.queue), e.used)):
            if missing <= 0:
                break
            missing -= victim.shape.size
            victim.stopping = True
            for request in victim.queue:
                yield Refuse(request.ticket, Reason.ELSEWHERE, 0.0)
            victim.queue.clear()
            yield Stop(victim.number)


class Static(_Simple):
    """A part of the memory for each model, for good: the first models come first.

    Each gets its most frugal shape while there is room, and an even part of what is left for a
    more generous one. Models without a part are refused. Runs are batches of what waits.
    """

    def __init__(
        self, machine: Machine, models: Sequence[ModelSpec], *, punctual: bool = False
    ) -> None:
        super().__init__(machine, models, punctual=punctual)
        self.parts = _parts(machine, models)
        self.wishes: list[Wanted] = []

    def _note(self, event: Event) -> Iterator[Decision]:
        if isinstance(event, Wanted):
            if event.model in self.parts:
                self.wishes.append(event)
            else:
                yield Refuse(event.ticket, Reason.NO_ROOM, RETRY_SECONDS)
        elif isinstance(event, Gone):
            self.wishes = [w for w in self.wishes if w.ticket != event.ticket]
        yield from super()._note(event)

    def _place(self, now: float) -> Iterator[Decision]:
        for name, shape in self.parts.items():
            if self.environment_of(name) is None:
                yield self._launch(self.by_name[name], shape, now)
        for wish in self.wishes:
            environment = self.environment_of(wish.model)
            assert environment is not None
            yield Assign(wish.ticket, environment.number)
        self.wishes.clear()


def _narrow(machine: Machine, model: ModelSpec, count: int) -> list[Shape]:
    """The shapes for one of ``count`` models that share the cores: all of them, alone."""
    threads = max(1, machine.core_count // count)
    return [s for s in model.shapes if s.threads <= threads] or list(model.shapes[:1])


def _parts(machine: Machine, models: Sequence[ModelSpec]) -> dict[str, Shape]:
    shapes = {m.name: _narrow(machine, m, len(models)) for m in models}
    if machine.epc_size is None:
        return {name: each[-1] for name, each in shapes.items()}
    left = machine.epc_size
    kept = []
    for model in models:
        if shapes[model.name][0].size <= left:
            left -= shapes[model.name][0].size
            kept.append(model.name)
    extra = left // len(kept) if kept else 0
    return {
        name: max(
            (s for s in shapes[name] if s.size <= shapes[name][0].size + extra),
            key=lambda s: (s.slots, s.size),
        )
        for name in kept
    }
