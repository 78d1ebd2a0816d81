"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vessels.errors import OutputError, UsageError


def check_destination(path: Path, *, keep: Iterable[Path] = ()) -> None:
    """Find out before the work, rather than after it, that ``path`` cannot become a file.

    Raises :class:`OutputError` where :func:`write_whole` would before it writes, and
    :class:`UsageError` when ``path`` is one of ``keep``.
    """
    for other in keep:
        if is_there(path) and is_there(other) and path.samefile(other):
            raise UsageError(f"the output would replace {other}; choose another name.")
        if path.absolute() == other.absolute():
            raise UsageError(f"two different files are both named {path}; choose another name.")
    check_replaceable(path)
    _temporary(path).unlink(missing_ok=True)


def is_there(path: Path) -> bool:
    """Whether something is at ``path``; not where one may not look, which who opens it says."""
    try:
        path.stat()
    except OSError:
        return False
    return True


def check_replaceable(path: Path) -> None:
    """Raise :class:`OutputError` for what is there and no regular file.

    A rename would replace a device such as ``/dev/null`` by a file, for everybody.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}.") from error
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "device, pipe or socket"
        raise OutputError(f"cannot write {path}: it is a {kind}; name a file.")


def write_whole(path: Path, write: Callable[[Path], None], *, private: bool = False) -> None:
    """Have ``write`` fill a temporary file beside ``path``, then rename it to ``path``.

    A ``private`` file is its owner's alone (mode 0600); else its mode is that of any new file.
    The temporary file keeps the suffix of ``path``, since libraries choose the format by it.
    Raises :class:`OutputError` when the folder is missing, full or read-only; nothing is then
    left behind, and a file that was at ``path`` is unchanged. Where ``path`` is a link, the file
    it leads to is replaced; what is there and no regular file is refused.
    """
    check_replaceable(path)
    temporary = _temporary(path)
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
        temporary.replace(path.resolve())
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}. Nothing was written."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """A new, empty file beside ``path``, or beside what that leads to."""
    folder = path.resolve().parent
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=folder)
    except OSError as error:
        why = error.strerror if is_there(folder) else f"there is no folder {folder}"
        raise OutputError(
            f"cannot write {path}: {why}. Choose a folder that exists and that you may write to."
        ) from error
    os.close(handle)
    return Path(name)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in UTF-8, as :func:`write_whole` does."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8", newline="\n")

    write_whole(path, write)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """An ``.npz`` archive at ``path``; unlike :func:`numpy.savez` it takes any array name."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
