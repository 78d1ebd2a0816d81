"""Reads an ONNX file and refuses what is not a valid model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper, inliner

from vessels.errors import ModelError, UnsupportedError

OLDEST_OPSET = 7
"""Version 7 brought NumPy broadcasting; older models broadcast by attributes."""


def read_model(path_or_model: Path | str | onnx.ModelProto) -> onnx.ModelProto:
    """A checked model with all data in memory and its local functions inlined.

    Raises :class:`ModelError` for what is missing, no ONNX or invalid, and
    :class:`UnsupportedError` for an opset out of range.
    """
    if isinstance(path_or_model, onnx.ModelProto):
        model, name = path_or_model, "the model"
        _check_opset(model, name)
        _check(model, name)
    else:
        path = Path(path_or_model)
        name = f"'{path}'"
        model = _parse(path)
        _check_opset(model, name)
        _load_external_data(model, path)
        _check(path, name)
    if model.functions:
        model = inliner.inline_local_functions(model, convert_version=True)
    return model


def _parse(path: Path) -> onnx.ModelProto:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"'{path}' does not exist; give the path of an ONNX model.") from None
    except OSError as e:
        raise ModelError(f"'{path}' cannot be read: {e.strerror}.") from e
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as e:
        raise ModelError(
            f"'{path}' is not an ONNX model, or it is cut short (its {len(data)} bytes do not"
            " parse as one); download or export it again."
        ) from e
    if not model.HasField("graph") or not model.opset_import:
        raise ModelError(
            f"'{path}' is not an ONNX model: it has no graph; export it to ONNX first"
            " (torch.onnx.export, tf2onnx, paddle2onnx …)."
        )
    return model


def _check_opset(model: onnx.ModelProto, name: str) -> None:
    newest = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and not OLDEST_OPSET <= opset.version <= newest:
            raise UnsupportedError(
                f"{name} uses ONNX opset {opset.version}; supported are {OLDEST_OPSET} to {newest}."
                " Convert it with onnx.version_converter, or export it again with another opset."
            )


def _check(model: onnx.ModelProto | Path, name: str) -> None:
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as e:
        raise ModelError(f"{name} is not a valid ONNX model; export it again.\n{e}") from e


def _load_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Load tensors kept in files beside the model; such a path never leaves its folder."""
    folder = path.resolve().parent
    found = False
    for tensor in _tensors(model.graph):
        if not external_data_helper.uses_external_data(tensor):
            continue
        found = True
        location = external_data_helper.ExternalDataInfo(tensor).location
        file = (folder / location).resolve()
        if not file.is_relative_to(folder):
            raise ModelError(
                f"'{path}' keeps tensor '{tensor.name}' in '{location}', outside its own folder;"
                " such a model is refused. Save it again with its data beside it."
            )
        if not file.is_file():
            raise ModelError(
                f"'{path}' keeps tensor '{tensor.name}' in '{location}', which is not there;"
                f" put that file into '{folder}'."
            )
    if found:
        try:
            external_data_helper.load_external_data_for_model(model, str(folder))
        except (onnx.checker.ValidationError, OSError, ValueError) as e:
            raise ModelError(f"the external data of '{path}' cannot be read: {e}") from e


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a graph, its nodes' attributes and its subgraphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for subgraph in (
                *attribute.graphs,
                *([attribute.g] if attribute.HasField("g") else ()),
            ):
                yield from _tensors(subgraph)
