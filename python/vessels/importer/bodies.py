"""Function bodies that ONNX's schemas define standard operators by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx


def body_of(
    schema: onnx.defs.OpSchema,
    node: onnx.NodeProto,
    input_types: Sequence[onnx.TypeProto | None],
    opset: int,
) -> onnx.FunctionProto | None:
    """The body of ``node``'s operator for ``opset`` with attributes filled in, if it has one."""
    typed: Any = schema  # ONNX's own type stubs leave these methods out
    versions = [v for v in typed.context_dependent_function_opset_versions if v <= opset]
    if versions:
        types = [(t or onnx.TypeProto()).SerializeToString() for t in input_types]
        data: bytes = typed.get_context_dependent_function_with_opset_version(
            max(versions), node.SerializeToString(), types
        )
    elif any(v <= opset for v in typed.function_opset_versions):
        data = typed.get_function_with_opset_version(opset)
    else:
        return None
    if not data:
        return None
    body: onnx.FunctionProto = onnx.FunctionProto.FromString(data)
    given = {a.name: a for a in node.attribute}
    for name, attribute in schema.attributes.items():
        default = attribute.default_value
        if name not in given and default.type != onnx.AttributeProto.UNDEFINED:
            given[name] = default
    for inner in body.node:
        _fill_attributes(inner, given)
    return body


def _fill_attributes(node: onnx.NodeProto, given: dict[str, onnx.AttributeProto]) -> None:
    """Replace references to the function's attributes; one that was not given is left out."""
    kept: list[onnx.AttributeProto] = []
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                _fill_attributes(inner, given)
        if not attribute.ref_attr_name:
            kept.append(attribute)
        elif attribute.ref_attr_name in given:
            value = onnx.AttributeProto()
            value.CopyFrom(given[attribute.ref_attr_name])
            value.name = attribute.name
            kept.append(value)
    del node.attribute[:]
    node.attribute.extend(kept)
