"""Resize and Upsample by constant indices and weights, one axis at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vessels.lower import views
from vessels.lower.builder import Array, Body, Op, lowers, require
from vessels.lower.movement import taken
from vessels.program import MAX_RANK, DType, MapCode, View


@lowers("Resize", "Upsample")
def resize(op: Op) -> None:
    shape, target = op.shape(), op.out_shape()
    mode = op.attr("mode", "nearest")
    require(mode in ("nearest", "linear"), f"mode={mode}")
    scales = _scales(op, shape, target)
    x = op.view()
    if op.type == "Upsample" or op.version < 11:
        transform, nearest = "asymmetric", "floor"
    else:
        transform = op.attr("coordinate_transformation_mode", "half_pixel")
        nearest = op.attr("nearest_mode", "round_prefer_floor")
    require(not op.attr("exclude_outside", 0), "exclude_outside=1")
    if mode == "linear":
        require(x.dtype == DType.F32, "linear interpolation of integers")
    factors = [1] * len(shape)
    for axis, (size, out) in enumerate(zip(shape, target, strict=True)):
        if size == out and scales[axis] == 1.0 and transform != "tf_crop_and_resize":
            continue
        if op.attr("antialias", 0):
            require(scales[axis] >= 1.0, "antialias=1")
        if transform == "align_corners" and out > 1:
            # ONNX aligns with the last cell of an output of size * scale cells, whole or not;
            # runtimes align with the last cell there is.
            require(
                abs(scales[axis] * size - out) < 1e-3,
                "align_corners with scales that give no whole size",
            )
        where = _coordinates(transform, size, out, scales[axis])
        if mode == "linear":
            x = _interpolated(op, x, axis, where)
            continue
        indices = _rounded(where, nearest, size)
        if out % size == 0 and np.array_equal(indices, np.arange(out) // (out // size)):
            factors[axis] = out // size
        else:
            x = taken(op, x, indices, axis)
    if max(factors) > 1:
        x = _repeated(op, x, factors)
    op.set(x)


def _scales(op: Op, shape: tuple[int, ...], target: tuple[int, ...]) -> list[float]:
    """A scale for every axis."""
    policy = op.attr("keep_aspect_ratio_policy", "stretch")
    require(policy == "stretch", f"keep_aspect_ratio_policy={policy}")
    index = 1 if op.type == "Upsample" or op.version < 11 else 2
    given = op.fixed(index, "scales")
    listed = op.attr("scales") if given is None else given.reshape(-1)
    if op.type == "Resize" and op.version >= 11:
        op.fixed(3, "sizes")
    axes = op.attr("axes")
    if listed is None or len(listed) == 0:
        return [o / i for i, o in zip(shape, target, strict=True)]
    scales = [1.0] * len(shape)
    for i, scale in zip(axes or range(len(shape)), listed, strict=True):
        scales[i % len(shape)] = float(scale)
    return scales


def _coordinates(transform: str, size: int, out: int, scale: float) -> Array:
    """Where each output position lies in the input, in float64 cells."""
    x = np.arange(out, dtype=np.float64)
    # float32 arithmetic, as runtimes do it, decides what lies on an edge.
    s = np.float64(np.float32(scale))
    if transform == "half_pixel":
        return (x + 0.5) / s - 0.5
    if transform == "pytorch_half_pixel":
        return (x + 0.5) / s - 0.5 if out > 1 else np.zeros(out)
    if transform == "asymmetric":
        return x / s
    if transform == "align_corners":
        return x * (size - 1) / (out - 1) if out > 1 else np.zeros(out)
    if transform == "half_pixel_symmetric":
        adjustment = out / (s * size)
        centre = size / 2 * (1 - adjustment)
        return centre + (x + 0.5) / s - 0.5
    require(False, f"coordinate_transformation_mode={transform}")
    raise AssertionError


def _rounded(where: Array, mode: str, size: int) -> Array:
    # Coordinates a rounding error away from a half or a whole count as that.
    snapped = np.where(
        np.abs(where * 2 - np.round(where * 2)) < 1e-5, np.round(where * 2) / 2, where
    )
    if mode == "round_prefer_floor":
        indices = np.ceil(snapped - 0.5)
    elif mode == "round_prefer_ceil":
        indices = np.floor(snapped + 0.5)
    elif mode == "floor":
        indices = np.floor(snapped)
    else:
        require(mode == "ceil", f"nearest_mode={mode}")
        indices = np.ceil(snapped)
    return np.clip(indices, 0, size - 1).astype(np.int64)


def _repeated(op: Op, x: View, factors: list[int]) -> View:
    """Every cell ``factors`` times along each axis: one copy from a view with strides of 0."""
    shape: list[int] = []
    strides: list[int] = []
    for d, s, factor in zip(x.shape, x.strides, factors, strict=True):
        shape.append(d)
        strides.append(s)
        if factor > 1:
            shape.append(factor)
            strides.append(0)
    require(len(shape) <= MAX_RANK, f"rank {len(x.shape)}")
    name = op.node.outputs[0].name or op.type
    result = [d * f for d, f in zip(x.shape, factors, strict=True)]
    output = op.builder.new(result, x.dtype, views.order(x), name)
    parts = views.reshape(output, tuple(shape))
    assert parts is not None
    op.builder.emit_copy(replace(x, shape=tuple(shape), strides=tuple(strides)), parts)
    return output


def _interpolated(op: Op, x: View, axis: int, where: Array) -> View:
    size = x.shape[axis]
    where = np.clip(where, 0, size - 1)
    low = np.minimum(np.floor(where).astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    fraction = (where - low).astype(np.float32)
    builder = op.builder
    name = op.node.outputs[0].name or op.type
    a, b = taken(op, x, low, axis), taken(op, x, high, axis)
    weights = builder.constant_view(
        fraction.reshape(-1, *[1] * (len(x.shape) - axis - 1)), f"{name}.weights"
    )

    def lerp(body: Body, a: int, b: int, w: int) -> int:
        difference = body.op(MapCode.SUB_F, b, a)
        return body.op(MapCode.ADD_F, a, body.op(MapCode.MUL_F, difference, w))

    output = builder.new(a.shape, DType.F32, views.order(x), name)
    return builder.map([a, b, weights], output, lerp)
