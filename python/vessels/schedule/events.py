"""What a scheduler is told. Times are seconds of any one clock that does not go back.

A *ticket* stands for a request from its arrival until it is answered or refused. Who tells of a
request makes up its ticket; environments are numbered by the scheduler, from 1, never twice.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wanted:
    """Somebody asks for evidence of an environment of ``model``, any: it will be assigned one."""

    now: float
    ticket: int
    model: str
    deadline: float | None = None


@dataclass(frozen=True)
class Arrived:
    """A request for a prediction, sealed to the key of ``environment``, which alone can open it.

    ``deadline`` is when its answer is of no more use, as a time, not a duration.
    """

    now: float
    ticket: int
    environment: int
    deadline: float | None = None


@dataclass(frozen=True)
class Gone:
    """Nobody waits for ``ticket`` any more. If it runs already, it runs to its end."""

    now: float
    ticket: int


@dataclass(frozen=True)
class Ready:
    """``environment`` has its key and answers requests."""

    now: float
    environment: int


@dataclass(frozen=True)
class Finished:
    """The run that ``environment`` was told to do is over; its requests have been answered.

    ``computed_count`` of them were predictions, all of them if it is not given. What is refused
    inside takes next to nothing, and must not count for how long predictions take.
    """

    now: float
    environment: int
    computed_count: int | None = None


@dataclass(frozen=True)
class Ended:
    """``environment`` is no more, whether it was told to stop or not, and its memory is free."""

    now: float
    environment: int


@dataclass(frozen=True)
class Tick:
    """Time has passed: due at :meth:`~vessels.schedule.scheduler.Scheduler.wake`."""

    now: float


Event = Wanted | Arrived | Gone | Ready | Finished | Ended | Tick
