"""A cgroup with a memory limit and all swap, version 1 or 2, for as long as it is needed.

It lies below the cgroup of this process where the kernel allows, else beside it, so that limits
that hold for this process hold for it as well.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_REMOVAL_SECONDS = 10.0


class CgroupError(Exception):
    """There is no cgroup to be had; says why."""


@dataclass(frozen=True)
class MemoryGroup:
    """A cgroup under its limit."""

    path: Path
    version: Literal[1, 2]

    def add(self, pid: int) -> None:
        """Put process ``pid`` under the limit; what it holds already is not counted."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def limit(self, size: int, end: float) -> None:
        """At most ``size`` bytes in memory from now on.

        What is too much goes to swap first; :class:`CgroupError` when it has not by ``end`` on the
        monotonic clock.
        """
        name = "memory.limit_in_bytes" if self.version == 1 else "memory.max"
        while True:
            try:
                (self.path / name).write_text(str(size))
                return
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > end:
                    raise CgroupError(f"the limit cannot be set: {error.strerror}") from error

    def oom_kill_count(self) -> int:
        """Processes that the kernel has killed because the limit could not be kept."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        found = re.search(r"^oom_kill (\d+)$", (self.path / name).read_text(), re.MULTILINE)
        return int(found.group(1)) if found else 0


@contextlib.contextmanager
def memory_group() -> Iterator[MemoryGroup]:
    """A new cgroup, without a limit at first; gone afterwards with all in it.

    Raises :class:`CgroupError`.
    """
    reasons: list[str] = []
    for version, parent in _parents(Path("/proc/self/cgroup").read_text(), _mounts()):
        path = parent / f"vessels-{os.getpid()}-{time.monotonic_ns()}"
        try:
            path.mkdir()
        except OSError as error:
            reasons.append(f"{parent}: {error.strerror}")
            continue
        try:
            try:
                group = MemoryGroup(path, version)
                _allow_swap(group)
            except OSError as error:
                reasons.append(f"{parent}: {error.strerror}")
                continue
            yield group
            return
        finally:
            _remove(path)
    why = "; ".join(reasons) or "the memory controller is not mounted"
    raise CgroupError(f"no cgroup with a memory limit can be made ({why})")


def _allow_swap(group: MemoryGroup) -> None:
    if group.version == 1:
        # The kernel's own default; a machine may have another.
        (group.path / "memory.swappiness").write_text("60")
    else:
        with contextlib.suppress(FileNotFoundError):
            (group.path / "memory.swap.max").write_text("max")


def _mounts() -> str:
    return Path("/proc/self/mounts").read_text()


def _parents(own: str, mounts: str) -> list[tuple[Literal[1, 2], Path]]:
    """Where a group may be made, best first, by the text of ``cgroup`` and ``mounts`` in /proc.

    Under version 2 only a group without processes of its own gives limits to those below it, so
    there it is an ancestor of this process's group.
    """
    groups = {}
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        groups[controllers] = path.lstrip("/")
    found: list[tuple[Literal[1, 2], Path]] = []
    for line in mounts.splitlines():
        _, root, kind, options, *_ = line.split()
        if kind == "cgroup" and "memory" in options.split(","):
            for controllers, path in groups.items():
                if "memory" in controllers.split(","):
                    found.append((1, _existing(Path(root) / path, Path(root))))
        elif kind == "cgroup2" and "" in groups:
            group = _existing(Path(root) / groups[""], Path(root))
            for parent in (group, *group.parents):
                if _gives_memory(parent):
                    found.append((2, parent))
                    break
                if parent == Path(root):
                    break
    return found


def _existing(path: Path, root: Path) -> Path:
    """``path``, or the root where a container does not see its own group's place."""
    return path if path.is_dir() else root


def _gives_memory(group: Path) -> bool:
    try:
        return "memory" in (group / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False


def _remove(path: Path) -> None:
    """Remove the group; processes left in it are killed first."""
    end = time.monotonic() + _REMOVAL_SECONDS
    while path.exists():
        for pid in (path / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        try:
            path.rmdir()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
