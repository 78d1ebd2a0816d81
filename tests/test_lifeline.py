"""A process on a lifeline ends with the one that started it, and not before."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading

import pytest

from tests.conftest import ROOT
from vessels.lifeline import Lifeline

DEAF = ["sleep", "600"]
"""Reads nothing, and so does not notice who has ended."""

HOST = f"""
from vessels.lifeline import Lifeline
life = Lifeline({DEAF})
print(life.process.pid, flush=True)
input()
"""


PATIENCE = 60.0
"""Seconds within which it ends, and long before it would by itself."""


def ends(handle: int, seconds: float = PATIENCE) -> bool:
    """Whether the process of a descriptor ends in this time."""
    return bool(select.select([handle], [], [], seconds)[0])


@pytest.mark.parametrize("how", [None, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("stopped", [False, True])
def test_it_ends_with_its_host(how: signal.Signals | None, stopped: bool) -> None:
    host = subprocess.Popen(
        [sys.executable, "-c", HOST],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT / "python")},
    )
    with host:
        assert host.stdin is not None and host.stdout is not None
        pid = int(host.stdout.readline())
        handle = os.pidfd_open(pid)
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        assert not ends(handle, 0.1)
        if how is None:
            host.stdin.write(b"\n")
            host.stdin.flush()
        else:
            host.send_signal(how)
        assert ends(handle)
        os.close(handle)


def test_it_outlives_the_thread_that_started_it() -> None:
    lives: list[Lifeline] = []
    thread = threading.Thread(target=lambda: lives.append(Lifeline(DEAF)))
    thread.start()
    thread.join()
    with lives[0] as life, pytest.raises(subprocess.TimeoutExpired):
        life.process.wait(0.2)
    assert life.process.wait(PATIENCE) == -signal.SIGKILL


def test_one_whose_lifeline_is_lost_ends() -> None:
    process = Lifeline(DEAF).process
    assert process.wait(PATIENCE) == -signal.SIGKILL


def test_no_such_program() -> None:
    with pytest.raises(FileNotFoundError):
        Lifeline(["/nowhere/program"])
