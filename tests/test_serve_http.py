"""What strangers can say to a server, and that it goes on serving whatever they say."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import Sealed
from tests.serving import PATIENCE, Running, error_of, one, post_head, rest, serving, until
from vessels.listening_protocol import AHEAD_COUNT, HEAD_SIZE
from vessels.serve.limits import Limits

LIMITS = Limits(
    connection_count=8, surplus_count=8, head_seconds=3.0, idle_seconds=3, body_seconds=3.0,
    body_rate=1 << 30, write_seconds=3.0, shutdown_seconds=2.0,
)  # fmt: skip
"""Short, but longer than a machine that has other work stands still."""

SOON = 30.0
"""Seconds: much later than these limits, much sooner than tests give up."""


def get(url: str, **options: Any) -> httpx2.Response:
    """An answer, which may take long where the tests have little of the machine."""
    return httpx2.get(url, timeout=PATIENCE, **options)


@pytest.fixture(scope="module")
def running(sealed: Sealed, home: None) -> Iterator[Running]:
    with serving({"m": sealed.vessel}, sealed.key, limits=LIMITS) as found:
        found.await_ready()
        yield found


@pytest.fixture(autouse=True)
def still_serves(running: Running) -> Iterator[None]:
    """Whatever a test did, the server and its enclave are as they were."""
    enclave = running.enclave
    until(lambda: connections(running) == 0, "connections that are closed")
    yield
    until(lambda: get(f"{running.url}/v2/health/ready").status_code == 200, "a ready server")
    assert running.enclave == enclave


def connections(running: Running) -> float:
    return running.count("vessels_connections")


def test_health_and_models(running: Running) -> None:
    assert get(f"{running.url}/v2/health/live").json() == {"live": True}
    ready = get(f"{running.url}/v2/health/ready")
    assert ready.status_code == 200 and ready.json()["models"] == {"m": "ready"}
    assert get(f"{running.url}/v2/models/m/ready").json()["ready"] is True
    [model] = get(f"{running.url}/vessels/v1/models").json()["models"]
    assert model["name"] == "m" and model["model_digest"] == running.served.digest.hex()


def test_metrics_are_what_prometheus_reads(running: Running) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    text = get(f"{running.url}/metrics").text
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {"vessels_requests", "vessels_model_ready", "process_resident_memory_bytes"} <= names


@pytest.mark.parametrize(
    "accepted",
    [
        "application/openmetrics-text; version=1.x",
        "text/plain; version=\u00b2; escaping=",
        "application/openmetrics-text;=;version===",
        "application/openmetrics-text; version=" + "9" * 5000,
    ],
)
def test_metrics_whatever_is_accepted(running: Running, accepted: str) -> None:
    headers = {b"accept": accepted.encode("latin-1")}
    answer = get(f"{running.url}/metrics", headers=headers)
    assert answer.status_code == 200 and "vessels_model_ready" in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v2/models/other/ready", 404, "unknown_model"),
        ("GET", "/vessels/v1/models/other/evidence?nonce=" + "00" * 32, 404, "unknown_model"),
        ("POST", "/vessels/v1/models/other/predict", 404, "unknown_model"),
        ("POST", "/vessels/v1/models/..%2fm/predict", 404, "not_found"),
        ("GET", "/metrics/", 404, "not_found"),
        ("POST", "/vessels/v1/models/m/predict/", 404, "not_found"),
        ("GET", "/vessels/v1/models/m/predict", 405, "method"),
        ("DELETE", "/vessels/v1/models/m/evidence", 405, "method"),
        ("GET", "/vessels/v1/models/m/evidence", 400, "malformed"),
        ("GET", "/vessels/v1/models/m/evidence?nonce=00", 400, "malformed"),
        ("GET", "/vessels/v1/models/m/evidence?nonce=" + "xy" * 32, 400, "malformed"),
        ("GET", "/vessels/v1/models/m/evidence?nonce=" + "00" * 33, 400, "malformed"),
        ("GET", f"/vessels/v1/models/m/evidence?nonce={'00' * 32}&nonce={'00' * 32}", 400,
         "malformed"),
        ("POST", "/vessels/v1/models/m/predict", 400, "malformed"),
    ],
)  # fmt: skip
def test_refusals(running: Running, method: str, path: str, status: int, code: str) -> None:
    answer = httpx2.request(method, running.url + path, timeout=PATIENCE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize(
    "headers", [{"content-type": "application/json"}, {"content-encoding": "gzip"}]
)
def test_bodies_of_another_type(running: Running, headers: dict[str, str]) -> None:
    path = f"{running.path}/predict"
    answer = httpx2.post(path, content=bytes(100), headers=headers, timeout=PATIENCE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "media_type")


def test_a_body_of_nonsense_is_not_opened(running: Running) -> None:
    answer = running.post(bytes(200))
    assert (answer.status_code, answer.json()["error"]["code"]) == (421, "not_opened")


def test_the_largest_request_is_known_from_the_model(running: Running) -> None:
    most = running.served.largest_request
    assert running.post(bytes(most)).json()["error"]["code"] == "not_opened"
    answer = running.post(bytes(most + 1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_a_large_body_is_refused_before_it_is_sent(running: Running) -> None:
    with running.connect() as connection:
        connection.sendall(post_head(running, 1 << 40, "Expect: 100-continue"))
        assert error_of(one(connection)) == "too_large"


def test_a_large_body_without_a_declared_size(running: Running) -> None:
    part = bytes(1 << 16)
    body = (part for _ in range(100))
    answer = httpx2.post(f"{running.path}/predict", content=body, timeout=PATIENCE)
    assert answer.json()["error"]["code"] == "too_large"


def test_a_refused_body_that_still_comes_is_read_for_a_while_only(running: Running) -> None:
    with running.connect() as connection:
        connection.sendall(post_head(running, 1 << 40) + bytes(1000))
        assert error_of(one(connection)) == "too_large"
        began = time.monotonic()
        with pytest.raises(OSError, match=r"reset|pipe"):
            while time.monotonic() - began < PATIENCE:
                connection.sendall(bytes(1 << 10))
                time.sleep(0.05)
        assert time.monotonic() - began < SOON


def test_after_a_refusal_the_connection_is_of_use(running: Running) -> None:
    with httpx2.Client(timeout=PATIENCE) as client:
        for _ in range(3):
            size = running.served.largest_request + 1
            assert client.post(f"{running.path}/predict", content=bytes(size)).status_code == 413
            assert client.get(f"{running.url}/v2/health/live").status_code == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n\r\n\r\n\r\nGARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/x.y\r\nHost: x\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * (1 << 20) + b"\r\n\r\n",
        b"G" * (1 << 20),
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)
def test_what_is_no_http(running: Running, raw: bytes) -> None:
    with running.connect() as connection:
        try:
            connection.sendall(raw)
        except OSError:
            # The server had seen enough.
            return
        said = rest(connection)
    if said:
        assert said.startswith(b"HTTP/1.1 400 ") and error_of(said) == "malformed"


def test_a_chunk_that_is_none(running: Running) -> None:
    head = post_head(running, 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    assert b" 400 " in running.say(head + b"5\r\nhello\r\nnonsense\r\n\r\n").splitlines()[0]


def test_a_chunk_that_is_none_after_the_answer(running: Running) -> None:
    head = post_head(running, 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    large = b"%x\r\n%b\r\n" % (1 << 20, bytes(1 << 20))
    with running.connect() as connection:
        connection.sendall(head + large)
        assert error_of(one(connection)) == "too_large"
        connection.sendall(b"nonsense\r\n\r\n")
        assert rest(connection) == b""


@pytest.mark.parametrize(
    "head",
    [
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /metrics HTTP/1.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"HEAD /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ],
)
def test_rare_requests_are_answered(running: Running, head: bytes) -> None:
    assert running.say(head).startswith(b"HTTP/1.1 ")


def test_pipelined_requests_are_answered_in_order(running: Running) -> None:
    one = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    said = running.say(one * 50 + last)
    assert said.count(b"HTTP/1.1 200 ") == 50 and b"not_found" in said.split(b"HTTP/1.1 ")[-1]


def test_more_requests_ahead_of_their_turn_than_are_taken(running: Running) -> None:
    ask = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    with running.connect() as connection:
        connection.sendall(ask * (AHEAD_COUNT + 10))
        said = rest(connection)
    assert said.count(b"HTTP/1.1 ") <= AHEAD_COUNT and b" 400 " not in said


def test_a_head_that_begins_behind_a_large_body(running: Running) -> None:
    body = bytes(running.served.largest_request)
    ask = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with running.connect() as connection:
        connection.sendall(post_head(running, len(body)) + body + ask[:20])
        assert error_of(one(connection)) == "not_opened"
        connection.sendall(ask[20:])
        assert rest(connection).startswith(b"HTTP/1.1 200 ")


def test_nonsense_after_a_request_is_no_answer_to_it(running: Running) -> None:
    with running.connect() as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\nnonsense\r\n\r\n")
        assert b" 400 " not in rest(connection)


def test_nonsense_after_an_answer(running: Running) -> None:
    with running.connect() as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert one(connection).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"nonsense\r\n\r\n")
        assert error_of(rest(connection)) == "malformed"


@pytest.mark.parametrize("size", [HEAD_SIZE // 2, 8 * HEAD_SIZE])
def test_a_head_in_many_pieces(running: Running, size: int) -> None:
    with running.connect() as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n")
        try:
            for _ in range(size // 1024):
                connection.sendall(b"X: " + b"x" * 1019 + b"\r\n")
                time.sleep(0.001)
            connection.sendall(b"Connection: close\r\n\r\n")
        except OSError:
            assert size > HEAD_SIZE
            return
        said = rest(connection)
    assert (b" 200 " in said) == (size <= HEAD_SIZE)


@pytest.mark.parametrize("begun", [b"", b"GET /v2/he"])
def test_a_slow_head_ends_the_connection(running: Running, begun: bytes) -> None:
    began = time.monotonic()
    with running.connect() as connection:
        connection.sendall(begun)
        assert rest(connection) == b""
    assert time.monotonic() - began < SOON


def test_a_head_that_trickles_ends_the_connection(running: Running) -> None:
    began = time.monotonic()
    with running.connect() as connection, pytest.raises(OSError, match=r"reset|pipe"):
        connection.sendall(b"GET / HTTP/1.1\r\n")
        while time.monotonic() - began < PATIENCE:
            connection.sendall(b"X: y\r\n")
            time.sleep(0.05)
    assert time.monotonic() - began < SOON


def test_a_slow_body_is_refused(running: Running) -> None:
    with running.connect() as connection:
        connection.sendall(post_head(running, 1000) + b"begun")
        assert error_of(rest(connection)) == "too_slow"


def test_an_idle_connection_is_closed(running: Running) -> None:
    with running.connect() as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        began = time.monotonic()
        assert rest(connection).startswith(b"HTTP/1.1 200 ")
        assert 1 < time.monotonic() - began < SOON


def test_a_client_that_reads_nothing_is_given_up(running: Running) -> None:
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    with running.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        began = time.monotonic()
        with pytest.raises(OSError, match=r"reset|pipe"):
            while time.monotonic() - began < PATIENCE:
                try:
                    connection.send(request * 100)
                except BlockingIOError:
                    time.sleep(0.02)
    until(lambda: connections(running) == 0, "the connection to be given up")


def test_half_closed_before_the_body_is_whole(running: Running) -> None:
    gone = running.count("vessels_requests_total", model="m", kind="predict", outcome="client_gone")
    with running.connect() as connection:
        connection.sendall(post_head(running, 1000) + b"begun")
        connection.shutdown(socket.SHUT_WR)
        assert rest(connection) == b""
    until(
        lambda: running.count(
            "vessels_requests_total", model="m", kind="predict", outcome="client_gone"
        ) == gone + 1,
        "the request to be given up",
    )  # fmt: skip


def test_too_many_connections(sealed: Sealed) -> None:
    # Nobody shall go meanwhile who says nothing.
    limits = replace(LIMITS, head_seconds=2 * PATIENCE)
    count = limits.connection_count
    with serving({"m": sealed.vessel}, sealed.key, limits=limits) as running:
        running.await_ready()
        until(lambda: connections(running) == 0, "connections that are closed")
        held = []
        try:
            for _ in range(count):
                held.append(running.connect())
            until(lambda: connections(running) == count, "connections to be accepted")
            surplus = get(f"{running.url}/v2/health/ready")
            assert surplus.status_code == 429 and surplus.json()["error"]["code"] == "overloaded"
            assert surplus.headers["retry-after"]
            # Who watches over the server shall not think it dead.
            assert get(f"{running.url}/v2/health/live").status_code == 200
            for _ in range(count):
                held.append(running.connect())
            with running.connect() as closed:
                assert rest(closed) == b""
        finally:
            for connection in held:
                connection.close()


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(
        st.binary(max_size=300),
        st.tuples(
            st.sampled_from([b"GET", b"POST", b"PUT", b"X"]),
            st.sampled_from([b"/vessels/v1/models/m/predict", b"/v2/health/live", b"/%ff", b"*"]),
            st.sampled_from([b"Content-Length: 60", b"Transfer-Encoding: chunked", b"X: y", b":"]),
            st.binary(max_size=200),
        ).map(lambda t: b"%b %b HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n%b" % t),
    )
)  # fmt: skip
def test_any_bytes(running: Running, raw: bytes) -> None:
    with running.connect() as connection:
        try:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            # The server had seen enough.
            return
        said = rest(connection)
    assert not said or said.startswith(b"HTTP/1.1 ")
    assert b" 500 " not in said.split(b"\r\n")[0]
