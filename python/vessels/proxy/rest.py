"""The REST API of the Open Inference Protocol, with the binary tensor data extension."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vessels import __version__
from vessels.client import AttestedModel
from vessels.enclave import Array
from vessels.endpoints import Endpoint, application
from vessels.errors import RequestError, ServerError
from vessels.listening import TooLarge, TooSlow, read_body
from vessels.ports import Port
from vessels.proxy.gateway import (
    EXTENSIONS,
    PLATFORM,
    Gateway,
    TooLargeError,
    check_parameters,
    meaning,
    timeout_of,
    version_of,
)
from vessels.proxy.tensors import datatype_of, from_list, from_raw, to_list, to_raw

BODY_SECONDS = 60.0
HEADER_LENGTH = "Inference-Header-Content-Length"

_ENCODINGS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


def make_application(gateway: Gateway, *, largest_request: int) -> Starlette:
    """The API over ``gateway``; a request's body has at most ``largest_request`` bytes."""
    api = _Api(gateway, largest_request)
    routes = [
        ("/v2", api.server, "GET"),
        ("/v2/", api.server, "GET"),
        ("/v2/health/live", api.live, "GET"),
        ("/v2/health/ready", api.ready, "GET"),
    ]
    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        routes += [
            (model, api.model, "GET"),
            (f"{model}/ready", api.model_ready, "GET"),
            (f"{model}/infer", api.infer, "POST"),
        ]
    return application(
        ((path, _answering(endpoint), method) for path, endpoint, method in routes), _no_such_page
    )


def _answering(endpoint: Endpoint) -> Endpoint:
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Exception as error:
            status, _, text = meaning(error)
            seconds = error.retry_after if isinstance(error, ServerError) else None
            headers = None if seconds is None else {"Retry-After": str(seconds)}
            return JSONResponse({"error": text}, status, headers)

    return answer


def _no_such_page(request: Request, status: int) -> Response:
    return JSONResponse({"error": f"{request.method} here: {HTTPStatus(status).phrase}"}, status)


class _Api:
    """One method for each endpoint."""

    def __init__(self, gateway: Gateway, largest_request: int) -> None:
        self._gateway = gateway
        self._largest_request = largest_request

    async def server(self, request: Request) -> Response:
        return JSONResponse(
            {"name": "vessels", "version": __version__, "extensions": list(EXTENSIONS)}
        )

    async def live(self, request: Request) -> Response:
        return Response()

    async def ready(self, request: Request) -> Response:
        return _readiness(await self._gateway.ready())

    async def model_ready(self, request: Request) -> Response:
        return _readiness(await self._gateway.model_ready(*_model_of(request)))

    async def model(self, request: Request) -> Response:
        name, version = _model_of(request)
        model = await self._gateway.model(name, version)
        return JSONResponse({
            "name": name,
            "versions": [version_of(model)],
            "platform": PLATFORM,
            "inputs": _described(model.inputs),
            "outputs": _described(model.outputs),
        })  # fmt: skip

    async def infer(self, request: Request) -> Response:
        name, version = _model_of(request)
        body = await self._body(request)
        length = request.headers.get(HEADER_LENGTH)
        if length is not None and _length(length) == 0:
            # The extension's short form: a model's only input, and nothing but its bytes.
            asked = _Inference.of_raw(body, await self._gateway.model(name, version))
        else:
            asked = _Inference.of(body, length)
        model, outputs = await self._gateway.infer(
            name, version, asked.inputs, list(asked.binary_outputs), asked.timeout
        )
        return asked.response(name, version_of(model), outputs)

    async def _body(self, request: Request) -> bytes:
        """The body of a request, decompressed."""
        largest = self._largest_request
        too_large = TooLargeError(f"a request has at most {largest} bytes here.")
        try:
            body = await read_body(request, largest, BODY_SECONDS)
        except TooLarge:
            raise too_large from None
        except TooSlow:
            raise RequestError(f"the body did not come within {BODY_SECONDS:g} seconds.") from None
        encoding = request.headers.get("Content-Encoding", "identity")
        if encoding == "identity":
            return body
        if encoding not in _ENCODINGS:
            raise RequestError(f"content encoding {encoding!r:.40} is not supported.")
        unpacker = zlib.decompressobj(_ENCODINGS[encoding])
        try:
            body = unpacker.decompress(body, largest + 1)
        except zlib.error:
            raise RequestError(f"the body is no {encoding}.") from None
        if len(body) > largest:
            raise too_large
        if not unpacker.eof or unpacker.unused_data:
            raise RequestError(f"the body is no whole {encoding}.")
        return body


