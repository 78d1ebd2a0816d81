"""Ours asked more than it can answer, and more models than fit: served, and simulated.

First the capacity is looked for: what clients in a closed loop were answered at best, or the
goodput where requests are refused, if that is more. Then parts and multiples of it are asked, of
one model; those that limits are for in turn with clients in a closed loop, and of what these were
answered, so that what the machine does else falls on all alike. The latter is done with a small
model as well, where more of the time goes to what is not the model. And some of what one model is
answered at best is asked of many models that do not fit together, some of them asked for far more
than others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from benchmarks.load.arrivals import Arrival, poisson
from benchmarks.serving_evaluation.bench import Bench, tell
from benchmarks.serving_evaluation.crowds import crowd
from benchmarks.serving_evaluation.emulated import Emulated
from benchmarks.serving_evaluation.openloop import open_point
from benchmarks.serving_evaluation.replay import Replay, replayed
from benchmarks.serving_evaluation.result import ClosedPoint, OpenPoint, Timing
from benchmarks.serving_evaluation.systems import JUDGED, OURS, Settings
from benchmarks.serving_evaluation.timing import described, timing_of
from vessels.schedule.model import Machine, ModelSpec
from vessels.schedule.traces import zipf
from vessels.study.emulator import Emulator

Again = Callable[[Sequence[Arrival]], Replay]
"""Arrivals to what the simulator makes of them."""

SEARCH_FACTOR = 1.5
"""Capacity is looked for at this multiple of what clients in a closed loop were answered, and at
multiples of that until :data:`LEAST_REFUSED` of the requests is refused."""
LEAST_REFUSED = 0.1
MOST_SEARCHES = 4
CLIENTS, MIXED_CLIENTS = 4, 1
"""Of each model, where there is one, and where there are many."""


@dataclass(frozen=True)
class Loaded:
    """One model in an ``open`` loop, and ``beside`` it clients in a closed loop.

    These were measured in turn with the loads that limits are for.
    """

    beside: tuple[ClosedPoint, ...]
    open: tuple[OpenPoint, ...]


@dataclass(frozen=True)
class Overload:
    """``one`` and ``small`` are of one model, ``mixed`` of many.

    ``capacity`` is what ``one`` was answered a second at best, in a closed loop or in ``search``.
    Timings are what the simulator was told; of ``small`` it is told nothing.
    """

    capacity: float
    search: OpenPoint
    timing: Timing
    one: Loaded
    small: Loaded
    mixed_timing: Timing
    mixed: tuple[OpenPoint, ...]


def overload(
    bench: Bench, clients: Sequence[ClosedPoint], tenants: Sequence[ClosedPoint]
) -> Overload:
    """After what ``clients`` and ``tenants`` were answered in a closed loop."""
    settings = bench.settings
    network = settings.client_network
    ours = [p for p in clients if p.system == OURS.name]
    search = _search(bench, SEARCH_FACTOR * _best(ours))
    capacity = max(_best(ours), search.served.goodput)
    travel = _travel(min(ours, key=lambda p: p.clients))
    timing, specs = _timed(bench, network, 1, search, travel)

    def again(factor: float) -> Again:
        return again_in_simulation(specs, _machine(settings), timing, settings, factor)

    others = [
        _load(bench, network, factor, settings.seeds[0], capacity, again(factor))
        for factor in settings.loads
        if factor not in JUDGED
    ]
    one = _in_turn(bench, network, _content(ours), again)
    one = replace(one, open=tuple(sorted([*others, *one.open], key=_place)))
    small = _in_turn(bench, settings.tenant_network, settings.small_clients, None)
    network, count = settings.tenant_network, settings.mixed_tenants
    best = _best([p for p in tenants if p.system == OURS.name])
    mixed_timing, specs = _timed(bench, network, count, search, travel)
    mixed = []
    for factor in settings.mixed_loads:
        once = again_in_simulation(specs, _machine(settings), mixed_timing, settings, 1.0)
        name, seed = f"mixed-{factor:g}", settings.seeds[0]
        mixed.append(_point(bench, name, network, count, factor * best, seed, factor, once))
    return Overload(capacity, search, timing, one, small, mixed_timing, tuple(mixed))


def is_saturated(point: OpenPoint) -> bool:
    """Whether more was asked than was answered."""
    return point.served.accepted <= (1 - LEAST_REFUSED) * point.served.offered


def again_in_simulation(
    specs: Sequence[ModelSpec], machine: Machine, timing: Timing, settings: Settings, factor: float
) -> Again:
    """What the simulator makes of arrivals that are ``factor`` times the capacity.

    A refused request takes as much of the processor, beside runs, as one that is answered. The
    simulator knows answered ones alone, which then take the time of the others as well.
    """
    each = max(1.0, factor)
    loaded = replace(
        timing, server_cpu=each * timing.server_cpu, generator_cpu=each * timing.generator_cpu
    )

    def again(arrivals: Sequence[Arrival]) -> Replay:
        clients = CLIENTS if len(specs) == 1 else MIXED_CLIENTS
        return replayed(
            specs, machine, loaded, arrivals, begin=settings.load_warmup, clients=clients
        )

    return again


def with_costs(timing: Timing, point: OpenPoint, travel: float) -> Timing:
    """``timing`` with what ``point`` took of the processor for each request beside its run."""
    return replace(
        timing,
        travel=travel,
        server_cpu=point.server_cpu_seconds / point.requests,
        generator_cpu=point.generator_cpu_seconds / point.requests,
    )


def _best(points: Sequence[ClosedPoint]) -> float:
    return max(p.seen.per_second for p in points if p.seen is not None)


def _content(ours: Sequence[ClosedPoint]) -> int:
    """The most clients none of whom was refused, or the fewest of all if some always were.

    They keep its runs as full as may be. Which number was answered best once is more by chance.
    """
    served = {p.clients: p.seen for p in ours if p.seen is not None}
    content = [clients for clients, seen in served.items() if not seen.refused]
    return max(content, default=min(served))


def _in_turn(
    bench: Bench, network: str, clients: int, again: Callable[[float], Again] | None
) -> Loaded:
    """The loads that limits are for, in turn with clients in a closed loop."""
    factors = [f for f in bench.settings.loads if f in JUDGED]
    beside: list[ClosedPoint] = []
    points: list[OpenPoint] = []
    for seed in bench.settings.seeds:
        point = _beside(bench, network, clients, seed)
        beside.append(point)
        points += [
            _load(bench, network, f, seed, _best([point]), None if again is None else again(f))
            for f in factors
        ]
    return Loaded(tuple(beside), tuple(sorted(points, key=_place)))


def _load(
    bench: Bench, network: str, factor: float, seed: int, most: float, again: Again | None
) -> OpenPoint:
    """One model asked ``factor`` times ``most`` a second."""
    name = f"open-{network}-{factor:g}-{seed}"
    return _point(bench, name, network, 1, factor * most, seed, factor, again)


def _beside(bench: Bench, network: str, clients: int, turn: int) -> ClosedPoint:
    """Clients in a closed loop, for as long as a load is asked."""
    settings = bench.settings
    seconds = settings.load_seconds - settings.load_warmup
    asked = replace(settings, seconds=seconds, warmup=settings.load_warmup)
    [point] = crowd(bench, OURS, network, 1, [clients], settings=asked, turn=turn)
    return point


def _place(point: OpenPoint) -> tuple[float, int]:
    return point.factor or 0.0, point.seed


def _travel(point: ClosedPoint) -> float:
    """Seconds of one way, by the fewest clients: what is not the run, half of it."""
    if point.seen is None or point.seen.p50_ms is None or point.run_ms is None:
        return 0.0
    return max(0.0, point.seen.p50_ms - point.run_ms) / 2e3


def _machine(settings: Settings) -> Machine:
    return Machine(len(os.sched_getaffinity(0)), settings.epc_size)


def _search(bench: Bench, rate: float) -> OpenPoint:
    """A point at a rate of which a part is refused."""
    network, seed = bench.settings.client_network, bench.settings.seeds[0]
    for number in range(MOST_SEARCHES):
        asked = rate * SEARCH_FACTOR**number
        point = _point(bench, f"capacity-{number + 1}", network, 1, asked, seed, None, None)
        if is_saturated(point):
            return point
    raise RuntimeError(f"the server answers all of {asked:.0f} requests a second")


def _timed(
    bench: Bench, network: str, tenants: int, search: OpenPoint, travel: float
) -> tuple[Timing, list[ModelSpec]]:
    """What the simulator is told of ``network``, and its copies as the scheduler sees them."""
    paths = bench.models.tenants(network, OURS.policy, tenants)
    settings = bench.settings
    with Emulator(settings.epc_size) as emulator:
        backend = Emulated(emulator.command)
        models = [
            described(name, path, backend, _machine(settings)) for name, path in paths.items()
        ]
        found = bench.known(f"timing-{network}")
        if found is None:
            measured = timing_of(
                network, models[0], backend, settings.epc_size, settings.timing_seconds
            )
            bench.store(f"timing-{network}", found := asdict(measured))
    return with_costs(Timing.of(found), search, travel), [m.spec for m in models]


def _point(
    bench: Bench,
    name: str,
    network: str,
    tenants: int,
    rate: float,
    seed: int,
    factor: float | None,
    again: Again | None,
) -> OpenPoint:
    """A point, measured or known, and what the simulator makes of the same arrivals now."""
    models = bench.models.tenants(network, OURS.policy, tenants)
    shares = dict(zip(models, zipf(tenants).tolist(), strict=True))
    found = bench.known(name)
    if found is not None:
        point = OpenPoint.of(found)
    else:
        with bench.server(OURS, network, tenants) as server:
            point = open_point(
                bench, server, network, shares, rate, seed,
                clients=CLIENTS if tenants == 1 else MIXED_CLIENTS, factor=factor,
            )  # fmt: skip
        bench.store(name, asdict(point))
        tell(f"{name}: {point.rate:.1f} asked, {point.served.goodput:.1f} answered a second")
    if again is None:
        return point
    replay = again(poisson(point.rate, bench.settings.load_seconds, shares, seed=seed))
    return replace(point, simulated=replay.summary, simulated_launches=replay.launches)
