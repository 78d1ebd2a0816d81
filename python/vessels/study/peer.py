"""The outside peer: ONNX Runtime itself, as a process under a memory limit with swap.

The limit is that of a cgroup (version 1 or 2) and covers what the process takes to load and run
the model: the interpreter, ONNX Runtime's code and the inputs are there before, outside of it. It
is set when the model is loaded and has run once, so that a point shows predictions, not loading.
What does not fit goes to swap. This is a paged memory too, but not an EPC: the kernel encrypts
nothing, it reads ahead and writes behind, the disk is as fast as it may be, and where paging makes
too little progress it kills the process. It shows how another system bears little memory, no more.

It needs root, and changes the machine while it lasts: a cgroup and, where swap is short, a swap
file of its own. Both are gone afterwards; where this process is killed, all but an empty cgroup.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import selectors
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from vessels.errors import VesselsError
from vessels.files import write_arrays
from vessels.lifeline import Lifeline
from vessels.study.cgroup import CgroupError, MemoryGroup, memory_group
from vessels.study.result import PeerPoint
from vessels.study.swap import SwapError, free_swap_size, swap

Array = np.ndarray[Any, Any]
Progress = Callable[[str, float], None]

_log = logging.getLogger("vessels")

_MIB = 1 << 20
_START_SECONDS = 60.0
"""For importing ONNX Runtime, before the limit."""
_SWAPPING_SECONDS = 20.0
"""For what is too much to go to swap."""
_MAX_RUNS = 100
_ATTEMPTS = 3
"""The kernel kills by chance as much as by need: a process of its own for each attempt."""


class _Missed(Exception):
    """A point was not reached; says why."""


class _Killed(_Missed):
    """The kernel killed the process."""


def unavailable() -> str | None:
    """Why the peer cannot be measured on this machine; ``None`` if it can."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "ONNX Runtime is not installed: pip install 'vessels[bench]'"
    if not sys.platform.startswith("linux"):
        return "memory limits are Linux's cgroups"
    if os.geteuid() != 0:
        return "a memory limit with swap takes root"
    try:
        with memory_group() as group:
            group.limit(1024 * _MIB, time.monotonic())
        if free_swap_size() < _MIB:
            with swap(_MIB):
                pass
    except (CgroupError, SwapError) as error:
        return str(error)
    return None


def peer_latency(
    model: Path,
    inputs: Mapping[str, Array],
    limits: Sequence[int],
    threads: int = 1,
    *,
    seconds: float = 10.0,
    patience: float = 120.0,
    missed: Callable[[int, str], None] | None = None,
    progress: Progress | None = None,
) -> tuple[PeerPoint, ...]:
    """Median latency of ``model`` under each limit in bytes, in a fresh process each.

    A point takes predictions for about ``seconds`` after one under the limit that warms up, at
    least one, and ``patience`` seconds in all, loading included. A point not reached, as the
    process was killed for want of memory several times or ran out of patience, is left out;
    ``missed`` is told its limit and the reason, by default in a warning. Raises
    :class:`~vessels.errors.VesselsError` where :func:`unavailable` says so.
    """
    if (why := unavailable()) is not None:
        raise VesselsError(f"ONNX Runtime cannot be measured under a memory limit: {why}.")
    report = progress or (lambda step, part: None)
    tell = missed or _warn
    points: list[PeerPoint] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vessels-")))
        write_arrays(folder / "inputs.npz", inputs)
        needed = _swap_needed(model)
        if free_swap_size() < needed:
            try:
                stack.enter_context(swap(needed))
            except SwapError as error:
                raise VesselsError(f"ONNX Runtime cannot be given swap: {error}.") from error
        for number, limit in enumerate(limits):
            report(f"ONNX Runtime under {limit / _MIB:.0f} MiB", number / len(limits))
            try:
                times = _times(model, folder / "inputs.npz", limit, threads, seconds, patience)
            except _Missed as reason:
                tell(limit, str(reason))
                continue
            points.append(PeerPoint(limit, statistics.median(times)))
    return tuple(points)


