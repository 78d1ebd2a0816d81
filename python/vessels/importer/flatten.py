"""Walks a model's nodes once, in order, and leaves a flat list with static types.

For each node: names are resolved, a constant ``If`` gives way to its branch and an operator
that is not native to its function body; a node with constant inputs is folded; all others get
their output types by inference and are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from vessels.errors import ModelError, UnsupportedError
from vessels.importer.bodies import body_of
from vessels.importer.fold import Array, evaluate
from vessels.importer.graph import FlatGraph

STANDARD = ("", "ai.onnx")

INFERENCE_DATA_COUNT = 4096
"""Constants of up to this many elements are shown to shape inference; shapes, axes, pads and
scales are far below it, weights would only be copied."""

Scope = dict[str, str]
"""From names as written in a graph to names in the flat graph."""


class Flattener:
    """One walk over one model; :meth:`run` gives its result."""

    def __init__(
        self,
        model: onnx.ModelProto,
        input_types: Mapping[str, onnx.TypeProto],
        native: frozenset[str],
    ) -> None:
        self._graph = model.graph
        self._native = native
        versions = [o.version for o in model.opset_import if o.domain in STANDARD]
        self._opset = versions[0] if versions else onnx.defs.onnx_opset_version()
        self._types: dict[str, onnx.TypeProto] = dict(input_types)
        self._constants: dict[str, Array] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._declared = {v.name: v.type for v in (*self._graph.value_info, *self._graph.output)}
        self._problems: list[str] = []
        self._taken: Counter[str] = Counter()
        self._node_names: Counter[str] = Counter()
        self._inputs = list(input_types)
        made = {name for node in self._graph.node for name in node.output}
        self._unread = made - set(_reads(self._graph))

    def run(self) -> FlatGraph:
        """The flat graph, or :class:`UnsupportedError` with all that stands in its way."""
        scope = self._enter(self._graph, {}, keep_names=True)
        for name in self._inputs:
            scope[name] = name
        self._walk(_needed(self._graph), scope, "")
        outputs = [scope[o.name] for o in self._graph.output]
        for name in outputs:
            if not self._problems and name not in self._types:
                raise ModelError(f"nothing in the model computes its output '{name}'.")
        self._raise_problems()
        return FlatGraph(
            name=self._graph.name or "model",
            opset=self._opset,
            inputs=self._inputs,
            outputs=outputs,
            nodes=self._nodes,
            types=self._types,
            constants=self._constants,
        )

    # Names and scopes

    def _enter(self, graph: onnx.GraphProto, outer: Scope, keep_names: bool = False) -> Scope:
        """A scope in which the initializers of ``graph`` are known."""
        scope = dict(outer)
        for tensor in graph.initializer:
            scope[tensor.name] = tensor.name if keep_names else self._fresh(tensor.name)
            if tensor.data_type == onnx.TensorProto.STRING:
                self._problems.append(f"initializer '{tensor.name}': strings")
                continue
            self._set_constant(scope[tensor.name], numpy_helper.to_array(tensor))
        for sparse in graph.sparse_initializer:
            self._problems.append(f"initializer '{sparse.values.name}': sparse tensors")
        if keep_names:
            for node in graph.node:
                scope.update((name, name) for name in node.output if name)
            self._taken.update(scope.keys())
            self._taken.update(self._inputs)
        return scope

    def _fresh(self, name: str) -> str:
        return _unique(name, self._taken)

    def _set_constant(self, name: str, value: Array) -> None:
        self._constants[name] = value
        elem_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        self._types[name] = onnx.helper.make_tensor_type_proto(elem_type, value.shape)

    # Nodes

    def _walk(self, nodes: Sequence[onnx.NodeProto], scope: Scope, prefix: str) -> None:
        for original in nodes:
            node = onnx.NodeProto()
            node.CopyFrom(original)
            name = f"{prefix}{original.name or original.op_type}"
            node.name = _unique(name, self._node_names)
            for i, name in enumerate(original.input):
                node.input[i] = scope[name] if name else ""
            for i, name in enumerate(original.output):
                if name and name not in scope:
                    scope[name] = self._fresh(f"{prefix}{name}")
                node.output[i] = scope[name] if name else ""
            self._node(node, scope)

    def _node(self, node: onnx.NodeProto, scope: Scope) -> None:
        if any(name and name not in self._types for name in node.input):
            self._nodes.append(node)  # a problem noted before left an input without a type
            return
        if node.domain in STANDARD:
            node.domain = ""
        if node.domain:
            self._problem(node, f"operators of domain '{node.domain}'")
        elif node.op_type == "If":
            self._if(node, scope)
        elif node.op_type in ("Loop", "Scan", "SequenceMap"):
            self._problem(node, "control flow")
        else:
            self._operator(node)

    def _operator(self, node: onnx.NodeProto) -> None:
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opset, "")
        except onnx.defs.SchemaError:
            self._problem(node, f"not an operator of ONNX opset {self._opset}")
            return
        if node.op_type in ("Shape", "Size") and self._fold_shape(node):
            return
        inputs = [self._constants.get(name) for name in node.input]
        constant = all(c is not None or not n for c, n in zip(inputs, node.input, strict=True))
        if constant and self._fold(schema, node, inputs):
            return
        if node.op_type not in self._native:
            body = body_of(schema, node, [self._types.get(n) for n in node.input], self._opset)
            if body is not None:
                self._inline(node, body)
                return
        types = self._infer(schema, node)
        for i, name in enumerate(node.output):
            reason = _untyped(types.get(name))
            if not name or reason is None:
                continue
            if name not in self._unread:
                self._problem(node, reason)
                return
            node.output[i] = ""  # an optional output, such as a dropout mask, that nobody reads
            types.pop(name, None)
        self._types.update(types)
        self._nodes.append(node)

    def _fold(
        self, schema: onnx.defs.OpSchema, node: onnx.NodeProto, inputs: Sequence[Array | None]
    ) -> bool:
        try:
            size = _size(self._infer(schema, node).values())
        except ModelError:
            size = None  # evaluation says more than inference, which refuses some valid nodes
        values = evaluate(node, inputs, self._opset, size)
        if values is None:
            return False
        for name, value in zip((n for n in node.output if n), values, strict=True):
            self._set_constant(name, value)
        return True

    def _fold_shape(self, node: onnx.NodeProto) -> bool:
        shape = [d.dim_value for d in self._types[node.input[0]].tensor_type.shape.dim]
        if node.op_type == "Size":
            self._set_constant(node.output[0], np.asarray(np.prod(shape, dtype=np.int64)))
            return True
        limits = {a.name: a.i for a in node.attribute}
        part = shape[limits.get("start", 0) : limits.get("end", len(shape))]
        self._set_constant(node.output[0], np.asarray(part, np.int64))
        return True

    def _infer(self, schema: onnx.defs.OpSchema, node: onnx.NodeProto) -> dict[str, onnx.TypeProto]:
        """Output types by name; the model's own annotations only where inference says nothing."""
        names = {name for name in node.input if name}
        small = {n for n in names & self._constants.keys()
                 if self._constants[n].size <= INFERENCE_DATA_COUNT}  # fmt: skip
        try:
            types = onnx.shape_inference.infer_node_outputs(
                schema,
                node,
                {n: self._types[n] for n in names},
                {n: numpy_helper.from_array(self._constants[n], n) for n in small},
                opset_imports=[onnx.helper.make_opsetid("", self._opset)],
            )
        except onnx.shape_inference.InferenceError as e:
            shapes = ", ".join(f"'{n}' {_shape_text(self._types[n])}" for n in node.input if n)
            raise ModelError(
                f"{node.op_type} node '{node.name}' does not fit its inputs ({shapes}): {e}"
            ) from e
        for name in node.output:
            declared = self._declared.get(name)
            if name and _untyped(types.get(name)) is not None and _untyped(declared) is None:
                assert declared is not None
                types[name] = declared
        return types

    # Inlining

    def _inline(self, node: onnx.NodeProto, body: onnx.FunctionProto) -> None:
        scope: Scope = {}
        for i, name in enumerate(body.input):
            scope[name] = node.input[i] if i < len(node.input) else ""
        results = list(zip(body.output, node.output, strict=False))
        self._splice(body.node, scope, results, f"{node.name}/")

    def _if(self, node: onnx.NodeProto, scope: Scope) -> None:
        condition = self._constants.get(node.input[0])
        if condition is None:
            self._problem(node, "a condition that depends on the model's input")
            return
        wanted = "then_branch" if bool(np.all(condition)) else "else_branch"
        branch = next(a.g for a in node.attribute if a.name == wanted)
        inner = self._enter(branch, scope)
        for inner_node in branch.node:  # a branch's own names shadow outer ones
            for name in inner_node.output:
                inner.pop(name, None)
        results = list(zip((o.name for o in branch.output), node.output, strict=True))
        self._splice(branch.node, inner, results, f"{node.name}/")

    def _splice(
        self,
        nodes: Sequence[onnx.NodeProto],
        scope: Scope,
        results: Sequence[tuple[str, str]],
        prefix: str,
    ) -> None:
        """Walk a body and give its ``results`` (inner name, flat name) their names outside."""
        made = {name for node in nodes for name in node.output}
        copies: list[tuple[str, str]] = []
        for inner, flat in results:
            if flat and inner in made and inner not in scope:
                scope[inner] = flat
            elif flat:
                copies.append((inner, flat))
        self._walk(nodes, scope, prefix)
        for inner, flat in copies:
            identity = onnx.helper.make_node("Identity", [scope[inner]], [flat], f"{prefix}{inner}")
            self._node(identity, scope)

    # Problems

    def _problem(self, node: onnx.NodeProto, reason: str) -> None:
        self._problems.append(f"{node.op_type} '{node.name}': {reason}")

    def _raise_problems(self) -> None:
        if not self._problems:
            return
        others = [
            f"{n.op_type} '{n.name}': no such operator in Vessels"
            for n in self._nodes
            if n.op_type not in self._native and n.domain in STANDARD
        ]
        lines = "\n".join(f"  {p}" for p in (*self._problems, *others))
        raise UnsupportedError(f"the model uses what is not supported:\n{lines}")


