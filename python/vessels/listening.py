"""Listening: an ASGI application on a socket, with limits on what strangers can hold open.

uvicorn waits as long as a client likes for a request's head and for an answer to be read, and
takes connections without end; here each has a limit. A body's limits are the application's to
keep, with :func:`read_body`. A connection whose client has closed its half counts as given up, as
with most servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h11
import uvicorn
from starlette.requests import Request
from uvicorn.protocols.http.h11_impl import H11Protocol

from vessels.errors import OutputError, UsageError

_SURPLUS = "surplus"


@dataclass(frozen=True)
class Limits:
    """What one client, and all together, may hold open."""

    head_seconds: float = 10.0
    """From a connection's start, or a request's first byte, to the end of the request's head."""
    body_seconds: float = 30.0
    write_seconds: float = 30.0
    """How long an answer may stay unread."""
    idle_seconds: int = 5
    """How long a connection may rest between two requests."""
    connection_count: int = 512
    """Further connections are closed at once, but for:"""
    surplus_count: int = 0
    """Further connections whose requests are :func:`is_surplus`, for the application to refuse."""


class TooLarge(Exception):
    """A body has more bytes than are taken."""


class TooSlow(Exception):
    """A body did not come in time."""


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """The body of ``request``. Raises :class:`TooLarge` before it holds more than ``most`` bytes.

    Raises :class:`TooSlow`, and starlette's ``ClientDisconnect`` when the client is gone. Who
    answers either of the former should close the connection: the rest of the body is unread.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise TooLarge
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                if size > most:
                    raise TooLarge
    except TimeoutError:
        raise TooSlow from None
    return b"".join(parts)


def is_surplus(request: Request) -> bool:
    """Whether ``request`` came over a connection beyond :attr:`Limits.connection_count`."""
    return bool(getattr(request.state, _SURPLUS, False))


def parse_address(text: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[IPv6]:PORT``. Raises :class:`UsageError`."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:/\s]+)):(\d{1,5})", text)
    if match is None or int(match.group(3)) > 0xFFFF:
        raise UsageError(f"{text!r} is no address to listen on; write one like 127.0.0.1:8000.")
    return match.group(1) or match.group(2), int(match.group(3))


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens on ``host`` and ``port`` (0: any that is free).

    So what fails is said before the server starts, the port is known, and who connects from now
    on is answered once it has started. Raises :class:`OutputError`.
    """
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen()
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise OutputError(f"cannot listen on {host}:{port}: {error.strerror or error}.") from error
    return bound


def url_of(bound: socket.socket, *, tls: bool = False) -> str:
    """Where clients of this machine find what listens on ``bound``."""
    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{shown}:{port}"


def server(
    app: Any,
    limits: Limits,
    *,
    certificate: Path | None = None,
    private_key: Path | None = None,
    grace_seconds: float = 5,
    malformed: str | None = None,
) -> uvicorn.Server:
    """A server of ``app``, to be run by :func:`serve_until_signal`, or ``serve(sockets=[…])``.

    It ends when ``should_exit`` is set, once requests in flight have been answered or after
    ``grace_seconds``. With a ``certificate`` (PEM, with ``private_key``) it speaks TLS. What cannot
    be read as HTTP is answered with the JSON in ``malformed``, by default with a text. Raises
    :class:`UsageError` where certificate and key cannot be used.
    """
    config = uvicorn.Config(
        app,
        http=_protocol(limits, malformed),
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=limits.idle_seconds,
        # A float serves as well.
        timeout_graceful_shutdown=grace_seconds,  # type: ignore[arg-type]
        ssl_certfile=certificate,
        ssl_keyfile=private_key,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"cannot use certificate {certificate} with key {private_key}: "
            f"{error.strerror or error}."
        ) from error
    _allow_descriptors(2 * (limits.connection_count + limits.surplus_count))
    return _Server(config)


async def serve_until_signal(
    made: uvicorn.Server,
    bound: socket.socket,
    *,
    stop: Callable[[Callable[[], None]], None] | None = None,
    on_stop: Callable[[], None] | None = None,
) -> None:
    """Run ``made`` on ``bound`` until SIGTERM or SIGINT; a second one ends what is in flight, too.

    ``on_stop`` is called at each of them. ``stop`` is given the function that does what a signal
    does, for callers that are not a process of their own.
    """

    def end() -> None:
        made.force_exit = made.should_exit
        made.should_exit = True
        if on_stop is not None:
            on_stop()

    if stop is not None:
        stop(end)
    else:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, end)
    await made.serve(sockets=[bound])


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are :func:`serve_until_signal`'s."""
        yield


def _allow_descriptors(wanted: int) -> None:
    """More open files than the usual 1024 where they are needed, as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _protocol(limits: Limits, malformed: str | None) -> type[asyncio.Protocol]:
    class LimitedProtocol(H11Protocol):
        """uvicorn's, with the limits."""

        _head_due: asyncio.TimerHandle | None = None
        _read_due: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            more = len(self.connections) - limits.connection_count
            if more > limits.surplus_count:
                transport.abort()
            else:
                self.app_state = {**self.app_state, _SURPLUS: more > 0}
                # Linux ends a connection whose peer acknowledges, or reads, nothing for so long.
                with contextlib.suppress(OSError):
                    transport.get_extra_info("socket").setsockopt(
                        socket.IPPROTO_TCP,
                        socket.TCP_USER_TIMEOUT,
                        int(limits.write_seconds * 1e3),
                    )
                self._head_due = self.loop.call_later(limits.head_seconds, self._head_late)

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_came()
            self._was_read()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._head_due is None and not self._in_request():
                self._head_due = self.loop.call_later(limits.head_seconds, self._head_late)
            super().data_received(data)
            if self._in_request():
                self._head_came()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            # The next request may have come already.
            if self._in_request():
                self._head_came()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._was_read()
            self._read_due = self.loop.call_later(limits.write_seconds, self._abort)

        def resume_writing(self) -> None:
            self._was_read()
            super().resume_writing()

        def timeout_keep_alive_handler(self) -> None:
            if self.transport.get_write_buffer_size():
                # To close would be to wait for a client that reads nothing.
                self.transport.abort()
            super().timeout_keep_alive_handler()

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                # The answer to the same request is under way, or was given.
                self.transport.close()
            elif malformed is None:
                super().send_400_response(msg)
            else:
                body = malformed.encode()
                headers = [
                    ("content-type", "application/json"),
                    ("content-length", str(len(body))),
                    ("connection", "close"),
                ]
                for part in (
                    h11.Response(status_code=400, headers=headers),
                    h11.Data(data=body),
                    h11.EndOfMessage(),
                ):
                    self.transport.write(self.conn.send(part) or b"")
                self.transport.close()

        def _in_request(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _head_came(self) -> None:
            if self._head_due is not None:
                self._head_due.cancel()
                self._head_due = None

        def _was_read(self) -> None:
            if self._read_due is not None:
                self._read_due.cancel()
                self._read_due = None

        def _head_late(self) -> None:
            self._head_due = None
            if not self._in_request():
                self._abort()

        def _abort(self) -> None:
            self.transport.abort()

    return LimitedProtocol
