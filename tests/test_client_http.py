"""Requests of a client as a server, or a proxy before it, sees them."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from vessels.client_exchange import Body, Send
from vessels.client_http import AsyncHttp, Http
from vessels.errors import ServerError, UsageError

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Listener:
    """Takes one connection, and keeps what it says."""

    def __init__(self, answer: bytes = ANSWER) -> None:
        self.head_came = threading.Event()
        self.said = b""
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        connection, _ = self._socket.accept()
        with connection:
            connection.settimeout(10)
            while b"\r\n\r\n" not in self.said:
                self.said += connection.recv(1 << 16)
            self.head_came.set()
            while b"Content-Length" in self.said and not self.said.endswith(b"end"):
                self.said += connection.recv(1 << 16)
            connection.sendall(self._answer)

    @property
    def head(self) -> dict[str, str]:
        lines = self.said.partition(b"\r\n\r\n")[0].decode().split("\r\n")
        return {"": lines[0]} | {k.lower(): v for k, _, v in (n.partition(": ") for n in lines[1:])}

    def close(self) -> None:
        self._thread.join(15)
        self._socket.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    found = Listener()
    yield found
    found.close()


Sender = Callable[..., bytes]


def _sent(url: str, step: Send) -> bytes:
    http = Http(url, 10.0)
    try:
        return http.send(step)
    finally:
        http.close()


def _sent_async(url: str, step: Send) -> bytes:
    async def run() -> bytes:
        http = AsyncHttp(url, 10.0)
        try:
            return await http.send(step)
        finally:
            await http.close()

    return asyncio.run(run())


@pytest.fixture(params=[_sent, _sent_async])
def send(request: pytest.FixtureRequest) -> Sender:
    found: Sender = request.param
    return found


def test_the_head_is_sent_before_the_body_is_made(listener: Listener, send: Sender) -> None:
    def make() -> bytes:
        assert listener.head_came.wait(10)
        return b"the end"

    step = Send("POST", f"{listener.url}/x", 2, {"Content-Type": "a/b"}, Body(7, make))
    assert send(listener.url, step) == b"ok"
    assert listener.said.endswith(b"\r\n\r\nthe end")
    head = listener.head
    assert head[""] == "POST /x HTTP/1.1" and head["host"] == f"127.0.0.1:{listener.port}"
    assert head["content-length"] == "7" and head["content-type"] == "a/b"
    assert head["accept-encoding"] == "identity" and "transfer-encoding" not in head


def test_a_body_is_made_once() -> None:
    body = Body(8, lambda: os.urandom(8))
    assert list(body) == list(body)


def test_a_redirect_is_not_followed(send: Sender) -> None:
    found = Listener(b"HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n")
    try:
        with pytest.raises(ServerError, match="HTTP 302"):
            send(found.url, Send("GET", f"{found.url}/x", 10))
    finally:
        found.close()


@pytest.mark.parametrize(
    ("said", "seconds"), [(b"7", 7), (b"soon", None), (b"-1", None), (b"9" * 20, None), (b"", None)]
)
def test_a_refusal_says_when_to_ask_again(send: Sender, said: bytes, seconds: int | None) -> None:
    found = Listener(
        b"HTTP/1.1 429 Too Many Requests\r\nretry-after: %b\r\nContent-Length: 0\r\n\r\n" % said
    )
    try:
        with pytest.raises(ServerError, match="HTTP 429") as refusal:
            send(found.url, Send("GET", f"{found.url}/x", 10))
        assert (refusal.value.status, refusal.value.retry_after) == (429, seconds)
    finally:
        found.close()


def test_a_user_in_the_address(listener: Listener, send: Sender) -> None:
    url = listener.url.replace("//", "//me:p%40ss@")
    assert send(url, Send("GET", f"{url}/x", 2)) == b"ok"
    kind, _, credentials = listener.head["authorization"].partition(" ")
    assert kind == "Basic" and base64.b64decode(credentials) == b"me:p@ss"


def test_a_proxy_of_the_environment(
    listener: Listener, send: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", listener.url.replace("//", "//me:secret@"))
    monkeypatch.setenv("no_proxy", "elsewhere.example")
    url = "http://server.example:8080"
    assert send(url, Send("GET", f"{url}/x", 2)) == b"ok"
    assert listener.head[""] == "GET http://server.example:8080/x HTTP/1.1"
    credentials = listener.head["proxy-authorization"].partition(" ")[2]
    assert base64.b64decode(credentials) == b"me:secret"


def test_a_host_that_is_reached_without_the_proxy(
    listener: Listener, send: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert send(listener.url, Send("GET", f"{listener.url}/x", 2)) == b"ok"
    assert listener.head[""] == "GET /x HTTP/1.1"


@pytest.mark.parametrize("url", ["http://h:port", "http://h:123456"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(UsageError, match="is no URL of a server"):
        Http(url, 1.0)
