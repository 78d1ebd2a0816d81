"""The touches of the kernels that work on elements of any view: ``load``, ``map``, ``copy``,
``reduce``, ``gather``, ``matmul``.

They follow ``enclave/src/kernels`` and share its way to loop over several views at once,
``strided.rs``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from vessels.program import Copy, DType, Gather, Load, Map, MatMul, Reduce, View
from vessels.study.result import PAGE_SIZE
from vessels.study.touches import Touches
from vessels.study.touches_images import chunk_at

Array = np.ndarray[Any, Any]
Dim = tuple[int, tuple[int, ...]]
"""A dimension: its length, and each view's stride in elements."""

MAP_BLOCK = 512
"""Most elements of a tile of a map."""
COPY_GRAIN = 8192
"""Elements of a long row that are copied together."""
COPY_TILE = 16
"""Elements of a side of a transposed tile."""
SHORT = 8
"""Elements of a dimension below which a copy does not walk along it."""
REDUCED_TOGETHER = 64
"""Results computed side by side."""
MATMUL_BAND, MATMUL_COLUMNS, MATMUL_DEPTH = 32, 64, 192
"""Rows and columns of one product, and the depth summed at a time."""
MOST_VIEWS = 64
"""More than any instruction has."""
BATCH = 1 << 19
"""Ranges worked out at a time, to bound memory; it does not show in the trace."""


class Loops:
    """A loop nest over several views of one shape, in as few dimensions as their strides allow."""

    def __init__(self, dims: Iterable[Dim]) -> None:
        merged: list[Dim] = []
        for length, strides in dims:
            if length == 1:
                continue
            if merged and all(o == s * length for o, s in zip(merged[-1][1], strides, strict=True)):
                merged[-1] = (merged[-1][0] * length, strides)
            else:
                merged.append((length, strides))
        self.dims = merged or [(1, (0,) * MOST_VIEWS)]

    @classmethod
    def sorted(cls, dims: Iterable[Dim], by: int) -> Loops:
        """Reordered so that view ``by`` is walked through in its memory's order."""
        return cls(sorted(dims, key=lambda d: -abs(d[1][by])))

    @property
    def inner(self) -> Dim:
        return self.dims[-1]

    @property
    def outer_count(self) -> int:
        return math.prod(length for length, _ in self.dims[:-1])

    def offsets(self, index: Array, view: int, *, inner: bool = False) -> Array:
        """The view's element offsets of inner loops ``index`` or, with ``inner``, of elements."""
        offsets = np.zeros_like(index)
        for length, strides in reversed(self.dims if inner else self.dims[:-1]):
            offsets = offsets + index % length * strides[view]
            index = index // length
        return offsets


def dims(*views: View, first: int = 0, last: int | None = None) -> list[Dim]:
    """Dimensions ``first .. last`` of views of one shape there."""
    numbers = range(first, len(views[0].shape) if last is None else last)
    return [(views[0].shape[d], tuple(v.strides[d] for v in views)) for d in numbers]


class _Operand:
    """A view as the recorder sees it."""

    def __init__(self, touches: Touches, view: View) -> None:
        self.touches = touches
        self.base = touches.address(view)
        self.kind = touches.kind_at(self.base)
        self.size = view.dtype.size

    def rows(self, steps: Any, offsets: Any, length: Any, stride: int) -> None:
        """``length`` elements at ``stride`` from each of ``offsets``, all in elements."""
        steps, offsets, length = np.broadcast_arrays(steps, offsets, length)
        if stride != 1 and abs(stride) * self.size > PAGE_SIZE and offsets.size > 0:
            # A page may lie between neighbours: each is a range of its own.
            each = np.arange(int(length.max(initial=0)))
            inside = each < length[..., None]
            start = self.base + self.size * (offsets[..., None] + each * stride)
            self.touches.add(self.kind, steps[..., None], start, np.where(inside, self.size, 0))
            return
        reach = np.maximum(length - 1, 0) * stride
        start = self.base + self.size * (offsets + np.minimum(reach, 0))
        size = np.where(length > 0, self.size * (np.abs(reach) + 1), 0)
        self.touches.add(self.kind, steps, start, size)


