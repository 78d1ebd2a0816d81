"""The trace that a server was asked, in the simulator: the same scheduler, in simulated time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.load.arrivals import Arrival
from benchmarks.load.outcomes import OK, Outcome, Summary, summary
from benchmarks.serving_evaluation.result import RunTimes, Timing
from vessels.schedule import simulation
from vessels.schedule.decisions import Launch
from vessels.schedule.events import Tick
from vessels.schedule.model import Machine, ModelSpec, RunTime
from vessels.schedule.scheduler import Scheduler
from vessels.schedule.simulate import simulate
from vessels.schedule.simulated import SimulatedModel
from vessels.schedule.simulation import Result, Surroundings
from vessels.schedule.traces import merged


@dataclass(frozen=True)
class Replay:
    """What the simulator made of a trace; launches are those after the start."""

    summary: Summary
    launches: int


def replayed(
    specs: Sequence[ModelSpec],
    machine: Machine,
    timing: Timing,
    arrivals: Sequence[Arrival],
    *,
    begin: float,
    clients: int,
    seed: int = 0,
) -> Replay:
    """What the simulator makes of ``arrivals``, as a generator sums it up from ``begin`` on.

    ``specs`` are copies of one network, to which ``timing`` applies.
    """
    end = arrivals[-1].at
    times = [np.array([a.at for a in arrivals if a.model == spec.name]) for spec in specs]
    names = [spec.name for spec in specs]
    trace = merged(names, end, times, [float("inf")] * len(specs))
    around = Surroundings(
        clients=clients,
        travel=timing.travel,
        evidence=timing.evidence,
        evidence_after=timing.evidence_after,
        jitter=2 * statistics.mean(r.spread for r in timing.rungs),
        # After a start each client of the model attests anew.
        start_core_seconds=statistics.mean(r.start_core_seconds for r in timing.rungs)
        + clients * timing.renewal,
    )
    policy = Scheduler(machine, specs)
    models = [simulated_model(spec, timing) for spec in specs]
    result = simulate(policy, machine, models, trace, surroundings=around, seed=seed)
    first = Scheduler(machine, specs).handle(Tick(0.0))
    launches = result.machine.launches - sum(isinstance(d, Launch) for d in first)
    return Replay(summary(outcomes(result), begin, end), launches)


def simulated_model(spec: ModelSpec, timing: Timing) -> SimulatedModel:
    """``spec`` with times that were measured.

    The processor time that server and generator take for each request is added to it: they share
    the cores with the runs.
    """
    beside = timing.server_cpu + timing.generator_cpu
    by_rung = {r.rung: r for r in timing.rungs}
    # Rungs between those that a model has are never taken.
    known = [by_rung.get(n, timing.rungs[0]) for n in range(max(by_rung) + 1)]
    run_seconds = [_run_time(r) for r in known]
    return SimulatedModel(
        spec,
        # The simulator's spread is upwards only.
        tuple(RunTime(t.fixed, t.each + beside) for t in run_seconds),
        tuple(r.start_seconds for r in known),
        efficiency(timing),
    )


def efficiency(timing: Timing) -> float:
    """What each thread after the first adds."""
    gains = [
        (r.seconds[max(r.seconds)] / r.wide_seconds - 1) / (timing.threads - 1)
        for r in timing.rungs
        if r.wide_seconds is not None and timing.threads > 1
    ]
    return statistics.mean(gains) if gains else 1.0


def _run_time(rung: RunTimes) -> RunTime:
    """By the smallest and the largest batch, and of the median run the least."""
    least = 1 / (1 + rung.spread)
    few, many = min(rung.seconds), max(rung.seconds)
    if few == many:
        return RunTime(0.0, rung.seconds[few] / few * least)
    each = (rung.seconds[many] - rung.seconds[few]) / (many - few)
    fixed = max(0.0, rung.seconds[few] - each * few)
    return RunTime(fixed * least, each * least)


def outcomes(result: Result) -> list[Outcome]:
    """As a load generator tells them."""
    trace = result.trace
    return [
        Outcome(
            model=trace.names[trace.models[n]],
            at=float(trace.times[n]),
            lag=0.0,
            seconds=float(result.ends[n] - trace.times[n]),
            kind=OK if kind == simulation.Outcome.ANSWERED else simulation.Outcome(kind).name,
        )
        for n, kind in enumerate(result.outcomes)
    ]
