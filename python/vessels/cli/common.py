"""What the commands share: parsing of sizes and shapes, progress, tables, errors."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from vessels.errors import OutputError, VesselsError

out = Console()
err = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]

_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30,
    "k": 1 << 10, "m": 1 << 20, "g": 1 << 30,
}  # fmt: skip


def parse_size(text: str) -> int:
    """``16MiB``, ``4MB``, ``1.5GiB``, ``65536`` to bytes; for Typer."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match.group(2).lower() not in _UNITS:
        raise typer.BadParameter(f"{text!r} is no size; write one like 16MiB, 4MB or 65536.")
    size = float(match.group(1)) * _UNITS[match.group(2).lower()]
    if not 1 <= size < 1 << 63:
        raise typer.BadParameter(f"{text!r:.40} is no size: it is from 1 byte to 8 EiB.")
    return int(size)


def parse_shapes(texts: Sequence[str]) -> dict[str, list[int]]:
    """``NAME=1,3,48,320`` each, to shapes by name; names may hold ``=`` themselves."""
    shapes: dict[str, list[int]] = {}
    for text in texts:
        name, equals, dimensions = text.rpartition("=")
        if not equals or not name or not re.fullmatch(r"\d+([,x]\d+)*", dimensions):
            raise typer.BadParameter(f"{text!r} is no shape; write one like input=1,3,48,320.")
        if name in shapes:
            raise typer.BadParameter(f"the shape of {name!r} is given twice.")
        shapes[name] = [int(d) for d in re.split("[,x]", dimensions)]
    return shapes


def parse_counts(text: str, what: str = "thread counts") -> list[int]:
    """``1,2`` to positive numbers, each once; ``what`` they are goes into the refusal."""
    if not re.fullmatch(r"[1-9]\d{0,5}(,[1-9]\d{0,5})*", text):
        raise typer.BadParameter(f"{text!r} is no list of {what}; write one like 1,2.")
    return list(dict.fromkeys(int(t) for t in text.split(",")))


def mib(size: int) -> str:
    """Bytes as MiB for people."""
    return f"{size / (1 << 20):.2f} MiB"


def sizes_table(rows: Sequence[tuple[str, str]], title: str) -> Table:
    """Two columns: what, how much."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def print_json(value: Any) -> None:
    """One JSON document on standard output, unstyled."""
    print(json.dumps(value, indent=2), flush=True)


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[str, float], None]]:
    """Shows progress on standard error while it lasts, on a terminal only.

    Yields a function of step name and part done (0 to 1).
    """
    bar = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
        console=err, transient=True, disable=not err.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task(what, total=None)

        def report(step: str, part: float) -> None:
            bar.update(
                task,
                description=f"{what}: {step}",
                completed=part,
                total=1.0 if part > 0 else None,
            )

        yield report


def run_app(app: typer.Typer) -> None:
    """Run the command line ``app`` and exit: errors become a message and an exit code."""
    use_plain_log(logging.getLogger("vessels"))
    try:
        app()
    except VesselsError as error:
        sys.exit(fail(error))
    except OSError as error:
        kind = OutputError if error.errno == errno.ENOSPC else VesselsError
        where = f"{error.filename}: " if error.filename else ""
        code = fail(kind(f"{where}{error.strerror or error}."))
        try:
            sys.stdout.flush()
        except OSError:
            # What standard output cannot take, Python would try to write once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(code)


def fail(error: VesselsError) -> int:
    """Report ``error`` and give its exit code: JSON on standard output where JSON was asked for.

    A server whose log is JSON ends it with the event ``failed``.
    """
    from vessels.serve.logs import event, is_json

    details = {"kind": type(error).__name__, "message": str(error), "exit_code": error.exit_code}
    if "--json" in sys.argv[1:]:
        # Standard output may be what failed.
        with contextlib.suppress(OSError):
            print_json({"error": details})
    if is_json():
        event("failed", level=logging.ERROR, **details)
    else:
        err.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True, style="red")
    return error.exit_code


def use_plain_log(log: logging.Logger) -> None:
    """Warnings of the package go to standard error, one line each, and nowhere else."""
    for earlier in list(log.handlers):
        log.removeHandler(earlier)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.addLevelName(logging.WARNING, "warning")
    log.addHandler(handler)
    log.propagate = False
    warnings.showwarning = lambda message, *_: log.warning("%s", message)
