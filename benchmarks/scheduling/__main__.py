"""``python -m benchmarks.scheduling``: policies on traces, in simulated time.

Prints a table; with ``--write`` it goes into ``docs/scheduling.md``, with plots over the load.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.scheduling.page import cells, write
from benchmarks.scheduling.plot import draw
from benchmarks.scheduling.run import BOUND, Row, Task, overload_all, run_all
from benchmarks.scheduling.scenarios import POLICIES, SCENARIOS, SECONDS

ROOT = Path(__file__).resolve().parents[2]
LOADS = (0.5, 0.9, 2.0)
PLOT_LOADS = tuple(round(0.2 * n, 1) for n in range(1, 11))
PLOTTED = ("one", "ten")
OVERLOADED = ("one-open", "small-open", "four-open", "one", "four", "ten")
_BY_NAME = {s.name: s for s in SCENARIOS}


def main(
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="Scenario; repeatable.")
    ] = None,
    load: Annotated[
        list[float] | None, typer.Option("--load", help="Load; repeatable. Default: 0.5, 0.9, 2.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Length of each trace.")] = SECONDS,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    to_docs: Annotated[
        bool, typer.Option("--write", help="Write docs/scheduling.md and its plots.")
    ] = False,
) -> None:
    """Compare policies of scheduling in simulation."""
    if unknown := [n for n in only or () if n not in _BY_NAME]:
        known = ", ".join(_BY_NAME)
        raise typer.BadParameter(f"no such scenario: {', '.join(unknown)}; there are {known}")
    if to_docs and (only or load or seconds != SECONDS):
        raise typer.BadParameter("--write is of all scenarios, loads and seconds")
    rows = run_all(_tasks(only or list(_BY_NAME), tuple(load or LOADS), seconds))
    if as_json:
        json.dump([asdict(row) for row in rows], sys.stdout, indent=2)
        print()
    else:
        _print(rows)
    if to_docs:
        overloads = overload_all(OVERLOADED, "ours", seconds)
        write(rows, overloads, ROOT / "docs/scheduling.md")
        plotted = run_all(_tasks(PLOTTED, PLOT_LOADS, seconds))
        for name in PLOTTED:
            draw(plotted, name, ROOT / f"docs/scheduling-{name}.svg")


def _tasks(
    scenarios: list[str] | tuple[str, ...], loads: tuple[float, ...], seconds: float
) -> list[Task]:
    return [
        Task(scenario, load, policy, seconds)
        for scenario in scenarios
        for load in loads
        for policy in (*POLICIES, BOUND)
        # Who may answer at any time has no bound: all of a trace is answered, in the end.
        if policy != BOUND or _BY_NAME[scenario].deadlines
    ]


def _print(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    from benchmarks.scheduling.page import HEAD

    console = Console(width=None if sys.stdout.isatty() else 160)
    for scenario in SCENARIOS:
        found = [row for row in rows if row.scenario == scenario.name]
        if not found:
            continue
        table = Table(title=f"{scenario.title} (a load of 1 is {scenario.capacity:.1f}/s)")
        for place, head in enumerate(HEAD):
            table.add_column(head, justify="left" if place == 1 else "right")
        for before, row in zip([None, *found], found, strict=False):
            if before is not None and before.load != row.load:
                table.add_section()
            table.add_row(*cells(row))
        console.print(table)


if __name__ == "__main__":
    typer.run(main)