def _batches(count: int, ranges_each: int) -> Iterator[Array]:
    """``0..count`` in runs that make about :data:`BATCH` ranges."""
    length = max(1, BATCH // max(1, ranges_each))
    for start in range(0, count, length):
        yield np.arange(start, min(start + length, count))


def load(touches: Touches, index: int, i: Load) -> None:
    """Chunk by chunk: decrypted, then copied."""
    size = i.output.count * i.output.dtype.size
    base = touches.address(i.output)
    at = 0
    for number in range(i.first_chunk, i.first_chunk + i.chunk_count):
        kind, offset = chunk_at(touches, number, 3 * (number - i.first_chunk))
        part = min(touches.program.chunks[number].size, size - at)
        step = 3 * (number - i.first_chunk) + 2
        touches.add(kind, step, offset, part)
        touches.add(touches.kind_at(base), step, base + at, part)
        at += part
    touches.flush(index)


def map_(touches: Touches, index: int, i: Map) -> None:
    """Tiles of the two innermost dimensions: inputs, then the output."""
    views = (*i.inputs, i.output)
    operands = [_Operand(touches, v) for v in views]
    loops = Loops.sorted(dims(*views), len(i.inputs))
    width, strides = loops.inner
    height, row_strides = loops.dims[-2] if len(loops.dims) > 1 else (1, (0,) * len(views))
    rows = min(max(MAP_BLOCK // width, 1), height)
    columns = -(-width // -(-width // MAP_BLOCK))
    columns = min(-(-columns // 16) * 16, width)
    down, across = -(-height // rows), -(-width // columns)
    tile_count = loops.outer_count // height * down * across
    for tile in _batches(tile_count, rows):
        band, column = tile // across, tile % across * columns
        first_row = band % down * rows
        outer = band // down * height + first_row
        row = np.arange(rows)
        length = np.where(
            row < np.minimum(rows, height - first_row)[:, None],
            np.minimum(columns, width - column)[:, None],
            0,
        )
        for v, operand in enumerate(operands):
            start = loops.offsets(outer, v) + column * strides[v]
            operand.rows(tile[:, None], start[:, None] + row * row_strides[v], length, strides[v])
        touches.flush(index)


def copy(touches: Touches, index: int, i: Copy) -> None:
    """Rows in the output's order, or tiles where the input is contiguous along another way."""
    loops = Loops.sorted(dims(i.input, i.output), 1)
    _, (from_step, *_) = loops.inner
    turned = next(
        (
            d
            for d, (length, steps) in enumerate(loops.dims[:-1])
            if steps[0] == 1 and length >= SHORT
        ),
        None,
    )
    source, target = _Operand(touches, i.input), _Operand(touches, i.output)
    if turned is not None and from_step != 1:
        _transposed(touches, index, loops, turned, source, target)
        return
    length, (from_step, to_step, *_) = loops.inner
    parts = -(-length // COPY_GRAIN)
    for item in _batches(loops.outer_count * parts, min(length, COPY_GRAIN)):
        short, extra = divmod(length, parts)
        part = item % parts
        start = part * short + np.minimum(part, extra)
        count = short + (part < extra)
        row = item // parts
        source.rows(item, loops.offsets(row, 0) + start * from_step, count, from_step)
        target.rows(item, loops.offsets(row, 1) + start * to_step, count, to_step)
        touches.flush(index)


def _transposed(
    touches: Touches, index: int, loops: Loops, dim: int, source: _Operand, target: _Operand
) -> None:
    """Bands along ``dim``, along which the input is contiguous; each in square tiles."""
    across, (_, across_step) = loops.dims[dim]
    length, (from_step, to_step, *_) = loops.inner
    others = Loops([*(d for n, d in enumerate(loops.dims[:-1]) if n != dim), (1, (0, 0))])
    outer_count = math.prod(d for n, (d, _) in enumerate(loops.dims[:-1]) if n != dim)
    band = min(max(COPY_GRAIN // length, COPY_TILE), max(across, COPY_TILE))
    corners = np.array(
        [
            (j, i, min(j + COPY_TILE, last) - j, min(i + COPY_TILE, length) - i)
            for first in range(0, across, band)
            for last in [min(first + band, across)]
            for j in range(first, last, COPY_TILE)
            for i in range(0, length, COPY_TILE)
        ]
    )
    j, i, wide, high = corners.T
    each = np.arange(COPY_TILE)
    for outer in _batches(outer_count, len(corners) * COPY_TILE):
        steps = (outer[:, None] * len(corners) + np.arange(len(corners)))[:, :, None]
        begin = others.offsets(outer, 0, inner=True)[:, None]
        start = (begin + j + i * from_step)[:, :, None] + each * from_step
        source.rows(steps, start, np.where(each < high[:, None], wide[:, None], 0), 1)
        begin = others.offsets(outer, 1, inner=True)[:, None]
        start = (begin + j * across_step + i * to_step)[:, :, None] + each * across_step
        target.rows(steps, start, np.where(each < wide[:, None], high[:, None], 0), to_step)
        touches.flush(index)


def reduce(touches: Touches, index: int, i: Reduce) -> None:
    """Blocks of results; side by side where their inputs are neighbours, else one by one."""
    rank = len(i.output.shape)
    kept = Loops.sorted(
        [(n, (i.input.strides[d], i.output.strides[d])) for d, n in enumerate(i.output.shape)], 1
    )
    reduced = Loops(dims(i.input, first=rank))
    source, target = _Operand(touches, i.input), _Operand(touches, i.output)
    row, (from_step, to_step, *_) = kept.inner
    inner_length, (inner_step, *_) = reduced.inner
    plain = i.input.dtype == i.output.dtype == DType.F32
    blocks = -(-row // REDUCED_TOGETHER)
    together = plain and min(row, REDUCED_TOGETHER) > 1 and from_step == 1 and inner_step != 1
    outer = reduced.offsets(np.arange(reduced.outer_count), 0)
    if together:
        outer = (outer[:, None] + np.arange(inner_length) * inner_step).ravel()
        for item in _batches(kept.outer_count * blocks, len(outer)):
            first = item % blocks * REDUCED_TOGETHER
            count = np.minimum(REDUCED_TOGETHER, row - first)
            start = kept.offsets(item // blocks, 0) + first
            source.rows(item[:, None], start[:, None] + outer, count[:, None], 1)
            start = kept.offsets(item // blocks, 1) + first * to_step
            target.rows(item, start, count, to_step)
            touches.flush(index)
        return
    for result in _batches(kept.outer_count * row, len(outer) * inner_length):
        start = kept.offsets(result, 0, inner=True)
        source.rows(result[:, None], start[:, None] + outer, inner_length, inner_step)
        target.rows(result, kept.offsets(result, 1, inner=True), 1, 1)
        touches.flush(index)


def gather(touches: Touches, index: int, i: Gather) -> None:
    """Slices in order. Which one an index picks is known of constants only; else they are taken to
    count through the axis."""
    rank = len(i.indices.shape)
    before = Loops(dims_of(i.data, i.output, [(d, d) for d in range(i.axis)]))
    picks = Loops(dims_of(i.indices, i.output, [(d, i.axis + d) for d in range(rank)]))
    after = Loops(
        dims_of(i.data, i.output, [(d, d - 1 + rank) for d in range(i.axis + 1, len(i.data.shape))])
    )
    operands = [_Operand(touches, v) for v in (i.data, i.indices, i.output)]
    data, indices, output = operands
    pick_count = math.prod(i.indices.shape)
    axis_length = i.data.shape[i.axis]
    values = _constant(i.indices)
    length, (from_step, to_step, *_) = after.inner
    slice_count = math.prod(i.data.shape[: i.axis]) * pick_count
    for item in _batches(slice_count, after.outer_count):
        outer, pick = item // pick_count, item % pick_count
        number = (pick if values is None else values[pick]) % axis_length
        indices.rows(item, picks.offsets(pick, 0, inner=True), 1, 1)
        rows = np.arange(after.outer_count)
        start = before.offsets(outer, 0, inner=True) + number * i.data.strides[i.axis]
        data.rows(item[:, None], start[:, None] + after.offsets(rows, 0), length, from_step)
        start = before.offsets(outer, 1, inner=True) + picks.offsets(pick, 1, inner=True)
        output.rows(item[:, None], start[:, None] + after.offsets(rows, 1), length, to_step)
        touches.flush(index)


def dims_of(a: View, b: View, pairs: list[tuple[int, int]]) -> list[Dim]:
    """Dimensions of ``a`` with those of ``b`` they go with."""
    return [(a.shape[d], (a.strides[d], b.strides[e])) for d, e in pairs]


def _constant(view: View) -> Array | None:
    """The elements of a view of a constant, flat, where the plan still holds its data."""
    data = view.buffer.data
    if data is None:
        return None
    flat = np.ascontiguousarray(data).reshape(-1).view(view.dtype.numpy)
    at = np.full((), view.offset // view.dtype.size)
    for length, stride in zip(view.shape, view.strides, strict=True):
        at = at[..., None] + np.arange(length) * stride
    found: Array = flat[at.ravel()].astype(np.int64)
    return found


def matmul(touches: Touches, index: int, i: MatMul) -> None:
    """Strips of columns; for each bands of rows; for each the depth in blocks."""
    batches = Loops(dims(i.output, i.a, i.b, last=len(i.output.shape) - 2))
    batch_count = math.prod(i.output.shape[:-2])
    height, width, depth = *i.output.shape[-2:], i.a.shape[-1]
    a, b, output = (_Operand(touches, v) for v in (i.a, i.b, i.output))
    band = np.arange(-(-height // MATMUL_BAND))[:, None, None] * MATMUL_BAND
    block = np.arange(-(-depth // MATMUL_DEPTH))[:, None] * MATMUL_DEPTH
    row, k = np.arange(MATMUL_BAND), np.arange(MATMUL_DEPTH)
    steps = band // MATMUL_BAND * len(block) + block // MATMUL_DEPTH
    rows = np.where(band + row < height, 1, 0)
    strips = range(0, width, MATMUL_COLUMNS)
    for batch in range(batch_count):
        out_at, a_at, b_at = (
            int(batches.offsets(np.array(batch), v, inner=True)) for v in range(3)
        )
        for first in strips:
            columns = min(MATMUL_COLUMNS, width - first)
            (b_row, b_column), (a_row, a_column) = i.b.strides[-2:], i.a.strides[-2:]
            out_row, out_column = i.output.strides[-2:]
            used = np.where(block + k < depth, columns, 0)
            b.rows(steps, b_at + first * b_column + (block + k) * b_row, used, b_column)
            deep = np.minimum(MATMUL_DEPTH, depth - block)
            start = a_at + (band + row) * a_row + block * a_column
            a.rows(steps, start, rows * deep, a_column)
            start = out_at + (band + row) * out_row + first * out_column
            output.rows(steps, start, rows * columns, out_column)
            touches.flush(index)