def _reads(graph: onnx.GraphProto) -> Iterator[str]:
    """Every name that a node of ``graph`` or of its subgraphs reads, and all outputs."""
    yield from (o.name for o in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _reads(attribute.g)


def _needed(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that an output depends on, in order; what others need does not matter."""
    wanted = {o.name for o in graph.output}
    needed: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if wanted.isdisjoint(node.output):
            continue
        needed.append(node)
        wanted.update(name for name in node.input if name)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                wanted.update(_reads(attribute.g))
    needed.reverse()
    return needed


def _unique(name: str, taken: Counter[str]) -> str:
    """``name``, or it with a number when it is taken; taken from now on."""
    candidate = name
    while taken[candidate]:
        candidate = f"{name}_{taken[name]}"
        taken[name] += 1
    taken[candidate] += 1
    return candidate


def _untyped(type_: onnx.TypeProto | None) -> str | None:
    """Why ``type_`` is not a static tensor type; ``None`` when it is."""
    if type_ is None:
        return "an output of unknown type"
    if not type_.HasField("tensor_type"):
        return f"an output that is a {type_.WhichOneof('value') or 'value of unknown type'}"
    tensor = type_.tensor_type
    if not tensor.elem_type:
        return "an output of unknown type"
    if not tensor.HasField("shape") or not all(d.HasField("dim_value") for d in tensor.shape.dim):
        return "an output whose shape depends on the model's input"
    return None


def _size(types: Iterable[onnx.TypeProto]) -> int | None:
    """Bytes of all tensors together; ``None`` when a shape or type is unknown."""
    total = 0
    for type_ in types:
        if _untyped(type_) is not None or type_.tensor_type.elem_type == onnx.TensorProto.STRING:
            return None
        size = onnx.helper.tensor_dtype_to_np_dtype(type_.tensor_type.elem_type).itemsize
        for d in type_.tensor_type.shape.dim:
            size *= d.dim_value
        total += size
    return total


def _shape_text(type_: onnx.TypeProto) -> str:
    return str([d.dim_value for d in type_.tensor_type.shape.dim])