def _warn(limit: int, reason: str) -> None:
    _log.warning("ONNX Runtime under %.0f MiB: %s.", limit / _MIB, reason)


def _swap_needed(model: Path) -> int:
    """More than ONNX Runtime was seen to take for any network: the file read, its parameters, a
    copy of them in another layout, and activations."""
    return 4 * model.stat().st_size + 512 * _MIB


def _times(
    model: Path, archive: Path, limit: int, threads: int, seconds: float, patience: float
) -> list[float]:
    """Milliseconds of predictions under ``limit`` bytes; :class:`_Missed` when there is none."""
    end = time.monotonic() + patience
    for attempt in range(1, _ATTEMPTS + 1):
        times: list[float] = []
        enough = float("inf")
        try:
            with closing(_predictions(model, archive, limit, threads, end)) as predictions:
                for milliseconds in predictions:
                    times.append(milliseconds)
                    if len(times) == 1:
                        enough = time.monotonic() + seconds
                    elif time.monotonic() > enough or len(times) > _MAX_RUNS:
                        break
        except _Missed as missed:
            # What was done in time counts.
            if len(times) > 1:
                break
            if not isinstance(missed, _Killed) or attempt == _ATTEMPTS:
                raise
            continue
        break
    return times[1:]


def _predictions(
    model: Path, archive: Path, limit: int, threads: int, end: float
) -> Generator[float]:
    """Milliseconds of one prediction after another; :class:`_Missed` when one is not done by
    ``end`` on the monotonic clock."""
    with memory_group() as group, _probe(model, archive, threads) as probe:
        lines = _Lines(probe)
        if "ready" not in lines.next(time.monotonic() + _START_SECONDS, group):
            raise VesselsError("ONNX Runtime's process did not start as it should.")
        group.add(probe.pid)
        lines.go()
        for _ in ("loaded", "the first prediction"):
            lines.next(end, group)
        try:
            group.limit(limit, min(end, time.monotonic() + _SWAPPING_SECONDS))
        except CgroupError as error:
            raise _Missed(str(error)) from error
        while True:
            lines.go()
            yield float(lines.next(end, group)["milliseconds"])


@contextmanager
def _probe(model: Path, archive: Path, threads: int) -> Iterator[subprocess.Popen[bytes]]:
    program = Path(__file__).with_name("peer_probe.py")
    command = [sys.executable, "-I", str(program), str(model), str(archive), str(threads)]
    pipe = subprocess.PIPE
    # A prediction under a small limit may take minutes.
    with Lifeline(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0) as life:
        try:
            yield life.process
        finally:
            life.process.kill()
            # Also closes the pipes.
            with suppress(OSError):
                life.process.communicate()


class _Lines:
    """The probe's answers as they come."""

    def __init__(self, probe: subprocess.Popen[bytes]) -> None:
        self._probe = probe
        self._rest = b""

    def go(self) -> None:
        """Let the probe go on."""
        assert self._probe.stdin is not None
        # A dead probe is seen by what it does not answer.
        with suppress(BrokenPipeError):
            self._probe.stdin.write(b"\n")

    def next(self, end: float, group: MemoryGroup) -> dict[str, Any]:
        """The next line, by ``end`` on the monotonic clock; :class:`_Missed` if there is none."""
        assert self._probe.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._probe.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise _Missed("too slow for the time it was given")
                some = os.read(self._probe.stdout.fileno(), 1 << 16)
                if not some:
                    raise self._end(group)
                self._rest += some
        line, _, self._rest = self._rest.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _end(self, group: MemoryGroup) -> _Missed:
        """Why the probe ended."""
        with suppress(subprocess.TimeoutExpired):
            self._probe.wait(10)
        if group.oom_kill_count():
            return _Killed(f"killed by the kernel for want of memory, in each of {_ATTEMPTS} tries")
        assert self._probe.stderr is not None
        last = self._probe.stderr.read().decode(errors="replace").strip().splitlines()[-1:]
        why = (last or ["no message"])[0]
        return _Missed(f"it ended with code {self._probe.returncode}: {why}")
