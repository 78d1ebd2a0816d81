"""Open-loop load on a server: requests come when they come, however late the answers are.

``python -m benchmarks.load`` sends sealed predictions to a running ``vessels serve`` at given times
and says what became of them. Clients that wait for one answer before they ask again slow down with
the server and hide what its queue does to others; these do not.

- :mod:`~benchmarks.load.arrivals`: when a request comes and of which model; Poisson, or a trace
- :mod:`~benchmarks.load.sealed`: what is sent, sealed beforehand, and the right answers to it
- :mod:`~benchmarks.load.generator`: the sending, by locust
- :mod:`~benchmarks.load.outcomes`: what became of it, in numbers

Locust makes the process cooperative when it is imported (gevent's monkey patching), so a program
that is not runs this as a process of its own: :func:`measured`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def measured(url: str, policy: Path, *arguments: str, models: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON report of ``python -m benchmarks.load`` with these arguments.

    Raises :class:`RuntimeError` with what it said where it failed.
    """
    command = [sys.executable, "-m", "benchmarks.load", url, "--policy", str(policy), "--json"]
    done = subprocess.run([*command, *models, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or done.stdout.strip())
    report: dict[str, Any] = json.loads(done.stdout)
    return report
