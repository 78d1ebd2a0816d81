"""Folds per-channel scales and shifts into the weights *after* them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vessels.simplify.affine import Vector, along
from vessels.simplify.rewrite import (
    Array,
    NodePass,
    add_constant,
    constant_of,
    input_of,
    is_float,
    shape_of,
    single_use,
    split_constant,
)


class AbsorbAffine(NodePass):
    """``Mul`` by a per-channel constant goes into the ``Conv`` or ``Gemm`` that alone reads it, and
    ``Add`` into its bias when the convolution reads no padding: padding is not shifted."""

    def rewrite(self, node: ir.Node) -> bool:
        source = node.inputs[0] if node.op_type in ("Conv", "Gemm") else None
        before = source.producer() if source is not None else None
        if source is None or before is None or before.op_type not in ("Mul", "Add"):
            return False
        pair = split_constant(before)
        weights, bias_value = constant_of(node.inputs[1]), input_of(node, 2)
        bias = constant_of(bias_value)
        if pair is None or weights is None or (bias_value is not None and bias is None):
            return False
        x, constant = pair
        if not single_use(source) or not is_float(source) or shape_of(x) != shape_of(source):
            return False
        vector = along(constant, 1, shape_of(source))
        if vector is None or not _is_plain(node, before.op_type):
            return False
        wide = weights.astype(np.float64)
        factors, reduced = _per_weight(node, vector, wide)
        if before.op_type == "Mul":
            scaled = (wide * factors).astype(np.float32)
            node.replace_input_with(1, add_constant(node, "weights", scaled))
        else:
            shift = (wide * factors).sum(axis=reduced)
            total = shift if bias is None else bias.astype(np.float64) + shift
            node.resize_inputs(3)
            node.replace_input_with(2, add_constant(node, "bias", total.astype(np.float32)))
        node.replace_input_with(0, x)
        return True


def _is_plain(node: ir.Node, before: str) -> bool:
    """Whether ``before`` commutes with ``node``: no padding to shift, no scaled or transposed
    operands."""
    attributes = node.attributes
    if node.op_type == "Gemm":
        scales = attributes.get_float("alpha", 1.0), attributes.get_float("beta", 1.0)
        return scales == (1.0, 1.0) and attributes.get_int("transA", 0) != 1
    if before == "Mul":
        return True
    unpadded = attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return unpadded and not any(attributes.get_ints("pads") or ())


def _per_weight(node: ir.Node, vector: Vector, weights: Array) -> tuple[Array, tuple[int, ...]]:
    """``vector[c]`` for each weight that multiplies input channel ``c``, to broadcast over
    ``weights``, and the axes of these that an output channel sums over."""
    if node.op_type == "Gemm":
        transposed = node.attributes.get_int("transB", 0) == 1
        return (vector[None, :], (1,)) if transposed else (vector[:, None], (0,))
    groups = node.attributes.get_int("group", 1) or 1  # weights [O, C / groups, …]
    per_group = np.repeat(vector.reshape(groups, -1), weights.shape[0] // groups, axis=0)
    factors = per_group.reshape(*weights.shape[:2], *[1] * (weights.ndim - 2))
    return factors, tuple(range(1, weights.ndim))
