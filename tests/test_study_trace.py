"""The page trace against pages worked out element by element, instruction by instruction."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import zoo
from tests.networks import Net, random_net
from tests.programs import Sheet, cut
from vessels import api
from vessels.header import HeaderPort
from vessels.pack import Array
from vessels.plan import make_plan
from vessels.program import (
    RELU,
    Activation,
    Buffer,
    Conv,
    Copy,
    Depthwise,
    DType,
    Gather,
    Instruction,
    Load,
    Map,
    MapCode,
    MapOp,
    MatMul,
    Parameters,
    Pool,
    PoolKind,
    Program,
    Reduce,
    ReduceKind,
    View,
    Winograd,
    WinogradMode,
    winograd_scratch_count,
)
from vessels.sealed_messages import MessageSizes
from vessels.study.result import KINDS, PAGE_SIZE
from vessels.study.trace import REQUEST, Trace, page_trace


def addresses(program: Program, view: View) -> Array:
    """The pool offset of every element of a view."""
    found = np.full((), program.offsets[view.buffer] + view.offset)
    for length, stride in zip(view.shape, view.strides, strict=True):
        found = found[..., None] + np.arange(length) * stride * view.dtype.size
    return found


def pages_of(places: Array, size: int) -> set[int]:
    """The pages of elements of ``size`` bytes, none of which crosses a page."""
    return set(np.unique(places // PAGE_SIZE).tolist()) if places.size and size else set()


def window_read(program: Program, i: Conv | Depthwise | Pool) -> Array:
    """The addresses of the input's elements that some tap of some window falls on."""
    _, height, width, _ = i.input.shape
    _, out_height, out_width, _ = i.output.shape
    used = np.zeros((height, width), np.bool_)
    for y in range(out_height):
        for ky in range(i.kernel[0]):
            row = y * i.stride[0] - i.padding[0] + ky * i.dilation[0]
            for x in range(out_width):
                for kx in range(i.kernel[1]):
                    column = x * i.stride[1] - i.padding[1] + kx * i.dilation[1]
                    if 0 <= row < height and 0 <= column < width:
                        used[row, column] = True
    return addresses(program, i.input)[:, used]


