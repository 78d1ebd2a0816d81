"""One simulation, and what it says in a few figures."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from benchmarks.scheduling.models import START_CORE_SECONDS
from benchmarks.scheduling.scenarios import MACHINE, POLICIES, SCENARIOS, Scenario
from vessels.schedule.bound import bound, least, least_percentile
from vessels.schedule.simulate import simulate
from vessels.schedule.simulation import Outcome, Result, Surroundings
from vessels.schedule.traces import Trace

BOUND = "bound"
SEED = 1


@dataclass(frozen=True)
class Task:
    """A policy, or the bound, on a scenario at a load."""

    scenario: str
    load: float
    policy: str
    seconds: float


@dataclass(frozen=True)
class Row:
    """What came out. Shares are of the requests that were sent, times are of those answered.

    ``goodput`` is answers in time a second; ``useful`` the share of the cores' time that these
    would take at their cheapest; ``worst`` the share in time of the model that fared worst.
    Of the bound there is no more than goodput, useful, and the least percentiles of whoever
    answers as many as it.
    """

    scenario: str
    load: float
    policy: str
    sent: int
    in_time: float
    goodput: float
    useful: float
    p50_ms: float
    p99_ms: float
    late: float | None = None
    refused: float | None = None
    worst: float | None = None
    batch: float | None = None
    evictions: int | None = None
    epc_peak: int | None = None


@dataclass(frozen=True)
class Overload:
    """A policy at 90 % and at twice of what itself is able to answer.

    ``capacity`` is that, in times of what the cores can bear at best.
    """

    scenario: str
    policy: str
    capacity: float
    busy: Row
    over: Row


def overload(scenario: str, policy: str, seconds: float) -> Overload:
    """Find the capacity, and then both."""
    capacity = run(Task(scenario, 2.0, policy, seconds)).useful
    busy = run(Task(scenario, 0.9 * capacity, policy, seconds))
    return Overload(
        scenario, policy, capacity, busy, run(Task(scenario, 2 * capacity, policy, seconds))
    )


def overload_all(scenarios: Iterable[str], policy: str, seconds: float) -> list[Overload]:
    with ProcessPoolExecutor() as pool:
        return list(pool.map(overload, scenarios, repeat(policy), repeat(seconds)))


def run_all(tasks: Iterable[Task]) -> list[Row]:
    """All of them, in their order, on all cores."""
    with ProcessPoolExecutor() as pool:
        return list(pool.map(run, tasks))


def run(task: Task) -> Row:
    scenario = next(s for s in SCENARIOS if s.name == task.scenario)
    trace = scenario.trace(task.load, task.seconds, SEED)
    if task.policy == BOUND:
        return _bound_row(task, scenario, trace)
    policy = POLICIES[task.policy](MACHINE, [m.spec for m in scenario.models])
    around = Surroundings(start_core_seconds=START_CORE_SECONDS)
    result = simulate(policy, MACHINE, scenario.models, trace, surroundings=around, seed=SEED)
    return _row(task, scenario, result)


def _row(task: Task, scenario: Scenario, result: Result) -> Row:
    trace, in_time = result.trace, result.in_time
    costs = np.array([least(MACHINE, m).core_seconds for m in scenario.models])
    answered = result.outcomes == Outcome.ANSWERED
    p50, p99 = np.percentile(result.latencies, [50, 99], method="inverted_cdf") * 1000
    places = range(len(scenario.models))
    return Row(
        task.scenario,
        task.load,
        task.policy,
        len(trace),
        in_time=float(in_time.mean()),
        goodput=float(in_time.sum() / trace.seconds),
        useful=float(costs[trace.models[in_time]].sum() / (trace.seconds * MACHINE.core_count)),
        p50_ms=float(p50),
        p99_ms=float(p99),
        late=float((answered & ~in_time).mean()),
        refused=float((~answered).mean()),
        worst=min(float(in_time[trace.models == p].mean()) for p in places),
        batch=float(np.mean(result.machine.batch_sizes)),
        evictions=result.machine.stops,
        epc_peak=result.machine.peak_size,
    )


def _bound_row(task: Task, scenario: Scenario, trace: Trace) -> Row:
    most = bound(MACHINE, scenario.models, trace)
    p50, p99 = (
        least_percentile(MACHINE, scenario.models, trace, int(most.answers), percent) * 1000
        for percent in (50, 99)
    )
    return Row(
        task.scenario,
        task.load,
        task.policy,
        len(trace),
        in_time=min(1.0, most.answers / len(trace)),
        goodput=most.answers / trace.seconds,
        useful=most.core_seconds / (trace.seconds * MACHINE.core_count),
        p50_ms=p50,
        p99_ms=p99,
    )
