"""The page that ``vessels top`` shows: memory, then what models hold and what is asked of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.box import SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vessels.cli.common import mib
from vessels.top import ModelView, View

_BAR_WIDTH = 40
_WIDE = 132
"""Columns of a terminal from which on one table has everything."""
_NARROW = 66
"""Columns below which only what matters most is shown."""
_NAME_WIDTH = 6
"""Of a model's name; what is longer is folded where there is no room."""
_FRAME_LINES = 6
_HEAD_LINES = 3
"""Of each table, and of the page beside its tables, about."""


@dataclass(frozen=True)
class _Column:
    """``shown`` is a model's cell, given the last bound of latencies."""

    title: str
    shown: Callable[[ModelView, float | None], str]


def _text(value: object) -> str:
    return "-" if value is None else str(value)


def _time(milliseconds: float | None, longest: float | None) -> str:
    if milliseconds is None:
        return "-"
    return f"{'>' if longest is not None and milliseconds >= longest else ''}{milliseconds:.1f}"


_NAME = _Column("model", lambda m, _: m.name)
_ENVIRONMENTS = _Column(
    "environments", lambda m, _: ", ".join(f"{n} {s}" for s, n in m.environments.items()) or "-"
)
_SIZE = _Column("size", lambda m, _: "-" if m.environment_size is None else mib(m.environment_size))
_STARTED = _Column("started", lambda m, _: str(m.launches))
_EVICTED = _Column("evicted", lambda m, _: str(m.evictions))
_QUEUE = _Column("queue", lambda m, _: _text(m.queue_length))
_RATE = _Column("req/s", lambda m, _: f"{m.answered_per_second:.1f}")
_P50 = _Column("p50 ms", lambda m, longest: _time(m.p50_ms, longest))
_P95 = _Column("p95 ms", lambda m, longest: _time(m.p95_ms, longest))
_P99 = _Column("p99 ms", lambda m, longest: _time(m.p99_ms, longest))
_BATCH = _Column("batch", lambda m, _: "-" if m.batch_mean is None else f"{m.batch_mean:.2f}")
_REFUSED = _Column(
    "refused/s",
    lambda m, _: "\n".join(f"{c} {n:.1f}" for c, n in m.refused_per_second.items()) or "-",
)

_Columns = tuple[_Column, ...]
_HELD: _Columns = (_NAME, _ENVIRONMENTS, _SIZE, _STARTED, _EVICTED)
_ASKED: _Columns = (_QUEUE, _RATE, _P50, _P95, _P99, _BATCH, _REFUSED)
_AT_ONCE = [(*_HELD, *_ASKED)]
_BELOW = [_HELD, (_NAME, *_ASKED)]
_BRIEF: list[_Columns] = [(_NAME, _ENVIRONMENTS, _SIZE), (_NAME, _QUEUE, _RATE, _P99, _REFUSED)]


def page(url: str, view: View | None, gone: object, width: int, height: int | None = None) -> Group:
    """All of ``view`` for ``width`` columns; of models as many as ``height`` lines have room for.

    ``gone``, if there is any, says why the server does not answer: ``view`` is the last one then.
    """
    style = "dim" if gone else ""
    parts: list[RenderableType] = [Text(f"{url}  {datetime.now():%H:%M:%S}", "bold")]
    if gone:
        parts.append(Text(str(gone), "red"))
    if view is None:
        return Group(*parts)
    if view.restarted:
        parts.append(Text("The server has started anew in this interval.", "yellow"))
    tables = _AT_ONCE if width >= _WIDE else _BRIEF if width < _NARROW else _BELOW
    models = view.models
    if height is not None:
        room = (height - _FRAME_LINES - len(parts)) // len(tables) - _HEAD_LINES
        models = _busiest(models, max(1, room))
    parts += [_epc(view), *(_table(columns, models, view, style) for columns in tables)]
    if left := len(view.models) - len(models):
        parts.append(Text(f"{left} more, of which less is asked: in a higher window, or --once."))
    parts.append(Text(_foot(view), "dim"))
    return Group(*parts)


def _busiest(models: Sequence[ModelView], count: int) -> tuple[ModelView, ...]:
    """The ``count`` models that most is asked of or that have most, in the order of ``models``."""

    def load(model: ModelView) -> float:
        counts = [*model.environments.values(), *model.refused_per_second.values()]
        return sum(counts) + (model.queue_length or 0) + model.answered_per_second

    chosen = sorted(models, key=load, reverse=True)[:count]
    return tuple(model for model in models if model in chosen)


def _epc(view: View) -> RenderableType:
    """Trusted memory in words, and as a bar where it has a bound."""
    used, capacity, free = view.epc_used, view.epc_capacity, view.epc_free
    if used is None:
        return Text("EPC: the server does not tell")
    if capacity is None or free is None:
        return Text(f"EPC {mib(used)} used, no bound")
    words = Text(f"EPC {mib(used)} used of {mib(capacity)}, {mib(free)} free")
    return Columns([words, ProgressBar(total=capacity, completed=used, width=_BAR_WIDTH)])


def _table(columns: _Columns, models: Sequence[ModelView], view: View, style: str) -> Table:
    table = Table(
        box=SIMPLE_HEAD, show_edge=False, style=style, row_styles=[style], padding=(0, 1, 0, 0)
    )
    for column in columns:
        if column is _NAME:
            table.add_column(column.title, overflow="fold", min_width=_NAME_WIDTH)
        elif column is _ENVIRONMENTS:
            table.add_column(column.title, overflow="fold")
        elif column is _REFUSED:
            table.add_column(column.title, justify="right", overflow="fold", min_width=9)
        else:
            table.add_column(column.title, justify="right", no_wrap=True)
    for model in models:
        table.add_row(*(Text(column.shown(model, view.longest_ms)) for column in columns))
    return table


def _foot(view: View) -> str:
    return (
        f"Rates, latencies, batches and refusals of the last {view.seconds:.1f} s; latencies are "
        "interpolated in their histogram's buckets. Started and evicted since the server's start."
    )
