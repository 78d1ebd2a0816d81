"""The search for plain data: it finds what is there, wherever pieces are cut."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.http_running import LocalServer, QuietHandler, running
from tests.serving import state_of, until
from vessels import secrecy
from vessels.errors import VesselsError
from vessels.secrecy import (
    MARKER_SIZE,
    Marker,
    Relay,
    markers_of,
    search,
    search_files,
    search_memory,
    search_open_files,
)


@given(
    data=st.lists(st.sampled_from([b"a", b"b"]), max_size=40).map(b"".join),
    marker=st.sampled_from([b"a", b"ab", b"aba", b"bbbb"]),
    other=st.sampled_from([b"b", b"aabba"]),
    cuts=st.lists(st.integers(0, 40), max_size=6),
)
def test_cuts_hide_nothing_and_count_nothing_twice(
    data: bytes, marker: bytes, other: bytes, cuts: list[int]
) -> None:
    ends = sorted({*cuts, len(data)})
    pieces = [data[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    found = secrecy._search_pieces(pieces, [Marker("one", marker), Marker("two", other)])
    assert found.size == len(data)
    for kind, content in (("one", marker), ("two", other)):
        there = sum(data.startswith(content, i) for i in range(len(data)))
        assert found.counts[kind] == there


def test_markers_are_of_the_data_and_tell_something() -> None:
    values = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    values[100:900] = 0
    found = markers_of("x", values.tobytes(), 6)
    assert 1 < len(found) <= 6
    for marker in found:
        assert len(marker.content) == MARKER_SIZE and marker.content in values.tobytes()
        assert len(np.unique(np.frombuffer(marker.content, np.float32))) > 4
    assert markers_of("x", b"short") == [Marker("x", b"short")]
    with pytest.raises(VesselsError, match="too even"):
        markers_of("zeros", bytes(1000))


def readable_size(pid: int) -> int:
    """Bytes of the readable mappings of a process, by another file of the kernel's."""
    size = mapped = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if line.startswith("Size:"):
            mapped = int(words[1]) * 1024
        elif line.startswith("VmFlags:") and "rd" in words and not {"pf", "io"} & set(words):
            size += mapped
    return size


SECRETIVE = """
import sys, tempfile
kept = bytearray.fromhex(sys.stdin.readline())
file = tempfile.TemporaryFile()
file.write(kept[:32]); file.flush()
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def process() -> Iterator[tuple[int, bytes]]:
    """A process that holds 64 random bytes in memory, and the first half in a nameless file."""
    secret = os.urandom(64)
    with subprocess.Popen(
        [sys.executable, "-c", SECRETIVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as started:
        assert started.stdin is not None and started.stdout is not None
        started.stdin.write(secret.hex().encode() + b"\n")
        started.stdin.flush()
        started.stdout.readline()
        until(lambda: state_of(started.pid) == "S", "it to wait")
        yield started.pid, secret


def test_memory_and_nameless_files_of_a_process(process: tuple[int, bytes]) -> None:
    pid, secret = process
    markers = [Marker("there", secret), Marker("not there", os.urandom(32))]
    found = search_memory(pid, markers)
    assert found.counts["there"] >= 1 and found.counts["not there"] == 0
    # All that it may read itself, which stays as it is while it waits.
    assert found.size == readable_size(pid) > 1 << 20
    in_files = search_open_files(pid, [Marker("half", secret[:32]), Marker("all", secret)])
    assert in_files.counts == {"half": 1, "all": 0}
    with pytest.raises(VesselsError, match="cannot read the memory"):
        search_memory(1 << 22, markers)


def test_files_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "log").write_bytes(b"..secret..")
    (tmp_path / "other").write_bytes(b"secre")
    found = search_files([tmp_path], [Marker("s", b"secret")])
    assert (found.size, found.counts) == (15, {"s": 1})


class _Echo(QuietHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200, body[::-1])


def test_a_relay_passes_on_and_records_both_ways() -> None:
    body = os.urandom(300_000)
    with running(LocalServer(_Echo)) as server, Relay("127.0.0.1", server.server_port) as relay:
        for _ in range(2):
            with urllib.request.urlopen(relay.url, data=body, timeout=60) as answer:
                assert answer.read() == body[::-1]
        found = relay.search([Marker("sent", body), Marker("answered", body[::-1])])
        assert found.counts == {"sent": 2, "answered": 2}
        assert len(relay.recorded()) == 4
    assert search(b"".join(relay.recorded()), [Marker("other", os.urandom(16))]).total == 0
