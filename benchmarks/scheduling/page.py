"""The table as text, and as a part of ``docs/scheduling.md``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from benchmarks.scheduling.models import MIB
from benchmarks.scheduling.run import Overload, Row
from benchmarks.scheduling.scenarios import SCENARIOS

BEGIN, END = "<!-- begin simulated -->", "<!-- end simulated -->"
HEAD = (
    "load", "policy", "in time", "goodput /s", "useful", "p50 ms", "p99 ms", "late", "refused",
    "worst model", "batch", "evictions", "EPC peak MiB",
)  # fmt: skip


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"


def cells(row: Row) -> tuple[str, ...]:
    return (
        f"{row.load:g}",
        row.policy,
        percent(row.in_time),
        f"{row.goodput:.2f}",
        percent(row.useful),
        f"{row.p50_ms:.0f}",
        f"{row.p99_ms:.0f}",
        percent(row.late),
        percent(row.refused),
        percent(row.worst),
        "" if row.batch is None else f"{row.batch:.2f}",
        "" if row.evictions is None else str(row.evictions),
        "" if row.epc_peak is None else f"{row.epc_peak / MIB:.1f}",
    )


def markdown(rows: Sequence[Row]) -> str:
    """A table for each scenario."""
    titles = {s.name: f"{s.title} (a load of 1 is {s.capacity:.1f}/s)" for s in SCENARIOS}
    lines = []
    for name, group in groupby(rows, key=lambda r: r.scenario):
        lines += [f"**{titles[name]}**", "", _line(HEAD)]
        lines.append(_line(["---:" if i != 1 else "---" for i in range(len(HEAD))]))
        lines += [_line(cells(row)) for row in group]
        lines.append("")
    return "\n".join(lines)


OVERLOAD_HEAD = (
    "", "capacity", "p99 at 90 %, ms", "p99 at 200 %, ms", "times", "goodput at 200 %, of capacity",
    "refused at 90 %", "refused at 200 %",
)  # fmt: skip


def overload_table(found: Sequence[Overload]) -> str:
    """What twice its capacity does to a policy."""
    titles = {s.name: s.title for s in SCENARIOS}
    lines = [_line(OVERLOAD_HEAD), _line(["---", *["---:"] * (len(OVERLOAD_HEAD) - 1)])]
    for each in found:
        line = (
            titles[each.scenario],
            f"{each.capacity:.2f}",
            f"{each.busy.p99_ms:.0f}",
            f"{each.over.p99_ms:.0f}",
            f"{each.over.p99_ms / each.busy.p99_ms:.2f}",
            percent(each.over.useful / each.capacity),
            percent(each.busy.refused),
            percent(each.over.refused),
        )
        lines.append(_line(line))
    return "\n".join(lines)


def write(rows: Sequence[Row], overloads: Sequence[Overload], page: Path) -> None:
    """Put the tables between the marks of ``page``."""
    text = page.read_text()
    title = "**Ours, at 90 % and at twice of its own capacity**"
    part = f"{BEGIN}\n\n{markdown(rows)}\n{title}\n\n{overload_table(overloads)}\n\n{END}"
    changed, count = re.subn(
        re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: part, text, flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit(f"{page} has not the two marks {BEGIN} and {END}")
    page.write_text(changed)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
