"""ONNX Runtime under a memory limit: real where the machine allows it, the rest without root."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import zoo
from tests.conftest import ROOT, small_model
from vessels.errors import VesselsError
from vessels.study import cgroup, peer, swap
from vessels.study.cgroup import CgroupError, memory_group
from vessels.study.peer import peer_latency, unavailable

MIB = 1 << 20
WHY = unavailable()

privileged = pytest.mark.skipif(WHY is not None, reason=f"ONNX Runtime under a limit: {WHY}")

EATER = "import sys; a = b'x' * (int(sys.argv[1]) << 20); print(len(a), flush=True); input()"
"""Takes so many MiB once told to, and says so."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save(small_model(), path)
    return path


INPUTS = {"image": np.ones((1, 3, 16, 16), np.float32)}


@pytest.fixture
def clean() -> Iterator[None]:
    """Nothing stays behind: no swap file, no group, no process."""
    before = traces()
    yield
    end = time.monotonic() + 60
    while traces() != before and time.monotonic() < end:
        time.sleep(0.05)
    assert traces() == before


def traces() -> tuple[str, list[str], list[str]]:
    """The machine's swap, the groups named as ours and the probes at work."""
    groups = [str(p) for p in Path("/sys/fs/cgroup").rglob("vessels-*")]
    probes = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"peer_probe.py" in path.read_bytes():
                probes.append(str(path))
        except OSError:
            continue
    names = [line.split()[0] for line in Path("/proc/swaps").read_text().splitlines()]
    return "\n".join(names), sorted(groups), sorted(probes)


@privileged
def test_points_and_what_is_missed(
    model: Path, clean: None, caplog: pytest.LogCaptureFixture
) -> None:
    """The model is small: 64 MiB are ample. In 64 KiB hardly a process lives; if the kernel has
    room to swap in time, one may."""
    missed: dict[int, str] = {}
    with caplog.at_level(logging.WARNING, "vessels"):
        points = peer_latency(
            model, INPUTS, [64 * MIB, 65536], seconds=0.2, patience=4, missed=missed.__setitem__
        )
    reached = {p.limit_size: p.median_ms for p in points}
    assert 0 < reached.pop(64 * MIB) < 1000
    assert [*reached, *missed] == [65536]
    for why in missed.values():
        assert "want of memory" in why or "limit cannot be set" in why or " s" in why
    assert not caplog.records


@privileged
def test_slower_with_less(tmp_path: Path, clean: None) -> None:
    """A network of 5 MiB of parameters, in 64 MiB and in 8."""
    path = tmp_path / "m.onnx"
    network = zoo.build("squeezenet")
    onnx.save(network, path)
    points = peer_latency(
        path, zoo.example_input(network), [64 * MIB, 8 * MIB], seconds=0.5, patience=20
    )
    # The kernel may kill what has so little; it has enough with 64 MiB.
    assert points[0].limit_size == 64 * MIB
    assert all(p.median_ms > 2 * points[0].median_ms for p in points[1:])


def predictions(*lives: Sequence[float | Exception]) -> tuple[list[int], Any]:
    """A stand-in for processes that predict, or end, as told; and how many there were."""
    begun: list[int] = []

    def run(*_: object) -> Generator[float]:
        begun.append(len(begun))
        for what in lives[begun[-1]]:
            if isinstance(what, Exception):
                raise what
            yield what

    return begun, run


