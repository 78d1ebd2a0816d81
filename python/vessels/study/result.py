"""What a study finds: plain values, from which the table, the JSON and the report are made.

Sizes are bytes, pages are 4 KiB, times carry their unit in their name.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

PAGE_SIZE = 4096

Kind = Literal["parameters", "activations", "workspace", "staging", "io"]
KINDS: tuple[Kind, ...] = ("parameters", "activations", "workspace", "staging", "io")
"""``parameters``: resident chunks; ``activations``: tensors and loaded constants; ``workspace``:
scratch of single instructions; ``staging``: parameter chunks in flight; ``io``: request and
response."""


@dataclass(frozen=True)
class KindReuse:
    """How one kind of page is used in a steady prediction.

    ``allocated_size`` counts every byte of the kind as if nothing shared its place.
    ``touch_counts[n]`` is the number of pages used ``n`` times, for the ``n`` that occur, where
    touches that a 1 MiB cache would serve are of one use;
    ``distances[b]`` the number of touches whose LRU stack distance, in pages, is in
    ``[2**b, 2**(b+1))``: what an LRU memory of fewer pages would have fetched.
    """

    kind: Kind
    allocated_size: int
    page_count: int
    touch_counts: dict[int, int]
    distances: dict[int, int]


@dataclass(frozen=True)
class CurvePoint:
    """An LRU memory of ``page_count`` pages misses ``miss_count`` times in a steady prediction."""

    page_count: int
    miss_count: int


@dataclass(frozen=True)
class MapBlock:
    """A rectangle of the memory map: see :class:`vessels.figures.Block`."""

    kind: str
    name: str
    offset: int
    size: int
    start: int
    stop: int


@dataclass(frozen=True)
class LayerRow:
    """One instruction: what it touches, and what it costs.

    ``microseconds`` is measured with everything in plain memory; ``miss_count`` is the predicted
    misses in an LRU memory of the study's EPC size. 0 where not known.
    """

    index: int
    mnemonic: str
    shape: tuple[int, ...]
    parameter_size: int
    read_size: int
    written_size: int
    workspace_size: int
    miss_count: int
    microseconds: float


Policy = Literal["planned", "conventional"]
"""As :data:`vessels.plan.Policy`."""


@dataclass(frozen=True)
class PlanAnalysis:
    """The exact analysis of one plan; ``budget`` is ``None`` for the conventional plan and for
    the one that streams everything."""

    policy: Policy
    budget: int | None
    pool_size: int
    touch_count: int
    reuse: tuple[KindReuse, ...]
    curve: tuple[CurvePoint, ...]
    blocks: tuple[MapBlock, ...]
    layers: tuple[LayerRow, ...]


@dataclass(frozen=True)
class FaultCost:
    """What a fault of the emulator costs, as measured on one processor, and what was added to it
    (``padding_ns``).

    ``fault_ns``: a touch of an evicted page, with the eviction it causes, as the toucher sees
    it; ``soft_fault_ns``: a touch of a page that was only unmapped.
    """

    fault_ns: float
    soft_fault_ns: float
    padding_ns: float


@dataclass(frozen=True)
class LatencyPoint:
    """Predictions of one tenant in an EPC of ``epc_size``.

    ``predicted_lru`` and ``predicted_policy`` are faults per steady prediction by the analysis:
    under exact LRU, and under the emulator's own replacement policy.
    """

    policy: Policy
    epc_size: int
    median_ms: float
    least_ms: float
    most_ms: float
    run_count: int
    faults: float
    soft_faults: float
    predicted_lru: int
    predicted_policy: int


@dataclass(frozen=True)
class TenantsPoint:
    """``tenant_count`` enclaves of one thread each at work at once in an EPC of ``epc_size``."""

    policy: Policy
    epc_size: int
    tenant_count: int
    predictions_per_second: float
    median_ms: float
    faults: float
    """Faults per prediction."""


@dataclass(frozen=True)
class BudgetPoint:
    """The plan for a pool of at most ``budget`` bytes, in plain memory; no paging."""

    budget: int
    pool_size: int
    resident_size: int
    median_ms: float


@dataclass(frozen=True)
class Footprint:
    """Memory of one network by other systems' rules, beside ours."""

    onnxruntime_size: int | None
    """Measured growth of a process; ``None`` where ONNX Runtime is not installed."""
    darknet_size: int
    """Darknet's allocation rule on paper: parameters, every output, one shared workspace."""
    runtime_size: int
    """What an enclave process of ours holds beside its pool."""


@dataclass(frozen=True)
class PeerPoint:
    """ONNX Runtime as a process under a memory limit with swap."""

    limit_size: int
    median_ms: float


@dataclass(frozen=True)
class Machine:
    """On what was measured."""

    cpu: str
    core_count: int
    kernel: str
    isa: str
    vessels_version: str
    date: str
    """ISO 8601, UTC."""


@dataclass(frozen=True)
class Study:
    """All of it. Where no emulator is possible ``unmeasured`` says why, and what it would have
    measured is empty. ``notes`` are sentences on single points that were left out, and why."""

    model: str
    epc_size: int
    thread_count: int
    footprint: Footprint
    conventional: PlanAnalysis
    planned: PlanAnalysis
    budgets: tuple[PlanAnalysis, ...]
    fault_cost: FaultCost | None
    latency: tuple[LatencyPoint, ...]
    tenants: tuple[TenantsPoint, ...]
    budget_latency: tuple[BudgetPoint, ...]
    peer: tuple[PeerPoint, ...]
    machine: Machine
    unmeasured: str | None
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Nested dictionaries and lists."""
        return asdict(self)
