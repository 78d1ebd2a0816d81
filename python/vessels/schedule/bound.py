"""What no scheduler can beat, though it knew the whole trace beforehand.

A *relaxation*: the machine is made into one that can do at least whatever the real one does, and
for which the best is found exactly. A request of a model costs the core-seconds of its cheapest
way to be answered: of all shapes that fit the memory alone, a part of a full batch. The cores
are one server of the speed of all of them, which does a request piecemeal, and part of it is that
part of an answer. Environments are there at once and take no memory of each other.

What can then be done of some requests within their windows (from arrival to deadline) is a flow
through intervals of time, so that more requests have less and less to gain from each other
(the sets of work that can be done form a polymatroid). Therefore

- the most work is done by always going on with the earliest deadline of those not yet past, and
- the most answers are had by giving the cheapest model all it can use, the next cheapest what
  it can add to that, and so on (the greedy algorithm is optimal on polymatroids, Edmonds 1970).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vessels.schedule.model import Machine
from vessels.schedule.simulated import SimulatedModel
from vessels.schedule.traces import Trace

Array = np.ndarray[Any, Any]

TOLERANCE = 1e-12
"""Seconds of work that count as none, and as done."""


@dataclass(frozen=True)
class Least:
    """The least that a request of a model takes: core-seconds, and seconds when alone."""

    core_seconds: float
    seconds: float


def least(machine: Machine, model: SimulatedModel) -> Least:
    """Over all shapes that fit the machine."""
    size = machine.epc_size
    shapes = [
        s
        for s in model.spec.shapes
        if s.threads <= machine.core_count and (size is None or s.size <= size)
    ]
    return Least(
        min(s.threads * model.run_seconds(s, n) / n for s in shapes for n in range(1, s.slots + 1)),
        min(model.run_seconds(s, 1) for s in shapes),
    )


def capacity(machine: Machine, models: Sequence[SimulatedModel], shares: Sequence[float]) -> float:
    """The most requests a second, of all models in these ``shares``, that the cores can bear."""
    costs = [least(machine, m).core_seconds for m in models]
    return machine.core_count * sum(shares) / float(np.dot(shares, costs))


@dataclass(frozen=True)
class Bound:
    """The most that can be had of ``trace``, every request in the window from its arrival."""

    answers: float
    core_seconds: float


def bound(
    machine: Machine,
    models: Sequence[SimulatedModel],
    trace: Trace,
    *,
    deadlines: Array | None = None,
) -> Bound:
    """The most answers in time, and the most work that answers in time can amount to.

    ``deadlines`` take the place of the trace's. Work is in core-seconds of :func:`least`.
    """
    windows = trace.deadlines if deadlines is None else deadlines
    costs = [least(machine, m) for m in models]
    possible = windows >= np.array([c.seconds for c in costs])[trace.models]
    cheapest_first = sorted(range(len(models)), key=lambda m: (costs[m].core_seconds, m))
    answers = work = 0.0
    taken = np.zeros(len(models), dtype=bool)
    for model in cheapest_first:
        taken[model] = True
        chosen = taken[trace.models] & possible
        done = _most_work(
            trace.times[chosen],
            windows[chosen],
            np.array([c.core_seconds for c in costs])[trace.models[chosen]] / machine.core_count,
        )
        done *= machine.core_count
        answers += (done - work) / costs[model].core_seconds
        work = done
    return Bound(answers, work)


def least_percentile(
    machine: Machine,
    models: Sequence[SimulatedModel],
    trace: Trace,
    answered: int,
    percent: float,
    *,
    precision: float = 0.01,
) -> float:
    """No scheduler that answers ``answered`` of the requests has a lower percentile of latency.

    So many of them it answers within that time: where the bound on answers is lower for a
    deadline of all, the percentile is higher. Rounded down by at most ``precision`` of it.
    """
    wanted = answered * percent / 100
    low, high = 0.0, 1e-3

    def enough(seconds: float) -> bool:
        every = np.full(len(trace), seconds)
        return bound(machine, models, trace, deadlines=every).answers >= wanted

    while not enough(high):
        low, high = high, high * 2
        if high > trace.seconds * 1000:
            raise ValueError("more answers than requests")
    while high - low > precision * high:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return low


def _most_work(times: Array, windows: Array, costs: Array) -> float:
    """The most seconds that one server can work on these requests within their windows."""
    waiting: list[tuple[float, float]] = []
    now = done = 0.0
    arrivals = zip(times.tolist(), (times + windows).tolist(), costs.tolist(), strict=True)
    for time, deadline, cost in [*arrivals, (np.inf, np.inf, 0.0)]:
        while waiting and now < time:
            ends, left = waiting[0]
            span = min(time, ends, now + left) - now
            span = max(span, 0.0)
            done += span
            now += span
            if left - span <= TOLERANCE:
                done += max(left - span, 0.0)
                heapq.heappop(waiting)
            elif now >= ends:
                heapq.heappop(waiting)
            else:
                heapq.heapreplace(waiting, (ends, left - span))
        now = max(now, time)
        heapq.heappush(waiting, (deadline, cost))
    return done
