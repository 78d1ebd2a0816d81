"""Whether a request is taken into a queue: only if it will probably be answered in time.

A request without a deadline has a patience, chosen so that a machine that is asked for too much
neither runs out of work nor lets a queue grow that is of no use. At 90 % of the capacity, with
arrivals at random and even runs, more than n requests wait in exp(-2 (1 - 0.9) n) of all moments:
in one of a hundred more than ``ALONE_COUNT``. A batch waits for the one before it and for the turns
of others besides; with those in their batches ``QUEUED_COUNT`` more are enough. A queue of that
length costs hardly a request there (one to four in a thousand, by the simulator), and bounds what
any request waits under whatever load.
"""

from __future__ import annotations

from dataclasses import dataclass

from vessels.schedule.dispatch import DOUBT_SECONDS
from vessels.schedule.fairness import shares
from vessels.schedule.state import Environment, Fleet, State

ALONE_COUNT = 24
"""So many requests may be answered before one at least: also a few dozen clients of a model."""
QUEUED_COUNT = 12
"""So many besides batches."""
BATCH_COUNT = 2.0
"""Full runs that are waited for: the one under way, and one's own."""
OTHERS_COUNT = 1.75
"""How many turns of all others are waited for, if runs are of batches."""
LEAST_PATIENCE = 0.1
"""Seconds, below which what is not the scheduler's to plan weighs more than the runs."""
MARGIN = 0.9
"""The part of the time until a stated deadline that the estimate may take up."""


@dataclass(frozen=True)
class Verdict:
    """``late_seconds`` above 0: it is refused. After ``deadline`` its answer is of no use."""

    deadline: float
    late_seconds: float


class Admission:
    """Estimates for a request that would join the queue of an environment."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def judge(self, environment: Environment, now: float, stated: float | None) -> Verdict:
        """On a request that would join the queue of ``environment``, with a ``stated`` deadline."""
        model = environment.model
        share = self.share(environment)
        expected = self.expected(environment, now, share)
        if stated is None and model.spec.deadline is not None:
            stated = now + model.spec.deadline
        if stated is None:
            patience = self.patience(environment, now, share)
            return Verdict(now + 2 * patience, expected - patience)
        idle = environment.state is State.READY and not environment.queue and share == 1.0
        late = expected - (stated - now) * (1.0 if idle else MARGIN)
        if late > 0 and idle and stated > now and environment.ran_at <= now - DOUBT_SECONDS:
            return Verdict(now + 2 * expected, 0.0)
        return Verdict(stated, late)

    def patience(self, environment: Environment, now: float, share: float) -> float:
        """The seconds that a request without a deadline may be expected to take."""
        slots = environment.shape.slots
        run = environment.run_seconds(slots)
        # Others' runs come between two of this model, the more so the longer its own batches.
        turns = OTHERS_COUNT * (1 / share - 1) * (1 - 1 / slots)
        mean = self._mean_seconds(environment, now)
        batches = run * (BATCH_COUNT + turns) + QUEUED_COUNT * mean
        return max(LEAST_PATIENCE, batches, ALONE_COUNT * mean)

    def _mean_seconds(self, environment: Environment, now: float) -> float:
        """The mean time between two answers while all that can run does, by what is asked for."""
        threads = work = demand = 0.0
        for model in self._fleet.models.values():
            own = model is environment.model
            if own or model.busy_threads:
                shape = environment.shape if own else model.environments[0].shape
                each = model.estimates.run_seconds(shape, shape.slots) / shape.slots
                asked = model.demand(now)
                threads += max(model.busy_threads, shape.threads)
                work += asked * each * shape.threads
                demand += asked
        return work / demand / min(threads, self._fleet.machine.core_count)

    def expected(self, environment: Environment, now: float, share: float) -> float:
        """The seconds until a request that joined the queue of ``environment`` now is answered."""
        slots = environment.shape.slots
        before, place = divmod(len(environment.queue), slots)
        # Those that come later fill the batch it would be in if that must wait, and do so before
        # it runs if nobody else does.
        waits = before > 0 or place > 0 or environment.state is not State.READY
        last = slots if waits and share == 1.0 else place + 1
        own = before * environment.run_seconds(slots) + environment.run_seconds(last)
        remaining = environment.remaining(now)
        # Its share is what it gets when all others have work for as long, as they have when no core
        # is ever idle; else the work that there is, done by all cores, is the most to come before.
        if self._fleet.is_saturated(now):
            return remaining + own / share
        return remaining + min(own / share, own + self._others(environment, now))

    def share(self, environment: Environment) -> float:
        """The part of the time that ``environment`` may run, between 0 and 1."""
        model = environment.model
        own = model.busy_threads
        if not environment.busy_threads:
            own += environment.shape.threads
        others = [m for m in self._fleet.models.values() if m.busy_threads and m is not model]
        cores = self._fleet.machine.core_count
        if own + sum(other.busy_threads for other in others) <= cores:
            return 1.0
        wanted = [(model.spec.weight, own)]
        wanted += [(other.spec.weight, other.busy_threads) for other in others]
        return shares(cores, wanted)[0] / own

    def _others(self, environment: Environment, now: float) -> float:
        fleet = self._fleet
        work = fleet.queued_work - environment.queued_work
        for other in fleet.running.values():
            if other is not environment:
                work += other.remaining(now) * other.shape.threads
        return work / fleet.machine.core_count
