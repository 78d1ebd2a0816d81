"""Plans compute what the lowered program does, keep their budget, and gain from memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.networks import Net, random_net
from tests.reference import Array, Memory, run, step
from vessels.check import check
from vessels.errors import BudgetError, UsageError
from vessels.plan import Plan, make_plan
from vessels.program import Buffer, DType, Load, LoweredProgram, Program, View, Winograd


def run_planned(program: Program, inputs: dict[str, Array]) -> dict[str, Array]:
    """The planned program over one run of bytes, as the enclave runs it."""
    pool = Buffer("pool", program.layout.staging_offset)
    memory = Memory()

    def placed(view: View) -> View:
        offset = program.offsets[view.buffer] + view.offset
        return View(pool, offset, view.dtype, view.shape, view.strides)

    for buffer, offset in program.offsets.items():
        if offset >= program.layout.resident_offset and buffer.data is not None:
            view = View.dense(buffer, DType.of(buffer.data.dtype), buffer.data.shape)
            memory.window(placed(view))[...] = buffer.data
    for port in program.inputs:
        memory.window(placed(port.view))[...] = inputs[port.name]
    for instruction in program.instructions:
        if isinstance(instruction, Load):
            data = instruction.output.buffer.data
            assert data is not None
            memory.window(placed(instruction.output))[...] = data.reshape(-1).view(np.uint8)
            continue
        if instruction.scratch is not None:
            memory.window(placed(instruction.scratch))[...] = np.nan
        step(memory, instruction.with_views(placed))
    return {p.name: memory.window(placed(p.view)).copy() for p in program.outputs}


def example(program: LoweredProgram) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    return {p.name: rng.standard_normal(p.view.shape).astype(np.float32) for p in program.inputs}


@settings(max_examples=40)
@given(st.integers(0, 100_000), st.integers(1, 12), st.sampled_from(["stream", "keep", "budget"]))
def test_plans_compute_the_same(seed: int, length: int, how: str) -> None:
    lowered = random_net(seed, length)
    plan = make_plan(
        lowered, memory=1 << 22 if how == "budget" else None, resident=how == "keep", threads=2
    )
    inputs = example(lowered)
    expected = run(lowered, inputs)
    found = run_planned(plan.program, inputs)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4)


def three_by_three() -> LoweredProgram:
    """A network whose best form depends on memory: 3x3 layers, a skip, a constant."""
    net = Net(size=28)
    x = net.conv(net.input(16), 64)
    for _ in range(3):
        y = net.conv(x, 64)
        x = net.conv(y, 64, residual=x)
    wide = net.conv(net.map(x, net.constant(64)), 256, 1)
    return net.finish(net.conv(wide, 32, 1))


def test_streamed_plan() -> None:
    plan = make_plan(three_by_three())
    check(plan.program)
    assert plan.resident_size == 0
    assert plan.activation_size <= 1.02 * plan.activation_lower_bound
    assert plan.staging_size <= 2 << 20
    assert plan.pool_size == plan.program.layout.size
    assert sum(len(plan.chunk(i)) for i in range(plan.chunk_count)) == plan.parameter_size
    assert any(isinstance(i, Winograd) for i in plan.program.instructions)
    assert any(isinstance(i, Load) for i in plan.program.instructions)


def test_resident_plan_needs_no_staging() -> None:
    plan = make_plan(three_by_three(), resident=True)
    assert plan.staging_size == 0 and plan.resident_size == plan.parameter_size


def smallest(lowered: LoweredProgram) -> int:
    with pytest.raises(BudgetError) as refusal:
        make_plan(lowered, memory=1000)
    words = str(refusal.value).split("smallest possible budget is ")[1]
    assert "MiB" in words
    return int(words.split()[0])


def test_budgets() -> None:
    """From the smallest possible up: never above the budget, never slower with more."""
    lowered = three_by_three()
    least = smallest(lowered)
    with pytest.raises(BudgetError, match=str(least)):
        make_plan(lowered, memory=least - 1)
    before: Plan | None = None
    for memory in [least, *range(least + 1, 6 << 20, 150_001), 64 << 20]:
        plan = make_plan(lowered, memory=memory)
        assert plan.pool_size <= memory
        assert before is None or plan.estimated_ns <= before.estimated_ns
        before = plan
    assert before is not None and before.resident_size == before.parameter_size


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(2, 10), st.integers(0, 400_000))
def test_any_budget(seed: int, length: int, more: int) -> None:
    lowered = random_net(seed, length)
    least = smallest(lowered)
    assert make_plan(lowered, memory=least).pool_size <= least
    small, large = (make_plan(lowered, memory=least + m) for m in (more // 2, more))
    assert small.pool_size <= least + more // 2 and large.pool_size <= least + more
    assert large.estimated_ns <= small.estimated_ns


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads(threads: int) -> None:
    plan = make_plan(three_by_three(), threads=threads)
    assert plan.program.layout.thread_count == threads
    assert plan.staging_size == threads * plan.program.layout.staging_size


@pytest.mark.parametrize("threads", [0, -1, 1000])
def test_bad_threads(threads: int) -> None:
    with pytest.raises(UsageError):
        make_plan(three_by_three(), threads=threads)


def test_deterministic() -> None:
    a, b = (make_plan(three_by_three()).program.encoded() for _ in range(2))
    assert a == b


def test_residual_takes_over() -> None:
    """The sum of a skip lies where the skip lay."""
    net = Net(size=8)
    x = net.conv(net.input(8), 16, 1)
    y = net.conv(x, 16, 1)
    z = net.conv(y, 16, 1, residual=x)
    plan = make_plan(net.finish(z))
    offsets = plan.program.offsets
    assert offsets[z.buffer] == offsets[x.buffer] != offsets[y.buffer]


def test_cut_depth_does_not_take_over() -> None:
    """Partial sums of a cut depth rest in the output."""
    net = Net(size=2)
    x = net.conv(net.input(8), 32, 1)
    y = net.conv(x, 4096, 1)
    z = net.conv(y, 32, 1, residual=x)
    plan = make_plan(net.finish(z))
    assert plan.program.offsets[z.buffer] != plan.program.offsets[x.buffer]
