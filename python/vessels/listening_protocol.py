"""uvicorn's HTTP/1.1 with limits on what a client can hold open: see :mod:`vessels.listening`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

SURPLUS = "surplus"
"""What the application is told in a request's state: whether its connection is one too many."""

HEAD_SIZE = 1 << 16
"""Of a request's head, more is not waited for, after the piece of at most 256 KiB it begins in."""
AHEAD_COUNT = 100
"""Requests that may have come over a connection before the ones ahead of them are answered."""


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
    """Further connections whose requests are :func:`~vessels.listening.is_surplus`, for the
    application to refuse."""


def limited_protocol(limits: Limits, malformed: str | None) -> type[asyncio.Protocol]:
    """A protocol for uvicorn. What is no HTTP is answered with the JSON in ``malformed``."""

    class LimitedProtocol(HttpToolsProtocol):
        """uvicorn's, with the limits."""

        _head_size: int | None = None
        """Of a head that is not whole yet, as far as it came after the piece it began in."""
        _piece_size = 0
        _has_place = False
        _reading: RequestResponseCycle | None = None
        """The request whose body is not whole yet."""

        _head_due: asyncio.TimerHandle | None = None
        _read_due: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.connection_count + limits.surplus_count:
                transport.abort()
            else:
                self._take_place()
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
            self._piece_size = len(data)
            super().data_received(data)
            if self._in_request():
                self._head_came()
            if self._head_size is not None:
                self._head_size += len(data)
                if self._head_size > HEAD_SIZE and not self.transport.is_closing():
                    self.send_400_response("The head of this request is too large.")

        def on_message_begin(self) -> None:
            # What is raised in these three is answered as what cannot be read.
            if len(self.pipeline) >= AHEAD_COUNT:
                raise ValueError("too many requests at once")
            self._head_size = -self._piece_size
            # Who was one too many is not for as long as it stays.
            self._take_place()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._head_size = None
            hosts = sum(name == b"host" for name, _ in self.headers)
            if hosts > 1 or (hosts < 1 and self.parser.get_http_version() == "1.1"):
                raise ValueError("a request names one host")
            super().on_headers_complete()
            self._reading = self.cycle

        def on_message_complete(self) -> None:
            self._reading = None
            super().on_message_complete()

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
            reading, last = self._reading, self.cycle
            if (reading is not None and reading.response_started) or (
                last is not None and last is not reading and not last.response_complete
            ):
                # An answer is under way, or due, that this one would be taken for.
                self.transport.close()
            elif malformed is None:
                super().send_400_response(msg)
            else:
                body = malformed.encode()
                self.transport.write(
                    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
                    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)
                )
                self.transport.close()

        def _take_place(self) -> None:
            """Have one of the places of connections that are served, if any is free."""
            if not self._has_place:
                taken = sum(getattr(each, "_has_place", False) for each in self.connections)
                self._has_place = taken < limits.connection_count
                self.app_state = {**self.app_state, SURPLUS: not self._has_place}

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
