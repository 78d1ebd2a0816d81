"""The scheduler: told what happens, it says what is to be done.

It has no clock, does nothing itself and decides the same for the same events. Its parts:
:mod:`~vessels.schedule.placement` says which environments there are,
:mod:`~vessels.schedule.admission` which requests they take,
:mod:`~vessels.schedule.dispatch` which run next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vessels.schedule.account import EpcAccount
from vessels.schedule.admission import Admission, Verdict
from vessels.schedule.decisions import Assign, Decision, Reason, Refuse, Run, Stop
from vessels.schedule.dispatch import Dispatch, batch, hopeless
from vessels.schedule.events import Arrived, Ended, Event, Finished, Gone, Ready, Tick, Wanted
from vessels.schedule.eviction import EXPECTED_SECONDS, RESIDENCE
from vessels.schedule.fitting import fitting
from vessels.schedule.model import Machine, ModelSpec, Shape
from vessels.schedule.placement import Placement
from vessels.schedule.reshape import EVERY_SECONDS
from vessels.schedule.state import Environment, Fleet, Model, Request, State
from vessels.schedule.waiting import Waiting

WANT_SECONDS = 30.0
"""So long somebody without a deadline waits for an environment."""
RESTART_SECONDS = 0.5
"""The delay before an environment that ended unasked is launched again; it doubles each time."""
MOST_RESTART_SECONDS = 30.0
HEALTHY_SECONDS = 10.0
"""An environment that was ready for so long, or a model without a failure for so much longer than
its last delay, failed for a new reason."""


@dataclass(frozen=True)
class EnvironmentView:
    """What is told of an environment. ``queued_count`` requests wait for it, and none runs yet."""

    environment: int
    model: str
    shape: Shape
    state: State
    queued_count: int


class Scheduler:
    """Schedules ``models`` on ``machine``.

    Raises :class:`~vessels.errors.UsageError` when no shape of a model fits the machine, with the
    figure it needs.
    """

    def __init__(self, machine: Machine, models: Sequence[ModelSpec]) -> None:
        self._fleet = Fleet(machine, fitting(machine, models))
        self._placement = Placement(self._fleet)
        self._admission = Admission(self._fleet)
        self._dispatch = Dispatch(self._fleet)
        self._waiting = Waiting(self._fleet)
        self._drained: list[Environment] = []
        self._decisions: list[Decision] = []

    @property
    def account(self) -> EpcAccount:
        """The trusted memory, and what each environment takes of it."""
        return self._fleet.account

    @property
    def environments(self) -> tuple[EnvironmentView, ...]:
        """All environments, in the order of their launches."""
        return tuple(
            EnvironmentView(
                each.number, each.model.spec.name, each.shape, each.state, len(each.queue)
            )
            for each in self._fleet.environments.values()
        )

    def queue_length(self, model: str) -> int:
        """How many requests wait for ``model``, for an environment or in the queue of one."""
        return self._fleet.models[model].queued_count()

    def wake(self) -> float | None:
        """When a :class:`Tick` is due, if nothing else happens before; 0 is at once."""
        due = min(self._waiting.next_end(), self._placement.wake)
        return None if due == float("inf") else due

    def foresee(self, event: Arrived) -> Refuse | None:
        """How ``event`` would be refused now: its request need not be read first, then.

        A refusal counts as a request for the model. Nothing else changes by this; a request that is
        not refused so is told of when it has arrived.
        """
        found = self._judged(event)
        if not isinstance(found, Refuse):
            return None
        environment = self._fleet.environments.get(event.environment)
        if environment is not None:
            environment.model.ask(event.now)
        return found

    def handle(self, event: Event) -> list[Decision]:
        """What is to be done after ``event``, in the order in which it is to be begun.

        Events of environments that have ended, and of tickets that are answered, are ignored.
        """
        self._decisions = []
        now = event.now
        match event:
            case Wanted():
                self._wanted(event)
            case Arrived():
                self._arrived(event)
            case Gone():
                self._waiting.remove(event.ticket)
            case Ready() | Finished() | Ended():
                environment = self._fleet.environments.get(event.environment)
                if environment is not None:
                    self._environment_event(event, environment)
            case Tick():
                pass
        self._run(now)
        for ticket in self._waiting.ended(now):
            self._too_late(ticket)
        if self._placement.wake <= now or self._may_change(event):
            self._place(now)
        self._stop_drained()
        return self._decisions

    def _may_change(self, event: Event) -> bool:
        """Whether there may be something to place after ``event``, which is not so after most."""
        if isinstance(event, Finished):
            return self._placement.line_count > 0
        return isinstance(event, Wanted | Ready | Ended)

    def _wanted(self, event: Wanted) -> None:
        model = self._fleet.models[event.model]
        now = event.now
        model.ask(now)
        live = model.live()
        if live:
            chosen = min(live, key=lambda each: self._load(each, now))
            if event.deadline is not None and now + chosen.remaining(now) > event.deadline:
                self._refuse(event.ticket, Reason.NO_ROOM, chosen.remaining(now))
            else:
                self._assign(event.ticket, chosen, now)
            return
        if model.waiting_since is None:
            model.waiting_since = now
        start = max(0.0, model.restart_at - now) + model.start_seconds
        deadline = now + WANT_SECONDS if event.deadline is None else event.deadline
        if now + start > deadline:
            self._refuse(event.ticket, Reason.NO_ROOM, start)
        elif len(model.wants) >= model.spec.queue_count:
            self._refuse(event.ticket, Reason.OVERLOADED, start)
        else:
            self._waiting.add(Request(event.ticket, now, deadline), model, deadline)

    def _arrived(self, event: Arrived) -> None:
        now = event.now
        environment = self._fleet.environments.get(event.environment)
        if environment is not None and environment.live:
            environment.model.ask(now)
            environment.expected_count = max(0, environment.expected_count - 1)
            environment.used_at = now
        found = self._judged(event)
        if isinstance(found, Refuse):
            self._decisions.append(found)
            return
        assert environment is not None
        request = Request(event.ticket, now, found.deadline)
        self._waiting.add(request, environment, found.deadline - environment.run_seconds(1))
        self._measure(environment.model, now)
        self._placement.wake = min(self._placement.wake, now + EVERY_SECONDS)

    def _judged(self, event: Arrived) -> Refuse | Verdict:
        """What becomes of a request."""
        now, ticket = event.now, event.ticket
        environment = self._fleet.environments.get(event.environment)
        if environment is None or not environment.live:
            return Refuse(ticket, Reason.ELSEWHERE, 0.0)
        model = environment.model
        if self._is_better_elsewhere(environment, now):
            model.moved_at = now
            return Refuse(ticket, Reason.ELSEWHERE, 0.0)
        verdict = self._admission.judge(environment, now, event.deadline)
        full = model.queued_count() >= model.spec.queue_count
        if full or verdict.late_seconds > 0:
            run = environment.run_seconds(environment.shape.slots)
            return Refuse(ticket, Reason.OVERLOADED, max(run, verdict.late_seconds))
        return verdict

    def _environment_event(self, event: Ready | Finished | Ended, environment: Environment) -> None:
        now = event.now
        if isinstance(event, Ended):
            self._ended(environment, now)
        elif isinstance(event, Ready) and environment.state is State.STARTING:
            environment.state = State.READY
            environment.ready_at = environment.used_at = now
            environment.model.estimates.add_start(environment.shape, now - environment.launched_at)
            replaced = environment.replaces
            if replaced is not None and replaced.number in self._fleet.environments:
                self._drain(replaced)
        elif isinstance(event, Finished) and environment.state is State.RUNNING:
            self._dispatch.finish(environment, now, event.computed_count)

    def _ended(self, environment: Environment, now: float) -> None:
        told = environment.state is State.STOPPING
        for ticket in list(environment.queue):
            self._waiting.remove(ticket)
            self._refuse(ticket, Reason.ENDED, environment.start_seconds)
        self._fleet.forget(environment, now)
        if environment in self._drained:
            self._drained.remove(environment)
        if not told:
            self._fail(environment, now)

    def _fail(self, environment: Environment, now: float) -> None:
        """It ended unasked, or never became ready: the next one has to wait for a while."""
        model = environment.model
        healthy = environment.ready_at and now - environment.ready_at >= HEALTHY_SECONDS
        long_ago = now - model.restart_at >= HEALTHY_SECONDS
        delay = 0.0 if healthy or long_ago else model.restart_delay
        model.restart_delay = min(MOST_RESTART_SECONDS, 2 * delay or RESTART_SECONDS)
        model.restart_at = now + model.restart_delay

    def _run(self, now: float) -> None:
        while (environment := self._dispatch.next(now)) is not None:
            for request in hopeless(environment, now):
                self._too_late(request.ticket)
            chosen = batch(environment, now)
            if not chosen:
                continue
            for request in chosen:
                self._waiting.remove(request.ticket)
            self._dispatch.begin(environment, len(chosen), now)
            tickets = tuple(request.ticket for request in chosen)
            self._decisions.append(Run(environment.number, tickets))
            self._measure(environment.model, now)

    def _place(self, now: float) -> None:
        for launch in self._placement.place(now):
            self._decisions.append(launch)
            environment = self._fleet.environments[launch.environment]
            environment.model.waiting_since = None
            for ticket in list(environment.model.wants):
                self._waiting.remove(ticket)
                self._assign(ticket, environment, now)
        for environment in self._placement.leaving:
            self._drain(environment)
            environment.model.absent_until = now + RESIDENCE * environment.start_seconds
            if environment.state is State.STARTING:
                self._fail(environment, now)
            for ticket in list(environment.queue):
                self._waiting.remove(ticket)
                self._refuse(ticket, Reason.ELSEWHERE, 0.0)

    def _drain(self, environment: Environment) -> None:
        if environment.live:
            environment.drained = True
            self._drained.append(environment)

    def _stop_drained(self) -> None:
        for environment in self._drained:
            if environment.state is not State.RUNNING and not environment.queue:
                environment.state = State.STOPPING
                self._decisions.append(Stop(environment.number))
        self._drained = [each for each in self._drained if each.state is not State.STOPPING]

    def _assign(self, ticket: int, environment: Environment, now: float) -> None:
        if now - environment.used_at > EXPECTED_SECONDS:
            environment.expected_count = 0
        environment.expected_count += 1
        environment.used_at = now
        self._decisions.append(Assign(ticket, environment.number))

    def _load(self, environment: Environment, now: float) -> tuple[float, int]:
        expected = environment.expected_count / environment.shape.slots
        run = environment.run_seconds(environment.shape.slots)
        return environment.backlog(now) + expected * run, environment.number

    def _is_better_elsewhere(self, environment: Environment, now: float) -> bool:
        others = [each for each in environment.model.live() if each.state is not State.STARTING]
        if len(others) < 2:
            return False
        run = environment.run_seconds(environment.shape.slots)
        if now - environment.model.moved_at < run / environment.shape.slots:
            return False
        least = min(self._load(each, now)[0] for each in others)
        return environment.backlog(now) > least + 2 * run

    def _measure(self, model: Model, now: float) -> None:
        """Note whether the queue of ``model`` is long, and since when."""
        slots = sum(each.shape.slots for each in model.live())
        if model.queued_count() <= slots:
            model.long_since = None
        elif model.long_since is None:
            model.long_since = now
            self._placement.wake = min(self._placement.wake, now)

    def _too_late(self, ticket: int) -> None:
        where = self._waiting.remove(ticket)
        if isinstance(where, Environment):
            self._refuse(ticket, Reason.OVERLOADED, where.run_seconds(where.shape.slots))
        elif where is not None:
            self._refuse(ticket, Reason.NO_ROOM, where.start_seconds)

    def _refuse(self, ticket: int, reason: Reason, retry_after: float) -> None:
        self._decisions.append(Refuse(ticket, reason, retry_after))
