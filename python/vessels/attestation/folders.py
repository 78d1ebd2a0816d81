"""Where a user's cache and state lie: the XDG base directories."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """What can be fetched again: ``$XDG_CACHE_HOME/vessels``; it may not exist yet."""
    return _base("XDG_CACHE_HOME", ".cache") / "vessels"


def state_folder() -> Path:
    """What must be kept: ``$XDG_STATE_HOME/vessels``; it may not exist yet."""
    return _base("XDG_STATE_HOME", ".local/state") / "vessels"


def _base(variable: str, default: str) -> Path:
    chosen = os.environ.get(variable, "")
    # The XDG specification has relative paths ignored.
    return Path(chosen) if chosen.startswith("/") else Path.home() / default
