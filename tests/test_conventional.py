"""The conventional plan: nothing shared, everything resident, and the same answers."""

from __future__ import annotations

import itertools
import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vessels
from benchmarks import zoo
from tests.conftest import small_model
from tests.networks import Net, random_net
from tests.reference import run
from tests.test_plan import example, run_planned
from vessels import importer
from vessels.api import compile_model
from vessels.cli import main
from vessels.errors import UsageError
from vessels.figures import figures, memory_map
from vessels.lower import lower
from vessels.place import Item, lower_bound, stack, validate
from vessels.plan import Plan, make_plan
from vessels.program import ALIGNMENT, LoweredProgram, Winograd, align
from vessels.simplify import simplify


def conventional(lowered: LoweredProgram) -> Plan:
    return make_plan(lowered, policy="conventional")


def test_stack() -> None:
    items = [Item(100, 0, 2), Item(64, 1, 3), Item(1, 5, 6)]
    placed = stack(items)
    validate([Item(i.size, 0, 1) for i in items], placed.offsets)
    assert placed.offsets == (0, 128, 192)
    assert placed.size == 256 == sum(align(i.size) for i in items)
    assert placed.lower_bound == lower_bound(items) == 192


@settings(max_examples=30)
@given(st.integers(0, 100_000), st.integers(1, 12))
def test_everything_has_memory_of_its_own(seed: int, length: int) -> None:
    lowered = random_net(seed, length)
    plan = conventional(lowered)
    program = plan.program
    ranges = sorted((at, at + b.size) for b, at in program.offsets.items())
    assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(ranges))
    assert all(start % ALIGNMENT == 0 for start, _ in ranges)
    # Nothing lies in the arena but what is used, and nothing streams.
    used = [b for b in program.offsets if b.kind == "arena"]
    assert plan.activation_size == sum(align(b.size) for b in used)
    assert plan.staging_size == 0
    assert plan.resident_size == plan.parameter_size
    assert all(c.resident_offset is not None for c in program.chunks)
    # In the given order.
    outputs = [i.writes[0].buffer for i in program.instructions]
    assert outputs == [i.writes[0].buffer for i in lowered.instructions]
    # The figures come from the program, and count no padding; the plan's come from the planner.
    found = figures(program)
    padding = sum(align(b.size) - b.size for b in used)
    assert 0 <= plan.activation_lower_bound - found.activation_lower_bound <= padding
    assert found.pool_size == plan.pool_size and found.scratch_size == plan.scratch_size


@settings(max_examples=20)
@given(st.integers(0, 100_000), st.integers(1, 12))
def test_conventional_plans_compute_the_same(seed: int, length: int) -> None:
    lowered = random_net(seed, length)
    inputs = example(lowered)
    found = run_planned(conventional(lowered).program, inputs)
    for name, value in run(lowered, inputs).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4)


def test_no_take_over() -> None:
    """The sum of a skip, which the plan writes over it."""
    net = Net(size=8)
    x = net.conv(net.input(8), 16, 1)
    y = net.conv(x, 16, 1)
    z = net.conv(y, 16, 1, residual=x)
    lowered = net.finish(z)
    planned, ours = make_plan(lowered).program.offsets, conventional(lowered).program.offsets
    assert planned[z.buffer] == planned[x.buffer]
    assert len({ours[v.buffer] for v in (x, y, z)}) == 3


def test_every_workspace_is_its_own() -> None:
    net = Net(size=28)
    x = net.input(16)
    for _ in range(3):
        x = net.conv(x, 64)
    program = conventional(net.finish(x)).program
    scratch = [i.scratch for i in program.instructions if i.scratch is not None]
    assert len(scratch) == 3 and all(isinstance(i, Winograd) for i in program.instructions[:3])
    blocks = [b for b in memory_map(program) if b.kind == "scratch"]
    assert len({b.offset for b in blocks}) == 3


