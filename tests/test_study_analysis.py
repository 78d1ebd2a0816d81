"""Stack distances, the miss curve and the emulator's policy against memories simulated page by
page; the analysis of whole plans."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import zoo
from vessels import api
from vessels.plan import Plan
from vessels.program import Winograd
from vessels.study.analysis import allocated_sizes, analyse
from vessels.study.distances import (
    Array,
    miss_curve,
    misses,
    smaller_before,
    stack_distances,
    steady_distances,
    thinned,
)
from vessels.study.replacement import (
    BATCH,
    LEAST_CAPACITY,
    Replacement,
    steady_faults,
    unmapped_limit,
)
from vessels.study.result import KINDS, PAGE_SIZE, CurvePoint, Policy
from vessels.study.trace import page_trace

TRACES = st.lists(st.integers(0, 12), max_size=120).map(lambda p: np.array(p, np.int32))


class Lru:
    """An LRU memory of ``capacity`` pages."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.pages: OrderedDict[int, None] = OrderedDict()

    def misses(self, pages: list[int]) -> int:
        """How many touches of ``pages`` miss."""
        count = 0
        for page in pages:
            if page in self.pages:
                self.pages.move_to_end(page)
                continue
            count += 1
            self.pages[page] = None
            if len(self.pages) > self.capacity:
                self.pages.popitem(last=False)
        return count


def sweeps(seed: int, page_count: int, length: int) -> Array:
    """Sweeps over random ranges of pages, as instructions make them."""
    rng = np.random.default_rng(seed)
    parts: list[Array] = []
    while sum(len(p) for p in parts) < length:
        first, last = sorted(rng.integers(0, page_count, 2))
        parts.append(np.tile(np.arange(first, last + 1), rng.integers(1, 4)))
    return np.concatenate(parts)[:length].astype(np.int32)


@cache
def squeezenet(policy: Policy) -> Plan:
    model = zoo.build("squeezenet", input_size=64)
    return api.compile_model(model, threads=1, policy=policy)


@given(TRACES)
def test_distances_are_the_distinct_pages_since_the_last_touch(pages: Array) -> None:
    expected = []
    for i, page in enumerate(pages):
        before = np.flatnonzero(pages[:i] == page)
        expected.append(len(set(pages[before[-1] : i].tolist())) if len(before) else -1)
    assert stack_distances(pages).tolist() == expected


@given(TRACES)
def test_steady_distances_are_those_of_the_second_of_two_predictions(pages: Array) -> None:
    twice = stack_distances(np.concatenate([pages, pages]))
    assert steady_distances(pages).tolist() == twice[len(pages) :].tolist()


@pytest.mark.parametrize("count", [1, 31, 32, 33, 1000, 4096, 5001])
def test_smaller_before_counts_in_permutations_of_any_length(count: int) -> None:
    ranks = np.random.default_rng(count).permutation(count)
    expected = [int(np.count_nonzero(ranks[:i] < ranks[i])) for i in range(count)]
    assert smaller_before(ranks).tolist() == expected


@given(TRACES.filter(len), st.integers(1, 14))
def test_the_curve_is_what_an_lru_memory_of_every_size_misses(pages: Array, capacity: int) -> None:
    curve = miss_curve(steady_distances(pages))
    memory = Lru(capacity)
    memory.misses(pages.tolist())
    assert misses(curve, capacity * PAGE_SIZE) == memory.misses(pages.tolist())
    assert misses(curve, 0) == len(pages)
    cold = Lru(capacity).misses(pages.tolist())
    assert misses(miss_curve(stack_distances(pages)), capacity * PAGE_SIZE) == cold


@pytest.mark.parametrize("capacity", [20, 77, 150, 400])
def test_the_curve_of_long_sweeps(capacity: int) -> None:
    pages = sweeps(3, 300, 20_000)
    memory = Lru(capacity)
    memory.misses(pages.tolist())
    curve = miss_curve(steady_distances(pages))
    assert misses(curve, capacity * PAGE_SIZE) == memory.misses(pages.tolist())