@dataclass(frozen=True)
class _Inference:
    """An inference request, read.

    ``binary_outputs`` says of each wanted output whether it goes out as binary data; if it is
    empty, all are wanted, as ``binary_by_default`` says. The answer is of use for ``timeout``
    seconds.
    """

    id: str
    inputs: dict[str, Array]
    binary_outputs: dict[str, bool]
    binary_by_default: bool
    timeout: float | None = None

    @classmethod
    def of(cls, body: bytes, header_length: str | None) -> _Inference:
        """The request in ``body``, whose JSON has ``header_length`` bytes, or all of them."""
        size = len(body)
        if header_length is not None:
            size = _length(header_length)
            if not 0 <= size <= len(body):
                raise RequestError(f"{HEADER_LENGTH} is not the length of a header in the body.")
        try:
            header = json.loads(body[:size])
        except (ValueError, RecursionError):
            raise RequestError("the request is no JSON.") from None
        fields = _object(header, "the request")
        parameters = _parameters(fields, "the request")
        default = _typed(parameters, "binary_data_output", bool, "the request", default=False)
        binary = {}
        for position, item in enumerate(_list(fields, "outputs", "the request", default=[])):
            output = _object(item, f"output {position}")
            name = _typed(output, "name", str, f"output {position}")
            where = f"output {name!r}"
            if name in binary:
                raise RequestError(f"{where} is asked for twice.")
            binary[name] = _typed(
                _parameters(output, where), "binary_data", bool, where, default=default
            )
        return cls(
            id=_typed(fields, "id", str, "the request", default=""),
            inputs=_inputs(fields, memoryview(body)[size:]),
            binary_outputs=binary,
            binary_by_default=default,
            timeout=timeout_of(parameters.get("timeout")),
        )

    @classmethod
    def of_raw(cls, body: bytes, model: AttestedModel) -> _Inference:
        """The request whose body is the only input of ``model``."""
        if len(model.inputs) != 1:
            raise RequestError(
                f"a body without a header is for models of one input, not {len(model.inputs)}."
            )
        [port] = model.inputs
        array = from_raw(port.name, datatype_of(port.dtype), port.shape, body)
        return cls("", {port.name: array}, {}, binary_by_default=True)

    def response(self, name: str, version: str, outputs: dict[str, Array]) -> Response:
        """The answer: JSON, and after it the outputs that go as binary data."""
        tail = []
        listed: list[dict[str, Any]] = []
        for output, array in outputs.items():
            entry: dict[str, Any] = {
                "name": output,
                "datatype": datatype_of(array.dtype),
                "shape": list(array.shape),
            }
            if self.binary_outputs.get(output, self.binary_by_default):
                tail.append(to_raw(array))
                entry["parameters"] = {"binary_data_size": len(tail[-1])}
            else:
                entry["data"] = to_list(output, array)
            listed.append(entry)
        answer = {"model_name": name, "model_version": version, "outputs": listed}
        if self.id:
            answer["id"] = self.id
        header = json.dumps(answer, separators=(",", ":")).encode()
        if not tail:
            return Response(header, media_type="application/json")
        return Response(
            b"".join([header, *tail]),
            media_type="application/octet-stream",
            headers={HEADER_LENGTH: str(len(header))},
        )


def _length(text: str) -> int:
    """The number that ``text`` is, or -1."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text.strip()) else -1


def _inputs(fields: dict[str, Any], binary: memoryview) -> dict[str, Array]:
    """The tensors that ``fields`` lists, those of binary data from ``binary``, all of it."""
    arrays: dict[str, Array] = {}
    taken = 0
    for position, item in enumerate(_list(fields, "inputs", "the request")):
        tensor = _object(item, f"input {position}")
        name = _typed(tensor, "name", str, f"input {position}")
        where = f"input {name!r}"
        if name in arrays:
            raise RequestError(f"{where} is given twice.")
        datatype = _typed(tensor, "datatype", str, where)
        shape = _list(tensor, "shape", where)
        if any(type(d) is not int for d in shape):
            raise RequestError(f"{where}: its shape must be a list of whole numbers.")
        size = _typed(_parameters(tensor, where), "binary_data_size", int, where, default=-1)
        if size < 0:
            data = _list(tensor, "data", where)
            arrays[name] = from_list(name, datatype, shape, data)
            continue
        if "data" in tensor:
            raise RequestError(f"{where} has data in the header and binary data.")
        if size > len(binary) - taken:
            raise RequestError(f"{where}: the body ends before its {size} bytes.")
        arrays[name] = from_raw(name, datatype, shape, binary[taken : taken + size])
        taken += size
    if taken != len(binary):
        raise RequestError(f"{len(binary) - taken} bytes after the last input.")
    return arrays


def _parameters(fields: dict[str, Any], where: str) -> dict[str, Any]:
    parameters: dict[str, Any] = _typed(fields, "parameters", dict, where, default={})
    check_parameters(where, list(parameters))
    return parameters


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{where} must be a JSON object.")
    return value


def _list(fields: dict[str, Any], key: str, where: str, default: Any = None) -> list[Any]:
    found: list[Any] = _typed(fields, key, list, where, default=default)
    return found


def _typed(fields: dict[str, Any], key: str, kind: type, where: str, default: Any = None) -> Any:
    """The value of ``key``, which must be of ``kind``; needed where there is no default."""
    value = fields.get(key, default)
    # A JSON true is a Python integer too.
    if type(value) is not kind:
        raise RequestError(f"{where}: {key} must be of type {kind.__name__}.")
    return value


def _model_of(request: Request) -> tuple[str, str]:
    return request.path_params["name"], request.path_params.get("version", "")


def _readiness(ready: bool) -> Response:
    return Response(status_code=HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)


def _described(ports: Sequence[Port]) -> list[dict[str, Any]]:
    return [
        {"name": p.name, "datatype": datatype_of(p.dtype), "shape": list(p.shape)} for p in ports
    ]
