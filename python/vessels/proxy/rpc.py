"""The gRPC API: the service ``inference.GRPCInferenceService`` of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from vessels import __version__
from vessels.enclave import Array
from vessels.errors import RequestError
from vessels.ports import Port
from vessels.proxy.gateway import (
    EXTENSIONS,
    PLATFORM,
    Gateway,
    check_parameters,
    meaning,
    timeout_of,
    version_of,
)
from vessels.proxy.messages import METHODS, SERVICE, message
from vessels.proxy.tensors import datatype_of, from_list, from_raw, to_raw

_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "FP32": "fp32_contents",
}  # fmt: skip

Method = Callable[[Any, Any, float | None], Awaitable[Any]]
"""From a request's message, an empty response to fill and the seconds that are left, to nothing."""


def handlers(gateway: Gateway) -> grpc.GenericRpcHandler:
    """What a gRPC server answers with ``gateway``."""
    service = _Service(gateway)
    found = {}
    for name in METHODS:
        request, response = message(f"{name}Request"), message(f"{name}Response")
        found[name] = grpc.unary_unary_rpc_method_handler(
            _answering(getattr(service, name), response),
            request_deserializer=request.FromString,
            response_serializer=response.SerializeToString,
        )
    return grpc.method_handlers_generic_handler(SERVICE, found)


def _answering(method: Method, response: type[Any]) -> Callable[..., Awaitable[Any]]:
    async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        filled = response()
        try:
            await method(request, filled, context.time_remaining())
        except Exception as error:
            _, code, text = meaning(error)
            await context.abort(code, text)
        return filled

    return answer


class _Service:
    """One method for each of the protocol's."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def ServerLive(self, request: Any, response: Any, seconds: float | None) -> None:
        response.live = True

    async def ServerReady(self, request: Any, response: Any, seconds: float | None) -> None:
        response.ready = await self._gateway.ready()

    async def ModelReady(self, request: Any, response: Any, seconds: float | None) -> None:
        response.ready = await self._gateway.model_ready(request.name, request.version)

    async def ServerMetadata(self, request: Any, response: Any, seconds: float | None) -> None:
        response.name, response.version = "vessels", __version__
        response.extensions.extend(EXTENSIONS)

    async def ModelMetadata(self, request: Any, response: Any, seconds: float | None) -> None:
        model = await self._gateway.model(request.name, request.version)
        response.name, response.platform = request.name, PLATFORM
        response.versions.append(version_of(model))
        _describe(response.inputs, model.inputs)
        _describe(response.outputs, model.outputs)

    async def ModelInfer(self, request: Any, response: Any, seconds: float | None) -> None:
        check_parameters("the request", list(request.parameters))
        for tensor in [*request.inputs, *request.outputs]:
            check_parameters(f"tensor {tensor.name!r}", list(tensor.parameters))
        model, outputs = await self._gateway.infer(
            request.model_name,
            request.model_version,
            _inputs(request),
            [o.name for o in request.outputs],
            _least(seconds, timeout_of(_parameter(request, "timeout"))),
        )
        response.model_name, response.id = request.model_name, request.id
        response.model_version = version_of(model)
        for name, array in outputs.items():
            datatype = datatype_of(array.dtype)
            response.outputs.add(name=name, datatype=datatype, shape=array.shape)
            response.raw_output_contents.append(to_raw(array))


def _parameter(request: Any, name: str) -> object:
    """The value of a parameter, of whichever type it is; ``None`` where it is not given."""
    if name not in request.parameters:
        return None
    value = request.parameters[name]
    chosen = value.WhichOneof("parameter_choice")
    return None if chosen is None else getattr(value, chosen)


def _least(*seconds: float | None) -> float | None:
    return min((s for s in seconds if s is not None), default=None)


def _describe(tensors: Any, ports: Sequence[Port]) -> None:
    for port in ports:
        tensors.add(name=port.name, datatype=datatype_of(port.dtype), shape=port.shape)


def _inputs(request: Any) -> dict[str, Array]:
    """The tensors of a request, from raw contents or typed ones."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise RequestError(f"{len(raw)} raw contents for {len(request.inputs)} inputs.")
    arrays = {}
    for index, tensor in enumerate(request.inputs):
        if tensor.name in arrays:
            raise RequestError(f"input {tensor.name!r} is given twice.")
        if raw:
            if tensor.HasField("contents"):
                raise RequestError(f"input {tensor.name!r} has raw and typed contents.")
            array = from_raw(tensor.name, tensor.datatype, tensor.shape, raw[index])
        else:
            array = from_list(tensor.name, tensor.datatype, tensor.shape, _contents(tensor))
        arrays[tensor.name] = array
    return arrays


def _contents(tensor: Any) -> list[Any]:
    field = _CONTENTS.get(tensor.datatype)
    set_fields = [f.name for f, _ in tensor.contents.ListFields()]
    if field is not None and any(name != field for name in set_fields):
        raise RequestError(
            f"input {tensor.name!r}: {tensor.datatype} is in {field}, not in {set_fields}."
        )
    return list(getattr(tensor.contents, field)) if field is not None else []
