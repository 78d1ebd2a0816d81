"""``vessels top``."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from vessels.cli.common import mib, out
from vessels.errors import ServerError, UsageError

if TYPE_CHECKING:
    from vessels.top import Reading, View

TIMEOUT_SECONDS = 5.0
MAX_SIZE = 16 << 20
"""Of what a server may answer."""

MAX_INTERVAL = 3600.0


def top(
    url: Annotated[str, typer.Argument(metavar="URL", help="The server's, as clients have it.")],
    once: Annotated[bool, typer.Option("--once", help="Show one interval and end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON document for each interval, on one line.")
    ] = False,
    interval: Annotated[
        float,
        typer.Option(min=0.1, max=MAX_INTERVAL, help="Seconds that rates and latencies are of."),
    ] = 2.0,
) -> None:
    """Show what a server does: trusted memory, environments, queues, latencies, refusals."""
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url!r} is no URL of a server; write one like http://127.0.0.1:8080.")
    address = f"{url.rstrip('/')}/metrics"
    url = _without_password(url)
    with suppress(KeyboardInterrupt):
        if once:
            _once(url, address, interval, as_json)
        elif as_json or not out.is_terminal:
            for view, gone in _views(address, interval):
                _print(url, view, gone, as_json)
        else:
            _live(url, address, interval)


def _once(url: str, address: str, interval: float, as_json: bool) -> None:
    from vessels.top import view

    first = _read(address)
    time.sleep(interval)
    _print(url, view(first, _read(address)), None, as_json)


def _live(url: str, address: str, interval: float) -> None:
    from rich.live import Live

    from vessels.cli.top_page import page

    # Whatever ends it, the terminal is left as it was.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with Live(console=out, auto_refresh=False, screen=True) as live:
        live.update(f"asking {url} …", refresh=True)
        for view, gone in _views(address, interval):
            live.update(page(url, view, gone, out.width, out.height), refresh=True)


class _Gone:
    """A server that does not answer, since when and why."""

    def __init__(self, why: str) -> None:
        self.why = why
        self.since = datetime.now(UTC)

    def __str__(self) -> str:
        return f"no answer since {self.since.astimezone():%H:%M:%S}: {self.why}"


def _views(address: str, interval: float) -> Iterator[tuple[View | None, _Gone | None]]:
    """The last view there is, and whether the server is gone, once an interval, for ever."""
    from vessels.top import view

    before: Reading | None = None
    found: View | None = None
    gone: _Gone | None = None
    while True:
        began = time.monotonic()
        try:
            now = _read(address)
        except ServerError as error:
            # What it did while nobody saw it is in no interval.
            before = None
            if gone is None:
                gone = _Gone(str(error))
            gone.why = str(error)
            yield found, gone
        else:
            gone = None
            if before is not None:
                found = view(before, now)
                yield found, None
            before = now
        time.sleep(max(0.0, began + interval - time.monotonic()))


def _read(address: str) -> Reading:
    import httpx2

    from vessels.top import Reading

    where = _without_password(address)
    try:
        with httpx2.stream(
            "GET", address, timeout=TIMEOUT_SECONDS, headers={"Accept": "text/plain"}
        ) as answer:
            text = b""
            for piece in answer.iter_bytes():
                text += piece
                if len(text) > MAX_SIZE:
                    raise ServerError(f"{where} answers with more than {mib(MAX_SIZE)}.")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        why = str(error).rstrip(".") or type(error).__name__
        raise ServerError(f"{where}: {why}.") from error
    if answer.status_code != 200:
        raise ServerError(
            f"{where} answers with HTTP {answer.status_code}.", status=answer.status_code
        )
    try:
        return Reading.parse(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ServerError(f"{where}: these are no metrics.") from error
    except ServerError as error:
        raise ServerError(f"{where}: {error}") from error


def _without_password(url: str) -> str:
    return re.sub("(?<=//)[^/@]*@", "", url)


def _print(url: str, view: View | None, gone: _Gone | None, as_json: bool) -> None:
    """One interval, for who reads it later or from a pipe."""
    if not as_json:
        from vessels.cli.top_page import page

        out.print(page(url, view, gone, out.width))
        return
    document = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")}
    if gone is not None:
        document |= {"gone_since": gone.since.isoformat(timespec="seconds"), "why": gone.why}
    elif view is not None:
        document |= view.as_json()
    print(json.dumps(document), flush=True)
