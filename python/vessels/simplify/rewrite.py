"""What all passes share: the invariant, a node-by-node pass, and ways to read and rewrite."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]


class NodePass(InPlacePass):
    """Offers every node once, in order, to :meth:`rewrite`."""

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite every node of the main graph; there are no others."""
        modified = False
        for node in model.graph:
            modified = self.rewrite(node) or modified
        return PassResult(model, modified)

    @abc.abstractmethod
    def rewrite(self, node: ir.Node) -> bool:
        """Rewrite ``node`` if the pass applies; whether anything changed."""

    def requires(self, model: ir.Model) -> None:
        """Shapes are static."""
        check_static(model)

    def ensures(self, model: ir.Model) -> None:
        """Shapes are static."""
        check_static(model)


def check_static(model: ir.Model) -> None:
    """Raise ``ValueError`` unless each value has a dtype and a static shape, in one flat graph."""
    if model.functions:
        raise ValueError("the model has functions")
    values = itertools.chain(
        model.graph.inputs,
        model.graph.initializers.values(),
        (v for node in model.graph for v in node.outputs if v.name),
    )
    for value in values:
        if value.dtype is None or value.shape is None or not value.shape.is_static():
            raise ValueError(f"value '{value.name}' has no dtype or no static shape")


# Reading


def shape_of(value: ir.Value) -> Shape:
    """The static shape."""
    assert value.shape is not None
    return tuple(value.shape.numpy())


def is_float(value: ir.Value) -> bool:
    """Whether the value is float32, the only float type that is computed with."""
    return value.dtype == ir.DataType.FLOAT


def constant_of(value: ir.Value | None) -> Array | None:
    """The array of an initializer, else ``None``."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def scalar_of(value: ir.Value | None) -> float | None:
    """The one element of a constant of one element, else ``None``."""
    array = constant_of(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """An input, ``None`` when it is omitted in either way."""
    return node.inputs[index] if index < len(node.inputs) else None


def single_use(value: ir.Value) -> bool:
    """Whether exactly one node input reads ``value`` and no graph output is it."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def split_constant(node: ir.Node) -> tuple[ir.Value, Array] | None:
    """The variable and the constant of a binary node, in whatever order they stand."""
    if len(node.inputs) != 2:
        return None
    for x, c in (node.inputs, reversed(node.inputs)):
        array = constant_of(c)
        if array is not None and x is not None and constant_of(x) is None:
            return x, array
    return None


def opset_of(node: ir.Node) -> int:
    """The version of ONNX's operators in the node's graph."""
    assert node.graph is not None
    return node.graph.opset_imports[""]


# Rewriting


def add_constant(node: ir.Node, role: str, array: Array) -> ir.Value:
    """A new initializer in the graph of ``node``."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    names = (f"vessels.{role}.{i}" for i in itertools.count(len(graph.initializers)))
    name = next(n for n in names if n not in graph.initializers)
    value = ir.val(name, const_value=ir.tensor(np.asarray(array, order="C"), name=name))
    graph.register_initializer(value)
    return value


def insert(
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    like: ir.Value | None = None,
) -> ir.Value:
    """The output of a new node before ``before``, with the dtype and shape of ``like``
    (default: the output of ``before``)."""
    like = like or before.outputs[0]
    assert before.graph is not None
    unique = f"{op_type}.{next(_numbers)}"
    node = ir.node(op_type, inputs, attributes or {}, name=f"{before.name}/{unique}")
    before.graph.insert_before(before, node)
    output = node.outputs[0]
    output.type, output.shape = like.type, like.shape
    output.name = f"{like.name}/{unique}"
    return output


_numbers = itertools.count()


def replace(
    node: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Put a new node of one output in the place of ``node``, under the same names."""
    output = insert(node, op_type, inputs, attributes)
    node_name, value_name = node.name, node.outputs[0].name
    forward(node, output)
    producer = output.producer()
    assert producer is not None
    producer.name, output.name = node_name, value_name


def forward(node: ir.Node, source: ir.Value) -> bool:
    """Remove ``node`` and let ``source`` stand for its first output.

    ``False``, and nothing done, when that output is one of the graph's and ``source``, being
    an input, a constant or an output itself, cannot take its name.
    """
    old = node.outputs[0]
    name, public = old.name, old.is_graph_output()
    if public and (source.producer() is None or source.is_graph_output()):
        return False
    ir.convenience.replace_all_uses_with(old, source, replace_graph_outputs=True)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
    if public:
        source.name = name
    return True
