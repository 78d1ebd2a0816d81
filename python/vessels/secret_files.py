"""Files that hold a secret: their owner's alone, and never overwritten."""

from __future__ import annotations

import contextlib
import os
import stat
import warnings
from pathlib import Path

from vessels.errors import KeyFileError, OutputError
from vessels.files import check_replaceable


def create_secret(path: Path, text: str, what: str) -> None:
    """Write ``text`` to a new file at ``path`` (mode 0600); errors say ``what`` it is.

    Raises :class:`KeyFileError` where there is a file, and :class:`OutputError` where none can be
    made; nothing is then left behind.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        check_replaceable(path)
        raise KeyFileError(f"{path} exists; a file with a secret is never overwritten.") from None
    except OSError as error:
        raise OutputError(f"cannot create {what} {path}: {error.strerror}.") from error
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        # Half a secret is none; its name is free again.
        with contextlib.suppress(OSError):
            path.unlink()
        raise OutputError(f"cannot write {what} {path}: {error.strerror}.") from error


def read_secret(path: Path, what: str, most: int) -> str:
    """The text at ``path``, of ``most`` bytes; warns (:class:`UserWarning`) if others may read it.

    The warning is told of who called the caller. Raises :class:`KeyFileError`.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(most + 1)
        text = content.decode()
    except FileNotFoundError:
        raise KeyFileError(f"there is no {what} {path}.") from None
    except OSError as error:
        raise KeyFileError(f"cannot read {what} {path}: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise KeyFileError(f"{path} is no {what}: it is not UTF-8.") from None
    if len(content) > most:
        raise KeyFileError(f"{path} is no {what}: it is too large.")
    if stat.S_ISREG(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
        warnings.warn(
            f"{what} {path} may be read by others (mode {stat.S_IMODE(mode):04o}): "
            f"chmod 600 {path}",
            stacklevel=3,
        )
    return text
