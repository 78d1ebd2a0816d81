"""The checker refuses what breaks a rule: the vectors of docs/format.md, each by its name."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.networks import Net
from vessels.check import check
from vessels.check_ladder import check_ladder
from vessels.errors import PlanError
from vessels.plan import make_plan
from vessels.program import (
    Buffer,
    Chunk,
    Conv,
    Copy,
    DType,
    Gather,
    Instruction,
    Load,
    Map,
    MapCode,
    MapOp,
    Port,
    Program,
    View,
    Winograd,
)

Change = Callable[[Program], Program]


@pytest.fixture(scope="module")
def good() -> Program:
    """A small program with a load, direct and Winograd convolutions, a map and a pool."""
    net = Net(size=28)
    x = net.conv(net.input(64), 64)
    y = net.map(net.conv(x, 64, 1), net.constant(64))
    program = make_plan(net.finish(net.pool(net.concat(y, x)))).program
    kinds = {type(i) for i in program.instructions}
    assert {Load, Conv, Winograd, Map} <= kinds
    check(program)
    return program


def first(program: Program, kind: type[Instruction]) -> int:
    return next(n for n, i in enumerate(program.instructions) if isinstance(i, kind))


def change(kind: type[Instruction], **fields: Any) -> Change:
    """Replaces fields of the first instruction of a kind; values may be functions of the old."""

    def apply(program: Program) -> Program:
        index = first(program, kind)
        old = program.instructions[index]
        new = {k: v(getattr(old, k)) if callable(v) else v for k, v in fields.items()}
        changed = replace(old, **new)  # type: ignore[type-var]
        return with_instructions(
            program, *program.instructions[:index], changed, *program.instructions[index + 1 :]
        )

    return apply


def with_instructions(program: Program, *instructions: Instruction) -> Program:
    return replace(program, instructions=instructions)


def layout(**fields: int) -> Change:
    return lambda p: replace(p, layout=replace(p.layout, **fields))


def chunk(**fields: Any) -> Change:
    return lambda p: replace(p, chunks=(replace(p.chunks[0], **fields), *p.chunks[1:]))


def view(**fields: Any) -> Callable[[View], View]:
    return lambda v: replace(v, **fields)


def moved(which: Callable[[Program], Buffer], to: Callable[[Program], int]) -> Change:
    """Another pool offset for one buffer."""
    return lambda p: replace(p, offsets={**p.offsets, which(p): to(p)})


def append(*make: Callable[[Program], Instruction]) -> Change:
    return lambda p: with_instructions(p, *p.instructions, *(m(p) for m in make))


def input_view(program: Program) -> View:
    return program.inputs[0].view


def output_view(program: Program) -> View:
    return program.outputs[0].view


def workspace(program: Program) -> View:
    instruction = program.instructions[first(program, Winograd)]
    assert isinstance(instruction, Winograd)
    return instruction.workspace


def operand(kind: type[Instruction], name: str) -> Callable[[Program], Buffer]:
    return lambda p: getattr(p.instructions[first(p, kind)], name).buffer


def resident(*offsets: int) -> Change:
    """Adds resident chunks of 64 bytes at these offsets in a resident region of 256."""

    def apply(program: Program) -> Program:
        sizes = replace(program.layout, resident_size=256)
        chunks = [Chunk(64, sizes.resident_offset + o, b"") for o in offsets]
        return replace(program, layout=sizes, chunks=(*program.chunks, *chunks))

    return apply


def optional_chunk(program: Program) -> Program:
    """Adds one that no instruction reads, to the end of the order."""
    order = (*program.order, len(program.chunks))
    chunks = (*program.chunks, Chunk(64, None, b""))
    return replace(program, chunks=chunks, order=order, rungs=program.rungs[:1])


def straddling(program: Program) -> Program:
    """Reads the last bytes of the slot, and the first of the constants behind it."""
    size = 1 << 20
    rungs = tuple(replace(r, resident_size=r.resident_size + size) for r in program.rungs)
    fixed = Chunk(size, program.layout.resident_offset, b"")
    grown = replace(program, rungs=rungs, chunks=(*program.chunks, fixed))
    placed = replace(grown, layout=replace(program.layout, resident_size=size))
    return moved(operand(Conv, "input"), lambda p: p.layout.slot_size - 64)(placed)


def rung(number: int, **fields: int) -> Change:
    """Other figures of a rung."""

    def apply(program: Program) -> Program:
        rungs = list(program.rungs)
        rungs[number] = replace(rungs[number], **fields)
        return replace(program, rungs=tuple(rungs))

    return apply


def without_first_writer(program: Program) -> Program:
    index = first(program, Map)
    return with_instructions(
        program, *program.instructions[:index], *program.instructions[index + 1 :]
    )


def flat(program: Program, count: int, stride: int) -> View:
    return View(output_view(program).buffer, 0, DType.F32, (count,), (stride,))


VECTORS: dict[str, tuple[str, Change]] = {
    "too-many-instructions": ("V1", lambda p: with_instructions(p, *p.instructions * 20_000)),
    "layout-odd": ("V2", layout(arena_size=100)),
    "layout-no-thread": ("V2", layout(thread_count=0)),
    "layout-absurd": ("V2", layout(arena_size=1 << 41)),
    "chunk-odd": ("V3", chunk(size=100)),
    "chunk-beyond-staging": ("V3", layout(staging_size=64)),
    "resident-misaligned": ("V4", resident(4)),
    "resident-overlap": ("V4", resident(64, 64)),
    "resident-outside": ("V4", resident(256)),
    "view-rank": ("V5", change(Map, output=view(shape=(1,) * 9, strides=(1,) * 9))),
    "view-empty": ("V5", change(Map, output=view(shape=(1, 0, 28, 64)))),
    "view-misaligned": ("V5", change(Map, output=view(offset=2, shape=(1, 1, 1, 64)))),
    "view-outside": ("V6", moved(operand(Map, "output"), lambda p: p.layout.size)),
    "view-below": ("V6", moved(operand(Map, "output"), lambda p: -64)),
    "write-resident": ("V6", moved(operand(Map, "output"), lambda p: p.layout.resident_offset)),
    "read-staging": ("V6", moved(operand(Conv, "input"), lambda p: p.layout.staging_offset)),
    "view-straddles": ("V6", straddling),
    "port-outside": ("V7", lambda p: replace(p, inputs=(Port("in", workspace(p)),))),
    "chunk-unused": ("V8", optional_chunk),
    "read-unwritten": ("V9", without_first_writer),
    "read-overwritten": (
        "V9",
        moved(operand(Load, "output"), lambda p: p.offsets[operand(Winograd, "output")(p)]),
    ),
    "output-unwritten": ("V9", lambda p: with_instructions(p, *p.instructions[:-1])),
    "output-overlaps-itself": (
        "V10",
        append(lambda p: Map((), flat(p, 4, 0), (MapOp(MapCode.CONST_F),))),
    ),
    "output-overlaps-input": (
        "V11",
        append(lambda p: Copy(flat(p, 64, 1), replace(flat(p, 64, 1), offset=64))),
    ),
    "workspace-overlaps": (
        "V12",
        moved(lambda p: workspace(p).buffer, lambda p: p.offsets[input_view(p).buffer]),
    ),
    "conv-window": ("V13", change(Conv, stride=(40, 40))),
    "conv-padding": ("V13", change(Conv, padding=(7, 0))),
    "map-register": ("V13", change(Map, ops=(MapOp(MapCode.ADD_F, 0, 7),))),
    "map-kind": ("V13", change(Map, ops=(MapOp(MapCode.ADD_I, 0, 1),))),
    "gather-axis": (
        "V13",
        append(
            lambda p: Gather(
                input_view(p),
                replace(flat(p, 4, 1), dtype=DType.I32),
                replace(flat(p, 4, 1), offset=1024),
                9,
            )
        ),
    ),
    "cut-missing-chunk": ("V14", change(Conv, cut=lambda c: replace(c, first_chunk=10_000))),
    "cut-size": ("V14", change(Conv, cut=lambda c: replace(c, depth_per_chunk=8))),
    "cut-winograd-panels": ("V14", change(Winograd, cut=lambda c: replace(c, panels_per_chunk=2))),
    "workspace-small": ("V14", change(Winograd, workspace=view(shape=(99,), strides=(1,)))),
    "tile-block": ("V14", change(Winograd, tile_block=33)),
    "order-missing": ("V15", lambda p: replace(p, order=p.order[1:])),
    "order-twice": ("V15", lambda p: replace(p, order=(*p.order, p.order[0]))),
    "order-outside": ("V15", lambda p: replace(p, order=(*p.order, len(p.chunks)))),
    "rung-none": ("V16", lambda p: replace(p, rungs=())),
    "rung-default": ("V16", lambda p: replace(p, rung=len(p.rungs))),
    "rung-order": ("V16", lambda p: replace(p, rungs=p.rungs[::-1])),
    "rung-count": ("V16", rung(-1, resident_count=10_000)),
    "rung-resident": ("V16", rung(-1, resident_size=64)),
    "rung-staging": ("V16", rung(0, staging_size=1 << 20)),
    "rung-other": ("V16", lambda p: replace(p, rung=1)),
}


def read_scratched(program: Program) -> Program:
    """What is loaded lies under the workspace of a convolution that runs in between."""
    load = program.instructions[first(program, Load)]
    rest = [i for i in program.instructions if i is not load]
    offsets = {**program.offsets, load.writes[0].buffer: program.offsets[workspace(program).buffer]}
    return replace(program, instructions=(load, *rest), offsets=offsets)


VECTORS["read-scratched"] = ("V9", read_scratched)


@pytest.mark.parametrize("name", VECTORS)
def test_vector(name: str, good: Program) -> None:
    rule, mutate = VECTORS[name]
    with pytest.raises(PlanError, match=rf"\b{rule} "):
        check(mutate(good))


def test_all_vectors_are_documented() -> None:
    text = (Path(__file__).parent.parent / "docs" / "format.md").read_text()
    listed = text[text.index("### The program\n\nA view") :]
    for name, (rule, _) in VECTORS.items():
        line = next(row for row in listed.splitlines() if f"`{name}`" in row)
        assert line.startswith(f"| {rule} |")


def test_fast() -> None:
    """A second is plenty for a large network."""
    net = Net(size=56)
    x = net.conv(net.input(16), 256, 1)
    for _ in range(60):
        x = net.conv(net.conv(x, 64, 1), 256, 1, residual=x)
    program = make_plan(net.finish(x)).program
    start = time.process_time()
    check(program)
    assert time.process_time() - start < 3.0


def test_many_chunks(good: Program) -> None:
    first, count = len(good.chunks), 20_000
    many = replace(
        good,
        chunks=(*good.chunks, *[Chunk(64, None, b"")] * count),
        order=(*good.order, *range(first, first + count)),
    )
    start = time.process_time()
    with pytest.raises(PlanError, match="V16"):
        check_ladder(many)
    assert time.process_time() - start < 2.0
