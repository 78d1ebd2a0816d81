"""``python -m benchmarks.chaos``: see :mod:`benchmarks.chaos`."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from benchmarks.chaos.rules import Rule
from benchmarks.chaos.run import Report, Setting, run
from benchmarks.chaos.stage import MODELS, QUESTION_COUNT, build
from vessels.cli.common import err, mib, out, print_json, run_app


def main(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NETWORK:PIXELS…", help=f"Of the zoo; or magika. Default: {' '.join(MODELS)}."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="How long is killed.")] = 600.0,
    every: Annotated[float, typer.Option(min=0.01, help="Seconds between kills, on average.")] = 4,
    calm: Annotated[
        float, typer.Option(min=0.1, help="Seconds of load without kills, before and after.")
    ] = 15.0,
    clients: Annotated[
        int, typer.Option(min=1, max=QUESTION_COUNT, help="Clients that ask at once.")
    ] = 8,
    memory: Annotated[
        float, typer.Option(min=0.0, help="Of what all models need at least, what there is.")
    ] = 0.6,
    recovery: Annotated[
        float, typer.Option(min=1.0, help="Most seconds from a kill until all is as before.")
    ] = 90.0,
    share: Annotated[
        float, typer.Option(min=0.0, help="Right answers a second at the end, of those at first.")
    ] = 0.5,
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep models and logs here; it is made.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of models, questions, clients and kills.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Kill enclaves, the server and the key service under load; exit code 1 if that shows."""
    setting = Setting(seconds, every, calm, clients, memory, recovery, share, seed)
    with tempfile.TemporaryDirectory(prefix="vessels-chaos-") as temporary:
        place = Path(temporary)
        # A simulation's root and policies of its own.
        os.environ["XDG_STATE_HOME"] = str(place / "state")
        if folder is not None:
            folder.mkdir(parents=True)
            place = folder.resolve()
        stage = build(place, models or MODELS, seed=seed)
        # Each new client would say once more that this is a simulation.
        logging.getLogger("vessels").setLevel(logging.ERROR)
        report = run(stage, setting)
    if as_json:
        print_json(report.as_json())
    else:
        _print(report)
    if not report.held:
        raise typer.Exit(1)


def _print(report: Report) -> None:
    right = report.outcomes.get("right", 0)
    rows = [
        ("requests", f"{report.requests:,} in {report.seconds:,.0f} s"),
        ("right", f"{right:,}: {_counts(report.right_by_model)}"),
        ("others", _counts({k: n for k, n in report.outcomes.items() if k != "right"})),
        ("right a second", f"{report.right_per_second_before} before the kills, "
         f"{report.right_per_second_after} after them"),
        ("longest request", f"{report.longest_request_seconds} s"),
        ("killed", _counts(report.kills)),
        ("longest recovery", ", ".join(
            f"{kind} {seconds} s" for kind, seconds in report.longest_recovery_seconds.items())),
        ("environments", f"{report.launches:,} launched, {report.evictions:,} evicted; "
         f"{report.shed:,} requests shed"),
        ("memory", f"{mib(report.capacity)} of the {mib(report.needed)} that all models need; "
         f"at most {mib(report.most_used)} in the account, {mib(report.most_taken)} taken, "
         f"{mib(report.most_held)} held"),
        ("account", f"compared {report.samples:,} times, {report.exact_samples:,} to the byte"),
        ("outlived its server", f"by {report.longest_orphan_seconds} s at most"),
        ("longest pause", f"{report.longest_pause_seconds} s, of this program itself"),
    ]  # fmt: skip
    table = Table(title="Chaos", title_justify="left", show_header=False)
    for row in rows:
        table.add_row(*row)
    out.print(table)
    for rule in Rule:
        count = report.broken.get(rule, 0)
        said = f"BROKEN {count:,} times" if count else "held"
        out.print(f"{said}: {rule}", highlight=False, soft_wrap=True)
        for example in report.examples.get(rule, []):
            err.print(f"  {example}", highlight=False, markup=False, soft_wrap=True)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.argv[0] = "benchmarks.chaos"
    run_app(app)