def test_the_given_order_is_kept_where_another_needs_less() -> None:
    """Two wide branches begun side by side: finishing one before the other needs less."""
    net = Net(size=8)
    x = net.conv(net.input(8), 8, 1)
    wide = [net.conv(x, 256, 1) for _ in range(2)]
    narrow = [net.conv(w, 8, 1) for w in wide]
    lowered = net.finish(net.map(*narrow))

    def channels(plan: Plan) -> list[int]:
        return [i.writes[0].shape[3] for i in plan.program.instructions]

    assert channels(conventional(lowered)) == [8, 256, 256, 8, 8, 8, 8]
    assert channels(make_plan(lowered)) == [8, 256, 8, 256, 8, 8, 8]


@pytest.mark.parametrize("name", ["squeezenet", "mobilenet_v2"])
def test_same_answer_bit_for_bit(name: str, tmp_path: Path) -> None:
    """The enclave accepts both plans and computes with the same kernels."""
    model = zoo.build(name, input_size=96)
    inputs = zoo.example_input(model)
    answers = []
    for policy in ("planned", "conventional"):
        sealed = tmp_path / f"{policy}.vessel"
        vessels.build(model, sealed, key=bytes(32), policy=policy)
        with vessels.Enclave(sealed, key=bytes(32)) as enclave:
            answers.append(enclave.run(inputs))
            size = enclave.ready.pool_size
    assert size == vessels.inspect(sealed, key=bytes(32)).pool_size
    planned, ours = answers
    assert set(planned) == set(ours)
    for output, expected in planned.items():
        assert np.isfinite(expected).all() and expected.std() > 0
        np.testing.assert_array_equal(ours[output], expected)


def test_how_much_more_it_takes() -> None:
    """MobileNetV2: every output, where the plan holds what is live; parameters beside them."""
    lowered = lower(simplify(importer.load(zoo.build("mobilenet_v2"))))
    ours, planned = conventional(lowered), make_plan(lowered)
    outputs = {v.buffer for i in lowered.instructions for v in i.writes if v.buffer.kind == "arena"}
    scratch = [i.scratch.buffer for i in ours.program.instructions if i.scratch is not None]
    assert ours.activation_size == sum(align(b.size) for b in (*outputs, *scratch))
    assert ours.pool_size > 5 * planned.pool_size


def test_no_budget() -> None:
    with pytest.raises(UsageError, match="no memory budget"):
        compile_model(small_model(), policy="conventional", memory=64 << 20)
    with pytest.raises(UsageError, match="planned or conventional"):
        compile_model(small_model(), policy="greedy")  # type: ignore[arg-type]


def test_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Built, inspected and drawn as any other; a budget is refused."""
    model, sealed, svg = (tmp_path / n for n in ("m.onnx", "m.vessel", "m.svg"))
    onnx.save(small_model(), model)
    plan = compile_model(model, policy="conventional")

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vessels", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capfd.readouterr()
        return (end.value.code if isinstance(end.value.code, int) else 0), *captured

    build = ("build", model, "-o", sealed, "--policy", "conventional")
    code, _, err = command(*build, "--memory", "64MiB")
    assert code == 2 and "no memory budget" in err and not sealed.exists()
    assert command(*build)[0] == 0
    code, text, _ = command("inspect", sealed, "--key", tmp_path / "m.key", "--json")
    found = json.loads(text)
    assert code == 0
    assert found["pool_size"] == plan.pool_size
    assert found["activation_size"] == plan.activation_size
    assert 0 < found["activation_lower_bound"] == plan.activation_lower_bound
    assert found["activation_lower_bound"] < found["activation_size"]
    assert found["resident_size"] == found["parameter_size"] > 0 == found["staging_size"]
    assert command("plot", sealed, "--key", tmp_path / "m.key", "-o", svg)[0] == 0
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    drawn = svg.read_text()
    assert "resident parameters" in drawn and "staging" not in drawn
