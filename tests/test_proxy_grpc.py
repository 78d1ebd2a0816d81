"""The proxy's gRPC API, with tritonclient's own client of it, and what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from queue import Queue
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.http_running import running
from tests.proxy_running import check, running_proxy, tensors
from tests.sealed_double import Host, compute, error_body, example_inputs
from vessels import __version__
from vessels.proxy.run import Addresses


@pytest.fixture
def host() -> Iterator[Host]:
    with running(Host()) as server:
        yield server


@pytest.fixture
def proxy(host: Host) -> Iterator[Addresses]:
    with running_proxy(host.url, host.policy()) as addresses:
        yield addresses


@pytest.fixture
def client(proxy: Addresses) -> Iterator[Any]:
    with tritonclient.grpc.InferenceServerClient(proxy.grpc) as client:
        yield client


def test_health_and_metadata(client: Any, host: Host) -> None:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("m")
    assert not client.is_model_ready("other") and not client.is_model_ready("m", "1")
    server = client.get_server_metadata()
    assert (server.name, server.version) == ("vessels", __version__)
    assert list(server.extensions) == ["binary_tensor_data"]
    model = client.get_model_metadata("m")
    assert list(model.versions) == [host.digest.hex()]
    assert {t.name: (t.datatype, list(t.shape)) for t in model.inputs}["image"] == (
        "FP32", [1, 3, 4],
    )  # fmt: skip
    assert {t.name: (t.datatype, list(t.shape)) for t in model.outputs}["scalar"] == ("FP32", [])
    host.ready = False
    assert not client.is_server_ready() and not client.is_model_ready("m")


def test_predictions(client: Any, host: Host) -> None:
    inputs = example_inputs()
    expected = compute(inputs)
    result = client.infer("m", tensors(tritonclient.grpc, inputs), request_id="seven")
    check(result, expected)
    response = result.get_response()
    assert (response.model_name, response.id) == ("m", "seven")
    assert response.model_version == host.digest.hex()
    wanted = [tritonclient.grpc.InferRequestedOutput(n) for n in ("flags2", "sum")]
    some = client.infer(
        "m", tensors(tritonclient.grpc, inputs), model_version=host.digest.hex(), outputs=wanted,
        priority=1, timeout=30_000_000, compression_algorithm="gzip",
    )  # fmt: skip
    check(some, {n: expected[n] for n in ("flags2", "sum")})
    assert [o.name for o in some.get_response().outputs] == ["flags2", "sum"]


def test_asynchronous_predictions(proxy: Addresses) -> None:
    inputs = example_inputs()

    async def run() -> None:
        async with tritonclient.grpc.aio.InferenceServerClient(proxy.grpc) as client:
            assert await client.is_server_live()
            asked = (client.infer("m", tensors(tritonclient.grpc.aio, inputs)) for _ in range(16))
            for result in await asyncio.gather(*asked):
                check(result, compute(inputs))

    asyncio.run(run())


def test_callbacks(client: Any) -> None:
    inputs = example_inputs()
    answers: Queue[Any] = Queue()
    client.async_infer(
        "m", tensors(tritonclient.grpc, inputs), lambda result, error: answers.put((result, error))
    )
    result, error = answers.get(timeout=60)
    assert error is None
    check(result, compute(inputs))


def typed(arrays: dict[str, Any]) -> Any:
    """A request with typed contents instead of raw ones."""
    fields = {
        "FP32": "fp32_contents", "INT64": "int64_contents", "INT8": "int_contents",
        "UINT8": "uint_contents", "BOOL": "bool_contents", "INT32": "int_contents",
    }  # fmt: skip
    request = service_pb2.ModelInferRequest(model_name="m")
    for name, array in arrays.items():
        datatype = np_to_triton_dtype(array.dtype)
        tensor = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        getattr(tensor.contents, fields[datatype]).extend(array.reshape(-1).tolist())
    return request


def test_typed_contents(proxy: Addresses) -> None:
    inputs = example_inputs()
    with grpc.insecure_channel(proxy.grpc) as channel:
        response = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(typed(inputs))
    check(tritonclient.grpc.InferResult(response), compute(inputs))


def test_requests_that_are_refused(proxy: Addresses, host: Host) -> None:
    code = grpc.StatusCode
    raw = np.zeros((1, 3, 4), np.float32).tobytes()
    altered: list[tuple[Any, grpc.StatusCode, str]] = []

    def case(status: grpc.StatusCode, message: str) -> Any:
        request = typed(example_inputs())
        altered.append((request, status, message))
        return request

    case(code.NOT_FOUND, "knows no model 'other', but m").model_name = "other"
    case(code.NOT_FOUND, "not '1'").model_version = "1"
    case(code.INVALID_ARGUMENT, "'image' is missing").inputs[0].name = "imago"
    case(code.INVALID_ARGUMENT, "given twice").inputs[0].name = "ids"
    case(code.INVALID_ARGUMENT, "where it says").inputs[0].shape[0] = 2
    case(code.INVALID_ARGUMENT, "is no shape").inputs[0].shape[0] = -1
    case(code.INVALID_ARGUMENT, "FP64' is none of").inputs[0].datatype = "FP64"
    case(code.INVALID_ARGUMENT, "is in int64_contents").inputs[0].datatype = "INT64"
    case(code.INVALID_ARGUMENT, "is int32, the model takes int8").inputs[2].datatype = "INT32"
    case(code.INVALID_ARGUMENT, "beyond INT8").inputs[2].contents.int_contents[0] = 300
    case(code.INVALID_ARGUMENT, "1 raw contents for 6").raw_input_contents.append(raw)
    case(code.INVALID_ARGUMENT, "raw and typed").raw_input_contents.extend([raw] * 6)
    case(code.INVALID_ARGUMENT, "no output 'x'").outputs.add(name="x")
    twice = case(code.INVALID_ARGUMENT, "asked for twice")
    twice.outputs.add(name="sum")
    twice.outputs.add(name="sum")
    shared = case(code.INVALID_ARGUMENT, "not supported: shared_memory_region")
    shared.inputs[0].parameters["shared_memory_region"].string_param = "r"
    case(code.INVALID_ARGUMENT, "not supported: sequence_id").parameters[
        "sequence_id"
    ].int64_param = 5
    case(code.RESOURCE_EXHAUSTED, "larger than max").raw_input_contents.append(bytes(2 << 20))
    with grpc.insecure_channel(proxy.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for request, status, message in altered:
            with pytest.raises(grpc.RpcError) as caught:
                stub.ModelInfer(request)
            assert (caught.value.code(), message in (caught.value.details() or "")) == (
                status,
                True,
            ), caught.value.details()
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelConfig(service_pb2.ModelConfigRequest(name="m"))
        assert caught.value.code() == code.UNIMPLEMENTED
        # After all of this it still answers.
        stub.ModelInfer(typed(example_inputs()))


def test_deadlines(client: Any, host: Host) -> None:
    client.infer("m", tensors(tritonclient.grpc, example_inputs()), client_timeout=30)
    assert 1_000 < int(host.headers_seen[-1]["vessels-deadline-ms"]) <= 30_000
    client.infer("m", tensors(tritonclient.grpc, example_inputs()), timeout=20_000_000)
    assert 1_000 < int(host.headers_seen[-1]["vessels-deadline-ms"]) <= 20_000
    client.infer("m", tensors(tritonclient.grpc, example_inputs()))
    assert "vessels-deadline-ms" not in host.headers_seen[-1]
    with pytest.raises(InferenceServerException) as caught:
        client.infer("m", tensors(tritonclient.grpc, example_inputs()), timeout=1)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"


@pytest.mark.parametrize(
    ("instead", "status"),
    [
        ((503, error_body("overloaded")), "StatusCode.UNAVAILABLE"),
        ((429, error_body("overloaded")), "StatusCode.RESOURCE_EXHAUSTED"),
        ((500, b"<html>"), "StatusCode.UNAVAILABLE"),
        ((200, bytes(100)), "StatusCode.UNAVAILABLE"),
    ],
)
def test_what_goes_wrong_at_the_server(
    client: Any, host: Host, instead: tuple[int, bytes], status: str
) -> None:
    client.infer("m", tensors(tritonclient.grpc, example_inputs()))
    host.instead = instead
    with pytest.raises(InferenceServerException) as caught:
        client.infer("m", tensors(tritonclient.grpc, example_inputs()))
    assert caught.value.status() == status


def test_an_enclave_that_the_policy_refuses(client: Any, host: Host) -> None:
    client.infer("m", tensors(tritonclient.grpc, example_inputs()))
    host.restart(bytes(32))
    with pytest.raises(InferenceServerException, match="model: seen 0000") as caught:
        client.infer("m", tensors(tritonclient.grpc, example_inputs()))
    assert caught.value.status() == "StatusCode.FAILED_PRECONDITION"
    assert not client.is_model_ready("m")
    assert host.enclave.requests == 0
