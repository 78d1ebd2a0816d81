"""Gathers with an index for every element or tuple: positions in the flattened data, computed by a
map, then one gather."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vessels.lower import views
from vessels.lower.builder import Body, Op, lowers, require
from vessels.program import DType, Gather, MapCode, View, dense_strides

M = MapCode
_OUTSIDE = -(1 << 63)
"""A position outside of any data: the run is refused when an index is out of range."""


def _position(body: Body, index: int, size: int, step: int) -> tuple[int, int]:
    """``index`` (negative ones count from the end) times ``step``, and whether it is in range."""
    negative = body.op(M.LT_I, index, body.i(0))
    wrapped = body.op(M.SELECT_I, negative, body.op(M.ADD_I, index, body.i(size)), index)
    inside = body.op(
        M.AND_I,
        body.op(M.LE_I, body.i(0), wrapped),
        body.op(M.LT_I, wrapped, body.i(size)),
    )
    return body.op(M.MUL_I, wrapped, body.i(step)), inside


def _steps(op: Op, shape: Sequence[int], axis: int, step: int) -> View:
    """``0, step, 2 step, ..`` along ``axis``, to broadcast over the dimensions around it."""
    array = np.arange(shape[axis], dtype=np.int64) * step
    column = array.reshape(-1, *[1] * (len(shape) - axis - 1))
    return op.builder.constant_view(column, f"{op.node.outputs[0].name or op.type}.positions")


def _picked(op: Op, positions: View, data: View) -> None:
    """Emits the gather of ``data`` ``[count, ..]`` into output 0, whose dimensions begin with
    those of ``positions``."""
    output = op.new()
    op.builder.emit(Gather(data, positions, output, 0))
    op.set(output)


@lowers("GatherElements")
def gather_elements(op: Op) -> None:
    axis = op.axis(0)
    x, indices = op.view(0), op.view(1)
    require(indices.dtype in (DType.I32, DType.I64), f"indices of {indices.dtype.name}")
    strides = dense_strides(x.shape)
    others = [i for i, d in enumerate(indices.shape) if i != axis and d > 1]
    bases = [_steps(op, indices.shape, i, strides[i]) for i in others]

    def expression(body: Body, index: int, *bases: int) -> int:
        position, inside = _position(body, index, x.shape[axis], strides[axis])
        for base in bases:
            position = body.op(M.ADD_I, position, base)
        return body.op(M.SELECT_I, inside, position, body.i(_OUTSIDE))

    name = op.node.outputs[0].name or op.type
    positions = op.builder.new(indices.shape, DType.I64, name=f"{name}.positions")
    op.builder.map([indices, *bases], positions, expression)
    _picked(op, positions, op.builder.reshaped(x, (x.count,)))


@lowers("GatherND")
def gather_nd(op: Op) -> None:
    batch = int(op.attr("batch_dims", 0))
    x, indices = op.view(0), op.view(1)
    require(indices.dtype in (DType.I32, DType.I64), f"indices of {indices.dtype.name}")
    depth = indices.shape[-1]
    last = len(indices.shape) - 1
    shape = indices.shape[:-1]
    sizes = x.shape[: batch + depth]
    # Positions among the slices that the batch dimensions and the indices choose from.
    strides = dense_strides(sizes)
    parts = [views.drop(views.cut(indices, last, i, 1), last) for i in range(depth)]
    bases = [_steps(op, shape, i, strides[i]) for i in range(batch)]

    def expression(body: Body, *registers: int) -> int:
        position, inside = body.i(0), body.i(1)
        for axis, index in enumerate(registers[:depth], batch):
            part, good = _position(body, index, sizes[axis], strides[axis])
            position = body.op(M.ADD_I, position, part)
            inside = body.op(M.AND_I, inside, good)
        for base in registers[depth:]:
            position = body.op(M.ADD_I, position, base)
        return body.op(M.SELECT_I, inside, position, body.i(_OUTSIDE))

    name = op.node.outputs[0].name or op.type
    positions = op.builder.new(shape, DType.I64, name=f"{name}.positions")
    op.builder.map([*parts, *bases], positions, expression)
    rest = x.shape[batch + depth :]
    _picked(op, positions, op.builder.reshaped(x, (math.prod(sizes), *rest)))
