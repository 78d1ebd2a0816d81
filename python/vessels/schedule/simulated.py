"""The simulated machine: carries out decisions in simulated time, and checks each of them.

It trusts no scheduler: a decision that breaks a rule (too much memory, too many cores, a run on
an environment that is not idle, a ticket answered twice) is a :class:`RuleBrokenError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from vessels.schedule.decisions import Launch, Run, Stop
from vessels.schedule.model import Machine, ModelSpec, RunTime, Shape


class RuleBrokenError(AssertionError):
    """A scheduler decided what the machine cannot do, or must not."""


@dataclass(frozen=True)
class SimulatedModel:
    """A model, and what its environments take in truth; the scheduler is told ``spec`` alone.

    ``run_times`` and ``start_seconds`` are by rung, the former of one thread. A run of n threads
    is 1 + (n - 1) * ``efficiency`` times as fast.
    """

    spec: ModelSpec
    run_times: tuple[RunTime, ...]
    start_seconds: tuple[float, ...]
    efficiency: float = 1.0

    def run_seconds(self, shape: Shape, count: int) -> float:
        """The least that a run of ``count`` requests takes."""
        speed = 1 + (shape.threads - 1) * self.efficiency
        return self.run_times[shape.rung].seconds(count) / speed


class State(Enum):
    STARTING = "starting"
    IDLE = "idle"
    RUNNING = "running"
    STOPPING = "stopping"


@dataclass
class SimulatedEnvironment:
    """An environment from its launch to its end; it gives evidence from ``evidence_at`` on."""

    number: int
    model: SimulatedModel
    shape: Shape
    evidence_at: float
    state: State = State.STARTING
    running: tuple[int, ...] = ()


@dataclass
class SimulatedMachine:
    """What runs, and what it takes of the machine; the integrals are over time."""

    machine: Machine
    models: Sequence[SimulatedModel]
    environments: dict[int, SimulatedEnvironment] = field(default_factory=dict)
    used_size: int = 0
    peak_size: int = 0
    busy_threads: int = 0
    busy_core_seconds: float = 0.0
    launches: int = 0
    stops: int = 0
    batch_sizes: list[int] = field(default_factory=list)
    _last: int = 0

    def __post_init__(self) -> None:
        self._by_name = {m.spec.name: m for m in self.models}

    def launch(self, decision: Launch, evidence_at: float) -> SimulatedEnvironment:
        if decision.environment <= self._last:
            raise RuleBrokenError(f"{decision} numbers an environment again")
        model = self._by_name[decision.model]
        if decision.shape not in model.spec.shapes:
            raise RuleBrokenError(f"{decision} is of no shape of its model")
        self._last = decision.environment
        self.used_size += decision.shape.size
        self.peak_size = max(self.peak_size, self.used_size)
        if self.machine.epc_size is not None and self.used_size > self.machine.epc_size:
            raise RuleBrokenError(
                f"{decision} brings the memory to {self.used_size} bytes of {self.machine.epc_size}"
            )
        self.launches += 1
        made = SimulatedEnvironment(decision.environment, model, decision.shape, evidence_at)
        self.environments[made.number] = made
        return made

    def run(self, decision: Run) -> SimulatedEnvironment:
        environment = self._known(decision)
        if environment.state is not State.IDLE:
            raise RuleBrokenError(f"{decision}: it is {environment.state.value}")
        if not 1 <= len(decision.tickets) <= environment.shape.slots:
            raise RuleBrokenError(f"{decision}: it has {environment.shape.slots} slots")
        self.busy_threads += environment.shape.threads
        if self.busy_threads > self.machine.core_count:
            raise RuleBrokenError(f"{decision} brings the threads to {self.busy_threads}")
        environment.state = State.RUNNING
        environment.running = decision.tickets
        self.batch_sizes.append(len(decision.tickets))
        return environment

    def finish(self, environment: SimulatedEnvironment, seconds: float) -> None:
        """The run of ``seconds`` is over."""
        self.busy_threads -= environment.shape.threads
        self.busy_core_seconds += seconds * environment.shape.threads
        environment.state = State.IDLE
        environment.running = ()

    def stop(self, decision: Stop) -> SimulatedEnvironment:
        """Stopping one that still starts is allowed: it has nothing to do."""
        environment = self._known(decision)
        if environment.state not in (State.IDLE, State.STARTING):
            raise RuleBrokenError(f"{decision}: it is {environment.state.value}")
        environment.state = State.STOPPING
        self.stops += 1
        return environment

    def end(self, environment: SimulatedEnvironment) -> tuple[int, ...]:
        """It is no more; the tickets it had in a run."""
        if environment.state is State.RUNNING:
            self.busy_threads -= environment.shape.threads
        self.used_size -= environment.shape.size
        del self.environments[environment.number]
        return environment.running

    def _known(self, decision: Run | Stop) -> SimulatedEnvironment:
        if (environment := self.environments.get(decision.environment)) is None:
            raise RuleBrokenError(f"{decision}: there is no such environment")
        return environment
