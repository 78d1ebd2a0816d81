"""Folds per-channel scales and shifts into the weights before them.

``y * scale + shift``, with one scale and one shift for each output channel, covers batch
normalization and multiplication, addition, subtraction and division by constants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from vessels.simplify.rewrite import (
    Array,
    NodePass,
    add_constant,
    constant_of,
    forward,
    input_of,
    insert,
    is_float,
    replace,
    shape_of,
    single_use,
    split_constant,
)


class FoldAffine(NodePass):
    """Folds batch normalization, ``Mul`` and ``Add`` by per-channel constants into a ``Conv``,
    ``ConvTranspose``, ``Gemm`` or ``MatMul`` that nobody else reads, or into the ``Mul`` or
    ``Add`` by a constant before it."""

    def rewrite(self, node: ir.Node) -> bool:
        source = node.inputs[0] if node.op_type == "BatchNormalization" else _variable(node)
        producer = source.producer() if source is not None else None
        if source is None or producer is None or not single_use(source):
            return False
        if shape_of(source) != shape_of(node.outputs[0]):
            return False
        if node.op_type in ("Mul", "Add") and _merge_constants(node, producer):
            return True
        fold = _FOLDS.get(producer.op_type)
        if fold is None or not is_float(node.outputs[0]):
            return False
        rank = len(shape_of(source))
        axis = 1 if producer.op_type in ("Conv", "ConvTranspose") else rank - 1
        affine = _affine_of(node, axis)
        return affine is not None and fold(producer, *affine) and forward(node, source)


def _variable(node: ir.Node) -> ir.Value | None:
    pair = split_constant(node) if node.op_type in ("Mul", "Add") else None
    return pair[0] if pair else None


Vector = np.ndarray[Any, np.dtype[np.float64]]


def _affine_of(node: ir.Node, axis: int) -> tuple[Vector | None, Vector | None] | None:
    """Float64 scale and shift along ``axis`` of the output, ``None`` where neutral; ``None`` when
    ``node`` is not of this kind."""
    if node.op_type == "BatchNormalization":
        return _batch_norm(node) if axis == 1 else None
    pair = split_constant(node)
    vector = along(pair[1], axis, shape_of(node.outputs[0])) if pair else None
    if vector is None:
        return None
    return (vector, None) if node.op_type == "Mul" else (None, vector)


def along(constant: Array, axis: int, shape: tuple[int, ...]) -> Vector | None:
    """``constant`` in float64 as a vector over ``axis`` when it varies along no other."""
    if constant.ndim > len(shape):
        return None
    full = (1,) * (len(shape) - constant.ndim) + constant.shape
    if any(d != 1 for i, d in enumerate(full) if i != axis):
        return None
    return np.broadcast_to(constant.astype(np.float64).reshape(-1), (shape[axis],))


def _batch_norm(node: ir.Node) -> tuple[Vector, Vector] | None:
    """Scale and shift of batch normalization in inference mode with constant statistics."""
    attributes = node.attributes
    if attributes.get_int("training_mode", 0) or not attributes.get_int("spatial", 1):
        return None
    if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        return None
    arrays = [constant_of(v) for v in node.inputs[1:5]]
    if any(a is None for a in arrays) or not is_float(node.outputs[0]):
        return None
    gamma, beta, mean, variance = (a.astype(np.float64) for a in arrays if a is not None)
    scale = gamma / np.sqrt(variance + (attributes.get_float("epsilon", 1e-5) or 0.0))
    return scale, beta - mean * scale


# One function per operator that takes a scale and a shift; whether it did.


def _into_conv(node: ir.Node, scale: Vector | None, shift: Vector | None) -> bool:
    out_channels = shape_of(node.outputs[0])[1]

    def scaled(weights: Array, by: Vector) -> Array:
        return weights * by.reshape(-1, *[1] * (weights.ndim - 1))

    return _into_weights(node, scale, shift, out_channels, scaled)


def _into_conv_transpose(node: ir.Node, scale: Vector | None, shift: Vector | None) -> bool:
    out_channels = shape_of(node.outputs[0])[1]
    groups = node.attributes.get_int("group", 1) or 1

    def scaled(weights: Array, by: Vector) -> Array:  # weights [C, O / groups, …]
        grouped = weights.reshape(groups, -1, *weights.shape[1:])
        factors = by.reshape(groups, 1, -1, *[1] * (weights.ndim - 2))
        return (grouped * factors).reshape(weights.shape)

    return _into_weights(node, scale, shift, out_channels, scaled)


def _into_weights(
    node: ir.Node,
    scale: Vector | None,
    shift: Vector | None,
    out_channels: int,
    scaled: Callable[[Array, Vector], Array],
) -> bool:
    weights, bias_value = constant_of(node.inputs[1]), input_of(node, 2)
    bias = constant_of(bias_value)
    if weights is None or (bias_value is not None and bias is None):
        return False
    new_bias = np.zeros(out_channels) if bias is None else bias.astype(np.float64)
    if scale is not None:
        new_weights = scaled(weights.astype(np.float64), scale).astype(np.float32)
        node.replace_input_with(1, add_constant(node, "weights", new_weights))
        new_bias = new_bias * scale
    if shift is not None:
        new_bias = new_bias + shift
    if bias is not None or shift is not None:
        node.resize_inputs(3)
        node.replace_input_with(2, add_constant(node, "bias", new_bias.astype(np.float32)))
    return True


def _into_gemm(node: ir.Node, scale: Vector | None, shift: Vector | None) -> bool:
    b, c_value = constant_of(node.inputs[1]), input_of(node, 2)
    c = constant_of(c_value)
    if b is None or (c_value is not None and c is None):
        return False
    if scale is not None:
        factors = scale[:, None] if node.attributes.get_int("transB", 0) else scale[None, :]
        scaled = (b.astype(np.float64) * factors).astype(np.float32)
        node.replace_input_with(1, add_constant(node, "weights", scaled))
    columns = shape_of(node.outputs[0])[1]
    beta = node.attributes.get_float("beta", 1.0)
    new_c = np.zeros(columns) if c is None else c.astype(np.float64) * beta
    new_c = new_c * (1 if scale is None else scale) + (0 if shift is None else shift)
    if c is not None or shift is not None:
        node.resize_inputs(3)
        node.replace_input_with(2, add_constant(node, "bias", new_c.astype(np.float32)))
        node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
    return True


def _into_matmul(node: ir.Node, scale: Vector | None, shift: Vector | None) -> bool:
    b = constant_of(node.inputs[1])
    if b is None or b.ndim != 2 or scale is None or shift is not None:
        return False
    scaled = (b.astype(np.float64) * scale[None, :]).astype(np.float32)
    node.replace_input_with(1, add_constant(node, "weights", scaled))
    return True


_FOLDS: dict[str, Callable[[ir.Node, Vector | None, Vector | None], bool]] = {
    "Conv": _into_conv,
    "ConvTranspose": _into_conv_transpose,
    "Gemm": _into_gemm,
    "MatMul": _into_matmul,
}


def _merge_constants(node: ir.Node, producer: ir.Node) -> bool:
    """``x * a * b``, ``x + a + b``, and ``(x * a + b) * c`` as ``x * (a c) + b c``."""
    outer = split_constant(node)
    inner = split_constant(producer) if producer.op_type in ("Mul", "Add") else None
    if outer is None or inner is None or not is_float(node.outputs[0]):
        return False
    x, c = inner[0], outer[1].astype(np.float64)
    a = inner[1].astype(np.float64)
    if shape_of(x) != shape_of(node.outputs[0]):
        return False
    if node.op_type == producer.op_type:
        merged = a * c if node.op_type == "Mul" else a + c
        constant = add_constant(node, "constant", merged.astype(np.float32))
        replace(node, node.op_type, [x, constant])
        return True
    before = x.producer()
    if node.op_type == "Mul" and before is not None and before.op_type == "Mul":
        if split_constant(before) is None or not single_use(x):
            return False
        factor = add_constant(node, "constant", c.astype(np.float32))
        product = insert(node, "Mul", [x, factor])
        shift = add_constant(node, "constant", (a * c).astype(np.float32))
        replace(node, "Add", [product, shift])
        return True
    return False


class SplitBatchNormalization(NodePass):
    """Writes batch normalization in inference mode that nothing took up as ``Mul`` and ``Add``."""

    def rewrite(self, node: ir.Node) -> bool:
        affine = _batch_norm(node) if node.op_type == "BatchNormalization" else None
        if affine is None:
            return False
        rank = len(shape_of(node.outputs[0]))
        scale, shift = (
            add_constant(node, "constant", v.astype(np.float32).reshape(-1, *[1] * (rank - 2)))
            for v in affine
        )
        replace(node, "Add", [insert(node, "Mul", [node.inputs[0], scale]), shift])
        return True


class MatMulAddToGemm(NodePass):
    """A rank-2 ``MatMul`` by a constant and an ``Add`` of a constant row become ``Gemm``."""

    def rewrite(self, node: ir.Node) -> bool:
        pair = split_constant(node) if node.op_type == "Add" else None
        product = pair[0].producer() if pair else None
        if pair is None or product is None or product.op_type != "MatMul":
            return False
        if not single_use(pair[0]) or not is_float(node.outputs[0]):
            return False
        if any(v is None or len(shape_of(v)) != 2 for v in product.inputs):
            return False
        if constant_of(product.inputs[1]) is None or shape_of(pair[0]) != shape_of(node.outputs[0]):
            return False
        bias = along(pair[1], 1, shape_of(node.outputs[0]))
        if bias is None:
            return False
        constant = add_constant(node, "bias", bias.astype(np.float32))
        replace(node, "Gemm", [*product.inputs, constant])
        return True
