"""Processes that end with this one, at once and whatever they do just then.

A process that is at work notices only after it that nobody listens any more: an enclave would keep
its memory for the rest of a run whose answer is of no use. So Linux is told to kill it when a
connection ends of which nothing but this process has the other end. All that takes of the process
is to keep what it inherits, and it does not matter which thread starts it: the signal that Linux
has for a parent's death is sent when the *thread* ends that was the parent.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from typing import Any

from vessels.closing import Closing


class Lifeline(Closing):
    """Starts ``command`` as :class:`subprocess.Popen` does; ``process`` ends with this one.

    It ends, too, when this is closed, or nothing refers to it. What is forked from this process
    and goes on without a program of its own has the other end as well, and keeps it alive.
    """

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        self._ours, theirs = socket.socketpair()
        with theirs:
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], **options
            )
            fcntl.fcntl(theirs, fcntl.F_SETOWN, self.process.pid)
            fcntl.fcntl(theirs, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(theirs, fcntl.F_SETFL, os.O_ASYNC)

    def close(self) -> None:
        """Kill the process, unless it has ended; it is still to be waited for."""
        self._ours.close()
