"""One spelling for what ONNX can spell in several ways."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vessels.simplify.rewrite import (
    NodePass,
    add_constant,
    constant_of,
    input_of,
    is_float,
    replace,
)


class Canonicalize(NodePass):
    """Dropout in inference is ``Identity``, ``Sum`` of two is ``Add``, variadic operators of one
    are ``Identity``, float ``Sub`` and ``Div`` by a constant are ``Add`` and ``Mul``."""

    def rewrite(self, node: ir.Node) -> bool:
        inputs = list(node.inputs)
        if node.op_type == "Dropout" and _is_inference(node):
            replace(node, "Identity", inputs[:1])
        elif node.op_type in ("Sum", "Mean", "Max", "Min", "Concat") and len(inputs) == 1:
            replace(node, "Identity", inputs)
        elif node.op_type == "Sum" and len(inputs) == 2:
            replace(node, "Add", inputs)
        elif node.op_type in ("Sub", "Div") and is_float(node.outputs[0]):
            return _by_constant(node)
        else:
            return False
        return True


def _is_inference(node: ir.Node) -> bool:
    """Whether a ``Dropout`` passes its input on and nobody reads its mask."""
    mask_used = any(o.uses() or o.is_graph_output() for o in node.outputs[1:])
    training = input_of(node, 2)
    mode = constant_of(training)
    return not mask_used and (training is None or (mode is not None and not mode.any()))


def _by_constant(node: ir.Node) -> bool:
    x, divisor = node.inputs
    array = constant_of(divisor)
    if array is None or constant_of(x) is not None:
        return False
    wide = array.astype(np.float64)
    with np.errstate(all="ignore"):
        inverse = (-wide if node.op_type == "Sub" else 1 / wide).astype(np.float32)
    tiny = np.finfo(np.float32).tiny
    if not np.isfinite(inverse).all() or (node.op_type == "Div" and (abs(inverse) < tiny).any()):
        return False
    replace(
        node,
        "Add" if node.op_type == "Sub" else "Mul",
        [x, add_constant(node, "inverse", inverse)],
    )
    return True
