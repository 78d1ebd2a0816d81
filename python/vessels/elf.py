"""Programs and libraries as files: what they take when loaded, and what they are linked with."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

from vessels.errors import EnclaveError

PAGE_SIZE = 4096

_ELF = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_X86_64 = 62
_LOAD = 1


def loaded_size(file: Path) -> int:
    """Bytes that the loadable segments of an ELF file span in memory, in whole pages.

    Raises :class:`~vessels.errors.EnclaveError` for what is no program or library of x86-64,
    the only machines with SGX.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise EnclaveError(f"cannot read {file}: {error.strerror}.") from error
    if len(content) < _ELF.size or not content.startswith(b"\x7fELF\x02\x01"):
        raise EnclaveError(f"{file} is no 64-bit ELF file; Gramine cannot load it.")
    _, _, machine, _, _, start, _, _, _, size, count, *_ = _ELF.unpack_from(content)
    if machine != _X86_64:
        raise EnclaveError(f"{file} is not for x86-64, and no other processor has SGX.")
    if size != _SEGMENT.size or start + count * size > len(content):
        raise EnclaveError(f"{file} is truncated: its program headers are cut off.")
    starts, ends = [], []
    for index in range(count):
        kind, _, _, address, _, _, memory, _ = _SEGMENT.unpack_from(content, start + index * size)
        if kind == _LOAD:
            starts.append(address // PAGE_SIZE * PAGE_SIZE)
            ends.append(-(-(address + memory) // PAGE_SIZE) * PAGE_SIZE)
    return max(ends, default=0) - min(starts, default=0)


def linked_libraries(binary: Path) -> tuple[Path, ...]:
    """Shared libraries that ``binary`` is loaded with, the loader too, as ``ldd`` finds them.

    Raises :class:`~vessels.errors.EnclaveError`.
    """
    try:
        done = subprocess.run(
            ["ldd", str(binary)],
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise EnclaveError(f"cannot run ldd: {error.strerror}.") from error
    if "statically linked" in done.stdout or "not a dynamic executable" in done.stderr:
        return ()
    if done.returncode != 0:
        raise EnclaveError(f"ldd cannot read {binary}: {done.stderr.strip()}")
    found: list[Path] = []
    for line in done.stdout.splitlines():
        # "NAME => PATH (ADDRESS)", "PATH (ADDRESS)"; the kernel's own has no path.
        name, _, where = line.strip().partition(" => ")
        path = (where or name).split(" (")[0]
        if path.startswith("/"):
            found.append(Path(path))
        elif where:
            raise EnclaveError(f"{binary} needs {name}, which this machine does not have.")
    return tuple(found)
