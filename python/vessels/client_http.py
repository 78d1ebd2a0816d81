"""HTTP as a client of a server needs it: one request, one answer of bounded size.

Connections are kept, and made again when a server has closed them. A proxy is taken from the
environment (``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY``, ``NO_PROXY``). Redirects are not
followed, and what was compressed is not unpacked. ``httpcore2`` is what ``httpx2`` stands on;
on the way to an enclave and back, what ``httpx2`` adds takes 0.35 ms of processor time.
"""

from __future__ import annotations

import base64
import functools
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any, NoReturn

import httpcore2
import httpx2

from vessels.attestation.text import printable
from vessels.client_exchange import MAX_ERROR_SIZE, Send, refused
from vessels.errors import ServerError, UsageError

CONNECT_SECONDS = 10.0
MAX_CONNECTIONS = 256
IDLE_SECONDS = 5.0

_FAILED = (
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.ProxyError,
    httpcore2.TimeoutException,
    httpcore2.UnsupportedProtocol,
)

# A server may close an idle connection just as it is used again. Nothing happens but the same
# answer if both of two equal requests arrive.
_CLOSED = (httpcore2.RemoteProtocolError, httpcore2.ReadError, httpcore2.WriteError)

_ALWAYS = [(b"User-Agent", b"vessels"), (b"Accept", b"*/*"), (b"Accept-Encoding", b"identity")]


class _Base:
    def __init__(self, url: str, timeout: float) -> None:
        self.url = url
        try:
            found = httpx2.URL(url)
            if not 0 < (found.port or 1) <= 0xFFFF:
                raise httpx2.InvalidURL(f"there is no port {found.port}")
        except httpx2.InvalidURL as error:
            raise UsageError(f"{url!r} is no URL of a server: {error}.") from error
        self._always = list(_ALWAYS)
        if found.userinfo:
            known = base64.b64encode(f"{found.username}:{found.password}".encode())
            self._always.append((b"Authorization", b"Basic " + known))
        self._seconds = timeout
        self._pool_options: dict[str, Any] = {
            # Its making is slow, and of no use without TLS.
            "ssl_context": httpx2.create_ssl_context() if found.scheme == "https" else None,
            "proxy": _proxy(found),
            "max_connections": MAX_CONNECTIONS,
            "keepalive_expiry": IDLE_SECONDS,
        }

    def _asked(self, step: Send) -> dict[str, Any]:
        """``step`` as a pool takes it."""
        seconds = step.seconds(self._seconds)
        headers = [(k.encode(), v.encode()) for k, v in step.all_headers().items()]
        if step.body is not None:
            headers.append((b"Content-Length", str(step.body.size).encode()))
        return {
            "method": step.method,
            "url": _address(step.url),
            "headers": self._always + headers,
            "content": step.body,
            "extensions": {
                "timeout": {
                    "connect": min(seconds, CONNECT_SECONDS),
                    "read": seconds,
                    "write": seconds,
                    "pool": seconds,
                }
            },
        }

    def _failed(self, error: Exception, step: Send) -> NoReturn:
        in_time = not isinstance(error, httpcore2.TimeoutException)
        if not in_time:
            # It may be the deadline that has passed.
            step.seconds(self._seconds)
        why = printable(error) or type(error).__name__ if in_time else "it did not answer in time"
        raise ServerError(f"{self.url} cannot be asked: {why}.") from error

    def _answer(self, step: Send, status: int, headers: Sequence[tuple[bytes, bytes]]) -> _Answer:
        retry_after = next((v for k, v in headers if k.lower() == b"retry-after"), b"")
        limit = step.limit if status == 200 else MAX_ERROR_SIZE
        return _Answer(self.url, status, limit, retry_after)


class Http(_Base):
    """For threads, any number of them."""

    def __init__(self, url: str, timeout: float) -> None:
        super().__init__(url, timeout)
        self._pool = httpcore2.ConnectionPool(**self._pool_options)

    def send(self, step: Send) -> bytes:
        """The body of a good answer. Raises :class:`ServerError` when there is none."""
        try:
            try:
                return self._ask(step)
            except _CLOSED:
                return self._ask(step)
        except _FAILED as error:
            self._failed(error, step)

    def _ask(self, step: Send) -> bytes:
        with self._pool.stream(**self._asked(step)) as response:
            answer = self._answer(step, response.status, response.headers)
            for piece in response.iter_stream():
                answer.add(piece)
        return answer.whole()

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()


class AsyncHttp(_Base):
    """For tasks of one event loop, any number of them."""

    def __init__(self, url: str, timeout: float) -> None:
        super().__init__(url, timeout)
        self._pool = httpcore2.AsyncConnectionPool(**self._pool_options)

    async def send(self, step: Send) -> bytes:
        """As :meth:`Http.send`."""
        try:
            try:
                return await self._ask(step)
            except _CLOSED:
                return await self._ask(step)
        except _FAILED as error:
            self._failed(error, step)

    async def _ask(self, step: Send) -> bytes:
        async with self._pool.stream(**self._asked(step)) as response:
            answer = self._answer(step, response.status, response.headers)
            async for piece in response.aiter_stream():
                answer.add(piece)
        return answer.whole()

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.aclose()


class _Answer:
    """An answer as it comes, of ``limit`` bytes at most."""

    def __init__(self, url: str, status: int, limit: int, retry_after: bytes) -> None:
        self._url = url
        self._retry_after = retry_after
        self._status = status
        self._limit = limit
        self._body = bytearray()

    def add(self, piece: bytes) -> None:
        self._body += piece
        if len(self._body) > self._limit:
            raise ServerError(
                f"{self._url} sent more than the {self._limit} bytes that an answer may have."
            )

    def whole(self) -> bytes:
        """All of it. Raises what it says when it is not good."""
        if self._status != 200:
            raise refused(self._url, self._status, bytes(self._body), self._retry_after)
        return bytes(self._body)


@functools.lru_cache(maxsize=64)
def _address(url: str) -> httpcore2.URL:
    found = httpx2.URL(url)
    return httpcore2.URL(
        scheme=found.raw_scheme, host=found.raw_host, port=found.port, target=found.raw_path
    )


def _proxy(url: httpx2.URL) -> httpcore2.Proxy | None:
    """The proxy that the environment names for ``url``."""
    known = urllib.request.getproxies()
    named = known.get(url.scheme) or known.get("all")
    if not named or urllib.request.proxy_bypass(url.netloc.decode()):
        return None
    found = urllib.parse.urlsplit(named if "://" in named else f"http://{named}")
    user, password = (urllib.parse.unquote(v or "") for v in (found.username, found.password))
    return httpcore2.Proxy(
        httpcore2.URL(scheme=found.scheme, host=found.hostname or "", port=found.port, target="/"),
        auth=(user, password) if user else None,
    )
