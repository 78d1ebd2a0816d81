"""Results of long measurements in files, so that a run that was broken off goes on where it was.

A result is kept under a key, a digest of what decides it; under another key it is not taken.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import vessels
from vessels.files import write_whole


def files_digest(files: Iterable[Path]) -> str:
    """A digest of the version of the package and of what these files hold."""
    digest = hashlib.sha256(vessels.__version__.encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def key_of(*what: Any) -> str:
    """A key of what decides a result, all of it such that JSON can hold it."""
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def load(path: Path, key: str | None) -> dict[str, Any] | None:
    """What is kept at ``path`` under ``key``, or under any key if that is ``None``."""
    try:
        found = json.loads(path.read_text())
        return dict(found) if key in (None, found["key"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(path: Path, key: str, **result: Any) -> None:
    """Keep ``result`` at ``path``."""
    write_text(path, json.dumps({"key": key, **result}))


def write_text(path: Path, text: str) -> None:
    """``text`` at ``path``, whole or not at all."""

    def write(part: Path) -> None:
        part.write_text(text)

    write_whole(path, write)
