"""Operators that only move elements: views where strides allow, else copies and gathers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from vessels.lower import views
from vessels.lower.builder import Op, lowers, require
from vessels.program import DType, Gather, View


@lowers("Identity", "Dropout")
def identity(op: Op) -> None:
    op.only_output()
    if op.type == "Dropout" and op.has(2):
        training = op.fixed(2, "training_mode")
        require(training is not None and not training.any(), "training mode")
    op.set(op.view())


@lowers("Transpose")
def transpose(op: Op) -> None:
    perm = op.attr("perm") or list(reversed(range(op.rank)))
    op.set(views.permute(op.view(), list(perm)))


@lowers("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(op: Op) -> None:
    if op.type != "Flatten":
        op.ints("axes" if op.type != "Reshape" else "shape", 1)
    shape = op.out_shape()
    x = op.view()
    require(math.prod(shape) == x.count, f"reshape of {x.shape} to {shape}")
    op.set(op.builder.reshaped(x, shape))


@lowers("Expand")
def expand(op: Op) -> None:
    op.ints("shape", 1)
    op.set(views.broadcast(op.view(), op.out_shape()))


@lowers("Slice")
def slice_(op: Op) -> None:
    starts, ends, axes = op.ints("starts", 1), op.ints("ends", 2), op.ints("axes", 3)
    require(starts is not None and ends is not None, "starts and ends are missing")
    assert starts is not None and ends is not None
    steps = op.ints("steps", 4) or [1] * len(starts)
    x = op.view()
    for axis, start, end, step in zip(axes or range(len(starts)), starts, ends, steps, strict=True):
        axis = axis + op.rank if axis < 0 else axis
        chosen = range(x.shape[axis])[start:end:step]
        require(len(chosen), "an empty slice")
        x = views.cut(x, axis, chosen.start, len(chosen), step)
    op.set(x)


@lowers("Split")
def split(op: Op) -> None:
    op.ints("split", 1)
    axis = op.axis(0)
    x = op.view()
    start = 0
    for index, value in enumerate(op.node.outputs):
        size = op.builder.shape(value)[axis]
        op.set(views.cut(x, axis, start, size), index)
        start += size
    require(start == x.shape[axis], "the parts do not add up")


@lowers("Concat")
def concat(op: Op) -> None:
    """Copies into slices; :mod:`vessels.lower.placement` lets producers write there instead."""
    axis = op.axis(0)
    parts = [op.view(i) for i in range(len(op.node.inputs))]
    if len(parts) == 1:
        op.set(parts[0])
        return
    largest = max(parts, key=lambda v: v.count)
    output = op.new(order=views.order(largest))
    start = 0
    for part in parts:
        op.builder.emit_copy(part, views.cut(output, axis, start, part.shape[axis]))
        start += part.shape[axis]
    op.set(output)


@lowers("Pad")
def pad(op: Op) -> None:
    mode = op.attr("mode", "constant")
    pads = op.ints("pads", 1)
    require(pads is not None, "pads are missing")
    assert pads is not None
    axes = [int(a) for a in v.reshape(-1)] if (v := op.fixed(3, "axes")) is not None else None
    axes = list(range(op.rank)) if axes is None else [a % op.rank for a in axes]
    low, high = [0] * op.rank, [0] * op.rank
    for i, axis in enumerate(axes):
        low[axis], high[axis] = pads[i], pads[i + len(axes)]
    x = op.view()
    if mode != "constant":
        for axis in range(op.rank):
            if low[axis] or high[axis]:
                x = _padded_by_index(op, x, axis, low[axis], high[axis], mode)
        op.set(x)
        return
    given = op.fixed(2, "constant_value")
    value = op.attr("value", 0.0) if given is None else given.reshape(-1)[0].item()
    # Negative padding crops.
    for axis in range(op.rank):
        start, end = max(0, -low[axis]), x.shape[axis] - max(0, -high[axis])
        require(end > start, "padding that crops everything")
        x = views.cut(x, axis, start, end - start)
    output = op.new(order=views.order(x))
    # The border is filled strip by strip so that each element is written once.
    inner = output
    for axis in range(op.rank):
        before, size = max(0, low[axis]), x.shape[axis]
        after = inner.shape[axis] - before - size
        if before:
            op.builder.fill(views.cut(inner, axis, 0, before), value)
        if after:
            op.builder.fill(views.cut(inner, axis, before + size, after), value)
        inner = views.cut(inner, axis, before, size)
    op.builder.emit_copy(x, inner)
    op.set(output)


def _padded_by_index(op: Op, x: View, axis: int, low: int, high: int, mode: str) -> View:
    size = x.shape[axis]
    positions = np.arange(-low, size + high)
    if mode == "edge":
        indices = np.clip(positions, 0, size - 1)
    elif mode == "wrap":
        indices = positions % size
    else:
        require(mode == "reflect", f"mode={mode}")
        period = max(1, 2 * (size - 1))
        indices = np.abs(positions) % period
        indices = np.where(indices >= size, period - indices, indices)
    return taken(op, x, indices, axis)


def taken(op: Op, x: View, indices: np.ndarray[tuple[int], np.dtype[np.int64]], axis: int) -> View:
    """Elements ``indices`` (not negative) of dimension ``axis``: a view if evenly spaced."""
    count = len(indices)
    steps = set(np.diff(indices).tolist())
    if len(steps) <= 1:
        return views.cut(x, axis, int(indices[0]), count, steps.pop() if steps else 1)
    builder = op.builder
    name = op.node.outputs[0].name or op.type
    shape = [*x.shape[:axis], count, *x.shape[axis + 1 :]]
    output = builder.new(shape, x.dtype, views.order(x), name)
    index = builder.constant_view(np.asarray(indices, np.int64), f"{name}.indices")
    builder.emit(Gather(x, index, output, axis))
    return output


@lowers("Gather")
def gather(op: Op) -> None:
    axis = op.axis(0)
    x = op.view(0)
    constant = op.const(1)
    if constant is not None:
        size = x.shape[axis]
        require(np.all((constant >= -size) & (constant < size)), "an index is out of range")
        flat = np.where(constant < 0, constant + size, constant).astype(np.int64).reshape(-1)
        steps = set(np.diff(flat).tolist())
        if len(steps) <= 1:
            part = views.cut(x, axis, int(flat[0]), len(flat), steps.pop() if steps else 1)
            op.set(op.builder.reshaped(part, op.out_shape()))
            return
    indices = op.view(1)
    require(indices.dtype in (DType.I32, DType.I64), f"indices of {indices.dtype.name}")
    output = op.new()
    op.builder.emit(Gather(x, indices, output, axis))
    op.set(output)


@lowers("Tile")
def tile(op: Op) -> None:
    repeats = op.ints("repeats", 1)
    assert repeats is not None
    x = op.view()
    require(2 * op.rank <= 8, f"rank {op.rank}")
    shape, strides = [], []
    for repeat, d, s in zip(repeats, x.shape, x.strides, strict=True):
        shape += [repeat, d]
        strides += [0, s]
    op.set(
        op.builder.reshaped(replace(x, shape=tuple(shape), strides=tuple(strides)), op.out_shape())
    )


@lowers("DepthToSpace")
def depth_to_space(op: Op) -> None:
    n, c, h, w = op.shape()
    b = int(op.attr("blocksize"))
    x = op.view()
    if op.attr("mode", "DCR") == "DCR":
        split_ = op.builder.reshaped(x, (n, b, b, c // (b * b), h, w))
        moved = views.permute(split_, (0, 3, 4, 1, 5, 2))
    else:
        split_ = op.builder.reshaped(x, (n, c // (b * b), b, b, h, w))
        moved = views.permute(split_, (0, 1, 4, 2, 5, 3))
    _store_blocks(op, moved)


@lowers("SpaceToDepth")
def space_to_depth(op: Op) -> None:
    n, c, h, w = op.shape()
    b = int(op.attr("blocksize"))
    split_ = op.builder.reshaped(op.view(), (n, c, h // b, b, w // b, b))
    mode = op.attr("mode", "DCR")
    require(mode in ("DCR", "CRD"), f"mode={mode}")
    moved = views.permute(split_, (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4))
    output = op.new(order=(0, 2, 3, 1))
    target = views.reshape(output, moved.shape)
    assert target is not None
    op.builder.emit_copy(moved, target)
    op.set(output)


def _store_blocks(op: Op, moved: View) -> None:
    """Copies ``[N, C, H, b, W, b]`` into a channels-last output."""
    output = op.new(order=(0, 2, 3, 1))
    target = views.reshape(output, moved.shape)
    assert target is not None
    op.builder.emit_copy(moved, target)
    op.set(output)


@lowers("ConstantOfShape")
def constant_of_shape(op: Op) -> None:
    op.ints("input", 0)
    value = op.attr("value")
    output = op.new()
    op.builder.fill(output, 0.0 if value is None else value.reshape(-1)[0].item())
    op.set(output)


@lowers("Constant")
def constant(op: Op) -> None:
    for name, dtype in (("value_float", np.float32), ("value_int", np.int64),
                        ("value_floats", np.float32), ("value_ints", np.int64)):  # fmt: skip
        if op.attr(name) is not None:
            array = np.asarray(op.attr(name), dtype)
            break
    else:
        array = op.attr("value")
        require(array is not None, "neither a tensor nor numbers")
    op.set(op.builder.constant_view(array, op.node.outputs[0].name or "constant"))
