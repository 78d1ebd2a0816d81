"""Reductions, softmax and the normalizations that reduce."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from vessels.lower import views
from vessels.lower.builder import Body, Builder, Op, lowers, require
from vessels.program import DType, MapCode, Reduce, ReduceKind, View

M = MapCode

_KINDS = {
    "ReduceSum": ReduceKind.SUM,
    "ReduceMean": ReduceKind.SUM,
    "ReduceProd": ReduceKind.PROD,
    "ReduceMax": ReduceKind.MAX,
    "ReduceMin": ReduceKind.MIN,
    "ReduceSumSquare": ReduceKind.SUM_SQUARE,
    "ReduceL1": ReduceKind.SUM_ABS,
    "ReduceL2": ReduceKind.SUM_SQUARE,
    "ReduceLogSum": ReduceKind.SUM,
}


def reduced(
    builder: Builder,
    view: View,
    axes: Sequence[int],
    kind: ReduceKind,
    name: str,
    scale: float = 1.0,
) -> View:
    """``view`` reduced over ``axes``, which stay as dimensions of one element."""
    kept = [i for i in range(len(view.shape)) if i not in axes]
    moved = views.permute(view, [*kept, *axes])
    dtype = DType.I64 if kind >= ReduceKind.ARG_MAX_FIRST else view.dtype
    # The result keeps the physical order of what it comes from.
    order = views.order(views.permute(view, kept))
    output = builder.new([view.shape[i] for i in kept], dtype, order, name)
    builder.emit(Reduce(moved, output, kind, scale))
    for axis in sorted(axes):
        output = views.insert(output, axis)
    return output


def mapped(
    builder: Builder, inputs: Sequence[View], name: str, expression: Callable[..., int]
) -> View:
    """A float32 map in the shape and physical order of the first input."""
    output = builder.like(inputs[0].shape, DType.F32, inputs[:1], name)
    return builder.map(inputs, output, expression)


def _axes(op: Op) -> list[int] | None:
    """The axes to reduce, sorted; ``None`` for nothing at all."""
    axes = op.ints("axes", 1)
    if not axes:
        return None if op.attr("noop_with_empty_axes", 0) else list(range(op.rank))
    return sorted({a + op.rank if a < 0 else a for a in axes})


@lowers(*_KINDS, "ReduceLogSumExp")
def reduce(op: Op) -> None:
    builder = op.builder
    name = op.node.outputs[0].name or op.type
    axes = _axes(op)
    x = op.view()
    floats = x.dtype == DType.F32
    if not floats:
        require(x.dtype in (DType.I32, DType.I64), f"dtype {x.dtype.name}")
        require(
            op.type in ("ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin"),
            f"{op.type} of integers",
        )
    if axes is None:
        require(op.type in ("ReduceSum", "ReduceMean", "ReduceProd", "ReduceMax", "ReduceMin"),
                "no axes to reduce")  # fmt: skip
        op.set(x)
        return
    if op.type == "ReduceLogSumExp":
        peak = reduced(builder, x, axes, ReduceKind.MAX, name)
        shifted = mapped(builder, [x, peak], name, lambda b, x, p: b.op(M.EXP, b.op(M.SUB_F, x, p)))
        total = reduced(builder, shifted, axes, ReduceKind.SUM, name)
        out = mapped(builder, [total, peak], name, lambda b, t, p: b.op(M.ADD_F, b.op(M.LOG, t), p))
    else:
        count = math.prod(x.shape[a] for a in axes)
        scale = 1.0 / count if op.type == "ReduceMean" else 1.0
        out = reduced(builder, x, axes, _KINDS[op.type], name, scale)
        finish = {"ReduceL2": M.SQRT, "ReduceLogSum": M.LOG}.get(op.type)
        if finish is not None:
            code = finish
            out = mapped(builder, [out], name, lambda b, x: b.op(code, x))
    if not op.attr("keepdims", 1):
        for axis in reversed(axes):
            out = views.drop(out, axis)
    op.set(out)


@lowers("ArgMax", "ArgMin")
def arg_extreme(op: Op) -> None:
    x = op.view()
    require(x.dtype in (DType.F32, DType.I32, DType.I64), f"dtype {x.dtype.name}")
    last = bool(op.attr("select_last_index", 0))
    if op.type == "ArgMax":
        kind = ReduceKind.ARG_MAX_LAST if last else ReduceKind.ARG_MAX_FIRST
    else:
        kind = ReduceKind.ARG_MIN_LAST if last else ReduceKind.ARG_MIN_FIRST
    axis = op.axis(0)
    out = reduced(op.builder, x, [axis], kind, op.node.outputs[0].name or op.type)
    op.set(out if op.attr("keepdims", 1) else views.drop(out, axis))


@lowers("Softmax", "LogSoftmax")
def softmax(op: Op) -> None:
    op.floats()
    builder = op.builder
    name = op.node.outputs[0].name or op.type
    x = op.view()
    # Before opset 13 the input counts as a matrix, flattened at the axis.
    axes = [op.axis(-1)] if op.version >= 13 else list(range(op.axis(1), op.rank))
    if not axes:
        axes = [op.rank]
        x = views.insert(x, op.rank)
    peak = reduced(builder, x, axes, ReduceKind.MAX, name)
    if op.type == "Softmax":
        powers = mapped(builder, [x, peak], name, lambda b, x, p: b.op(M.EXP, b.op(M.SUB_F, x, p)))
        total = reduced(builder, powers, axes, ReduceKind.SUM, name)
        out = mapped(builder, [powers, total], name, lambda b, x, t: b.op(M.DIV_F, x, t))
    else:
        shifted = mapped(builder, [x, peak], name, lambda b, x, p: b.op(M.SUB_F, x, p))
        powers = mapped(builder, [shifted], name, lambda b, x: b.op(M.EXP, x))
        total = reduced(builder, powers, axes, ReduceKind.SUM, name)
        out = mapped(
            builder, [shifted, total], name, lambda b, x, t: b.op(M.SUB_F, x, b.op(M.LOG, t))
        )
    op.set(views.drop(out, op.rank) if axes == [op.rank] else out)


def _normalized(
    op: Op, x: View, axes: list[int], epsilon: float, name: str
) -> tuple[View, View, View]:
    """``(x - mean, mean, 1 / sqrt(variance + epsilon))`` over ``axes``."""
    builder = op.builder
    scale = 1.0 / math.prod(x.shape[a] for a in axes)
    mean = reduced(builder, x, axes, ReduceKind.SUM, name, scale)
    centred = mapped(builder, [x, mean], name, lambda b, x, m: b.op(M.SUB_F, x, m))
    variance = reduced(builder, centred, axes, ReduceKind.SUM_SQUARE, name, scale)

    def inverse(b: Body, v: int) -> int:
        return b.op(M.RECIPROCAL, b.op(M.SQRT, b.op(M.ADD_F, v, b.f(epsilon))))

    return centred, mean, mapped(builder, [variance], name, inverse)


@lowers("LayerNormalization")
def layer_normalization(op: Op) -> None:
    op.floats()
    require(op.attr("stash_type", 1) == 1, "stash_type other than float32")
    builder = op.builder
    name = op.node.outputs[0].name or op.type
    x = op.view()
    axes = list(range(op.axis(-1), op.rank))
    centred, mean, inverse = _normalized(op, x, axes, float(op.attr("epsilon", 1e-5)), name)
    inputs = [centred, inverse, op.view(1)] + ([op.view(2)] if op.has(2) else [])

    def expression(b: Body, c: int, i: int, s: int, *bias: int) -> int:
        y = b.op(M.MUL_F, b.op(M.MUL_F, c, i), s)
        return b.op(M.ADD_F, y, bias[0]) if bias else y

    op.set(mapped(builder, inputs, name, expression))
    if op.wants(1):
        op.set(mean, 1)
    if op.wants(2):
        op.set(inverse, 2)


@lowers("InstanceNormalization")
def instance_normalization(op: Op) -> None:
    op.floats()
    builder = op.builder
    name = op.node.outputs[0].name or op.type
    x = op.view()
    axes = list(range(2, op.rank))
    require(axes, "no spatial dimensions")
    centred, _, inverse = _normalized(op, x, axes, float(op.attr("epsilon", 1e-5)), name)
    channel = (op.shape()[1], *[1] * (op.rank - 2))
    scale, bias = (builder.reshaped(op.view(i), channel) for i in (1, 2))
    op.set(
        mapped(
            builder,
            [centred, inverse, scale, bias],
            name,
            lambda b, c, i, s, t: b.op(M.ADD_F, b.op(M.MUL_F, b.op(M.MUL_F, c, i), s), t),
        )
    )


@lowers("LpNormalization")
def lp_normalization(op: Op) -> None:
    op.floats()
    power = int(op.attr("p", 2))
    require(power in (1, 2), f"p={power}")
    builder = op.builder
    name = op.node.outputs[0].name or op.type
    x = op.view()
    kind = ReduceKind.SUM_ABS if power == 1 else ReduceKind.SUM_SQUARE
    norm = reduced(builder, x, [op.axis(-1)], kind, name)

    def expression(b: Body, x: int, n: int) -> int:
        if power == 2:
            n = b.op(M.SQRT, n)
        # A vector of zeros stays zeros.
        zero = b.op(M.EQ_F, n, b.f(0.0))
        return b.op(M.SELECT_F, zero, b.f(0.0), b.op(M.DIV_F, x, n))

    op.set(mapped(builder, [x, norm], name, expression))
