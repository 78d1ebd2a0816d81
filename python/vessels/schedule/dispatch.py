"""Which environment runs next, and which of the requests in its queue.

As many runs as there are cores for. Whose turn it is, the virtual time of fair queueing says; a
model whose run needs more cores than are free has them kept for it once it has waited for a while.
"""

from __future__ import annotations

from vessels.schedule.fairness import FairClock
from vessels.schedule.state import Environment, Fleet, Request, State

DOUBT_SECONDS = 1.0
"""An environment that has run nothing for so long may be faster than it is believed to be."""


class Dispatch:
    """The cores of a machine, and who gets them."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._clock = FairClock([model.spec.weight for model in fleet.models.values()])
        self._kept_for: Environment | None = None
        self._kept_since = 0.0

    def next(self, now: float) -> Environment | None:
        """The environment that runs next, now, if any may."""
        free = self._fleet.free_cores
        if free <= 0:
            return None
        ready = [
            environment
            for environment in self._fleet.environments.values()
            if environment.state is State.READY and environment.queue
        ]
        if not ready:
            self._kept_for = None
            return None
        first = min(ready, key=self._turn)
        if first.shape.threads <= free:
            return first
        if self._kept_for is not first:
            self._kept_for, self._kept_since = first, now
        if now - self._kept_since >= first.run_seconds(1):
            return None
        fitting = [each for each in ready if each.shape.threads <= free]
        return min(fitting, key=self._turn, default=None)

    def begin(self, environment: Environment, count: int, now: float) -> None:
        """``environment`` begins a run of ``count`` requests."""
        threads = environment.shape.threads
        environment.run_began_at = now
        environment.run_count = count
        environment.run_expected = environment.run_seconds(count)
        self._clock.begin(environment.model.index, environment.run_expected * threads)
        self._fleet.begin(environment, now)

    def finish(self, environment: Environment, now: float, computed_count: int | None) -> None:
        """The run of ``environment`` is over, as :class:`Finished` says."""
        threads, count = environment.shape.threads, environment.run_count
        if computed_count is not None:
            count = min(count, computed_count)
        self._fleet.finish(environment, now)
        doubted = environment.run_began_at >= environment.ran_at + DOUBT_SECONDS
        environment.used_at = environment.ran_at = now
        seconds = now - environment.run_began_at
        surplus = seconds - environment.run_expected
        self._clock.correct(environment.model.index, surplus * threads)
        if count:
            environment.model.estimates.add_run(environment.shape, count, seconds, doubted=doubted)

    def _turn(self, environment: Environment) -> tuple[float, float, int]:
        first = next(iter(environment.queue.values()))
        return self._clock.start(environment.model.index), first.arrival, environment.number


def batch(environment: Environment, now: float) -> list[Request]:
    """The requests of the queue that run together if ``environment`` runs now.

    In their order, as many as there are slots, but none of them so that the run would end beyond
    the deadline of one in it that fewer would meet. Those that cannot be met are not in it.
    """
    chosen: list[Request] = []
    earliest = float("inf")
    for request in environment.queue.values():
        if len(chosen) == environment.shape.slots:
            break
        end = now + environment.run_seconds(len(chosen) + 1)
        if end > earliest:
            break
        if end <= request.deadline:
            chosen.append(request)
            earliest = min(earliest, request.deadline)
    return chosen


def hopeless(environment: Environment, now: float) -> list[Request]:
    """The requests of the queue that would be too late even if they ran now, alone."""
    alone = now + environment.run_seconds(1)
    return [request for request in environment.queue.values() if request.deadline < alone]
