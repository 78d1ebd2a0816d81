"""Addresses to listen on, and what a server of ours holds open for nobody."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.keys import listening
from tests.serving import until
from vessels.errors import OutputError, UsageError
from vessels.listening import Limits, bound_socket, is_surplus, parse_address, url_of


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", ("127.0.0.1", 8000)),
        ("owner.example:0", ("owner.example", 0)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "8000", ":8000", "h:", "h:65536", "h:x", "::1:80", "[::1]", "http://h:80", "h: 80"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="is no address to listen on"):
        parse_address(text)


def test_sockets() -> None:
    with bound_socket("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        assert url_of(bound) == f"http://127.0.0.1:{port}"
        assert url_of(bound, tls=True) == f"https://127.0.0.1:{port}"
        with pytest.raises(OutputError, match=f"cannot listen on 127.0.0.1:{port}: .*in use"):
            bound_socket("127.0.0.1", port)
        # Who connects before the server has started waits for it.
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    with pytest.raises(OutputError, match=r"cannot listen on no\.such\.host\.invalid:1: "):
        bound_socket("no.such.host.invalid", 1)


def is_open(port: int) -> bool:
    """Whether a connection to ``port`` is open on the side of its server."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    # The fields are a number, the local address, the other one, and the state: 01 is established.
    return any(row[1].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


def test_an_answer_that_nobody_reads_is_given_up() -> None:
    async def large(_: Request) -> Response:
        return Response(bytes(64 << 20))

    app = Starlette(routes=[Route("/", large), Route("/small", lambda _: Response("ok"))])
    with listening(app, Limits(write_seconds=1.0)) as url:
        address = httpx2.URL(url)
        with socket.create_connection((address.host, address.port or 80), timeout=60) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            # Nothing is read; then what the kernel has kept, and no more.
            until(lambda: not is_open(address.port or 80), "the server to give up")
            received = 0
            try:
                while part := client.recv(1 << 20):
                    received += len(part)
            except ConnectionResetError:
                pass
        assert received < 64 << 20
        assert httpx2.get(f"{url}/small", timeout=60).text == "ok"


def test_who_was_one_too_many_is_not_for_as_long_as_it_stays() -> None:
    async def is_too_many(request: Request) -> Response:
        return Response(str(is_surplus(request)))

    app = Starlette(routes=[Route("/", is_too_many)])
    with listening(app, Limits(connection_count=3, surplus_count=3)) as url:

        def ask(client: httpx2.Client) -> bool:
            return client.get(url).text == "True"

        served, surplus = ([httpx2.Client(timeout=60) for _ in range(3)] for _ in range(2))
        assert [ask(client) for client in (*served, *surplus)] == [False] * 3 + [True] * 3
        assert ask(surplus[0]) and not ask(served[0])
        served[0].close()
        until(lambda: not ask(surplus[0]), "a place to be free")
        # It is its own now.
        assert ask(surplus[1]) and not ask(surplus[0]) and not ask(served[1])
        for client in (*served, *surplus):
            client.close()
