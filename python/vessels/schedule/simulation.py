"""What a simulation is of, and what it finds: policies, surroundings, outcomes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np

from vessels.schedule.decisions import Decision, Reason
from vessels.schedule.events import Event
from vessels.schedule.simulated import SimulatedMachine
from vessels.schedule.traces import Trace

Array = np.ndarray[Any, Any]


class Policy(Protocol):
    """What decides. It is told of a ``Tick`` at the very start."""

    def handle(self, event: Event) -> list[Decision]: ...

    def wake(self) -> float | None: ...


class Outcome(IntEnum):
    """How a request ended; the first one is the only answer."""

    ANSWERED = 0
    OVERLOADED = 1
    NO_ROOM = 2
    ELSEWHERE = 3
    ENDED = 4
    LEFT = 5
    NEVER = 6


OUTCOMES = {
    Reason.OVERLOADED: Outcome.OVERLOADED,
    Reason.NO_ROOM: Outcome.NO_ROOM,
    Reason.ELSEWHERE: Outcome.ELSEWHERE,
    Reason.ENDED: Outcome.ENDED,
}


@dataclass(frozen=True)
class Surroundings:
    """What is neither the machine's nor a model's. Times are seconds.

    ``clients`` of each model; ``travel`` of a message, one way; ``evidence`` of giving and checking
    some, which an environment can ``evidence_after`` its launch; ``stop`` until an environment's
    memory is free. A run takes up to ``jitter`` times longer than its least. A start takes
    ``start_core_seconds`` of the cores from the runs that follow it. Environments end by themselves
    ``failures`` times a second of their life. A client leaves at ``patience`` times what its
    request has until its deadline; without, it waits.
    """

    clients: int = 8
    travel: float = 0.001
    evidence: float = 0.01
    evidence_after: float = 0.05
    stop: float = 0.02
    jitter: float = 0.05
    start_core_seconds: float = 0.0
    failures: float = 0.0
    patience: float | None = None


@dataclass(frozen=True)
class Result:
    """What became of each request of ``trace``: when it was settled, and how."""

    trace: Trace
    ends: Array
    outcomes: Array
    machine: SimulatedMachine
    seconds: float

    @property
    def latencies(self) -> Array:
        """Seconds of the answered ones, in no order."""
        answered = self.outcomes == Outcome.ANSWERED
        found: Array = (self.ends - self.trace.times)[answered]
        return found

    @property
    def in_time(self) -> Array:
        """For each request whether it was answered by its deadline."""
        took = self.ends - self.trace.times
        found: Array = (self.outcomes == Outcome.ANSWERED) & (took <= self.trace.deadlines)
        return found
