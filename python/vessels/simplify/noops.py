"""Removes nodes that change nothing."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from vessels.simplify.rewrite import (
    NodePass,
    constant_of,
    forward,
    input_of,
    is_float,
    shape_of,
    split_constant,
)

ELEMENTWISE = frozenset(
    ("Add", "Sub", "Mul", "Div", "Pow", "Mod", "And", "Or", "Xor", "Equal", "Less", "LessOrEqual",
     "Greater", "GreaterOrEqual", "Where", "Max", "Min", "Sum", "Mean", "PRelu")
)  # fmt: skip
"""Operators that broadcast their inputs as NumPy does."""


class RemoveNoOps(NodePass):
    """Removes nodes whose output equals their first (or only variable) input."""

    def rewrite(self, node: ir.Node) -> bool:
        source = _unchanged(node)
        return source is not None and forward(node, source)


def _unchanged(node: ir.Node) -> ir.Value | None:
    """The input that ``node`` passes on as it is."""
    source = input_of(node, 0)
    if source is None or not node.outputs or not node.outputs[0].name:
        return None
    output = node.outputs[0]
    same_shape = shape_of(source) == shape_of(output)
    match node.op_type:
        case "Identity":
            return source
        case "Cast":
            return source if source.dtype == output.dtype else None
        case "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Expand" | "Tile":
            return source if same_shape else None
        case "Transpose":
            perm = node.attributes.get_ints("perm", list(range(len(shape_of(source))))[::-1])
            return source if perm is not None and list(perm) == sorted(perm) else None
        case "Slice":
            steps = constant_of(input_of(node, 4))
            if not same_shape or (input_of(node, 4) is not None and steps is None):
                return None
            # A step of -1 over everything keeps the shape but turns the order round.
            return source if steps is None or (steps > 0).all() else None
        case "Pad":
            pads = node.attributes.get_ints("pads") or constant_of(input_of(node, 1))
            return source if pads is not None and not np.any(pads) else None
        case "Split":
            return source if len(node.outputs) == 1 and same_shape else None
        case "Clip":
            return source if same_shape and _clips_nothing(node) else None
        case "Mul" | "Add":
            return _neutral(node)
    return None


def _clips_nothing(node: ir.Node) -> bool:
    attributes = node.attributes
    return (
        all(v is None for v in node.inputs[1:])
        and (attributes.get_float("min") or -math.inf) <= -float(np.finfo(np.float32).max)
        and (attributes.get_float("max") or math.inf) >= float(np.finfo(np.float32).max)
    )


def _neutral(node: ir.Node) -> ir.Value | None:
    """``x`` of ``x * 1`` and ``x + 0``."""
    pair = split_constant(node)
    if pair is None or not is_float(node.outputs[0]):
        return None
    x, constant = pair
    neutral = 1 if node.op_type == "Mul" else 0
    if shape_of(x) == shape_of(node.outputs[0]) and (constant == neutral).all():
        return x
    return None


class BypassExpand(NodePass):
    """Lets element-wise operators broadcast by themselves what ``Expand`` broadcast for them."""

    def rewrite(self, node: ir.Node) -> bool:
        if node.op_type not in ELEMENTWISE:
            return False
        modified = False
        for i, value in enumerate(node.inputs):
            producer = value.producer() if value is not None else None
            if producer is None or producer.op_type != "Expand" or producer.inputs[0] is None:
                continue
            small = producer.inputs[0]
            shapes = [shape_of(v) for v in node.inputs if v is not None]
            shapes[i] = shape_of(small)
            # PRelu broadcasts its slope to its input, never the input itself.
            fits = node.op_type != "PRelu" or i == 1
            if fits and np.broadcast_shapes(*shapes) == shape_of(node.outputs[0]):
                node.replace_input_with(i, small)
                modified = True
        return modified
