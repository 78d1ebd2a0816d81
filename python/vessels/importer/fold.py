"""Evaluates single nodes whose inputs are all constant."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

Array = np.ndarray[Any, Any]

FOLD_LIMIT = 64 << 20
"""Bytes: a node is left in place when its constant result is larger than this and more than
twice its inputs. Fills and broadcasts cost no memory and have :data:`FILL_LIMIT` instead."""

FILL_LIMIT = 2 << 30
"""Bytes that a constant made by filling or broadcasting may stand for."""

RANDOM = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
     "RandomUniformLike")
)  # fmt: skip


def evaluate(
    node: onnx.NodeProto, inputs: Sequence[Array | None], opset: int, output_size: int | None
) -> list[Array] | None:
    """The outputs of ``node`` on constant ``inputs`` (``None`` where omitted).

    ``output_size`` is their size in bytes where it is known beforehand. ``None`` means: leave the
    node in place, because it is random, too large, or ONNX's reference does not implement it.
    """
    if node.op_type in RANDOM or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in ("ConstantOfShape", "Expand"):
        return _fill(node, inputs)
    input_size = sum(a.nbytes for a in inputs if a is not None)
    if output_size is not None and output_size > max(FOLD_LIMIT, 2 * input_size):
        return None
    if node.op_type == "Constant" and node.attribute[0].name == "value":
        return [numpy_helper.to_array(node.attribute[0].t)]
    if node.op_type == "Identity" and inputs[0] is not None:
        return [inputs[0]]
    return _reference(node, inputs, opset)


def _fill(node: onnx.NodeProto, inputs: Sequence[Array | None]) -> list[Array] | None:
    """``ConstantOfShape`` and ``Expand`` as arrays with strides of zero."""
    value: Array
    if node.op_type == "ConstantOfShape":
        value = np.zeros((), np.float32)
        for attribute in node.attribute:
            value = numpy_helper.to_array(attribute.t).reshape(())
        target = inputs[0]
    else:
        assert inputs[0] is not None
        value, target = inputs[0], inputs[1]
    assert target is not None
    try:
        shape = np.broadcast_shapes(value.shape, tuple(int(d) for d in target))
        size = value.itemsize
        for d in shape:
            size *= d
        return [np.broadcast_to(value, shape)] if size <= FILL_LIMIT else None
    except ValueError:
        return None  # an invalid shape: inference or lowering reports the node


def _reference(
    node: onnx.NodeProto, inputs: Sequence[Array | None], opset: int
) -> list[Array] | None:
    feeds = {n: a for n, a in zip(node.input, inputs, strict=True) if a is not None}
    graph = onnx.helper.make_graph(
        [node],
        "fold",
        [onnx.helper.make_empty_tensor_value_info(n) for n in feeds],
        [onnx.helper.make_empty_tensor_value_info(n) for n in node.output if n],
    )
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            results: Any = ReferenceEvaluator(graph, opsets={"": opset}).run(None, feeds)
    except Exception:  # the reference raises whatever its NumPy code happens to raise
        return None
    if not all(isinstance(r, np.ndarray | np.generic) for r in results):
        return None  # sequences and optionals are not constants here
    return [np.asarray(r) for r in results]
