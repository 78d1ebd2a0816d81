"""Check, second part: what each kind of instruction asks of its operands and chunks.

The rules V13 (shapes and dtypes) and V14 (cut and workspace) of ``docs/format.md``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vessels.errors import PlanError
from vessels.program import (
    ALIGNMENT,
    MAX_MAP_REGISTERS,
    MAX_PADDED_CHANNELS,
    Chunk,
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
    Pool,
    Reduce,
    ReduceKind,
    View,
    Winograd,
    WinogradMode,
)

MAX_TILE_BLOCK = 32


def check_shapes(instruction: Instruction) -> None:
    """Raise :class:`PlanError` (V13) unless shapes, dtypes and attributes belong together."""
    if isinstance(instruction, Load):
        _demand(instruction.output.is_dense, "its output is not dense")
    elif isinstance(instruction, Conv | Winograd | Depthwise):
        _check_convolution(instruction)
    elif isinstance(instruction, MatMul):
        _check_matmul(instruction)
    elif isinstance(instruction, Pool):
        _check_pool(instruction)
    elif isinstance(instruction, Map):
        _check_map(instruction)
    elif isinstance(instruction, Reduce):
        _check_reduce(instruction)
    elif isinstance(instruction, Copy):
        a, b = instruction.input, instruction.output
        _demand(a.shape == b.shape and a.dtype == b.dtype, "input and output differ in shape")
    elif isinstance(instruction, Gather):
        _check_gather(instruction)


def _demand(holds: bool, problem: str) -> None:
    if not holds:
        raise PlanError(f"V13 shapes: {problem}.")


def _check_image(view: View, what: str) -> None:
    _demand(view.dtype == DType.F32 and len(view.shape) == 4, f"{what} is no float32 image")
    _demand(view.shape[3] == 1 or view.strides[3] == 1, f"the channel stride of {what} is not 1")


def _check_convolution(conv: Conv | Winograd | Depthwise) -> None:
    _check_image(conv.input, "the input")
    _check_image(conv.output, "the output")
    if conv.residual is not None:
        _check_image(conv.residual, "the residual")
        _demand(conv.residual.shape == conv.output.shape, "the residual's shape differs")
    _demand(conv.input.shape[0] == conv.output.shape[0], "batch sizes differ")
    if isinstance(conv, Depthwise):
        _demand(conv.input.shape[3] == conv.output.shape[3], "channel counts differ")
    kernel, stride, dilation = (3, 3), (1, 1), (1, 1)
    if not isinstance(conv, Winograd):
        kernel, stride, dilation = conv.kernel, conv.stride, conv.dilation
    outside = False
    for axis in (0, 1):
        reach = (kernel[axis] - 1) * dilation[axis]
        pad = conv.padding[axis]
        _demand(min(kernel[axis], stride[axis], dilation[axis]) >= 1, "a window of nothing")
        _demand(0 <= pad <= reach, "padding exceeds the kernel")
        last = (conv.output.shape[1 + axis] - 1) * stride[axis] - pad
        # Every window has a tap inside: what lies wholly outside is no convolution.
        _demand(last < conv.input.shape[1 + axis], "windows start beyond the input")
        outside |= pad > 0 or last + reach >= conv.input.shape[1 + axis]
    _demand(not outside or conv.input.shape[3] <= MAX_PADDED_CHANNELS, "too many padded channels")


def _check_matmul(product: MatMul) -> None:
    a, b, out = product.a, product.b, product.output
    _demand({v.dtype for v in (a, b, out)} == {DType.F32}, "not all float32")
    _demand(len(a.shape) == len(b.shape) == len(out.shape) >= 2, "ranks differ")
    _demand(a.shape[:-2] == b.shape[:-2] == out.shape[:-2], "batch dimensions differ")
    _demand(
        a.shape[-1] == b.shape[-2] and out.shape[-2:] == (a.shape[-2], b.shape[-1]),
        "the product's dimensions do not fit",
    )


def _check_pool(pool: Pool) -> None:
    _check_image(pool.input, "the input")
    _check_image(pool.output, "the output")
    _demand(pool.input.shape[0] == pool.output.shape[0], "batch sizes differ")
    _demand(pool.input.shape[3] == pool.output.shape[3], "channel counts differ")
    for axis in (0, 1):
        size = pool.input.shape[1 + axis]
        before, after = pool.padding[axis], pool.padding[2 + axis]
        reach = (pool.kernel[axis] - 1) * pool.dilation[axis]
        _demand(min(pool.kernel[axis], pool.stride[axis], pool.dilation[axis]) >= 1, "a bad window")
        _demand(before >= 0 and after >= 0, "padding is negative")
        last = (pool.output.shape[1 + axis] - 1) * pool.stride[axis] - before
        _demand(last < size and before <= reach, "a window lies outside of the input")
        # A window that meets no cell would divide by nothing. With dilation, taps may step over
        # the input altogether, so each window is looked at.
        starts = np.arange(pool.output.shape[1 + axis]) * pool.stride[axis] - before
        cells = starts[:, None] + np.arange(pool.kernel[axis]) * pool.dilation[axis]
        meets = ((cells >= 0) & (cells < size)).any(axis=1)
        _demand(bool(meets.all()), "a window has no cell of the input")


_TO_INT = {MapCode.F_TO_I, MapCode.LT_F, MapCode.LE_F, MapCode.EQ_F, MapCode.IS_NAN,
           MapCode.IS_INF_POSITIVE, MapCode.IS_INF_NEGATIVE}  # fmt: skip


def _signature(op: MapOp) -> tuple[str, str]:
    """Register kinds an operation takes and gives, as in ``("FF", "F")``."""
    code = op.code
    if code in (MapCode.CONST_F, MapCode.CONST_I):
        return "", "F" if code == MapCode.CONST_F else "I"
    if code == MapCode.I_TO_F:
        return "I", "F"
    if code in (MapCode.SELECT_F, MapCode.SELECT_I):
        return ("IFF", "F") if code == MapCode.SELECT_F else ("III", "I")
    if code >= MapCode.NEG_I:
        return ("I", "I") if code <= MapCode.NOT_I else ("II", "I")
    pairs = MapCode.ADD_F <= code <= MapCode.MOD_F or MapCode.LT_F <= code <= MapCode.EQ_F
    return "FF" if pairs else "F", "I" if code in _TO_INT else "F"


def _check_map(instruction: Map) -> None:
    registers = ["F" if v.dtype == DType.F32 else "I" for v in instruction.inputs]
    for view in instruction.inputs:
        _demand(view.shape == instruction.output.shape, "an input's shape is not the output's")
    for op in instruction.ops:
        takes, gives = _signature(op)
        if op.code == MapCode.CONST_F:
            _demand(0 <= op.x < 1 << 32, "a constant that is no float32")
        spare = (op.y, op.z) if op.code <= MapCode.CONST_I else (op.x, op.y, op.z)[len(takes) :]
        _demand(not any(spare), f"{op.code.name} has an argument that it does not use")
        for kind, register in zip(takes, (op.x, op.y, op.z), strict=False):
            _demand(0 <= register < len(registers), "an operation reads a later register")
            _demand(
                registers[register] == kind, f"{op.code.name} reads a register of its other kind"
            )
        registers.append(gives)
    _demand(1 <= len(registers) <= MAX_MAP_REGISTERS, "no registers, or too many")
    stored = "F" if instruction.output.dtype == DType.F32 else "I"
    _demand(registers[-1] == stored, "the last register is not of the output's kind")


def _check_reduce(reduce: Reduce) -> None:
    rank = len(reduce.output.shape)
    _demand(reduce.input.shape[:rank] == reduce.output.shape, "the outer dimensions differ")
    _demand(reduce.input.dtype in (DType.F32, DType.I32, DType.I64), "the dtype is not reducible")
    gives = DType.I64 if reduce.reduction >= ReduceKind.ARG_MAX_FIRST else reduce.input.dtype
    _demand(reduce.output.dtype == gives, "the output's dtype is not the reduction's")
    _demand(reduce.scale == 1.0 or gives == DType.F32, "an integer reduction is scaled")


def _check_gather(gather: Gather) -> None:
    data, axis = gather.data, gather.axis
    _demand(0 <= axis < len(data.shape), "there is no such axis")
    _demand(gather.indices.dtype in (DType.I32, DType.I64), "indices are not int32 or int64")
    shape = (*data.shape[:axis], *gather.indices.shape, *data.shape[axis + 1 :])
    _demand(gather.output.shape == shape, "the output's shape is not that of the gather")
    _demand(gather.output.dtype == data.dtype, "dtypes differ")


def check_cut(instruction: Instruction, chunks: Sequence[Chunk], thread_count: int) -> None:
    """Raise :class:`PlanError` (V14) unless the chunks are what the instruction reads."""
    if isinstance(instruction, Load):
        first, count = instruction.first_chunk, instruction.chunk_count
        _demand_cut(first >= 0 and 1 <= count <= len(chunks) - first, "chunks that do not exist")
        sizes = [c.size for c in chunks[first : first + count]]
        size = instruction.output.count * instruction.output.dtype.size
        _demand_cut(all(s == sizes[0] for s in sizes[:-1]), "uneven chunks")
        rest = sum(sizes) - size
        _demand_cut(sizes[-1] <= sizes[0] and 0 <= rest < ALIGNMENT, "chunks of another size")
        return
    if not isinstance(instruction, Conv | Winograd | Depthwise):
        return
    cut = instruction.cut
    if cut is None:
        raise PlanError("V14 cut: it has none.")
    _demand_cut(
        cut.first_chunk >= 0 and 1 <= cut.chunk_count <= len(chunks) - cut.first_chunk,
        "chunks that do not exist",
    )
    channels = instruction.input.shape[3]
    if isinstance(instruction, Winograd):
        depth, rows = channels, 9
        _demand_cut(cut.panels_per_chunk == 1, "a Winograd chunk of several panels")
        _check_workspace(instruction, thread_count)
    elif isinstance(instruction, Conv):
        depth, rows = instruction.kernel[0] * instruction.kernel[1] * channels, 1
    else:
        depth, rows = instruction.kernel[0] * instruction.kernel[1], 1
        _demand_cut(cut.depth_per_chunk == depth, "a depthwise kernel cut along its taps")
    _demand_cut(1 <= cut.depth_per_chunk <= depth, "no such depth")
    _demand_cut(cut.panels_per_chunk >= 1, "no panels")
    _demand_cut(
        cut.depth_per_chunk == depth or cut.panels_per_chunk == 1, "cut along both dimensions"
    )
    sizes = [c.size for c in chunks[cut.first_chunk : cut.first_chunk + cut.chunk_count]]
    expected = []
    left = instruction.output.shape[3]
    while left > 0:
        width = 0
        for _ in range(cut.panels_per_chunk):
            width += 32 if left > 16 else 16 if left > 0 else 0
            left -= 32
        for start in range(0, depth, cut.depth_per_chunk):
            expected.append(4 * width * (1 + rows * min(cut.depth_per_chunk, depth - start)))
    _demand_cut(sizes == expected, f"chunks of {sizes[:4]}… bytes, not {expected[:4]}…")


def _demand_cut(holds: bool, problem: str) -> None:
    if not holds:
        raise PlanError(f"V14 cut: {problem}.")


def _check_workspace(conv: Winograd, thread_count: int) -> None:
    n, height, width, out_channels = conv.output.shape
    channels = conv.input.shape[3]
    assert conv.cut is not None
    block = conv.tile_block
    _demand_cut(1 <= block <= MAX_TILE_BLOCK, "a tile block out of range")
    tiles = n * ((height + 3) // 4) * ((width + 3) // 4)
    block_count = (tiles + block - 1) // block
    panel_count = (out_channels + 31) // 32
    panel_sum = panel_count * 32 - (16 if 1 <= out_channels % 32 <= 16 else 0)
    gap = 32
    values, sums = 36 * (channels * block + gap), 36 * (32 * block + gap)
    if conv.mode == WinogradMode.INPUT:
        count = block_count * values
        depth = 36 * (32 * conv.cut.depth_per_chunk + gap)
        count += thread_count * (depth + block_count * sums)
    else:
        count = 36 * (channels * panel_sum + panel_count * gap) + panel_sum
        count += thread_count * (values + sums)
    space = conv.workspace
    _demand_cut(space.dtype == DType.F32 and space.is_dense, "the workspace is not dense float32")
    _demand_cut(space.count >= count, f"a workspace of {space.count} float32, not {count}")
