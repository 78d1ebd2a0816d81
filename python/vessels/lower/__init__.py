"""Lowering: a graph with static shapes becomes a program over virtual buffers.

Requires: what ``vessels.importer.load`` and ``vessels.simplify.simplify`` ensure: every shape
and dtype known, no functions, no control flow, initializers for constants.
Ensures: a :class:`~vessels.program.LoweredProgram` in which every element of a
buffer is written once, before it is read.
"""

from __future__ import annotations

import onnx_ir as ir

from vessels.errors import UnsupportedError
from vessels.lower import (  # noqa: F401  (imported for their registrations)
    convolution,
    elementwise,
    indexing,
    matrix,
    movement,
    picking,
    pooling,
    reduction,
    resizing,
)
from vessels.lower.builder import REGISTRY, Builder, Op, Refusal
from vessels.lower.fusion import fuse
from vessels.lower.placement import place
from vessels.lower.views import normal
from vessels.program import LoweredProgram, Port, View

SUPPORTED: frozenset[str] = frozenset(REGISTRY)
"""Operators of the default ONNX domain that are lowered natively."""


def lower(model: ir.Model) -> LoweredProgram:
    """Lowers the main graph of ``model``.

    Raises:
        UnsupportedError: lists every node that cannot be lowered, with the reason.
    """
    graph = model.graph
    builder = Builder(graph.opset_imports.get("", 1))
    problems: list[str] = []
    inputs = []
    for value in graph.inputs:
        if value.const_value is not None:
            continue
        try:
            view = builder.new(
                builder.shape(value), builder.dtype(value), name=value.name or "", kind="input"
            )
        except Refusal as refusal:
            problems.append(f"input {value.name!r}: {refusal}")
            continue
        builder.views[value] = view
        inputs.append(Port(value.name or "", view))
    for node in graph:
        _lower_node(builder, node, problems)
    outputs = []
    for value in graph.outputs:
        port = _output(builder, value, problems)
        if port is not None:
            outputs.append(port)
    if problems:
        listed = "\n".join(f"  {p}" for p in problems)
        raise UnsupportedError(f"{len(problems)} things in this model are not supported:\n{listed}")
    instructions = [i.with_views(normal) for i in place(fuse(builder.instructions))]
    return LoweredProgram(graph.name or "", tuple(inputs), tuple(outputs), tuple(instructions))


def _lower_node(builder: Builder, node: ir.Node, problems: list[str]) -> None:
    label = f"{node.op_type} {node.name!r}"
    try:
        if node.domain not in ("", "ai.onnx"):
            raise Refusal(f"operators of domain {node.domain!r} are not supported")
        lowering = REGISTRY.get(node.op_type)
        if lowering is None:
            raise Refusal("this operator is not supported")
        lowering(Op(builder, node))
    except Refusal as refusal:
        # A reader of what another problem left without a value is no problem of its own.
        follows = any(
            v is not None and v not in builder.views and v.const_value is None for v in node.inputs
        )
        if not follows or node.op_type not in REGISTRY:
            problems.append(f"{label}: {refusal}")
        _stand_in(builder, node)


def _stand_in(builder: Builder, node: ir.Node) -> None:
    """Gives a refused node's outputs places, so that later nodes are judged on their own."""
    for value in node.outputs:
        try:
            builder.views[value] = builder.new(builder.shape(value), builder.dtype(value))
        except Refusal:
            continue


def _output(builder: Builder, value: ir.Value, problems: list[str]) -> Port | None:
    """The output buffer of a graph output; :func:`place` lets its producer write there."""
    try:
        view = builder.view(value)
    except Refusal as refusal:
        if value.producer() is None or not problems:
            problems.append(f"output {value.name!r}: {refusal}")
        return None
    output: View = builder.new(view.shape, view.dtype, name=value.name or "", kind="output")
    builder.emit_copy(view, output)
    return Port(value.name or "", output)
