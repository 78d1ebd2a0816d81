"""Enclave processes as the kernel sees them, whoever may have forgotten them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

_ANONYMOUS = re.compile(r"^RssAnon:\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class Process:
    """An enclave process; ``began`` tells it from another that had the same ``pid``."""

    pid: int
    began: int
    parent: int
    model: str


def enclaves(sealed: Path) -> set[Process]:
    """All that run with a model in the folder ``sealed``; those that have ended are not."""
    found = set()
    prefix = f"{sealed}/".encode()
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            words = Path(entry.path, "cmdline").read_bytes().split(b"\0")
            at = words.index(b"--model")
            if not words[0].endswith(b"vessels-enclave") or not words[at + 1].startswith(prefix):
                continue
            parent, began = _stat(int(entry.name))
            model = Path(words[at + 1].decode()).stem
            found.add(Process(int(entry.name), began, parent, model))
    return found


def anonymous_size(process: Process) -> int:
    """Bytes of memory that it holds, and no file: its pool, heap and stacks; 0 if it has ended."""
    with contextlib.suppress(OSError):
        found = _ANONYMOUS.search(Path(f"/proc/{process.pid}/status").read_text())
        if found is not None and _stat(process.pid)[1] == process.began:
            return int(found[1]) << 10
    return 0


def kill(process: Process) -> bool:
    """End ``process`` and no other; whether it was still there."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if _stat(process.pid)[1] != process.began:
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def _stat(pid: int) -> tuple[int, int]:
    """Its parent, and when it began."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[1]), int(fields[19])