def chunk_pages(program: Program, first: int, count: int) -> set[int]:
    found: set[int] = set()
    for chunk in program.chunks[first : first + count]:
        at = chunk.resident_offset
        at = program.layout.staging_offset if at is None else at
        found |= set(range(at // PAGE_SIZE, (at + chunk.size - 1) // PAGE_SIZE + 1))
    return found


def expected_pages(program: Program, i: Instruction) -> set[int]:
    """All pages an instruction touches, its workspace apart."""
    found: set[int] = set()
    for view in i.writes:
        found |= pages_of(addresses(program, view), view.dtype.size)
    reads = list(i.reads)
    if isinstance(i, Conv | Depthwise | Pool):
        found |= pages_of(window_read(program, i), 4)
        reads.remove(i.input)
    for view in reads:
        found |= pages_of(addresses(program, view), view.dtype.size)
    if isinstance(i, Load):
        found |= chunk_pages(program, i.first_chunk, i.chunk_count)
    elif isinstance(i, Conv | Winograd | Depthwise):
        assert i.cut is not None
        found |= chunk_pages(program, i.cut.first_chunk, i.cut.chunk_count)
    return found


def workspace_pages(program: Program, i: Winograd) -> tuple[set[int], set[int]]:
    """Pages of the workspace that one thread must touch, and those that it may touch."""
    assert i.cut is not None
    start = program.offsets[i.workspace.buffer] + i.workspace.offset
    count = winograd_scratch_count(
        i.mode, i.output.shape, i.input.shape[-1], i.cut.depth_per_chunk, i.tile_block, 1
    )
    pages = range(start // PAGE_SIZE, (start + 4 * count - 1) // PAGE_SIZE + 1)
    n, height, width, _ = i.output.shape
    full = n * -(-height // 4) * -(-width // 4) % i.tile_block == 0
    return set(pages) if full else set(), set(pages)


def request_pages(program: Program) -> set[int]:
    """Pages of a request from its first tensor's page on; none if it is not in the arena."""
    listed = [
        [HeaderPort(p.name, p.view.dtype, p.view.shape) for p in ports]
        for ports in (program.inputs, program.outputs)
    ]
    sizes = MessageSizes.of(*listed)
    if sizes.memory > program.layout.arena_size:
        return set()
    content = program.layout.arena_offset + 64
    end = content + sizes.request + 16
    return set(range((content - 32) // PAGE_SIZE, (end - 1) // PAGE_SIZE + 1))


def check_trace(program: Program) -> Trace:
    """Every instruction touches the pages it must, and no others."""
    trace = page_trace(program)
    assert trace.pages.dtype == np.int32 and trace.kinds.dtype == np.uint8
    assert trace.instructions.dtype == np.int32
    assert (np.diff(trace.instructions) >= 0).all()
    assert trace.pages.min() >= 0
    assert trace.pages.max() < -(-program.layout.size // PAGE_SIZE)
    # A touch is not followed by one of the same page, kind and instruction.
    same = trace.pages[1:] == trace.pages[:-1]
    same &= trace.instructions[1:] == trace.instructions[:-1]
    assert (trace.kinds[1:][same] != trace.kinds[:-1][same]).all()
    for index, instruction in enumerate(program.instructions):
        found = set(trace.pages[trace.instructions == index].tolist())
        expected = expected_pages(program, instruction)
        if isinstance(instruction, Winograd):
            must, may = workspace_pages(program, instruction)
            assert expected | must <= found, (index, instruction.mnemonic)
            found &= expected | may
            expected |= found & may
        assert found == expected, (index, instruction.mnemonic, found ^ expected)
    found = set(trace.pages[trace.instructions == REQUEST].tolist())
    inputs = (pages_of(addresses(program, p.view), 1) for p in program.inputs)
    assert found == request_pages(program).union(*inputs)
    # All of the slot is zeroed at the end.
    found = set(trace.pages[trace.instructions == len(program.instructions)].tolist())
    assert found == set(range(-(-program.layout.resident_offset // PAGE_SIZE)))
    check_kinds(program, trace)
    return trace


def check_kinds(program: Program, trace: Trace) -> None:
    """A kind is touched in its region only; pages at a border belong to both."""
    layout = program.layout
    regions = {
        "io": (0, layout.io_size),
        "activations": (layout.arena_offset, layout.arena_size),
        "workspace": (layout.arena_offset, layout.arena_size),
        "parameters": (layout.resident_offset, layout.resident_size),
        "staging": (layout.staging_offset, layout.staging_size),
    }
    for number, kind in enumerate(KINDS):
        start, size = regions[kind]
        pages = trace.pages[trace.kinds == number]
        if len(pages):
            assert start // PAGE_SIZE <= pages.min(), kind
            assert pages.max() <= (start + size - 1) // PAGE_SIZE, kind


@settings(max_examples=25)
@given(st.integers(0, 100_000), st.integers(1, 10), st.booleans())
def test_random_networks(seed: int, length: int, resident: bool) -> None:
    check_trace(make_plan(random_net(seed, length), resident=resident, threads=2).program)


@cache
def network(name: str, size: int, policy: Any) -> Program:
    return api.compile_model(zoo.build(name, input_size=size), threads=1, policy=policy).program


@pytest.mark.parametrize("policy", ["planned", "conventional"])
@pytest.mark.parametrize(("name", "size"), [("squeezenet", 64), ("mobilenet_v2", 64)])
def test_networks(name: str, size: int, policy: str) -> None:
    check_trace(network(name, size, policy))


def random(*shape: int) -> Array:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def convolutions() -> Sheet:
    """Strided, dilated, cut in depth, on slices of images with pages between their pixels."""
    sheet = Sheet()
    x = sheet.input(random(1, 12, 10, 1200))
    narrow = View(x.buffer, 64, DType.F32, (1, 12, 10, 24), x.strides)
    wide = sheet.output("wide", (1, 12, 10, 1100))
    part = View(wide.buffer, 128, DType.F32, (1, 12, 10, 40), wide.strides)
    for name, source, target, kernel, stride, depth in (
        ("rows", x, None, (1, 1), (2, 2), None),
        ("slice", narrow, part, (3, 3), (1, 1), None),
        ("pieces", narrow, None, (3, 3), (2, 1), 50),
    ):
        parameters = Parameters(random(*kernel, source.shape[3], 40), random(40))
        height = (12 - kernel[0] + 2 * (kernel[0] // 2)) // stride[0] + 1
        width = (10 - kernel[1] + 2 * (kernel[1] // 2)) // stride[1] + 1
        made = target or sheet.output(name, (1, height, width, 40))
        padding = (kernel[0] // 2, kernel[1] // 2)
        conv = Conv(source, made, None, kernel, stride, (1, 1), padding, RELU, False, parameters)
        sheet.add(replace(conv, cut=cut(conv, 1, depth)))
    y = sheet.output("channels", (1, 6, 10, 24))
    parameters = Parameters(random(3, 3, 24), random(24))
    depthwise = Depthwise(
        narrow, y, None, (3, 3), (2, 1), (1, 2), (1, 2), Activation(), False, parameters
    )
    sheet.add(replace(depthwise, cut=cut(depthwise)))
    for rows, count in ((4, 1200), (12, 24)):
        source = x if count == 1200 else narrow
        z = sheet.output(f"pool{count}", (1, 12 // rows, 5, count))
        sheet.add(Pool(source, z, PoolKind.MAX, (rows, 1), (rows, 2), (1, 1), (0, 0, 0, 0), False))
    return sheet


def winograds() -> Sheet:
    sheet = Sheet()
    x = sheet.input(random(1, 14, 14, 40))
    for mode in WinogradMode:
        for depth in (40, 16) if mode == WinogradMode.INPUT else (40,):
            out = sheet.output(f"w{mode.name}{depth}", (1, 14, 14, 70))
            parameters = Parameters(random(3, 3, 40, 70), random(70))
            count = winograd_scratch_count(mode, out.shape, 40, depth, 8, 3)
            workspace = View.dense(Buffer("scratch", 4 * count), DType.F32, (count,))
            winograd = Winograd(x, out, None, (1, 1), RELU, False, mode, 8, workspace, parameters)
            sheet.add(replace(winograd, cut=cut(winograd, 1, depth)))
    return sheet


def elements() -> Sheet:
    sheet = Sheet()
    x = sheet.input(random(6, 40, 1100))
    flipped = View(x.buffer, 0, DType.F32, (1100, 40, 6), (1, 1100, 44000))
    sheet.add(Copy(flipped, sheet.output("turned", (1100, 40, 6))))
    slices = View(x.buffer, 40, DType.F32, (6, 40, 3), (44000, 1100, 360))
    sheet.add(Copy(slices, sheet.output("sparse", (6, 40, 3))))
    sheet.add(Map((x,), sheet.output("dense", (6, 40, 1100)), (MapOp(MapCode.ABS_F, 0),)))
    row = View(x.buffer, 0, DType.F32, (6, 40, 1100), (0, 0, 1))
    sheet.add(Map((x, row), sheet.output("sum", x.shape), (MapOp(MapCode.ADD_F, 0, 1),)))
    far = View(x.buffer, 0, DType.F32, (6, 40, 1), (44000, 1100, 1))
    sheet.add(Map((far,), sheet.output("far", (6, 40, 1)), (MapOp(MapCode.ABS_F, 0),)))
    sheet.add(Reduce(x, sheet.output("along", (6, 40)), ReduceKind.SUM))
    across = View(x.buffer, 0, DType.F32, (1100, 40), (1, 1100))
    sheet.add(Reduce(across, sheet.output("across", (1100,)), ReduceKind.MAX))
    b = View(x.buffer, 44000 * 4, DType.F32, (3, 1100, 40), (44000, 1, 1100))
    a = View(x.buffer, 0, DType.F32, (3, 40, 1100), (44000, 1100, 1))
    sheet.add(MatMul(a, b, sheet.output("product", (3, 40, 40))))
    indices = sheet.input(np.arange(40))
    sheet.add(Gather(x, indices, sheet.output("picked", x.shape), 1))
    constant = random(1, 1, 300)
    held = Buffer("constant", constant.nbytes, data=constant)
    sheet.add(Load(View.dense(held, DType.U8, (constant.nbytes,)), 0, 0))
    loaded = View.dense(held, DType.F32, constant.shape)
    sheet.add(Copy(loaded, sheet.output("loaded", constant.shape)))
    return sheet


@pytest.mark.parametrize("make", [convolutions, winograds, elements])
def test_operands_of_every_shape(make: Any) -> None:
    check_trace(make().plan().program)


def test_a_convolution_touches_parameters_tile_by_tile() -> None:
    """The order: 28 pixels are two tiles; each reads its input, its panel, and is stored."""
    sheet = Sheet()
    x = sheet.input(random(1, 1, 28, 1024))
    out = sheet.output("out", (1, 1, 28, 32))
    parameters = Parameters(random(1, 1, 1024, 32), random(32))
    conv = Conv(x, out, None, (1, 1), (1, 1), (1, 1), (0, 0), RELU, False, parameters)
    sheet.instructions.clear()  # That fills the output.
    sheet.add(replace(conv, cut=cut(conv)))
    program = sheet.plan().program
    trace = check_trace(program)
    now = trace.instructions == 0
    assert program.chunks[0].resident_offset is not None
    kinds = [KINDS[k] for k in trace.kinds[now]]
    runs = [k for n, k in enumerate(kinds) if n == 0 or kinds[n - 1] != k]
    # Pixels lie 4 KiB apart, so tiles have 7.
    assert runs == ["io", "parameters"] * 4 + ["io"]
    panel = trace.pages[now][trace.kinds[now] == KINDS.index("parameters")]
    assert panel.tolist() == np.unique(panel).tolist() * 4
    assert len(np.unique(panel)) == -(-4 * 32 * 1025 // PAGE_SIZE)


def test_a_streamed_chunk_is_copied_decrypted_and_read() -> None:
    net = Net(size=8)
    program = make_plan(net.finish(net.conv(net.input(512), 32, 1)), threads=2).program
    layout = program.layout
    trace = check_trace(program)
    staging = trace.pages[trace.kinds == KINDS.index("staging")]
    used = np.unique(staging)
    # One thread's; read for each of the tiles of at most 14 of 64 pixels.
    assert layout.staging_size == program.chunks[0].size == 4 * 32 * 513
    assert used[-1] == (layout.staging_offset + layout.staging_size - 1) // PAGE_SIZE
    assert staging.tolist() == used.tolist() * (2 + 5)
