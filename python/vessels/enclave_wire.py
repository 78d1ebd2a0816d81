"""The wire between the host and an enclave process: frames, as ``docs/protocol.md`` has them.

Nothing here knows what frames are about, nor when one is due.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import struct

from vessels.closing import Closing

_FRAME = struct.Struct("<IQ")
_SOCKET_BUFFER_SIZE = 4 << 20


class Kind(enum.IntEnum):
    """Frame kinds."""

    KEY = 1
    RUN = 2
    RUN_TIMED = 3
    EVIDENCE = 4
    BATCH = 5
    READY = 16
    RESULT = 17
    TIMES = 18
    ERROR = 19
    CLAIMS = 20


class Wire(Closing):
    """The host's end; the socket ``theirs`` is the enclave's, to be closed once that has it.

    A frame with more than ``largest_size`` bytes is not received.
    """

    def __init__(self, largest_size: int) -> None:
        self._largest_size = largest_size
        self._socket, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        for end in (self._socket, self.theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_SIZE)

    def send(self, kind: Kind, payload: bytes) -> None:
        """Send a frame; to a process that has ended, nothing."""
        # One that refuses or dies stops reading: what it said is still to be received.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(_FRAME.pack(kind, len(payload)))
            self._socket.sendall(payload)

    def receive(self, *expected: Kind) -> tuple[Kind, bytes]:
        """The next frame, which must be of an expected kind.

        Raises :class:`ValueError` that says what is wrong with it, and :class:`EOFError` where
        there is none.
        """
        header = bytearray(_FRAME.size)
        self._receive_into(memoryview(header))
        kind, size = _FRAME.unpack(header)
        if kind not in expected:
            due = " or ".join(k.name for k in expected)
            raise ValueError(f"frame kind {kind} where {due} was due")
        if size > self._largest_size:
            raise ValueError(f"a frame of {size} bytes")
        payload = bytearray(size)
        self._receive_into(memoryview(payload))
        return Kind(kind), bytes(payload)

    def _receive_into(self, buffer: memoryview) -> None:
        while buffer:
            try:
                count = self._socket.recv_into(buffer)
            except ConnectionResetError:
                count = 0
            if count == 0:
                raise EOFError
            buffer = buffer[count:]

    def close(self) -> None:
        """Close the host's end."""
        self._socket.close()
