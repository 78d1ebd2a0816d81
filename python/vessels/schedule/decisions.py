"""What a scheduler says is to be done, in the order in which it is to be begun."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vessels.schedule.model import Shape


class Reason(StrEnum):
    """Why a ticket is refused."""

    OVERLOADED = "overloaded"
    """Too many requests wait for this model, or it would not be answered in time."""
    NO_ROOM = "no_room"
    """There will be no room for an environment of this model in time."""
    ELSEWHERE = "elsewhere"
    """The environment it is for is gone or going; another will do, after evidence of it."""
    ENDED = "ended"
    """The environment ended while the request was in it, or waited for it."""


@dataclass(frozen=True)
class Launch:
    """Start an environment; :class:`~vessels.schedule.events.Ready` or ``Ended`` is to follow."""

    environment: int
    model: str
    shape: Shape


@dataclass(frozen=True)
class Stop:
    """End an environment, which has nothing to do; ``Ended`` is to follow."""

    environment: int


@dataclass(frozen=True)
class Assign:
    """The evidence that ``ticket`` asks for is that of ``environment``, as soon as it gives any.

    The ticket is thereby answered.
    """

    ticket: int
    environment: int


@dataclass(frozen=True)
class Run:
    """Run these requests, at most as many as slots, in one go; ``Finished`` or ``Ended`` follows.

    The tickets are answered by it.
    """

    environment: int
    tickets: tuple[int, ...]


@dataclass(frozen=True)
class Refuse:
    """Answer ``ticket`` with an error; ``retry_after`` are seconds that are worth waiting."""

    ticket: int
    reason: Reason
    retry_after: float


Decision = Launch | Stop | Assign | Run | Refuse
