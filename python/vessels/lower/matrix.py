"""Matrix products: with constant weights a 1x1 convolution, else :class:`MatMul`."""

from __future__ import annotations

import numpy as np

from vessels.lower import views
from vessels.lower.builder import Body, Op, lowers, require
from vessels.lower.convolution import product
from vessels.program import DType, MapCode, MatMul, View


@lowers("MatMul")
def matmul(op: Op) -> None:
    op.floats()
    name = op.node.outputs[0].name or op.type
    a, b = op.view(0), op.view(1)
    weights = op.const(1)
    result_shape = op.out_shape()
    if weights is not None and op.const(0) is None and len(a.shape) >= 1:
        flat = weights
        while flat.ndim > 2 and flat.shape[0] == 1:
            flat = flat[0]
        if flat.ndim == 2:
            out = product(op.builder, a, flat, None, name)
            op.set(op.builder.reshaped(out, result_shape))
            return
        if flat.ndim == 1:
            out = product(op.builder, a, flat[:, None], None, name)
            op.set(op.builder.reshaped(out, result_shape))
            return
    if len(a.shape) == 1:
        a = views.insert(a, 0)
    if len(b.shape) == 1:
        b = views.insert(b, 1)
    out = _product(op, a, b, name)
    op.set(op.builder.reshaped(out, result_shape))


def _product(op: Op, a: View, b: View, name: str) -> View:
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a = views.broadcast(a, (*batch, *a.shape[-2:]))
    b = views.broadcast(b, (*batch, *b.shape[-2:]))
    require(a.shape[-1] == b.shape[-2], "inner dimensions differ")
    out = op.builder.new((*batch, a.shape[-2], b.shape[-1]), DType.F32, name=name)
    op.builder.emit(MatMul(a, b, out))
    return out


@lowers("Gemm")
def gemm(op: Op) -> None:
    op.floats()
    builder = op.builder
    name = op.node.outputs[0].name or op.type
    alpha, beta = float(op.attr("alpha", 1.0)), float(op.attr("beta", 1.0))
    a = op.view(0)
    if op.attr("transA", 0):
        a = views.permute(a, (1, 0))
    m, n = op.out_shape()
    weights = op.const(1)
    addend = op.const(2)
    has_addend = op.has(2) and beta != 0.0
    folded = False
    if weights is not None:
        if op.attr("transB", 0):
            weights = weights.T
        bias = None
        if has_addend and addend is not None:
            # One row, or one scalar: a column [M, 1] is not a bias of output channels.
            folded = addend.size == 1 or (addend.size == n == addend.shape[-1])
            if folded:
                bias = np.broadcast_to(addend.reshape(-1), (n,)) * np.float32(beta)
        out = product(builder, a, weights * np.float32(alpha), bias, name)
    else:
        b = op.view(1)
        if op.attr("transB", 0):
            b = views.permute(b, (1, 0))
        out = _product(op, a, b, name)
        if alpha != 1.0:
            scaled = builder.new((m, n), DType.F32, name=name)
            out = builder.map(
                [out], scaled, lambda body, x: body.op(MapCode.MUL_F, x, body.f(alpha))
            )
    if has_addend and not folded:
        total = builder.new((m, n), DType.F32, name=name)

        def add(body: Body, x: int, c: int) -> int:
            scaled = c if beta == 1.0 else body.op(MapCode.MUL_F, c, body.f(beta))
            return body.op(MapCode.ADD_F, x, scaled)

        out = builder.map([out, op.view(2)], total, add)
    op.set(out)
