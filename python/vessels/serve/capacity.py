"""How much trusted memory a machine has: its EPC (enclave page cache), as far as we may take it.

The kernel says how many bytes of EPC each memory node has. A cgroup may be allowed fewer: the
limits of this process's own and of all around it hold. Enclaves of others on the machine take of
the same memory; of them nothing is known here, and who runs some gives a figure.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import typer

from vessels.cli.common import parse_size
from vessels.errors import UsageError

AUTO = "auto"
NONE = "none"

_NODES = "sys/devices/system/node"
_MOUNTS = ("sys/fs/cgroup", "sys/fs/cgroup/unified")
"""Where cgroups of version 2 are mounted: alone, or beside those of version 1."""

_GIVE = "Give a figure: --epc 93MiB."


def epc_size(text: str, *, root: Path = Path("/")) -> int | None:
    """Bytes of trusted memory that environments may take together; ``None`` sets no bound.

    ``text`` is ``auto`` for this machine's EPC, a size like ``93MiB``, or ``none``. ``root`` is
    where the kernel's files are. Raises :class:`~vessels.errors.UsageError` for what is no size,
    and where ``auto`` finds no EPC.
    """
    if text == NONE:
        return None
    if text == AUTO:
        return _found(root)
    try:
        return parse_size(text)
    except typer.BadParameter as error:
        raise UsageError(f"--epc: {error.message} It may be {AUTO} or {NONE}, too.") from error


def _found(root: Path) -> int:
    total = sum(
        _number(f, _text(f)) for f in sorted(root.glob(f"{_NODES}/node*/x86/sgx_total_bytes"))
    )
    if total == 0:
        raise UsageError(
            "--epc auto: this machine has no EPC: it has no SGX, SGX is disabled, or its kernel "
            f"(before 5.17) does not say how much. {_GIVE}"
        )
    size = min([total, *_limits(root)])
    if size == 0:
        raise UsageError(f"--epc auto: the cgroup of this process may have no EPC. {_GIVE}")
    return size


def _limits(root: Path) -> Iterator[int]:
    """What the cgroup of this process, and each around it that is in sight, may have of EPC."""
    for folder in _cgroups(root):
        file = folder / "misc.max"
        if not file.is_file():
            # The root has none, nor has a cgroup whose parent does not pass the controller on.
            continue
        for line in _text(file).splitlines():
            name, _, limit = line.partition(" ")
            if name == "sgx_epc" and limit.strip() != "max":
                yield _number(file, limit)


def _cgroups(root: Path) -> Iterator[Path]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if not line.startswith("0::"):
            continue
        # Above the root of a cgroup namespace it begins with "..": what is there is out of sight.
        path = PurePosixPath(*(p for p in line[3:].split("/") if p not in ("", "..")))
        for mount in _MOUNTS:
            # In a container that sees the host's path, the mount is the container's own cgroup.
            yield from (root / mount / part for part in (path, *path.parents))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise UsageError(f"--epc auto: cannot read {file}: {error}. {_GIVE}") from error


def _number(file: Path, text: str) -> int:
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit()):
        raise UsageError(f"--epc auto: {file} has no number of bytes but {digits!r:.80}. {_GIVE}")
    return int(digits)
