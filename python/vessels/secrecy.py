"""Looking for plain data where there must be none: in memory, in files, on the wire.

A :class:`Marker` is a piece of something secret that is too long to occur by chance. What is
searched is everything that a host without trust has of a prediction: :func:`search_memory` of its
processes, :func:`search_files`, and what a :class:`Relay` between two parties recorded.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from vessels.errors import VesselsError

MARKER_SIZE = 64
"""Bytes of a marker cut from data."""

_PIECE_SIZE = 16 << 20
_PAGE_SIZE = 4096
_NOT_MEMORY = ("[vvar]", "[vvar_vclock]", "[vsyscall]")
"""The kernel's own, which cannot be read."""
_MANY = 4
"""Different words that tell a piece from evenness."""
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r\S+ \S+ \S+ \S+ *(.*)")


@dataclass(frozen=True)
class Marker:
    """Bytes of something secret; ``kind`` is what of."""

    kind: str
    content: bytes = field(repr=False)


@dataclass
class Found:
    """What a search has found: bytes searched, and occurrences of markers by kind."""

    size: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, other: Found) -> None:
        """Count ``other`` as part of this search."""
        self.size += other.size
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count

    @property
    def total(self) -> int:
        """Occurrences of all kinds."""
        return sum(self.counts.values())


def markers_of(kind: str, data: bytes | memoryview, count: int = 8) -> list[Marker]:
    """Up to ``count`` pieces of ``data``, spread over it and each of many different words.

    Data shorter than a piece is one marker. Raises :class:`~vessels.errors.VesselsError` for
    data that has no such piece, of which one could not say whether it was found.
    """
    whole = bytes(data)
    if len(whole) <= MARKER_SIZE:
        return [Marker(kind, whole)]
    words = np.frombuffer(whole[: len(whole) // 4 * 4], dtype=np.uint32)
    size = MARKER_SIZE // 4
    found: dict[bytes, Marker] = {}
    starts = np.linspace(0, len(words) - size, min(64 * count, len(words) - size + 1), dtype=int)
    varied = [s for s in starts if len(np.unique(words[s : s + size])) > _MANY]
    for start in varied[:: max(1, len(varied) // count)]:
        content = words[start : start + size].tobytes()
        found.setdefault(content, Marker(kind, content))
    if not found:
        raise VesselsError(f"{kind} is too even to be searched for.")
    return list(found.values())[:count]


def search(data: bytes | bytearray | memoryview, markers: Sequence[Marker]) -> Found:
    """What of ``markers`` is in ``data``."""
    return _search_pieces([bytes(data)], markers)


def search_memory(pid: int, markers: Sequence[Marker]) -> Found:
    """What of ``markers`` is in the memory of process ``pid``, everything that it has mapped.

    Raises :class:`~vessels.errors.VesselsError` where the kernel does not allow it.
    """
    found = Found()
    process = Path(f"/proc/{pid}")
    try:
        mappings = process.joinpath("maps").read_text()
        with process.joinpath("mem").open("rb", buffering=0) as memory:
            for line in mappings.splitlines():
                match = _MAPPING.fullmatch(line)
                if match is not None and match.group(3) not in _NOT_MEMORY:
                    start, end = (int(match.group(i), 16) for i in (1, 2))
                    pieces = _read_range(memory.fileno(), start, end)
                    found.add(_search_pieces(pieces, markers))
    except OSError as error:
        raise VesselsError(
            f"cannot read the memory of process {pid}: {error.strerror or error}."
        ) from error
    if not found.size:
        raise VesselsError(f"nothing of process {pid}'s memory could be read.")
    return found


def search_files(folders: Iterable[Path], markers: Sequence[Marker]) -> Found:
    """What of ``markers`` is in the files of ``folders``, at any depth."""
    found = Found()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as file:
                    found.add(_search_pieces(iter(lambda: file.read(_PIECE_SIZE), b""), markers))
    return found


def search_open_files(pid: int, markers: Sequence[Marker]) -> Found:
    """What of ``markers`` is in the files that process ``pid`` has open, deleted ones too."""
    found = Found()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if link.is_file():
                with link.open("rb") as file:
                    found.add(_search_pieces(iter(lambda: file.read(_PIECE_SIZE), b""), markers))
    return found


def _search_pieces(pieces: Iterable[bytes], markers: Sequence[Marker]) -> Found:
    """Pieces follow each other: a marker that two of them share is found."""
    found = Found(counts={m.kind: 0 for m in markers})
    overlap = max((len(m.content) for m in markers), default=1) - 1
    rest = b""
    for piece in pieces:
        found.size += len(piece)
        window = rest + piece
        for marker in markers:
            # What ends within the rest has been counted with the piece before.
            at = window.find(marker.content, max(0, len(rest) - len(marker.content) + 1))
            while at >= 0:
                found.counts[marker.kind] += 1
                at = window.find(marker.content, at + 1)
        rest = window[-overlap:] if overlap else b""
    return found


def _read_range(memory: int, start: int, end: int) -> Iterator[bytes]:
    """The bytes of a mapping; what the kernel does not give is left out."""

    at = start
    while at < end:
        try:
            piece = os.pread(memory, min(_PIECE_SIZE, end - at), at)
        except OSError:
            # Unmapped meanwhile, or beyond the end of a file.
            at += _PAGE_SIZE
            continue
        yield piece
        at += len(piece) or _PAGE_SIZE


class Relay:
    """A port of this machine that passes on to another, and records what went through.

    What a network between two parties sees of them; a context manager.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._streams: list[bytearray] = []
        self._stop, self._stopped = socket.socketpair()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def recorded(self) -> list[bytes]:
        """What went through, by connection and direction."""
        with self._lock:
            return [bytes(stream) for stream in self._streams]

    def search(self, markers: Sequence[Marker]) -> Found:
        """What of ``markers`` went through."""
        found = Found()
        for stream in self.recorded():
            found.add(search(stream, markers))
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.close()
        for thread in list(self._threads):
            thread.join()
        self._listener.close()
        self._stopped.close()

    def _accept(self) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(self._listener, selectors.EVENT_READ)
            ready.register(self._stopped, selectors.EVENT_READ)
            while all(key.fileobj is not self._stopped for key, _ in ready.select()):
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._pass_on, args=(client,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._target) as server:
            streams = (bytearray(), bytearray())
            with self._lock:
                self._streams += streams
            ends = {client: (server, streams[0]), server: (client, streams[1])}
            with selectors.DefaultSelector() as ready:
                for watched in (*ends, self._stopped):
                    ready.register(watched, selectors.EVENT_READ)
                while len(ready.get_map()) > 1:
                    for key, _ in ready.select():
                        if key.fileobj is self._stopped:
                            return
                        end = key.fileobj
                        assert isinstance(end, socket.socket)
                        other, stream = ends[end]
                        data = end.recv(1 << 16)
                        with self._lock:
                            stream += data
                        if data:
                            other.sendall(data)
                        else:
                            ready.unregister(end)
                            other.shutdown(socket.SHUT_WR)
