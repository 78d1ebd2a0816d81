"""The flattened nodes as an ``onnx_ir`` model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

IR_VERSION = 10
"""Of the model made here; it says how the graph is written, not which operators it uses."""


@dataclass(frozen=True)
class FlatGraph:
    """A graph whose every value has a static tensor type.

    ``types`` holds the type of every value, ``constants`` the value of those that are known.
    """

    name: str
    opset: int
    inputs: Sequence[str]
    outputs: Sequence[str]
    nodes: Sequence[onnx.NodeProto]
    types: Mapping[str, onnx.TypeProto]
    constants: Mapping[str, np.ndarray[Any, Any]]


def to_ir(flat: FlatGraph) -> ir.Model:
    """``flat`` without the nodes and constants that no output needs; constants are not copied."""
    used = {name for node in flat.nodes for name in node.input} | set(flat.outputs)
    constants = {name: a for name, a in flat.constants.items() if name in used}

    def info(name: str) -> onnx.ValueInfoProto:
        return onnx.helper.make_value_info(name, flat.types[name])

    inner = [name for node in flat.nodes for name in node.output if name]
    graph = onnx.helper.make_graph(
        flat.nodes,
        flat.name,
        # Constants pass through the protobuf form as inputs, so that their data need not.
        [info(name) for name in (*flat.inputs, *constants)],
        [info(name) for name in flat.outputs],
        value_info=[info(name) for name in inner if name not in set(flat.outputs)],
    )
    proto = onnx.helper.make_model(
        graph,
        ir_version=IR_VERSION,
        opset_imports=[onnx.helper.make_opsetid("", flat.opset)],
    )
    model = ir.from_proto(proto)
    for value in list(model.graph.inputs):
        assert value.name is not None
        if value.name in constants:
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(constants[value.name], name=value.name)
            model.graph.register_initializer(value)
    common.RemoveUnusedNodesPass()(model)
    return model
