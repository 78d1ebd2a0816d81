"""A machine in simulated time that does what a scheduler decides, and holds it to its promises."""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vessels.schedule.decisions import Assign, Decision, Launch, Refuse, Run, Stop
from vessels.schedule.events import Arrived, Ended, Event, Finished, Gone, Ready, Tick, Wanted
from vessels.schedule.model import Machine, ModelSpec, Shape
from vessels.schedule.scheduler import Scheduler

MIB = 1 << 20


@dataclass
class Running:
    """An environment as the machine has it."""

    model: str
    shape: Shape
    launched_at: float
    state: str = "starting"
    """One of starting, ready, running, stopping."""


@dataclass
class Outcome:
    """What became of a ticket."""

    model: str
    arrival: float
    deadline: float | None
    end: float
    what: str
    """A refusal's reason, or: assigned, answered, ended, gone."""
    environment: int = 0


Client = Callable[[float], None]


@dataclass
class Bench:
    """Runs a scheduler, with ``seconds`` saying what a run takes, and checks every decision."""

    machine: Machine
    specs: Sequence[ModelSpec]
    seconds: Callable[[ModelSpec, Shape, int], float] = lambda spec, _, n: spec.run_time.seconds(n)
    start: Callable[[ModelSpec], float] = lambda spec: spec.start_seconds
    stop_seconds: float = 0.01
    seed: int = 0
    now: float = 0.0
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    environments: dict[int, Running] = field(default_factory=dict)
    batches: Counter[int] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)
    used_cores: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    assigned: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.machine, self.specs)
        self.by_name = {spec.name: spec for spec in self.specs}
        self.random = random.Random(self.seed)
        self.waiting: dict[int, Outcome] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._tickets = 0
        self._free_cores = self.machine.core_count

    def at(self, time: float, do: Callable[[], None]) -> None:
        """Do something at a time."""
        self._count += 1
        heapq.heappush(self._timers, (time, self._count, do))

    def run(self, until: float) -> None:
        """Let time pass."""
        while True:
            wake = self.scheduler.wake()
            timer = self._timers[0][0] if self._timers else float("inf")
            if wake is not None and wake <= timer and wake <= until:
                before = self.now, wake
                self.now = max(self.now, wake)
                self.tell(Tick(self.now))
                assert (self.now, self.scheduler.wake()) != before or wake == 0.0, "no progress"
            elif timer <= until:
                self.now, _, do = heapq.heappop(self._timers)
                do()
            else:
                self.now = until
                return

    def want(self, model: str, deadline: float | None = None) -> int:
        """Ask for evidence."""
        ticket = self._ticket(model, deadline)
        self.tell(Wanted(self.now, ticket, model, deadline))
        return ticket

    def arrive(self, environment: int, model: str, deadline: float | None = None) -> int:
        """Send a request to an environment."""
        ticket = self._ticket(model, deadline)
        self.tell(Arrived(self.now, ticket, environment, deadline))
        return ticket

    def request(self, model: str, deadline: float | None = None, retry: bool = True) -> None:
        """Send a request to the environment last assigned, or ask for one first."""
        environment = self.assigned.get(model)
        if environment is not None and self._is_ready(environment):
            ticket = self.arrive(environment, model, deadline)
            outcome = self.outcomes.get(ticket)
            if outcome is None or outcome.what != "elsewhere" or not retry:
                return
        del environment
        self.assigned.pop(model, None)
        self._attest(model, deadline)

    def leave(self, ticket: int) -> None:
        """A client goes."""
        if ticket in self.waiting:
            self._answer(ticket, "gone")
        self.tell(Gone(self.now, ticket))

    def kill(self, environment: int) -> None:
        """An environment dies."""
        running = self.environments.pop(environment, None)
        if running is not None:
            if running.state == "running":
                self._free_cores += running.shape.threads
            self.tell(Ended(self.now, environment))

    def tell(self, event: Event) -> None:
        """Tell an event, and do what is decided."""
        for decision in self.scheduler.handle(event):
            self._do(decision)
        account = self.scheduler.account
        sizes = {number: each.shape.size for number, each in self.environments.items()}
        assert dict(account.by_environment) == sizes
        assert account.capacity is None or sum(sizes.values()) == account.used <= account.capacity
        assert self._free_cores >= 0

    def _do(self, decision: Decision) -> None:
        match decision:
            case Launch(number, model, shape):
                assert number not in self.environments
                assert shape in self.by_name[model].shapes
                self.environments[number] = Running(model, shape, self.now)
                self.launches[model] += 1
                start = self.start(self.by_name[model])
                if start < float("inf"):
                    self.at(self.now + start, lambda: self._ready(number))
            case Stop(number):
                running = self.environments[number]
                hangs = running.state == "starting" and self.now >= running.launched_at + 5
                assert running.state == "ready" or hangs
                running.state = "stopping"
                self.at(self.now + self.stop_seconds, lambda: self.kill(number))
            case Assign(ticket, number):
                assert self.environments[number].state != "stopping"
                model = self._answer(ticket, "assigned", number).model
                assert model == self.environments[number].model
                self.assigned[model] = number
            case Run(number, tickets):
                running = self.environments[number]
                assert running.state == "ready"
                assert 1 <= len(tickets) <= running.shape.slots
                running.state = "running"
                self._free_cores -= running.shape.threads
                assert self._free_cores >= 0
                self.batches[len(tickets)] += 1
                spec = self.by_name[running.model]
                seconds = self.seconds(spec, running.shape, len(tickets))
                self.used_cores[running.model] += seconds * running.shape.threads
                for ticket in tickets:
                    outcome = self._answer(ticket, "ended", number)
                    assert outcome.model == running.model
                self.at(self.now + seconds, lambda: self._finished(number, tickets))
            case Refuse(ticket, reason, retry_after):
                assert retry_after >= 0
                self._answer(ticket, reason.value)

    def _answer(self, ticket: int, what: str, environment: int = 0) -> Outcome:
        outcome = self.waiting.pop(ticket)  # Raises if the ticket was answered before.
        outcome.end, outcome.what, outcome.environment = self.now, what, environment
        self.outcomes[ticket] = outcome
        return outcome

    def _ready(self, number: int) -> None:
        running = self.environments.get(number)
        if running is not None and running.state == "starting":
            running.state = "ready"
            self.tell(Ready(self.now, number))

    def _finished(self, number: int, tickets: tuple[int, ...]) -> None:
        running = self.environments.get(number)
        if running is None:
            return
        self._free_cores += running.shape.threads
        running.state = "ready"
        for ticket in tickets:
            self.outcomes[ticket].what = "answered"
            self.outcomes[ticket].end = self.now
        self.tell(Finished(self.now, number))

    def _ticket(self, model: str, deadline: float | None) -> int:
        self._tickets += 1
        self.waiting[self._tickets] = Outcome(model, self.now, deadline, 0.0, "")
        return self._tickets

    def _attest(self, model: str, deadline: float | None) -> None:
        """Ask for evidence, and send the request when the environment that is assigned is ready."""
        ticket = self.want(model)

        def look() -> None:
            outcome = self.outcomes.get(ticket)
            if outcome is None:
                return self.at(self.now + 0.005, look)
            if outcome.what != "assigned" or outcome.environment not in self.environments:
                return None
            if self.environments[outcome.environment].state == "starting":
                return self.at(self.now + 0.005, look)
            self.arrive(outcome.environment, model, deadline)
            return None

        look()

    def _is_ready(self, environment: int) -> bool:
        running = self.environments.get(environment)
        return running is not None and running.state != "starting"


def poisson(bench: Bench, model: str, rate: float, until: float, **options: float) -> None:
    """Requests for ``model`` at random times, ``rate`` a second."""
    deadline = options.get("deadline")

    def send() -> None:
        if bench.now < until:
            bench.request(model, None if deadline is None else bench.now + deadline)
            bench.at(bench.now + bench.random.expovariate(rate), send)

    bench.at(bench.now + bench.random.expovariate(rate), send)


def answered(bench: Bench, model: str | None = None, after: float = 0.0) -> list[float]:
    """The seconds that the answered requests took, in order of size."""
    return sorted(
        outcome.end - outcome.arrival
        for outcome in bench.outcomes.values()
        if outcome.what == "answered"
        and outcome.arrival >= after
        and model in (None, outcome.model)
    )
