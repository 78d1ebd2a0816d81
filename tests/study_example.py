"""A study of a network that does not exist, worked out by simple rules, for the report's tests.

The network is a chain of layers. Conventionally each has memory of its own; planned, two places
take turns and parameters stream through one staging buffer. Both are traced in units of 64 KiB,
and their reuse distances counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from vessels.study.result import (
    KINDS,
    PAGE_SIZE,
    BudgetPoint,
    CurvePoint,
    FaultCost,
    Footprint,
    Kind,
    KindReuse,
    LatencyPoint,
    LayerRow,
    Machine,
    MapBlock,
    PeerPoint,
    PlanAnalysis,
    Policy,
    Study,
    TenantsPoint,
)

MIB = 1 << 20
UNIT_PAGES = 16
UNIT_SIZE = UNIT_PAGES * PAGE_SIZE
RUNTIME_SIZE = 4 * MIB
IO_SIZE = 10 * UNIT_SIZE
STAGING_SIZE = 2 * UNIT_SIZE
FAULT_MS = 0.0102


@dataclass(frozen=True)
class _Layer:
    """Sizes in units of memory."""

    mnemonic: str
    shape: tuple[int, ...]
    parameters: int
    output: int
    workspace: int
    milliseconds: float


def _units(size: float) -> int:
    return max(1, round(size / UNIT_SIZE))


def _network(layer_count: int, width: int) -> list[_Layer]:
    """Images shrink while channels grow, as in every classifier."""
    layers = []
    for index in range(layer_count):
        stage = 4 * index // layer_count
        side, channels = 56 >> stage, width << stage
        kernel = 3 if index % 3 == 1 else 1
        winograd = kernel == 3 and index % 2 == 0
        parameters = channels * channels * kernel * kernel
        layers.append(
            _Layer(
                "winograd" if winograd else "conv",
                (1, side, side, channels),
                _units(4 * parameters),
                _units(4 * side * side * channels),
                _units(9 * side * side * channels) if winograd else 0,
                parameters * side * side / 5e7,
            )
        )
    layers.append(_Layer("matmul", (1, 1000), _units(4 * 1000 * (width << 3)), 1, 0, 0.4))
    return layers


Touch = tuple[Kind, int, int]
"""Kind, unit of the pool, instruction."""


class _Pool:
    """Blocks one after the other, and the trace over them."""

    def __init__(self) -> None:
        self.size = 0
        self.trace: list[Touch] = []
        self.blocks: list[MapBlock] = []

    def place(self, kind: str, name: str, count: int, start: int, stop: int) -> int:
        first = self.size
        self.size += count
        self.lay(kind, name, first, count, start, stop)
        return first

    def lay(self, kind: str, name: str, first: int, count: int, start: int, stop: int) -> None:
        block = MapBlock(kind, name, first * UNIT_SIZE, count * UNIT_SIZE, start, stop)
        self.blocks.append(block)

    def touch(self, kind: Kind, first: int, count: int, index: int) -> None:
        self.trace += [(kind, first + n, index) for n in range(count)]


def _conventional(layers: list[_Layer]) -> _Pool:
    pool = _Pool()
    count = len(layers)
    before = pool.place("io", "request and response", _units(IO_SIZE), 0, count)
    size = _units(IO_SIZE)
    homes = [
        pool.place("resident", f"parameters {n}", layer.parameters, 0, count)
        for n, layer in enumerate(layers)
    ]
    for index, layer in enumerate(layers):
        scratch = pool.place("scratch", f"{index} scratch", layer.workspace, index, index + 1)
        out = pool.place("activation", f"{index}", layer.output, index, min(index + 2, count))
        pool.touch("io" if index == 0 else "activations", before, size, index)
        pool.touch("parameters", homes[index], layer.parameters, index)
        pool.touch("workspace", scratch, layer.workspace, index)
        pool.touch("workspace", scratch, layer.workspace, index)
        pool.touch("activations", out, layer.output, index)
        before, size = out, layer.output
    return pool


def _planned(layers: list[_Layer], resident: int) -> _Pool:
    pool = _Pool()
    count = len(layers)
    before = pool.place("io", "request and response", _units(IO_SIZE), 0, count)
    size = _units(IO_SIZE)
    staging = pool.place("staging", "staging", _units(STAGING_SIZE), 0, count)
    homes: dict[int, int] = {}
    for index, layer in enumerate(layers):
        if resident >= layer.parameters:
            resident -= layer.parameters
            name = f"parameters {index}"
            homes[index] = pool.place("resident", name, layer.parameters, 0, count)
    arena = pool.size
    largest = max(a.output + b.output + b.workspace for a, b in pairwise(layers))
    pool.size += largest
    for index, layer in enumerate(layers):
        out = arena if index % 2 == 0 else arena + largest - layer.output
        scratch = arena + layer.output if index % 2 == 0 else arena + size
        pool.lay("activation", f"{index}", out, layer.output, index, min(index + 2, count))
        if layer.workspace:
            pool.lay("scratch", f"{index} scratch", scratch, layer.workspace, index, index + 1)
        pool.touch("io" if index == 0 else "activations", before, size, index)
        if index in homes:
            pool.touch("parameters", homes[index], layer.parameters, index)
        for _ in range(0 if index in homes else -(-layer.parameters // _units(STAGING_SIZE))):
            pool.touch("staging", staging, _units(STAGING_SIZE), index)
        pool.touch("workspace", scratch, layer.workspace, index)
        pool.touch("activations", out, layer.output, index)
        before, size = out, layer.output
    return pool


def _analysis(
    policy: Policy, budget: int | None, pool: _Pool, layers: list[_Layer], epc_size: int
) -> PlanAnalysis:
    """Stack distances by the definition: the place in a list in order of the last touch."""
    stack: list[int] = []
    steady: list[tuple[Touch, int]] = []
    for turn in range(2):
        for touch in pool.trace:
            distance = len(stack)
            if touch[1] in stack:
                distance = len(stack) - stack.index(touch[1])
                stack.remove(touch[1])
            stack.append(touch[1])
            if turn == 1:
                steady.append((touch, distance))
    capacity = (epc_size - RUNTIME_SIZE) // UNIT_SIZE
    unit_counts = sorted({0, *(d for _, d in steady)})
    curve = tuple(
        CurvePoint(n * UNIT_PAGES, UNIT_PAGES * sum(d > n for _, d in steady)) for n in unit_counts
    )
    rows = tuple(
        LayerRow(
            index,
            layer.mnemonic,
            layer.shape,
            layer.parameters * UNIT_SIZE,
            (layers[index - 1].output if index else _units(IO_SIZE)) * UNIT_SIZE,
            layer.output * UNIT_SIZE,
            layer.workspace * UNIT_SIZE,
            UNIT_PAGES * sum(d > capacity for (_, _, at), d in steady if at == index),
            1000 * layer.milliseconds * (1.1 if policy == "planned" else 1),
        )
        for index, layer in enumerate(layers)
    )
    return PlanAnalysis(
        policy,
        budget,
        pool.size * UNIT_SIZE,
        UNIT_PAGES * len(steady),
        tuple(_reuse(kind, steady, layers, policy) for kind in KINDS),
        curve,
        tuple(pool.blocks),
        rows,
    )


def _reuse(
    kind: Kind, steady: list[tuple[Touch, int]], layers: list[_Layer], policy: Policy
) -> KindReuse:
    own = [(unit, distance) for (k, unit, _), distance in steady if k == kind]
    times: dict[int, int] = {}
    for unit, _ in own:
        times[unit] = times.get(unit, 0) + 1
    counts: dict[int, int] = {}
    for n in times.values():
        counts[n] = counts.get(n, 0) + UNIT_PAGES
    bins: dict[int, int] = {}
    for _, distance in own:
        place = (distance * UNIT_PAGES).bit_length() - 1
        bins[place] = bins.get(place, 0) + UNIT_PAGES
    sizes = {
        "parameters": len(times) * UNIT_SIZE,
        "activations": sum(layer.output for layer in layers) * UNIT_SIZE,
        "workspace": sum(layer.workspace for layer in layers) * UNIT_SIZE,
        "staging": STAGING_SIZE if policy == "planned" else 0,
        "io": _units(IO_SIZE) * UNIT_SIZE,
    }
    return KindReuse(kind, sizes[kind], UNIT_PAGES * len(times), counts, bins)


def _missed(plan: PlanAnalysis, epc_size: int) -> int:
    pages = (epc_size - RUNTIME_SIZE) // PAGE_SIZE
    return min(p.miss_count for p in plan.curve if p.page_count <= pages)


def example(
    *,
    model: str = "example-50",
    epc_size: int = 93 * MIB,
    layer_count: int = 52,
    width: int = 128,
    measured: bool = True,
) -> Study:
    """The study; larger ``layer_count`` and ``width`` make a larger network."""
    layers = _network(layer_count, width)
    whole = sum(layer.parameters for layer in layers)
    conventional = _analysis("conventional", None, _conventional(layers), layers, epc_size)
    planned = _analysis("planned", None, _planned(layers, 0), layers, epc_size)
    budgets = []
    for share in (0.25, 0.5, 1.0):
        pool = _planned(layers, round(share * whole))
        budgets.append(_analysis("planned", pool.size * UNIT_SIZE, pool, layers, epc_size))
    compute_ms = sum(layer.milliseconds for layer in layers)

    def latency(plan: PlanAnalysis, size: int) -> LatencyPoint:
        faults = _missed(plan, size)
        median = compute_ms * (1.1 if plan.policy == "planned" else 1) + FAULT_MS * faults
        return LatencyPoint(
            plan.policy, size, median, 0.98 * median, 1.07 * median, 5,
            1.03 * faults, 0.1 * faults, faults, round(1.01 * faults),
        )  # fmt: skip

    def together(plan: PlanAnalysis, count: int) -> TenantsPoint:
        share = max(RUNTIME_SIZE + UNIT_SIZE, epc_size // count)
        point = latency(plan, share)
        # Paging goes one at a time, however many cores there are.
        cores = min(count, 2) if point.faults < 1 else 1 / (1 + 0.1 * (count - 1))
        speed = cores * 1000 / point.median_ms
        return TenantsPoint(plan.policy, epc_size, count, speed, count * 1000 / speed, point.faults)

    sizes = sorted({epc_size, *((6 << n) * MIB for n in range(7))})
    plans = (conventional, planned)
    study = Study(
        model=model,
        epc_size=epc_size,
        thread_count=1,
        footprint=Footprint(
            round(1.1 * conventional.pool_size),
            round(0.9 * conventional.pool_size),
            RUNTIME_SIZE,
        ),
        conventional=conventional,
        planned=planned,
        budgets=tuple(budgets),
        fault_cost=FaultCost(1e6 * FAULT_MS, 2600.0, 0.0),
        latency=tuple(latency(plan, size) for plan in plans for size in sizes),
        tenants=tuple(together(plan, n) for plan in plans for n in (1, 2, 4, 8)),
        budget_latency=tuple(
            BudgetPoint(
                plan.pool_size,
                plan.pool_size,
                plan.reuse[0].allocated_size,
                compute_ms * (1.1 - 0.1 * plan.reuse[0].allocated_size / (whole * UNIT_SIZE)),
            )
            for plan in (planned, *budgets)
        ),
        peer=tuple(
            PeerPoint(size, compute_ms * max(1.0, 1.1 * conventional.pool_size / size) ** 2)
            for size in sizes[2:]
        ),
        machine=Machine(
            "Example CPU @ 3.00GHz", 2, "Linux 6.1.0", "avx512", "0.1.0", "2026-11-23T01:00:00Z"
        ),
        unmeasured=None,
    )
    return study if measured else without_emulator(study)


def without_emulator(study: Study) -> Study:
    """The same study from analysis alone."""
    return replace(
        study,
        fault_cost=None,
        latency=(),
        tenants=(),
        peer=(),
        unmeasured="this kernel has no userfaultfd.",
    )
