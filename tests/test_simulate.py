"""The simulator: it loses no request, lets no rule be broken, and agrees with queueing theory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vessels.schedule.decisions import Assign, Decision, Launch, Reason, Refuse, Run, Stop
from vessels.schedule.events import Arrived, Event, Ready, Tick, Wanted
from vessels.schedule.model import Machine, ModelSpec, RunTime, Shape
from vessels.schedule.peers import FirstCome, Static
from vessels.schedule.scheduler import Scheduler
from vessels.schedule.simulate import simulate
from vessels.schedule.simulated import RuleBrokenError, SimulatedModel
from vessels.schedule.simulation import Outcome, Policy, Surroundings
from vessels.schedule.traces import Trace, merged, poisson

MIB = 1 << 20

MakePolicy = Callable[[Machine, Sequence[ModelSpec]], Policy]
POLICIES: dict[str, MakePolicy] = {
    "first come": FirstCome,
    "first come, punctual": lambda m, s: FirstCome(m, s, punctual=True),
    "static": Static,
    "ours": Scheduler,
}
every_policy = pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES)


def model(
    name: str, size: int, milliseconds: float, slots: Sequence[int] = (1, 4), start: float = 0.1
) -> SimulatedModel:
    """One that can stream, or be resident with three times the memory; half of a run is fixed."""
    shapes = [Shape(0, n, 1, size * (n + 1)) for n in slots]
    shapes += [Shape(1, n, 1, size * (n + 3)) for n in slots]
    half = milliseconds / 2000
    run_times = (RunTime(half, half), RunTime(0.0, half))
    spec = ModelSpec(
        name,
        tuple(sorted(shapes, key=lambda s: s.size)),
        run_time=run_times[0],
        start_seconds=start,
    )
    return SimulatedModel(spec, run_times, (start, 2 * start))


def trace_of(
    models: Sequence[SimulatedModel], rates: Sequence[float], seconds: float, seed: int
) -> Trace:
    random = np.random.default_rng(seed)
    times = [poisson(rate, seconds, random) for rate in rates]
    deadlines = [20 * m.run_times[0].seconds(1) for m in models]
    return merged([m.spec.name for m in models], seconds, times, deadlines)


@every_policy
@settings(max_examples=15)
@given(
    seed=st.integers(0, 1000),
    epc=st.integers(10, 60),
    load=st.floats(0.1, 3.0),
    failures=st.sampled_from([0.0, 0.05, 1.0]),
    patience=st.sampled_from([None, 0.5, 1.0]),
)
def test_every_request_is_settled_once(
    make: MakePolicy, seed: int, epc: int, load: float, failures: float, patience: float | None
) -> None:
    machine = Machine(2, epc * MIB)
    models = [model("a", 1 * MIB, 10), model("b", 3 * MIB, 40), model("c", 5 * MIB, 100)]
    rates = [load * 2 / 3 / m.run_times[0].seconds(1) for m in models]
    trace = trace_of(models, rates, 10.0, seed)
    around = Surroundings(failures=failures, patience=patience)
    policy = make(machine, [m.spec for m in models])
    result = simulate(policy, machine, models, trace, surroundings=around, seed=seed)
    counts = np.bincount(result.outcomes, minlength=len(Outcome))
    assert counts.sum() == len(trace)
    assert counts[Outcome.NEVER] == 0
    assert (result.ends >= trace.times).all()
    assert 0 < result.machine.peak_size <= epc * MIB
    assert result.machine.used_size == sum(
        e.shape.size for e in result.machine.environments.values()
    )
    assert result.machine.busy_core_seconds <= 2 * result.seconds
    assert sum(result.machine.batch_sizes) >= counts[Outcome.ANSWERED]


@every_policy
def test_same_seed_same_result(make: MakePolicy) -> None:
    machine = Machine(2, 20 * MIB)
    models = [model("a", 1 * MIB, 10), model("b", 3 * MIB, 40)]
    trace = trace_of(models, [50.0, 20.0], 20.0, 3)
    around = Surroundings(failures=0.1)
    ends = [
        simulate(
            make(machine, [m.spec for m in models]), machine, models, trace, surroundings=around
        ).ends
        for _ in range(2)
    ]
    assert np.array_equal(ends[0], ends[1])


@pytest.mark.parametrize("name", ["first come", "ours"])
@pytest.mark.parametrize("load", [0.5, 0.7])
def test_one_model_waits_as_queueing_theory_says(name: str, load: float) -> None:
    """One core, one slot, runs of constant time: M/D/1 (Lindley, Pollaczek-Khinchine)."""
    service = 0.01
    only = SimulatedModel(
        ModelSpec(
            "m",
            (Shape(0, 1, 1, MIB),),
            queue_count=100_000,
            run_time=RunTime(0.0, service),
            start_seconds=0.01,
        ),
        (RunTime(0.0, service),),
        (0.01,),
    )
    machine = Machine(1, MIB)
    seconds = 250.0
    times = poisson(load / service, seconds, np.random.default_rng(7))
    # The first seconds are the start's: without them the queue is as it would be for ever.
    trace = merged(["m"], seconds, [times], [1000.0])
    around = Surroundings(travel=0.0, evidence=0.0, evidence_after=0.0, jitter=0.0)
    result = simulate(
        POLICIES[name](machine, [only.spec]), machine, [only], trace, surroundings=around
    )
    assert (result.outcomes == Outcome.ANSWERED).all()
    later = trace.times > 5.0
    waits = (result.ends - trace.times)[later] - service
    expected = [waits[0]]
    for gap in np.diff(trace.times[later]):
        expected.append(max(0.0, expected[-1] + service - gap))
    assert np.allclose(waits, expected, rtol=0, atol=1e-6)
    assert waits.mean() == pytest.approx(load * service / (2 * (1 - load)), rel=0.05)


def test_one_batch_shares_what_is_fixed() -> None:
    """Requests that arrive while one runs, run together: 3 runs for 1 + 4 + 1 requests."""
    only = model("m", MIB, 100)
    machine = Machine(1, 5 * MIB)
    times = np.array([0.0, 10.0, 10.01, 10.02, 10.03, 10.04])
    trace = Trace(("m",), 20.0, times, np.zeros(6, dtype=int), np.full(6, 1000.0))
    around = Surroundings(clients=1, travel=0.0, jitter=0.0)
    result = simulate(Static(machine, [only.spec]), machine, [only], trace, surroundings=around)
    assert result.machine.batch_sizes == [1, 1, 4]
    assert result.ends[1:].tolist() == pytest.approx([10.1] + [10.1 + 0.05 + 4 * 0.05] * 4)


class Scripted:
    """Answers the n-th event with the n-th decisions, and nothing after that."""

    def __init__(self, *script: list[Decision]) -> None:
        self.script = list(script)
        self.events: list[Event] = []

    def wake(self) -> float | None:
        return None

    def handle(self, event: Event) -> list[Decision]:
        self.events.append(event)
        return self.script.pop(0) if self.script else []


SHAPE = Shape(0, 1, 1, 2 * MIB)


@pytest.mark.parametrize(
    ("script", "match"),
    [
        ([[Launch(1, "m", SHAPE), Launch(2, "m", SHAPE)]], "memory"),
        ([[Launch(1, "m", SHAPE), Launch(1, "m", SHAPE)]], "again"),
        ([[Launch(1, "m", Shape(0, 1, 1, MIB))]], "no shape"),
        ([[Launch(1, "m", SHAPE)], [Run(1, (1,))]], "starting"),
        ([[Launch(1, "m", SHAPE), Stop(1), Stop(1)]], "stopping"),
        ([[Run(1, (1,))]], "no such"),
        ([[Launch(1, "m", SHAPE)], [Assign(1, 1), Assign(1, 1)]], "answered"),
        ([[Launch(1, "m", SHAPE)], [Assign(2, 1)]], "answered"),
        ([[Launch(1, "m", SHAPE)], [Assign(1, 7)]], "no such"),
        ([[], [Refuse(1, Reason.NO_ROOM, 1.0), Refuse(1, Reason.NO_ROOM, 1.0)]], "answered"),
        ([[Launch(1, "m", SHAPE)], [Assign(1, 1)], [], [Run(1, (2, 3))]], "slots"),
        ([[Launch(1, "m", SHAPE)], [Assign(1, 1)], [], [Run(1, (3,))]], "no request"),
        ([[Launch(1, "m", SHAPE)], [Assign(1, 1)], [], [Run(1, (2,)), Run(1, (2,))]], "running"),
    ],
)
def test_rules_are_checked(script: list[list[Decision]], match: str) -> None:
    """Events are: start, wish for evidence (ticket 1), ready and request (ticket 2)."""
    machine = Machine(1, 3 * MIB)
    only = model("m", MIB, 10, start=0.01)
    trace = Trace(("m",), 1.0, np.array([0.0]), np.array([0]), np.array([1.0]))
    with pytest.raises(RuleBrokenError, match=match):
        simulate(Scripted(*script), machine, [only], trace)


def test_what_a_policy_is_told() -> None:
    machine = Machine(1, 3 * MIB)
    only = model("m", MIB, 10, start=0.01)
    trace = Trace(("m",), 1.0, np.array([0.5]), np.array([0]), np.array([1.0]))
    policy = Scripted([Launch(1, "m", SHAPE)], [], [Assign(1, 1)], [Run(1, (2,))])
    around = Surroundings(travel=0.001, evidence=0.01, jitter=0.0)
    result = simulate(policy, machine, [only], trace, surroundings=around)
    assert [type(e) for e in policy.events[:4]] == [Tick, Ready, Wanted, Arrived]
    assert policy.events[1].now == pytest.approx(0.01)
    assert policy.events[2] == Wanted(0.501, 1, "m", 1.5)
    assert policy.events[3] == Arrived(0.501 + 0.01 + 0.001, 2, 1, 1.5)
    assert result.ends[0] == pytest.approx(0.512 + 0.01 + 0.001)
    assert result.in_time.all()


def test_a_request_goes_elsewhere_once() -> None:
    machine = Machine(1, 3 * MIB)
    only = model("m", MIB, 10, start=0.01)
    trace = Trace(("m",), 1.0, np.array([0.5]), np.array([0]), np.array([1.0]))
    again: list[Decision] = [Refuse(2, Reason.ELSEWHERE, 0.0)]
    policy = Scripted(
        [Launch(1, "m", SHAPE)], [], [Assign(1, 1)], again, [Assign(3, 1)],
        [Refuse(4, Reason.ELSEWHERE, 0.0)],
    )  # fmt: skip
    result = simulate(policy, machine, [only], trace)
    assert [type(e) for e in policy.events] == [Tick, Ready, Wanted, Arrived, Wanted, Arrived]
    assert result.outcomes.tolist() == [Outcome.ELSEWHERE]


def test_a_policy_that_asks_to_be_woken_for_ever_is_stopped() -> None:
    class Sleepless(Scripted):
        def wake(self) -> float | None:
            return 0.0

    machine = Machine(1, 3 * MIB)
    only = model("m", MIB, 10)
    trace = Trace(("m",), 1.0, np.array([0.5]), np.array([0]), np.array([1.0]))
    with pytest.raises(RuleBrokenError, match="woken"):
        simulate(Sleepless(), machine, [only], trace)
