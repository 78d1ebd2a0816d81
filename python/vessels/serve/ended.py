"""Noticing at once that a process has ended, whoever reaps it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from vessels.errors import EnclaveError


@contextmanager
def watched(pid: int) -> Iterator[asyncio.Future[str]]:
    """A future that says how child process ``pid``, not yet reaped, has ended, when it has.

    Raises :class:`EnclaveError` where the kernel has no pidfd (Linux before 5.3).
    """
    loop = asyncio.get_running_loop()
    try:
        handle = os.pidfd_open(pid)
    except OSError as error:
        raise EnclaveError(f"cannot watch process {pid}: {error.strerror}.") from error
    ended: asyncio.Future[str] = loop.create_future()

    def notice() -> None:
        loop.remove_reader(handle)
        if not ended.done():
            ended.set_result(_how(handle))

    loop.add_reader(handle, notice)
    try:
        yield ended
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def _how(handle: int) -> str:
    """What the kernel says of an ended child, which it leaves for its parent to reap."""
    with contextlib.suppress(OSError):
        seen = os.waitid(os.P_PIDFD, handle, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if seen is not None and seen.si_code == os.CLD_EXITED:
            return f"exit code {seen.si_status}"
        if seen is not None:
            return f"signal {signal.Signals(seen.si_status).name}"
    return "unknown"
