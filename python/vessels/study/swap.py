"""A swap file for as long as it is needed.

A keeper, a process of its own, turns it off and removes it when its standard input ends: also when
this process is interrupted or killed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger("vessels")

_RESERVE = 1 << 30
"""Bytes that the file system keeps free."""

_KEEPER = """
trap '' INT TERM HUP
swapon "$1" || { rm -f "$1"; exit 1; }
echo on
cat > /dev/null
swapoff "$1" && rm -f "$1"
"""


class SwapError(Exception):
    """There is no swap to be had; says why."""


def free_swap_size() -> int:
    """Bytes of swap that the machine has free."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("SwapFree:"):
            return int(line.split()[1]) * 1024
    return 0


@contextlib.contextmanager
def swap(size: int) -> Iterator[Path]:
    """``size`` bytes more of swap, in a file of the folder for temporary files.

    Raises :class:`SwapError`: the file system or the kernel allows none, or has no room.
    """
    missing = [t for t in ("mkswap", "swapon", "swapoff") if shutil.which(t) is None]
    if missing:
        raise SwapError(f"there is no swap, and no {missing[0]} to make some")
    folder = Path(tempfile.gettempdir())
    if shutil.disk_usage(folder).free < size + _RESERVE:
        raise SwapError(f"there is no swap, and {folder} has no room for {size >> 20} MiB of it")
    # Readable by nobody else: it will hold what was in memory.
    handle, name = tempfile.mkstemp(prefix="vessels-swap-", dir=folder)
    path = Path(name)
    try:
        try:
            os.posix_fallocate(handle, 0, size)
        finally:
            os.close(handle)
        subprocess.run(["mkswap", name], check=True, capture_output=True)
        # A session of its own: what interrupts this process leaves the keeper alone.
        keeper = subprocess.Popen(
            ["sh", "-c", _KEEPER, "sh", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    except BaseException as error:
        path.unlink(missing_ok=True)
        if not isinstance(error, OSError | subprocess.CalledProcessError):
            raise
        raise SwapError(f"there is no swap, and none can be made in {folder}: {error}") from error
    assert keeper.stdout is not None
    on = False
    try:
        on = keeper.stdout.readline() == "on\n"
        if on:
            yield path
    finally:
        # The end of its input is the keeper's signal.
        _, why = keeper.communicate()
        if on and keeper.returncode != 0:
            _log.warning("the swap file %s could not be turned off: %s", name, why.strip())
    if not on:
        raise SwapError(f"there is no swap, and none can be made: {why.strip()}")
