"""The proxy's REST API, with tritonclient's own clients of it, and what it refuses."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.http_running import running
from tests.proxy_running import check, running_proxy, tensors
from tests.sealed_double import Host, compute, error_body, example_inputs
from vessels import __version__
from vessels.errors import ServerError
from vessels.proxy.gateway import Gateway
from vessels.proxy.run import Addresses

HEADER_LENGTH = "Inference-Header-Content-Length"
INFER = "/v2/models/m/infer"


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
    url = proxy.rest.removeprefix("http://")
    with tritonclient.http.InferenceServerClient(url, concurrency=4) as client:
        yield client


@pytest.fixture
def web(proxy: Addresses) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=proxy.rest, timeout=30) as client:
        yield client


def test_health_and_metadata(client: Any, host: Host) -> None:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("m")
    assert not client.is_model_ready("other") and not client.is_model_ready("m", "1")
    assert client.get_server_metadata() == {
        "name": "vessels", "version": __version__, "extensions": ["binary_tensor_data"],
    }  # fmt: skip
    model = client.get_model_metadata("m")
    assert client.get_model_metadata("m", host.digest.hex()) == model
    assert (model["name"], model["versions"]) == ("m", [host.digest.hex()])
    assert {"name": "image", "datatype": "FP32", "shape": [1, 3, 4]} in model["inputs"]
    assert {"name": "scalar", "datatype": "FP32", "shape": []} in model["outputs"]
    host.ready = False
    assert not client.is_server_ready() and not client.is_model_ready("m")


@pytest.mark.parametrize("binary_inputs", [False, True])
@pytest.mark.parametrize("binary_outputs", [False, True, None])
def test_predictions(
    client: Any, host: Host, binary_inputs: bool, binary_outputs: bool | None
) -> None:
    inputs = example_inputs()
    expected = compute(inputs)
    outputs = None
    if binary_outputs is not None:
        expected = {name: expected[name] for name in ("flags2", "sum", "ids2")}
        outputs = [
            tritonclient.http.InferRequestedOutput(name, binary_data=binary_outputs)
            for name in expected
        ]
    result = client.infer(
        "m", tensors(tritonclient.http, inputs, binary_data=binary_inputs), outputs=outputs,
        request_id="seven",
    )  # fmt: skip
    check(result, expected)
    response = result.get_response()
    assert (response["model_name"], response["id"]) == ("m", "seven")
    assert response["model_version"] == host.digest.hex()
    assert [o["name"] for o in response["outputs"]] == list(expected)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(client: Any, algorithm: str) -> None:
    inputs = example_inputs()
    result = client.infer(
        "m", tensors(tritonclient.http, inputs), request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )  # fmt: skip
    check(result, compute(inputs))


def test_mixed_outputs(client: Any) -> None:
    inputs = example_inputs()
    outputs = [
        tritonclient.http.InferRequestedOutput("sum", binary_data=True),
        tritonclient.http.InferRequestedOutput("ids2", binary_data=False),
        tritonclient.http.InferRequestedOutput("flags2", binary_data=True),
    ]
    result = client.infer("m", tensors(tritonclient.http, inputs), outputs=outputs)
    expected = compute(inputs)
    check(result, {name: expected[name] for name in ("sum", "ids2", "flags2")})


def test_many_at_once(client: Any) -> None:
    inputs = example_inputs()
    asked = [client.async_infer("m", tensors(tritonclient.http, inputs)) for _ in range(16)]
    for request in asked:
        check(request.get_result(), compute(inputs))


def test_asynchronous_predictions(proxy: Addresses) -> None:
    inputs = example_inputs()

    async def run() -> None:
        url = proxy.rest.removeprefix("http://")
        async with tritonclient.http.aio.InferenceServerClient(url) as client:
            assert await client.is_server_live() and await client.is_model_ready("m")
            asked = (client.infer("m", tensors(tritonclient.http.aio, inputs)) for _ in range(16))
            for result in await asyncio.gather(*asked):
                check(result, compute(inputs))

    asyncio.run(run())


def as_json(arrays: dict[str, Any]) -> dict[str, Any]:
    """A request by hand, with nested data."""
    return {
        "inputs": [
            {
                "name": name,
                "datatype": np_to_triton_dtype(array.dtype),
                "shape": list(array.shape),
                "data": array.tolist(),
            }
            for name, array in arrays.items()
        ]
    }


def test_plain_json(web: httpx2.Client, host: Host) -> None:
    inputs = example_inputs()
    for path in (INFER, f"/v2/models/m/versions/{host.digest.hex()}/infer"):
        answer = web.post(path, json=as_json(inputs))
        assert answer.headers["content-type"] == "application/json"
        found = answer.json()
        assert "id" not in found
        for output, (name, array) in zip(found["outputs"], compute(inputs).items(), strict=True):
            assert (output["name"], output["shape"]) == (name, list(array.shape))
            assert output["data"] == array.reshape(-1).tolist()


def test_what_json_cannot_hold(web: httpx2.Client, client: Any) -> None:
    inputs = example_inputs()
    inputs["image"][0, 0, 0] = np.inf
    answer = web.post(INFER, json=as_json(example_inputs()), headers={"accept": "*/*"})
    assert answer.status_code == 200
    with pytest.raises(InferenceServerException, match="ask for it as binary data"):
        client.infer(
            "m", tensors(tritonclient.http, inputs),
            outputs=[tritonclient.http.InferRequestedOutput("sum", binary_data=False)],
        )  # fmt: skip
    check(client.infer("m", tensors(tritonclient.http, inputs)), compute(inputs))


def test_paths(web: httpx2.Client) -> None:
    assert web.get("/v2/").json() == web.get("/v2").json()
    for method, path, status in (
        ("GET", "/", 404),
        ("GET", "/v2/models", 404),
        ("GET", INFER, 405),
        ("POST", "/v2/models/m/ready", 405),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/m/versions/1", 404),
        ("GET", "/v2/models/m/config", 404),
        ("GET", "/v2/models/..%2Fm", 404),
        ("GET", "/v2/health/live/", 404),
        ("POST", f"{INFER}/", 404),
    ):
        answer = web.request(method, path)
        assert (answer.status_code, type(answer.json()["error"])) == (status, str)
        assert ("allow" in answer.headers) == (status == 405)
    assert web.get("/v2/models/other/ready").status_code == 503


def binary(change: dict[str, Any] | None = None, tail: bytes = bytes(48)) -> tuple[bytes, str]:
    """A body with one binary input, and the length of its header."""
    image: dict[str, Any] = {
        "name": "image", "datatype": "FP32", "shape": [1, 3, 4],
        "parameters": {"binary_data_size": 48},
    }  # fmt: skip
    request = as_json(example_inputs())
    request["inputs"][0] = image | (change or {})
    header = json.dumps(request).encode()
    return header + tail, str(len(header))


def test_requests_that_are_refused(web: httpx2.Client, host: Host) -> None:
    good, length = binary()
    assert web.post(INFER, content=good, headers={HEADER_LENGTH: length}).status_code == 200

    def refused(
        message: str, content: bytes, header_length: str | None = None, **headers: str
    ) -> None:
        if header_length is not None:
            headers[HEADER_LENGTH] = header_length
        answer = web.post(INFER, content=content, headers=headers)
        assert (answer.status_code, message in answer.json()["error"]) == (400, True), answer.text

    def changed(message: str, tail: bytes = bytes(48), **change: Any) -> None:
        body, size = binary(change, tail)
        refused(message, body, size)

    for body in (b"", b"{", b"\xff\xfe", b"[" * 100000, good):
        refused("is no JSON", body)
    for body in (b"[]", b"5", b'"x"', b"null"):
        refused("must be a JSON object", body)
    refused("inputs must be of type list", b"{}")
    refused("id must be of type str", b'{"id": 5, "inputs": []}')
    refused("'image' is missing", b'{"inputs": []}')
    for bad in ("-1", "x", "1e3", str(len(good) + 1), "9" * 30, "9" * 5000, "+5"):
        refused("not the length of a header", good, bad)
    refused("models of one input, not 6", good, "0")
    changed("the body ends before", bytes(47))
    changed("1 bytes after the last input", bytes(49))
    changed(
        "44 bytes of data where its shape takes 48", bytes(44), parameters={"binary_data_size": 44}
    )
    changed("has data in the header and binary data", data=[1.0])
    changed("binary_data_size must be of type int", parameters={"binary_data_size": "48"})
    changed("binary_data_size must be of type int", parameters={"binary_data_size": True})
    changed("data must be of type list", parameters={"binary_data_size": -5})
    changed("not supported: shared_memory_region", parameters={"shared_memory_region": "r"})
    changed("name must be of type str", name=5)
    changed("datatype must be of type str", datatype=None)
    changed("datatype 'FP64' is none of", datatype="FP64")
    changed("must be a list of whole numbers", shape=[1, 3, 4.0])
    changed("must be a list of whole numbers", shape=[True, 3, 4])
    changed("is no shape", shape=[-1, -3, 4])
    changed("has shape 3x1x4", shape=[3, 1, 4])
    changed("given twice", name="ids")
    for outputs, message in (
        ([{"name": "x"}], "no output 'x'"),
        ([{"name": "sum"}, {"name": "sum"}], "asked for twice"),
        ([5], "output 0 must be a JSON object"),
        ([{"name": "sum", "parameters": {"binary_data": 1}}], "binary_data must be of type bool"),
        ([{"name": "sum", "parameters": {"classification": 1}}], "not supported: classification"),
    ):
        content = json.dumps(as_json(example_inputs()) | {"outputs": outputs}).encode()
        refused(message, content)
    refused("'br' is not supported", good, length, **{"Content-Encoding": "br"})
    refused("is no gzip", good, length, **{"Content-Encoding": "gzip"})
    whole = gzip.compress(good)
    refused("is no whole gzip", whole[:-1], length, **{"Content-Encoding": "gzip"})
    refused("is no whole gzip", whole + b"x", length, **{"Content-Encoding": "gzip"})
    for content, headers in (
        (bytes((1 << 20) + 1), {}),
        (zlib.compress(bytes(64 << 20)), {"Content-Encoding": "deflate"}),
    ):
        assert web.post(INFER, content=content, headers=headers).status_code == 413
    assert web.post(INFER, content=good, headers={HEADER_LENGTH: length}).status_code == 200


def test_deadlines(web: httpx2.Client, host: Host) -> None:
    request = as_json(example_inputs())
    for timeout, status in ((20_000_000, 200), (0, 200), (1, 504), ("1", 400), (True, 400)):
        answer = web.post(INFER, json=request | {"parameters": {"timeout": timeout}})
        assert answer.status_code == status, answer.text
    times = [h.get("vessels-deadline-ms") for h in host.headers_seen[-2:]]
    assert times[0] is not None and 1_000 < int(times[0]) <= 20_000 and times[1] is None


@pytest.mark.parametrize(
    ("instead", "status"),
    [
        ((503, error_body("overloaded")), 503),
        ((429, error_body("overloaded")), 429),
        ((500, b"<html>"), 503),
        ((200, bytes(100)), 503),
    ],
)
def test_what_goes_wrong_at_the_server(
    web: httpx2.Client, host: Host, instead: tuple[int, bytes], status: int
) -> None:
    assert web.post(INFER, json=as_json(example_inputs())).status_code == 200
    host.instead = instead
    answer = web.post(INFER, json=as_json(example_inputs()))
    assert (answer.status_code, host.url in answer.json()["error"]) == (status, True)


@pytest.mark.parametrize(("status", "seconds"), [(429, 7), (503, 3), (503, None)])
def test_when_to_ask_again_is_what_the_server_says(
    web: httpx2.Client, monkeypatch: pytest.MonkeyPatch, status: int, seconds: int | None
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise ServerError("it has too much to do.", status=status, retry_after=seconds)

    monkeypatch.setattr(Gateway, "infer", refuse)
    answer = web.post(INFER, json=as_json(example_inputs()))
    assert answer.status_code == status
    assert answer.headers.get("retry-after") == (None if seconds is None else str(seconds))


def test_a_deadline_holds_before_the_model_is_attested(web: httpx2.Client, host: Host) -> None:
    going_on = threading.Event()

    def late(evidence: bytes) -> bytes:
        going_on.wait(30)
        return evidence

    host.alter_evidence = late
    began = time.monotonic()
    request = as_json(example_inputs()) | {"parameters": {"timeout": 300_000}}
    answer = web.post("/v2/models/m/infer", json=request)
    going_on.set()
    assert answer.status_code == 504, answer.text
    assert time.monotonic() - began < 10


def test_an_enclave_that_the_policy_refuses(web: httpx2.Client, host: Host) -> None:
    host.restart(bytes(32))
    answer = web.post(INFER, json=as_json(example_inputs()))
    assert answer.status_code == 502 and answer.json()["error"].startswith("model: seen 0000")
    assert web.get("/v2/health/ready").status_code == 503
    assert web.get("/v2/health/live").status_code == 200
    assert host.enclave.requests == 0


def test_a_defect_tells_nothing_of_the_data(
    web: httpx2.Client,
    host: Host,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from vessels.proxy import rest

    def broken(*_: object) -> bytes:
        raise ValueError("the marker 8153")

    monkeypatch.setattr(rest, "to_list", broken)
    answer = web.post(INFER, json=as_json(example_inputs()))
    assert (answer.status_code, answer.json()) == (500, {"error": "internal error"})
    assert "internal error of the proxy: ValueError" in caplog.text
    assert "8153" not in caplog.text


def test_what_leaves_this_machine_is_sealed(client: Any, host: Host) -> None:
    marker = np.frombuffer(b"a marker that nobody may read..." + bytes(16), np.float32)
    seen: list[bytes] = []
    real = host.enclave.exchange

    def watch(message: bytes) -> bytes | None:
        answer = real(message)
        seen.extend([message, answer or b""])
        return answer

    host.enclave.exchange = watch  # type: ignore[method-assign]
    inputs = example_inputs() | {"image": marker.reshape(1, 3, 4)}
    check(client.infer("m", tensors(tritonclient.http, inputs)), compute(inputs))
    assert len(seen) == 4
    for message in seen:
        assert marker.tobytes()[:8] not in message
        assert compute(inputs)["ids2"].tobytes()[:8] not in message
