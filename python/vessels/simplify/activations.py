"""Recognizes activations that exporters spell out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from vessels.simplify.rewrite import (
    NodePass,
    add_constant,
    constant_of,
    input_of,
    insert,
    is_float,
    replace,
    scalar_of,
    shape_of,
    single_use,
)


class RecognizeHardSigmoid(NodePass):
    """``clip(x + b, 0, h)`` that only products read becomes ``HardSigmoid(x) * h``.

    :class:`HoistScalars` and merged constants then leave ``x * HardSigmoid(x)`` of a hard swish.
    """

    def rewrite(self, node: ir.Node) -> bool:
        if node.op_type != "Clip" or not is_float(node.outputs[0]) or node.inputs[0] is None:
            return False
        output = node.outputs[0]
        if output.is_graph_output() or any(n.op_type != "Mul" for n, _ in output.uses()):
            return False
        low, high = _clip_bounds(node)
        add = node.inputs[0].producer()
        operand = _scalar_operand(add) if add is not None and add.op_type == "Add" else None
        if operand is None or low != 0 or high is None or not 1e-3 < high < 1e3:
            return False
        x, b = operand
        gate = insert(node, "HardSigmoid", [x], {"alpha": 1 / high, "beta": b / high})
        replace(node, "Mul", [gate, add_constant(node, "constant", _float32(high))])
        return True


class HoistScalars(NodePass):
    """``x * (y * c)`` becomes ``(x * y) * c``, so that what follows can take up the scalar."""

    def rewrite(self, node: ir.Node) -> bool:
        if node.op_type != "Mul" or not is_float(node.outputs[0]):
            return False
        if any(constant_of(v) is not None for v in node.inputs):
            return False
        for x, scaled in (node.inputs, reversed(node.inputs)):
            product = scaled.producer() if scaled is not None else None
            if product is None or product.op_type != "Mul" or not single_use(product.outputs[0]):
                continue
            operand = _scalar_operand(product)
            # Hoisting past a broadcast would multiply more elements than before.
            if operand is None or shape_of(operand[0]) != shape_of(node.outputs[0]):
                continue
            y, c = operand
            inner = insert(node, "Mul", [x, y])
            replace(node, "Mul", [inner, add_constant(node, "constant", _float32(c))])
            return True
        return False


def _float32(value: float) -> np.ndarray[Any, Any]:
    """A scalar constant."""
    return np.asarray(value, np.float32)


def _scalar_operand(node: ir.Node) -> tuple[ir.Value, float] | None:
    """The variable and the scalar of a binary node that keeps the variable's shape."""
    for x, c in (node.inputs, reversed(node.inputs)):
        scalar = scalar_of(c)
        if x is not None and scalar is not None and shape_of(x) == shape_of(node.outputs[0]):
            return x, scalar
    return None


def _clip_bounds(node: ir.Node) -> tuple[float | None, float | None]:
    """Bounds given as attributes (before opset 11) or constant inputs."""
    low, high = (scalar_of(input_of(node, i)) for i in (1, 2))
    if low is None:
        low = node.attributes.get_float("min")
    if high is None:
        high = node.attributes.get_float("max")
    return low, high
