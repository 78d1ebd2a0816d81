"""Operators made of comparisons with constant positions, and quantization."""

from __future__ import annotations

import numpy as np

from vessels.lower import views
from vessels.lower.builder import Array, Body, Op, lowers, require
from vessels.lower.convolution import product
from vessels.lower.reduction import reduced
from vessels.program import DType, MapCode, ReduceKind, View

M = MapCode
_MAX_RUNNING_SUM = 4096
"""Longest axis of a CumSum: its matrix of ones has the square of it."""


@lowers("Trilu")
def triangle(op: Op) -> None:
    offset = op.fixed(1, "k")
    k = 0 if offset is None else int(offset.reshape(-1)[0])
    rows, columns = op.shape()[-2:]
    ones = np.ones((rows, columns), np.bool_)
    mask = np.triu(ones, k) if op.attr("upper", 1) else np.tril(ones, k)
    name = op.node.outputs[0].name or op.type
    keep = op.builder.constant_view(mask, f"{name}.mask")
    x = op.view()
    floats = x.dtype == DType.F32

    def expression(b: Body, keep: int, x: int) -> int:
        if floats:
            return b.op(M.SELECT_F, keep, x, b.f(0.0))
        return b.op(M.SELECT_I, keep, x, b.i(0))

    output = op.builder.like(x.shape, x.dtype, [x], name)
    op.set(op.builder.map([keep, x], output, expression))


@lowers("CumSum")
def running_sum(op: Op) -> None:
    """A product with a triangle of ones."""
    op.floats(0)
    axis_input = op.fixed(1, "axis")
    assert axis_input is not None
    axis = int(axis_input.reshape(-1)[0]) % op.rank
    x = op.view()
    size = x.shape[axis]
    require(size <= _MAX_RUNNING_SUM, f"an axis of {size} > {_MAX_RUNNING_SUM}")
    shift = 1 if op.attr("exclusive", 0) else 0
    ones = np.ones((size, size), np.float32)
    matrix = np.tril(ones, -shift) if op.attr("reverse", 0) else np.triu(ones, shift)
    last = [i for i in range(op.rank) if i != axis] + [axis]
    out = product(
        op.builder, views.permute(x, last), matrix, None, op.node.outputs[0].name or op.type
    )
    op.set(views.permute(out, np.argsort(last).tolist()))


def _positions(op: Op, count: int, axis: int, rank: int, name: str) -> View:
    """``0, 1, ..`` along ``axis``, to broadcast over the others."""
    array: Array = np.arange(count, dtype=np.int64).reshape(-1, *[1] * (rank - axis - 1))
    return op.builder.constant_view(array, f"{name}.positions")


@lowers("Hardmax")
def hardmax(op: Op) -> None:
    op.floats()
    require(op.version >= 13, "Hardmax before opset 13")
    axis = op.axis(-1)
    name = op.node.outputs[0].name or op.type
    x = op.view()
    best = reduced(op.builder, x, [axis], ReduceKind.ARG_MAX_FIRST, name)
    positions = _positions(op, x.shape[axis], axis, op.rank, name)
    output = op.builder.like(x.shape, DType.F32, [x], name)
    op.set(
        op.builder.map(
            [best, positions], output, lambda b, i, p: b.op(M.I_TO_F, b.op(M.EQ_I, i, p))
        )
    )


@lowers("OneHot")
def one_hot(op: Op) -> None:
    op.fixed(1, "depth")
    indices, values = op.view(0), op.view(2)
    require(indices.dtype != DType.F32, "indices of float32")
    rank = op.rank + 1
    axis = op.axis(-1, rank)
    depth = op.out_shape()[axis]
    name = op.node.outputs[0].name or op.type
    output = op.new()
    require(values.dtype == output.dtype, "values of another dtype")
    positions = _positions(op, depth, axis, rank, name)
    off, on = (views.cut(values, 0, i, 1) for i in (0, 1))
    select = M.SELECT_F if values.dtype == DType.F32 else M.SELECT_I

    def expression(b: Body, i: int, p: int, off: int, on: int) -> int:
        negative = b.op(M.LT_I, i, b.i(0))
        wrapped = b.op(M.SELECT_I, negative, b.op(M.ADD_I, i, b.i(depth)), i)
        return b.op(select, b.op(M.EQ_I, wrapped, p), on, off)

    op.set(op.builder.map([views.insert(indices, axis), positions, off, on], output, expression))


def _along(op: Op, index: int, axis: int) -> View:
    """A scale or zero point: a scalar, or a vector along ``axis`` made to broadcast."""
    require(not op.attr("block_size", 0), "block_size")
    view = op.view(index)
    if view.count == 1:
        return op.builder.reshaped(view, ())
    require(len(view.shape) == 1, "a scale of more than one dimension")
    return op.builder.reshaped(view, (view.count, *[1] * (op.rank - axis - 1)))


@lowers("DequantizeLinear")
def dequantize(op: Op) -> None:
    op.floats(1)
    axis = op.axis(1) if op.rank else 0
    name = op.node.outputs[0].name or op.type
    x, scale = op.view(), _along(op, 1, axis)
    zero = [_along(op, 2, axis)] if op.has(2) else []

    def expression(b: Body, x: int, scale: int, *zero: int) -> int:
        centred = b.op(M.SUB_I, x, zero[0]) if zero else x
        return b.op(M.MUL_F, b.op(M.I_TO_F, centred), scale)

    output = op.builder.like(x.shape, DType.F32, [x], name)
    op.set(op.builder.map([x, scale, *zero], output, expression))


@lowers("QuantizeLinear")
def quantize(op: Op) -> None:
    op.floats(0, 1)
    axis = op.axis(1) if op.rank else 0
    name = op.node.outputs[0].name or op.type
    dtype = op.out_dtype()
    require(dtype in (DType.U8, DType.I8), f"to {dtype.name}")
    low, high = (0, 255) if dtype == DType.U8 else (-128, 127)
    x, scale = op.view(), _along(op, 1, axis)
    zero = [_along(op, 2, axis)] if op.has(2) else []

    def expression(b: Body, x: int, scale: int, *zero: int) -> int:
        rounded = b.op(M.F_TO_I, b.op(M.ROUND, b.op(M.DIV_F, x, scale)))
        # The sum must not wrap where the conversion saturated.
        rounded = b.op(M.MIN_I, b.op(M.MAX_I, rounded, b.i(-(2**32))), b.i(2**32))
        shifted = b.op(M.ADD_I, rounded, zero[0]) if zero else rounded
        return b.op(M.MIN_I, b.op(M.MAX_I, shifted, b.i(low)), b.i(high))

    output = op.builder.like(x.shape, dtype, [x], name)
    op.set(op.builder.map([x, scale, *zero], output, expression))
