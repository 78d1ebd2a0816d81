"""Listening: an ASGI application on a socket, with limits on what strangers can hold open.

uvicorn waits as long as a client likes for a request's head and for an answer to be read, and
takes heads, requests ahead of their turn and connections without end; here each has a limit. A
body's limits are the application's to keep, with :func:`read_body`. A connection whose client has
closed its half counts as given up, as with most servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import re
import resource
import signal
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
import uvloop
from starlette.requests import Request

from vessels.errors import OutputError, UsageError
from vessels.listening_protocol import SURPLUS, limited_protocol
from vessels.listening_protocol import Limits as Limits

T = TypeVar("T")

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_SIZE = 64 << 20
_LARGEST_KEPT = 32 << 20


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
    return bool(getattr(request.state, SURPLUS, False))


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
        http=limited_protocol(limits, malformed),
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
    _keep_freed_memory()
    _allow_descriptors(2 * (limits.connection_count + limits.surplus_count))
    return _Server(config)


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """As :func:`asyncio.run`, on the event loop that takes least of a request's time: uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


async def serve_until_signal(
    made: uvicorn.Server,
    bound: socket.socket,
    *,
    stop: Callable[[Callable[[], None]], None] | None = None,
    on_stop: Callable[[], None] | None = None,
) -> None:
    """Run ``made`` on ``bound`` until SIGTERM or SIGINT; a second one ends what is in flight, too.

    So does SIGHUP, of a terminal that is closed, but under ``nohup``.
    ``on_stop`` is called at each of them. ``stop`` is given the function that does what a signal
    does, for callers that are not a process of their own.
    """

    def end() -> None:
        made.force_exit = made.should_exit
        made.should_exit = True
        if on_stop is not None:
            on_stop()

    def hang_up() -> None:
        # Shell and kernel may both send one.
        if not made.should_exit:
            end()

    if stop is not None:
        stop(end)
    else:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, hang_up)
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


def _keep_freed_memory() -> None:
    """Use the memory of one request's body for the next one's, where the C library is glibc.

    It else gives it back to the system each time, and takes it again page by page: of 600 kB, 280
    page faults, and 0.9 of the 4 ms that serving added to a prediction. At most 64 MiB are kept.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_SIZE)
