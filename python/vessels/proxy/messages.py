"""The messages and the service of the Open Inference Protocol's gRPC API, version 2.

They are written down here as a table of names, types and numbers, after the protocol's
``open_inference_grpc.proto``; nothing is generated. The classes live in a pool of their own, so
that a program may load another library with the same messages beside them.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

METHODS = (
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer",
)  # fmt: skip
"""Each takes ``{METHOD}Request`` and answers ``{METHOD}Response``."""

_SCALARS = {
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
    "double": FieldDescriptorProto.TYPE_DOUBLE,
    "float": FieldDescriptorProto.TYPE_FLOAT,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "string": FieldDescriptorProto.TYPE_STRING,
    "uint32": FieldDescriptorProto.TYPE_UINT32,
    "uint64": FieldDescriptorProto.TYPE_UINT64,
}

_PARAMETERS = "map InferParameter"

_TENSOR = {"name": "string", "datatype": "string", "shape": "*int64"}

# Fields are numbered from 1 in the order they stand. `*` is repeated, `map T` from string to T.
_MESSAGES: dict[str, dict[str, str]] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": "bool"},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": "bool"},
    "ModelReadyRequest": {"name": "string", "version": "string"},
    "ModelReadyResponse": {"ready": "bool"},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {"name": "string", "version": "string", "extensions": "*string"},
    "ModelMetadataRequest": {"name": "string", "version": "string"},
    "ModelMetadataResponse.TensorMetadata": _TENSOR,
    "ModelMetadataResponse": {
        "name": "string",
        "versions": "*string",
        "platform": "string",
        "inputs": "*ModelMetadataResponse.TensorMetadata",
        "outputs": "*ModelMetadataResponse.TensorMetadata",
        "properties": "map string",
    },
    "ModelInferRequest.InferInputTensor": {
        **_TENSOR, "parameters": _PARAMETERS, "contents": "InferTensorContents",
    },
    "ModelInferRequest.InferRequestedOutputTensor": {
        "name": "string", "parameters": _PARAMETERS,
    },
    "ModelInferRequest": {
        "model_name": "string",
        "model_version": "string",
        "id": "string",
        "parameters": _PARAMETERS,
        "inputs": "*ModelInferRequest.InferInputTensor",
        "outputs": "*ModelInferRequest.InferRequestedOutputTensor",
        "raw_input_contents": "*bytes",
    },
    "ModelInferResponse.InferOutputTensor": {
        **_TENSOR, "parameters": _PARAMETERS, "contents": "InferTensorContents",
    },
    "ModelInferResponse": {
        "model_name": "string",
        "model_version": "string",
        "id": "string",
        "parameters": _PARAMETERS,
        "outputs": "*ModelInferResponse.InferOutputTensor",
        "raw_output_contents": "*bytes",
    },
    "InferParameter": {
        "bool_param": "bool",
        "int64_param": "int64",
        "string_param": "string",
        "double_param": "double",
        "uint64_param": "uint64",
    },
    "InferTensorContents": {
        "bool_contents": "*bool",
        "int_contents": "*int32",
        "int64_contents": "*int64",
        "uint_contents": "*uint32",
        "uint64_contents": "*uint64",
        "fp32_contents": "*float",
        "fp64_contents": "*double",
        "bytes_contents": "*bytes",
    },
}  # fmt: skip

_ONE_OF = {"InferParameter": "parameter_choice"}
"""Messages of which at most one field is there."""


def _file() -> FileDescriptorProto:
    file = FileDescriptorProto(
        name="vessels/open_inference.proto", package=PACKAGE, syntax="proto3"
    )
    for path, fields in _MESSAGES.items():
        outer, _, name = path.rpartition(".")
        owner = _named(file.message_type, outer).nested_type if outer else file.message_type
        message = _named(owner, name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            _add_field(message, path, field, number, kind)
    return file


def _named(messages: MutableSequence[DescriptorProto], name: str) -> DescriptorProto:
    """The message called ``name``, made at first use: a nested one stands before its owner."""
    if (found := next((m for m in messages if m.name == name), None)) is None:
        found = DescriptorProto(name=name)
        messages.append(found)
        found = messages[-1]
    return found


def _add_field(message: DescriptorProto, path: str, name: str, number: int, kind: str) -> None:
    field = message.field.add(name=name, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
    if kind.startswith("map "):
        # As the compiler writes a map: repeated messages of key and value.
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, "", "key", 1, "string")
        _add_field(entry, "", "value", 2, kind.removeprefix("map "))
        kind = f"*{path}.{entry.name}"
    if kind.startswith("*"):
        field.label = FieldDescriptorProto.LABEL_REPEATED
        kind = kind[1:]
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type = FieldDescriptorProto.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{kind}"
    if path in _ONE_OF:
        if not message.oneof_decl:
            message.oneof_decl.add(name=_ONE_OF[path])
        field.oneof_index = 0


_POOL = DescriptorPool()
_POOL.Add(_file())


def message(name: str) -> type[Any]:
    """The class of the message ``name``, as in ``ModelInferRequest``."""
    found: type[Message] = GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))
    return found
