"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vessels.errors import OutputError, UsageError


def check_destination(path: Path, *, keep: Iterable[Path] = ()) -> None:
    """Find out before the work, rather than after it, that ``path`` cannot become a file.

    Raises :class:`OutputError` when its folder is missing or may not be written to, or when it is
    there and no regular file, and :class:`UsageError` when it is one of ``keep``.
    """
    for other in keep:
        if path.exists() and other.exists() and path.samefile(other):
            raise UsageError(f"the output would replace {other}; choose another name.")
        if path.absolute() == other.absolute():
            raise UsageError(f"two different files are both named {path}; choose another name.")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}.")
    _check_replaceable(path)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: you may not write to the folder {path.parent}.")


def _check_replaceable(path: Path) -> None:
    """A rename would replace a device such as ``/dev/null`` by a file, for everybody."""
    if path.exists() and not path.is_file():
        kind = "folder" if path.is_dir() else "device, pipe or socket"
        raise OutputError(f"cannot write {path}: it is a {kind}; name a file.")


def write_whole(path: Path, write: Callable[[Path], None], *, private: bool = False) -> None:
    """Have ``write`` fill a temporary file beside ``path``, then rename it to ``path``.

    A ``private`` file is its owner's alone (mode 0600); else its mode is that of any new file.
    The temporary file keeps the suffix of ``path``, since libraries choose the format by it.
    Raises :class:`OutputError` when the folder is missing, full or read-only; nothing is then
    left behind, and a file that was at ``path`` is unchanged. Where ``path`` is a link, the file
    it leads to is replaced; what is there and no regular file is refused.
    """
    _check_replaceable(path)
    path = path.resolve()
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent
        )
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}. "
            "Choose a folder that exists and that you may write to."
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        # mkstemp makes files private to their owner; results are ordinary files.
        if not private:
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}. Nothing was written."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """An ``.npz`` archive at ``path``; unlike :func:`numpy.savez` it takes any array name."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