def test_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel kills by chance; what was predicted before counts, but for the first."""
    killed, slow = peer._Killed("killed"), peer._Missed("slow")

    def times(*lives: Sequence[float | Exception]) -> tuple[list[float], int]:
        begun, run = predictions(*lives)
        monkeypatch.setattr(peer, "_predictions", run)
        return peer._times(Path(), Path(), MIB, 1, 60.0, 60.0), len(begun)

    assert times([9.0, 1.0, 2.0, killed]) == ([1.0, 2.0], 1)
    assert times([killed], [9.0, killed], [9.0, 3.0, slow]) == ([3.0], 3)
    assert len(times([1.0] * 1000)[0]) == 100
    with pytest.raises(peer._Killed):
        times([killed], [9.0, killed], [killed])
    with pytest.raises(peer._Missed, match="slow"):
        times([9.0, slow], [9.0, 1.0])


@privileged
def test_out_of_patience(model: Path, clean: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vessels"):
        assert peer_latency(model, INPUTS, [64 * MIB], patience=0.0) == ()
    assert "64 MiB: too slow" in caplog.text


@privileged
def test_a_model_it_refuses(model: Path, clean: None) -> None:
    missed: list[str] = []
    wrong = {"picture": INPUTS["image"]}
    points = peer_latency(
        model, wrong, [64 * MIB], missed=lambda limit, reason: missed.append(reason)
    )
    assert points == ()
    assert len(missed) == 1 and "ended with code 1" in missed[0]


@privileged
def test_a_process_over_the_limit_goes_to_swap_or_dies(clean: None) -> None:
    """What a group holds in memory is within its limit; without swap it kills."""
    with memory_group() as group, swap.swap(256 * MIB):
        group.limit(16 * MIB, time.monotonic())
        assert _eat(group, 64).startswith("67108864 ")
        assert group.oom_kill_count() == 0
    with memory_group() as group:
        group.limit(MIB // 4, time.monotonic())
        assert _eat(group, 64) == "killed"
        assert group.oom_kill_count() == 1


def _eat(group: cgroup.MemoryGroup, mib: int) -> str:
    """How a process fares that takes so much in ``group``: what it said, with its swap in bytes."""
    gate = f"input(); {EATER}"
    with subprocess.Popen(
        [sys.executable, "-c", gate, str(mib)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            group.add(process.pid)
            process.stdin.write("\n")
            process.stdin.flush()
            said = process.stdout.readline().strip()
            if not said:
                process.wait(60)
                return "killed" if process.returncode == -signal.SIGKILL else "ended"
            status = Path(f"/proc/{process.pid}/status").read_text()
            swapped = next(x for x in status.splitlines() if x.startswith("VmSwap:"))
            assert int(swapped.split()[1]) * 1024 >= (mib - 17) * MIB
            return f"{said} {swapped.split()[1]}"
        finally:
            process.kill()


@privileged
def test_what_is_left_in_a_group_is_killed(clean: None) -> None:
    with memory_group() as group:
        process = subprocess.Popen(["sleep", "600"])
        group.add(process.pid)
    assert not group.path.exists()
    assert process.wait(60) == -signal.SIGKILL


@privileged
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_swap_is_removed_however_it_ends(how: signal.Signals, clean: None) -> None:
    program = (
        "import time; from vessels.study.swap import swap\n"
        "with swap(1 << 20) as path:\n    print(path, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "python")},
    )
    assert process.stdout is not None
    path = Path(process.stdout.readline().strip())
    assert str(path) in Path("/proc/swaps").read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    process.send_signal(how)
    assert process.wait(60) != 0
    process.stdout.close()
    end = time.monotonic() + 60
    while path.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not path.exists()
    assert str(path) not in Path("/proc/swaps").read_text()


def test_says_why_not(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert unavailable() == "a memory limit with swap takes root"
    with pytest.raises(VesselsError, match="takes root"):
        peer_latency(model, INPUTS, [64 * MIB])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    why = unavailable()
    assert why is not None and "not installed" in why


def test_no_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(cgroup, "_mounts", lambda: "proc /proc proc rw 0 0\n")
    assert unavailable() == (
        "no cgroup with a memory limit can be made (the memory controller is not mounted)"
    )


def test_no_swap_to_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(swap.SwapError, match="no room"), swap.swap(1 << 60):
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(swap.SwapError, match="no mkswap"), swap.swap(1 << 20):
        pass


@pytest.mark.skipif(not Path("/usr/sbin/mkswap").exists(), reason="takes mkswap")
def test_a_swap_file_that_the_kernel_refuses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tool = tmp_path / "tools" / "swapon"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho swapon failed: Operation not permitted >&2\nexit 255\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}:/usr/sbin")
    with pytest.raises(swap.SwapError, match="Operation not permitted"), swap.swap(1 << 20):
        pass
    assert not list(tmp_path.glob("vessels-swap-*"))


def hierarchy(root: Path, *groups: str, gives: tuple[str, ...] = ()) -> None:
    """A tree of version 2 groups; those of ``gives`` hand the memory controller down."""
    for group in ("", *groups):
        (root / group).mkdir(parents=True, exist_ok=True)
        words = "cpu memory\n" if group in gives else "cpu\n"
        (root / group / "cgroup.subtree_control").write_text(words)


def test_where_a_group_is_made(tmp_path: Path) -> None:
    one, two = tmp_path / "memory", tmp_path / "unified"
    (one / "jobs" / "ours").mkdir(parents=True)
    hierarchy(two, "slice", "slice/session", gives=("", "slice"))
    mounts = (
        f"cgroup {one} cgroup rw,relatime,memory 0 0\n"
        f"cgroup {tmp_path} cgroup rw,relatime,cpu,cpuacct 0 0\n"
        f"cgroup2 {two} cgroup2 rw,relatime 0 0\n"
    )
    own = "4:memory:/jobs/ours\n1:cpu,cpuacct:/\n0::/slice/session\n"
    # Below our own under version 1; under version 2 beside it, where there are no processes.
    assert cgroup._parents(own, mounts) == [(1, one / "jobs/ours"), (2, two / "slice")]
    # A container's view: its own place is not to be seen.
    assert cgroup._parents("4:memory:/elsewhere\n", mounts) == [(1, one)]
    hierarchy(two, "slice", "slice/session")
    assert cgroup._parents("0::/slice/session\n", mounts) == []


def test_a_group_that_may_not_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is no cgroup: nothing can be written, and nothing stays."""
    monkeypatch.setattr(
        cgroup, "_parents", lambda own, mounts: [(1, tmp_path), (2, tmp_path / "none")]
    )
    monkeypatch.setattr(cgroup, "_allow_swap", _refused)
    monkeypatch.setattr(cgroup, "_remove", Path.rmdir)
    with pytest.raises(CgroupError, match=r"Permission denied.*No such file"), memory_group():
        pass
    assert list(tmp_path.iterdir()) == []


def _refused(group: cgroup.MemoryGroup) -> None:
    raise PermissionError(13, "Permission denied")
