"""Merges chains of nodes that only look at memory in another way."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vessels.simplify.rewrite import NodePass, add_constant, replace, shape_of

RESHAPES = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze"))
"""Operators that keep the order of elements."""


class MergeViews(NodePass):
    """Two consecutive transposes become one, and so do two consecutive reshapes of any kind."""

    def rewrite(self, node: ir.Node) -> bool:
        source = node.inputs[0] if node.inputs else None
        producer = source.producer() if source is not None else None
        if producer is None or producer.inputs[0] is None:
            return False
        if node.op_type == "Transpose" and producer.op_type == "Transpose":
            first, second = _permutation(producer), _permutation(node)
            replace(node, "Transpose", producer.inputs[:1], {"perm": [first[i] for i in second]})
            return True
        if node.op_type in RESHAPES and producer.op_type in RESHAPES:
            shape = np.asarray(shape_of(node.outputs[0]), np.int64)
            if 0 in shape:  # a zero in Reshape's shape means "as in the input"
                return False
            replace(node, "Reshape", [producer.inputs[0], add_constant(node, "shape", shape)])
            return True
        return False


def _permutation(node: ir.Node) -> list[int]:
    rank = len(shape_of(node.outputs[0]))
    return list(node.attributes.get_ints("perm", list(range(rank))[::-1]) or [])
