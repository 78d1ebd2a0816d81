"""What this machine has: a network that a package ships, and the processor time of processes."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from vessels.errors import UsageError


def magika_model() -> Path:
    """The network of `magika`, a small real one. Raises :class:`UsageError` if there is none."""
    spec = importlib.util.find_spec("magika")
    if spec is None or spec.origin is None:
        raise UsageError("magika is not installed: pip install magika")
    [found] = Path(spec.origin).parent.glob("models/*/model.onnx")
    return found


def core_seconds(pid: int) -> float:
    """Processor time of a process so far, of all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
