"""What the scheduler knows at a moment: models, their environments, and who waits for which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from vessels.schedule.account import EpcAccount
from vessels.schedule.estimates import Estimates
from vessels.schedule.model import Machine, ModelSpec, Shape

DEMAND_SECONDS = 10.0
LATELY_SECONDS = 3.0
IDLE_SHARE = 0.03


class State(StrEnum):
    """Of an environment, from its launch to its end."""

    STARTING = "starting"
    READY = "ready"
    RUNNING = "running"
    STOPPING = "stopping"


@dataclass(slots=True)
class Request:
    """A request that waits: for an environment of its model, or in the queue of one.

    After ``deadline`` nobody wants its answer.
    """

    ticket: int
    arrival: float
    deadline: float


@dataclass(slots=True, eq=False)
class Environment:
    """One environment. ``drained`` says that it takes no more requests and stops after its last."""

    number: int
    model: Model
    shape: Shape
    launched_at: float
    state: State = State.STARTING
    drained: bool = False
    queue: dict[int, Request] = field(default_factory=dict)
    """By ticket, in the order of arrival."""
    ready_at: float = 0.0
    used_at: float = 0.0
    """When a request or an assignment last came, or a run last ended."""
    expected_count: int = 0
    """Assignments whose request has not arrived yet."""
    run_began_at: float = 0.0
    ran_at: float = float("-inf")
    """When its last run ended."""
    run_count: int = 0
    run_expected: float = 0.0
    table: list[float] = field(default_factory=list)
    """What runs are expected to take, by requests, as of ``table_version`` of the estimates."""
    table_version: int = -1
    queued_work: float = 0.0
    """The core-seconds that it needs for all that waits in it, as of the last change."""
    busy_threads: int = 0
    """Its threads while it runs or has something to run."""
    replaces: Environment | None = None
    """The one that goes as soon as this is ready."""

    @property
    def live(self) -> bool:
        """Whether it takes requests, now or once it is ready."""
        return not self.drained and self.state is not State.STOPPING

    @property
    def start_seconds(self) -> float:
        """What its start is expected to take, or to have taken."""
        return self.model.estimates.start_seconds(self.shape)

    def run_seconds(self, count: int) -> float:
        """What a run of ``count`` requests is expected to take here."""
        estimates = self.model.estimates
        if self.table_version != estimates.version:
            self.table, self.table_version = estimates.table(self.shape), estimates.version
        return self.table[count]

    def remaining(self, now: float) -> float:
        """The seconds until it could begin a run, as far as it is up to itself."""
        if self.state is State.RUNNING:
            return max(0.0, self.run_began_at + self.run_expected - now)
        if self.state is State.STARTING:
            return max(0.0, self.launched_at + self.start_seconds - now)
        return 0.0

    def backlog(self, now: float) -> float:
        """The seconds that it needs for all that runs and waits in it."""
        return self.remaining(now) + self.queued_seconds()

    def queued_seconds(self) -> float:
        """The seconds that it needs for all that waits in it."""
        full, rest = divmod(len(self.queue), self.shape.slots)
        return full * self.run_seconds(self.shape.slots) + self.run_seconds(rest)


@dataclass(slots=True, eq=False)
class Model:
    """One model. ``widths`` are its shapes that fit the machine, by threads, each by size."""

    index: int
    spec: ModelSpec
    widths: dict[int, tuple[Shape, ...]]
    estimates: Estimates
    shapes: tuple[Shape, ...] = field(init=False)
    """Those that it may be launched in, of one number of threads."""
    environments: list[Environment] = field(default_factory=list)
    wants: dict[int, Request] = field(default_factory=dict)
    """Who asks for an environment while there is none to assign."""
    waiting_since: float | None = None
    """Since when it needs an environment and has none."""
    long_since: float | None = None
    """Since when more requests wait than its environments take in one run each."""
    moved_at: float = 0.0
    """When a request was last sent from one of its environments to another."""
    restart_at: float = 0.0
    """Not to be launched before, since it ended unasked."""
    restart_delay: float = 0.0
    absent_until: float = 0.0
    """Not to be launched unasked before, since it had to make room."""
    asked_count: float = 0.0
    """Its requests, each counting less the longer ago it was."""
    asked_at: float = 0.0
    frontier: tuple[int, list[Shape]] | None = None
    """The shapes worth taking, and as of which version of the estimates."""
    busy_threads: int = 0
    """The threads of its environments that run or have something to run."""
    excess_size: int = 0
    """By which its environments have been found to be larger than planned."""

    @property
    def start_seconds(self) -> float:
        """What a start is expected to take in its most frugal shape."""
        return self.estimates.start_seconds(self.shapes[0])

    def widen(self, threads: int) -> None:
        """Let it be launched in shapes of at most so many threads, if it has any."""
        fitting = [width for width in self.widths if width <= threads]
        shapes = self.widths[max(fitting) if fitting else min(self.widths)]
        if shapes is not self.shapes:
            self.shapes, self.frontier = shapes, None

    def __post_init__(self) -> None:
        self.shapes = self.widths[min(self.widths)]

    def live(self) -> list[Environment]:
        """Its environments that take requests, now or once they are ready."""
        return [environment for environment in self.environments if environment.live]

    def queued_count(self) -> int:
        """The requests that wait for it, for an environment or in the queue of one."""
        return len(self.wants) + sum(len(each.queue) for each in self.environments)

    def demand(self, now: float) -> float:
        """Requests a second of late, those of ``DEMAND_SECONDS`` ago counting 1/e of the last.

        It never is quite nothing, as one without requests so far may get some.
        """
        late = self.asked_count * math.exp((self.asked_at - now) / DEMAND_SECONDS)
        return (late + self.spec.weight) / DEMAND_SECONDS

    def ask(self, now: float) -> None:
        """A request has come, or a wish for an environment."""
        late = self.asked_count * math.exp((self.asked_at - now) / DEMAND_SECONDS)
        self.asked_count, self.asked_at = late + 1, now


class Fleet:
    """All models and environments of a machine, with its memory and its cores."""

    def __init__(self, machine: Machine, models: Sequence[Model]) -> None:
        self.machine = machine
        self.models = {model.spec.name: model for model in models}
        self.environments: dict[int, Environment] = {}
        self.account = EpcAccount(machine.epc_size)
        self.free_cores = machine.core_count
        self.running: dict[int, Environment] = {}
        self.queued_work = 0.0
        """The core-seconds that all environments need for what waits in them."""
        self._idle_cores = float(machine.core_count)
        self._cores_at = 0.0
        self._last_number = 0

    def begin(self, environment: Environment, now: float) -> None:
        """A run begins, which takes cores."""
        self._idle_cores, self._cores_at = self._mean_idle_cores(now), now
        self.free_cores -= environment.shape.threads
        environment.state = State.RUNNING
        self.running[environment.number] = environment
        self.recount(environment)

    def finish(self, environment: Environment, now: float) -> None:
        """A run has ended, and its cores are free."""
        self._idle_cores, self._cores_at = self._mean_idle_cores(now), now
        self.free_cores += environment.shape.threads
        environment.state = State.READY
        del self.running[environment.number]
        self.recount(environment)

    def is_saturated(self, now: float) -> bool:
        """Whether hardly any core has been idle of late."""
        return self._mean_idle_cores(now) < IDLE_SHARE * self.machine.core_count

    def _mean_idle_cores(self, now: float) -> float:
        old = math.exp((self._cores_at - now) / LATELY_SECONDS)
        return old * self._idle_cores + (1 - old) * self.free_cores

    def launch(self, model: Model, shape: Shape, now: float) -> Environment:
        """Enter a new environment, which takes its memory from now on."""
        self._last_number += 1
        environment = Environment(self._last_number, model, shape, now, used_at=now)
        self.account.enter(environment.number, shape.size + model.excess_size)
        self.environments[environment.number] = environment
        model.environments.append(environment)
        return environment

    def forget(self, environment: Environment, now: float) -> None:
        """Strike off an environment that has ended."""
        if environment.state is State.RUNNING:
            self.finish(environment, now)
        del self.environments[environment.number]
        environment.model.environments.remove(environment)
        self.account.strike(environment.number)

    def has_room_for(self, model: Model) -> bool:
        """Whether an environment of ``model`` fits the machine at all, as large as they are."""
        capacity = self.machine.epc_size
        smallest = min(shapes[0].size for shapes in model.widths.values())
        return capacity is None or smallest + model.excess_size <= capacity

    def size(self, environment: Environment) -> int:
        """The trusted memory that ``environment`` is accounted for."""
        return self.account.by_environment[environment.number]

    def recount(self, environment: Environment) -> None:
        """Take note that its queue has changed, or that it runs or does not any more."""
        threads = environment.shape.threads
        work = environment.queued_seconds() * threads
        self.queued_work += work - environment.queued_work
        environment.queued_work = work
        busy = environment.state is State.RUNNING or bool(environment.queue)
        environment.model.busy_threads += threads * busy - environment.busy_threads
        environment.busy_threads = threads * busy
