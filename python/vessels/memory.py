"""What processes really hold: the enclave's trusted memory, ONNX Runtime's growth.

All figures are bytes and come from the kernel (``/proc``), not from the plan.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from vessels.errors import VesselsError
from vessels.files import write_arrays

_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ [0-9a-f]+ \S+ (\d+)\s*(.*)$")


@dataclass(frozen=True)
class EnclaveMemory:
    """Resident memory of an enclave process.

    ``trusted``: anonymous memory, code and data: everything but the sealed model's mapping.
    ``sealed_mapped``: resident part of the mapped sealed model; ciphertext, untrusted memory.
    """

    trusted: int
    sealed_mapped: int


class EnclaveMemoryFiles:
    """The kernel's account of a process's memory; to be closed.

    An enclave closes itself to others as soon as its host speaks to it. Who opened these files
    before can read them as long as it lives.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._files: list[TextIO] = []
        # Where there are none, or they are not this user's to read, there is no account.
        with contextlib.suppress(OSError):
            for name in ("smaps_rollup", "smaps"):
                self._files.append(Path(f"/proc/{pid}/{name}").open())  # noqa: SIM115

    def read(self, model: Path) -> EnclaveMemory:
        """Resident memory of the process, which has the sealed file ``model`` mapped.

        ``Rss`` of ``smaps_rollup``, less ``Rss`` of the model's mappings in ``smaps``. Raises
        :class:`VesselsError` where the kernel does not tell.
        """
        try:
            for file in self._files:
                file.seek(0)
            rollup, maps = (file.read() for file in self._files)
            resident, mapped = _sum_rss(rollup), _mapped_rss(maps, model)
        except (OSError, ValueError) as error:
            raise VesselsError(
                f"cannot read the memory of process {self._pid} in /proc: {error}."
            ) from error
        return EnclaveMemory(trusted=resident - mapped, sealed_mapped=mapped)

    def close(self) -> None:
        """Harmless when it is closed."""
        for file in self._files:
            file.close()


def _sum_rss(text: str) -> int:
    return sum(int(kib) * 1024 for kib in re.findall(r"^Rss:\s+(\d+) kB", text, re.MULTILINE))


def _mapped_rss(text: str, model: Path) -> int:
    """Sum of ``Rss`` over the mappings of ``model``, told by inode and path."""
    inode = model.stat().st_ino
    name = str(model.resolve())
    total = 0
    inside = False
    for line in text.splitlines():
        if (header := _MAPPING.match(line)) is not None:
            path = header.group(2)
            # Overlay file systems report another inode than stat does: the path decides there.
            inside = path.startswith("/") and (int(header.group(1)) == inode or path == name)
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def onnxruntime_memory(
    model: Path, inputs: Mapping[str, np.ndarray[Any, Any]], threads: int
) -> int:
    """Growth of a fresh process's peak resident memory by loading and running ``model``.

    The process has imported ONNX Runtime and NumPy and made its inputs before the first reading.
    """
    with tempfile.TemporaryDirectory(prefix="vessels-") as folder:
        archive = Path(folder) / "inputs.npz"
        write_arrays(archive, inputs)
        probe = Path(__file__).with_name("onnxruntime_probe.py")
        done = subprocess.run(
            [sys.executable, "-I", str(probe), str(model), str(archive), str(threads)],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise VesselsError(f"ONNX Runtime could not run {model}: {last[0]}")
    growth: int = json.loads(done.stdout)["growth"]
    return growth
