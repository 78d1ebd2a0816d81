"""The server's log: one event a line, with fields, as JSON or for people.

What is logged is names of models, sizes, times and states. Nothing of a body, of a header or of
an address that a client sent goes into a log, so that a log holds no content and cannot be
steered by a client.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from vessels.attestation.text import printable

_log = logging.getLogger("vessels.serve")

_LEVELS = {"warning": "warn"}


class Style(StrEnum):
    """How log lines are written."""

    JSON = "json"
    TEXT = "text"


def event(name: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log that ``name`` happened; ``fields`` with a value of ``None`` are left out."""
    known = {k: v for k, v in fields.items() if v is not None}
    _log.log(level, name, extra={"fields": known})


def failure(name: str, error: BaseException, **fields: object) -> None:
    """Log a defect with its trace."""
    _log.error(name, exc_info=error, extra={"fields": fields})


class Lines(logging.Formatter):
    """Writes a record as one line, but for the trace of a defect in text."""

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.style = style

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = dict(getattr(record, "fields", {}))
        what = record.getMessage()
        if not hasattr(record, "fields"):
            # A library's message is text of its own making: one field of an event.
            fields, what = {"logger": record.name, "message": printable(what)}, "message"
        if record.exc_info and record.exc_info[0] is not None:
            # Where it happened and what kind it is; what it says may hold anything.
            kind, _, where = record.exc_info
            fields["trace"] = "".join(traceback.format_tb(where)) + kind.__name__
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        level = record.levelname.lower()
        if self.style is Style.JSON:
            return json.dumps({"time": time, "level": level, "event": what, **fields}, default=str)
        shown = " ".join(f"{k}={_shown(v)}" for k, v in fields.items() if k != "trace")
        trace = "\n" + fields["trace"] if "trace" in fields else ""
        return f"{time[11:23]} {_LEVELS.get(level, level):5} {what} {shown}".rstrip() + trace


def _shown(value: object) -> str:
    text = printable(value)
    return json.dumps(text, ensure_ascii=False) if " " in text or not text else text


def is_json() -> bool:
    """Whether the log of this process is JSON, so that nothing else belongs on standard error."""
    formatters = (handler.formatter for handler in logging.getLogger().handlers)
    return any(isinstance(f, Lines) and f.style is Style.JSON for f in formatters)


def use_guest_log() -> None:
    """In a process whose log is somebody else's, only our own lines go to standard error."""
    package = logging.getLogger("vessels")
    if not package.handlers:
        package.addHandler(_handler(Style.TEXT))
    _log.setLevel(logging.INFO)


def use_server_log(style: Style) -> None:
    """All log lines of this process go to standard error in ``style``."""
    root = logging.getLogger()
    root.handlers = [_handler(style)]
    root.setLevel(logging.WARNING)
    # The command line's own handler would write each line twice.
    package = logging.getLogger("vessels")
    package.handlers = []
    package.propagate = True
    _log.setLevel(logging.INFO)
    # What it warns of is an event of ours already.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)


def _handler(style: Style) -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(style))
    return handler
