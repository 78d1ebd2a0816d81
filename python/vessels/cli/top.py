"""``vessels top``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from vessels.cli.common import mib, out, print_json
from vessels.errors import ServerError, UsageError

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

    from vessels.top import Reading, View

TIMEOUT_SECONDS = 5.0
MAX_SIZE = 16 << 20
"""Of what a server may answer."""

_BAR_WIDTH = 40


def top(
    url: Annotated[str, typer.Argument(metavar="URL", help="The server's, as clients have it.")],
    once: Annotated[bool, typer.Option("--once", help="Show one interval and end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON document for each interval, on one line.")
    ] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, help="Seconds that rates and latencies are of.")
    ] = 2.0,
) -> None:
    """Show what a server does: trusted memory, environments, queues, latencies, refusals."""
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url!r} is no URL of a server; write one like http://127.0.0.1:8080.")
    address = f"{url.rstrip('/')}/metrics"
    with suppress(KeyboardInterrupt):
        if once:
            _once(address, interval, as_json)
        elif as_json or not out.is_terminal:
            for view, gone in _views(address, interval):
                _print(url, view, gone, as_json)
        else:
            _live(url, address, interval)


def _once(address: str, interval: float, as_json: bool) -> None:
    from vessels.top import view

    first = _read(address)
    time.sleep(interval)
    found = view(first, _read(address))
    if as_json:
        print_json(found.as_json())
    else:
        out.print(_shown(address.removesuffix("/metrics"), found, None))


def _live(url: str, address: str, interval: float) -> None:
    from rich.live import Live

    with Live(console=out, auto_refresh=False, screen=True) as live:
        live.update(f"asking {url} …", refresh=True)
        for view, gone in _views(address, interval):
            live.update(_shown(url, view, gone), refresh=True)


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

    try:
        with httpx2.stream(
            "GET", address, timeout=TIMEOUT_SECONDS, headers={"Accept": "text/plain"}
        ) as answer:
            text = b""
            for piece in answer.iter_bytes():
                text += piece
                if len(text) > MAX_SIZE:
                    raise ServerError(f"{address} answers with more than {mib(MAX_SIZE)}.")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise ServerError(f"{address}: {error or type(error).__name__}.") from error
    if answer.status_code != 200:
        raise ServerError(
            f"{address} answers with HTTP {answer.status_code}.", status=answer.status_code
        )
    try:
        return Reading.parse(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ServerError(f"{address}: these are no metrics.") from error
    except ServerError as error:
        raise ServerError(f"{address}: {error}") from error


def _print(url: str, view: View | None, gone: _Gone | None, as_json: bool) -> None:
    """One interval, for who reads it later or from a pipe."""
    if not as_json:
        out.print(_shown(url, view, gone))
        return
    document = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")}
    if gone is not None:
        document |= {"gone_since": gone.since.isoformat(timespec="seconds"), "why": gone.why}
    elif view is not None:
        document |= view.as_json()
    print(json.dumps(document), flush=True)


def _shown(url: str, view: View | None, gone: _Gone | None) -> Group:
    from rich.console import Group
    from rich.text import Text

    style = "dim" if gone is not None else ""
    parts: list[RenderableType] = [Text(f"{url}  {datetime.now():%H:%M:%S}", "bold")]
    if gone is not None:
        parts.append(Text(str(gone), "red"))
    if view is not None:
        if view.restarted:
            parts.append(Text("The server has started anew in this interval.", "yellow"))
        parts += [_epc(view), *_tables(view, style), Text(_foot(view), "dim")]
    return Group(*parts)


def _epc(view: View) -> RenderableType:
    """Trusted memory in words, and as a bar where it has a bound."""
    from rich.columns import Columns
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    used, capacity, free = view.epc_used, view.epc_capacity, view.epc_free
    if used is None:
        return Text("EPC: the server does not tell")
    if capacity is None or free is None:
        return Text(f"EPC {mib(used)} used, no bound")
    words = Text(f"EPC {mib(used)} used of {mib(capacity)}, {mib(free)} free")
    return Columns([words, ProgressBar(total=capacity, completed=used, width=_BAR_WIDTH)])


def _tables(view: View, style: str) -> list[Table]:
    """What the models hold, and what is asked of them; each fits a terminal of 80 columns."""
    held = _table(style, ("model", "environments"), ("size", "started", "evicted"))
    asked = _table(
        style, ("model",), ("queue", "req/s", "p50 ms", "p95 ms", "p99 ms", "batch", "shed/s")
    )
    for model in view.models:
        held.add_row(
            model.name,
            ", ".join(f"{count} {state}" for state, count in model.environments.items()) or "-",
            "-" if model.environment_size is None else mib(model.environment_size),
            str(model.launches),
            str(model.evictions),
        )
        asked.add_row(
            model.name,
            "-" if model.queue_length is None else str(model.queue_length),
            f"{model.answered_per_second:.1f}",
            *(_time(t, view.longest_ms) for t in (model.p50_ms, model.p95_ms, model.p99_ms)),
            "-" if model.batch_mean is None else f"{model.batch_mean:.2f}",
            "\n".join(f"{reason} {rate:.1f}" for reason, rate in model.shed_per_second.items())
            or "-",
        )
    return [held, asked]


def _table(style: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, style=style, row_styles=[style], padding=(0, 1, 0, 0))
    for column in texts:
        table.add_column(column, overflow="fold")
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _time(milliseconds: float | None, longest: float | None) -> str:
    if milliseconds is None:
        return "-"
    return f"{'>' if longest is not None and milliseconds >= longest else ''}{milliseconds:.1f}"


def _foot(view: View) -> str:
    return (
        f"Rates, latencies, batches and sheds of the last {view.seconds:.1f} s; latencies are "
        "interpolated in their histogram's buckets. Started and evicted since the server's start."
    )