def test_a_curve_has_its_steps_and_nothing_else() -> None:
    curve = miss_curve(steady_distances(np.array([1, 2, 1, 3], np.int32)))
    # Page 1 comes again after one other page, the others after two.
    assert curve == (CurvePoint(0, 4), CurvePoint(2, 2), CurvePoint(3, 0))
    assert miss_curve(np.empty(0, np.int32)) == (CurvePoint(0, 0),)


@given(st.integers(0, 1000), st.integers(3, 50), st.integers(0, 400))
def test_thinning_keeps_points_as_they_are(seed: int, count: int, kept: int) -> None:
    curve = miss_curve(steady_distances(sweeps(seed, 300, 3000)))
    fewer = thinned(curve, count, keep=[kept])
    assert set(fewer) <= set(curve)
    assert len(fewer) <= max(count, 4)
    assert fewer[0] == curve[0] and fewer[-1] == curve[-1]
    assert misses(fewer, kept * PAGE_SIZE) == misses(curve, kept * PAGE_SIZE)
    assert list(fewer) == sorted(fewer, key=lambda p: p.page_count)


class PlainEpc:
    """The emulator's rules in the order in which they are stated, on plain lists."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.mapped: list[int] = []
        self.unmapped: list[int] = []
        self.outside: set[int] = set()
        self.counts = {"first": 0, "fetched": 0, "soft": 0, "evicted": 0}

    def refill(self) -> None:
        limit = max(16, self.capacity // 8)
        if self.capacity - len(self.mapped) - len(self.unmapped) < 16:
            while len(self.unmapped) < limit and self.mapped:
                self.unmapped.append(self.mapped.pop(0))

    def touch(self, page: int) -> None:
        if page in self.mapped:
            return
        if page in self.unmapped:
            self.counts["soft"] += 1
            self.unmapped.remove(page)
            self.mapped.append(page)
            self.refill()
            return
        self.counts["fetched" if page in self.outside else "first"] += 1
        self.outside.discard(page)
        reclaims = len(self.mapped) + len(self.unmapped) == self.capacity
        if reclaims:
            if not self.unmapped:
                self.refill()
            victims, self.unmapped = self.unmapped[:16], self.unmapped[16:]
            self.outside.update(victims)
            self.counts["evicted"] += len(victims)
        self.mapped.append(page)
        if reclaims:
            self.refill()


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(LEAST_CAPACITY, 250), st.booleans())
def test_the_policy_is_the_one_stated(seed: int, capacity: int, swept: bool) -> None:
    rng = np.random.default_rng(seed)
    pages = sweeps(seed, 300, 2000) if swept else rng.integers(0, 300, 2000)
    epc, plain = Replacement(capacity), PlainEpc(capacity)
    for page in pages.tolist():
        epc.touch(page)
        plain.touch(page)
        assert len(epc.mapped) + len(epc.unmapped) <= capacity
        assert len(epc.unmapped) <= unmapped_limit(capacity)
        assert page in epc.mapped
    found = {n: getattr(epc, n) for n in ("first", "fetched", "soft", "evicted")}
    assert found == plain.counts
    assert list(epc.mapped) == plain.mapped and list(epc.unmapped) == plain.unmapped
    assert epc.first == len(set(pages.tolist()))
    # Every page is in the EPC or outside.
    assert epc.first + epc.fetched - epc.evicted == len(epc.mapped) + len(epc.unmapped)


def test_what_fits_faults_once() -> None:
    pages = sweeps(1, 200, 5000)
    epc = Replacement(200)
    epc.run(pages.tolist())
    assert (epc.first, epc.fetched, epc.soft, epc.evicted) == (len(np.unique(pages)), 0, 0, 0)
    assert steady_faults(pages, 200) == (0, 0)


def test_a_cycle_that_does_not_fit_fetches_every_page() -> None:
    """As LRU does: FIFO order and the order of use are the same here."""
    assert steady_faults(np.arange(200, dtype=np.int32), 200 - BATCH)[0] == 200


def test_steady_faults_are_those_that_repeat() -> None:
    """As long as it takes: a prediction counts once the one before faulted as it does."""
    pages = sweeps(8, 400, 4000)
    epc, found = Replacement(300), [(-1, -1)]
    for _ in range(20):
        before = epc.fetched, epc.soft
        epc.run(pages.tolist())
        found.append((epc.fetched - before[0], epc.soft - before[1]))
    assert found[1] != found[-1] == found[-2]
    assert steady_faults(pages, 300) == found[-1]


def test_steady_faults_that_never_repeat_are_their_mean() -> None:
    pages = sweeps(0, 400, 4000)
    epc, found = Replacement(300), []
    for _ in range(8):
        before = epc.fetched
        epc.run(pages.tolist())
        found.append(epc.fetched - before)
    # Two predictions take turns.
    assert found[4:6] == found[6:8] and found[4] != found[5]
    assert steady_faults(pages, 300)[0] == (found[4] + found[5]) / 2


def test_the_policy_is_near_lru() -> None:
    pages = sweeps(5, 600, 60_000)
    curve = miss_curve(steady_distances(pages))
    for capacity in (100, 200, 400):
        fetched, _ = steady_faults(pages, capacity)
        least = misses(curve, 2 * capacity * PAGE_SIZE)
        assert least <= fetched <= 1.5 * misses(curve, capacity * PAGE_SIZE)


@pytest.mark.parametrize("policy", ["planned", "conventional"])
def test_analysis_of_a_network(policy: Policy) -> None:
    plan = squeezenet(policy)
    program = plan.program
    epc_size = plan.pool_size // 2
    found = analyse(plan, policy=policy, budget=None, epc_size=epc_size)
    trace = page_trace(program)
    assert (found.policy, found.budget, found.pool_size) == (policy, None, plan.pool_size)
    assert found.touch_count == len(trace) == found.curve[0].miss_count
    page_count = len(np.unique(trace.pages))
    assert found.curve[-1] == CurvePoint(found.curve[-1].page_count, 0)
    assert found.curve[-1].page_count <= page_count <= -(-plan.pool_size // PAGE_SIZE)

    for kind, reuse in zip(KINDS, found.reuse, strict=True):
        of_kind = trace.kinds == KINDS.index(kind)
        assert reuse.kind == kind
        assert reuse.page_count == len(np.unique(trace.pages[of_kind]))
        assert sum(reuse.touch_counts.values()) == reuse.page_count
        assert 0 not in reuse.touch_counts
        assert sum(reuse.distances.values()) == np.count_nonzero(of_kind)
    parameters = found.reuse[0]
    if policy == "conventional":
        # Each page of parameters is used once per prediction, those that two chunks share twice.
        assert parameters.page_count >= plan.resident_size // PAGE_SIZE
        assert set(parameters.touch_counts) <= {1, 2}
        assert parameters.touch_counts[1] > parameters.page_count * 0.8

    assert len(found.layers) == len(program.instructions)
    memory = Lru(epc_size // PAGE_SIZE)
    memory.misses(trace.pages.tolist())
    for index in range(-1, len(program.instructions) + 1):
        missed = memory.misses(trace.pages[trace.instructions == index].tolist())
        if 0 <= index < len(found.layers):
            assert found.layers[index].miss_count == missed
    assert sum(layer.parameter_size for layer in found.layers) == plan.parameter_size
    assert found.layers[0].written_size > 0
    assert {b.kind for b in found.blocks} >= {"io", "activation"}


def test_what_is_allocated_does_not_depend_on_what_is_shared() -> None:
    planned = allocated_sizes(squeezenet("planned").program)
    conventional = allocated_sizes(squeezenet("conventional").program)
    total = squeezenet("conventional").parameter_size
    assert conventional["parameters"] == total and conventional["staging"] == 0
    # Chunks are cut otherwise, which changes how much padding there is, and little else.
    assert planned["parameters"] + planned["staging"] == pytest.approx(total, rel=0.02)
    assert planned["io"] == conventional["io"] == squeezenet("planned").io_size
    tensors = squeezenet("conventional").activation_size
    assert conventional["activations"] + conventional["workspace"] == tensors
    # What the plan shares is counted each time.
    assert planned["activations"] > squeezenet("planned").activation_size


def test_workspaces_count_one_by_one() -> None:
    program = squeezenet("conventional").program
    scratch = [i.workspace.buffer.size for i in program.instructions if isinstance(i, Winograd)]
    assert len(scratch) > 1
    assert allocated_sizes(program)["workspace"] == sum(-(-s // 64) * 64 for s in scratch)
