"""The bound is exact for its relaxation, and no scheduler beats it."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scheduling.models import ZOO, simulated
from vessels.schedule.bound import bound, capacity, least, least_percentile
from vessels.schedule.model import Machine, ModelSpec, RunTime, Shape
from vessels.schedule.peers import FirstCome, Static
from vessels.schedule.scheduler import Scheduler
from vessels.schedule.simulate import simulate
from vessels.schedule.simulated import SimulatedModel
from vessels.schedule.simulation import Outcome, Policy
from vessels.schedule.traces import Trace, merged, poisson, zipf

MIB = 1 << 20


def plain(name: str, seconds: float) -> SimulatedModel:
    time = RunTime(0.0, seconds)
    return SimulatedModel(ModelSpec(name, (Shape(0, 1, 1, MIB),)), (time,), (0.0,))


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(1, 10), st.booleans()), min_size=1, max_size=7
    )
)
def test_the_most_work_is_exact(jobs: list[tuple[int, int, bool]]) -> None:
    """Against the duality of flows: over all subsets, what they have time for, and all others."""
    jobs = sorted(jobs)
    models = [plain("short", 1.0), plain("long", 4.0)]
    cost = [4.0 if long else 1.0 for _, _, long in jobs]
    windows = [(start, start + length) for start, length, _ in jobs]
    possible = [b - a >= c for (a, b), c in zip(windows, cost, strict=True)]
    places = [i for i, p in enumerate(possible) if p]
    trace = Trace(
        ("short", "long"),
        30.0,
        np.array([float(a) for a, _ in windows]),
        np.array([int(long) for _, _, long in jobs]),
        np.array([float(b - a) for a, b in windows]),
    )
    subsets = chain.from_iterable(combinations(places, n) for n in range(len(places) + 1))
    expected = min(
        len({t for i in chosen for t in range(*windows[i])})
        + sum(cost[i] for i in places if i not in chosen)
        for chosen in subsets
    )
    assert bound(Machine(1), models, trace).core_seconds == pytest.approx(expected)


def test_cheap_ones_come_first() -> None:
    """Three seconds for a long one of 4 s and two short ones: both short ones, a quarter of it."""
    models = [plain("long", 4.0), plain("short", 1.0)]
    trace = Trace(
        ("long", "short"),
        10.0,
        np.zeros(3),
        np.array([0, 1, 1]),
        np.array([4.0, 3.0, 3.0]),
    )
    found = bound(Machine(1), models, trace)
    assert found.answers == pytest.approx(2 + 2 / 4)
    assert found.core_seconds == pytest.approx(4.0)


def test_the_least_is_of_shapes_that_fit() -> None:
    resnet = simulated(next(f for f in ZOO if f.name == "resnet50"))
    small, large = Machine(2, 20 * MIB), Machine(2, 300 * MIB)
    assert least(large, resnet).core_seconds == pytest.approx(resnet.run_times[-1].each)
    streaming = resnet.run_times[0]
    assert least(small, resnet).core_seconds == pytest.approx(streaming.each + streaming.fixed / 2)
    assert capacity(small, [resnet], [1.0]) == pytest.approx(2 / least(small, resnet).core_seconds)


@pytest.mark.parametrize("load", [0.5, 2.0])
def test_nobody_beats_it(load: float) -> None:
    machine = Machine(2, 93 * MIB)
    models = [simulated(f) for f in ZOO]
    names = [m.spec.name for m in models]
    shares = zipf(len(models))
    random = np.random.default_rng(5)
    rate = load * capacity(machine, models, shares.tolist())
    times = [poisson(rate * share, 40.0, random) for share in shares]
    trace = merged(names, 40.0, times, [max(0.5, f.milliseconds / 100) for f in ZOO])
    most = bound(machine, models, trace)
    costs = np.array([least(machine, m).core_seconds for m in models])
    specs = [m.spec for m in models]
    policies: list[Policy] = [
        FirstCome(machine, specs),
        FirstCome(machine, specs, punctual=True),
        Static(machine, specs, punctual=True),
        Scheduler(machine, specs),
    ]
    assert most.answers <= len(trace) + 1e-6
    for policy in policies:
        result = simulate(policy, machine, models, trace)
        assert result.in_time.sum() <= most.answers + 1e-6
        assert costs[trace.models[result.in_time]].sum() <= most.core_seconds + 1e-6
        answered = int((result.outcomes == Outcome.ANSWERED).sum())
        for percent in (50, 99):
            found = np.percentile(result.latencies, percent, method="inverted_cdf")
            assert found >= least_percentile(machine, models, trace, answered, percent)
