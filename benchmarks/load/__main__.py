"""``python -m benchmarks.load URL --policy FILE NAME…``: see :mod:`benchmarks.load`."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

# First of all that is not in the standard library: it replaces what others would have imported.
import locust
import typer

from benchmarks.load.arrivals import parse_mix, poisson, read_trace
from benchmarks.load.generator import MOST_CONNECTIONS, Load, run
from benchmarks.load.outcomes import Summary, as_json, by_model, lag_ms, summary
from benchmarks.load.sealed import Tenant, questions
from vessels import Client
from vessels.cli.common import err, out, print_json, run_app
from vessels.errors import UsageError

LAG_MS = 10.0
"""A generator whose p99 is later than this measures itself as well, and says so."""


def main(
    url: Annotated[str, typer.Argument(metavar="URL", help="The server's.")],
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME[=WEIGHT]…", help="Models to ask, by weight. Default: all of the policy."
        ),
    ] = None,
    policy: Annotated[
        Path, typer.Option(metavar="FILE.toml", help="Which enclaves and models to accept.")
    ] = Path("policy.toml"),
    rate: Annotated[
        float, typer.Option(min=0.001, help="Requests a second in all, on average.")
    ] = 10.0,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long requests come.")] = 10.0,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="Lines of seconds,model instead of a rate."),
    ] = None,
    warmup: Annotated[float, typer.Option(min=0.0, help="First seconds that do not count.")] = 0.0,
    deadline_ms: Annotated[
        int | None, typer.Option(min=1, help="Deadline of each request. Default: none.")
    ] = None,
    tenants: Annotated[
        int, typer.Option(min=1, help="Clients of each model, attested one by one.")
    ] = 4,
    question_count: Annotated[
        int, typer.Option("--questions", min=1, help="Different inputs of each model.")
    ] = 4,
    check: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Part of the answers that are compared.")
    ] = 1.0,
    onnx: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL.onnx", help="Right answers are ONNX Runtime's, not the server's."
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that the server may stay silent.")
    ] = 60.0,
    seed: Annotated[int, typer.Option(help="Of arrivals and checks.")] = 0,
    as_json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask a server at given times, whatever its answers take, and say what became of it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2 * MOST_CONNECTIONS <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2 * MOST_CONNECTIONS, hard))
    with Client(url, policy=policy, timeout=timeout) as client:
        mix = parse_mix(models or list(client.policy.models))
        if trace is None:
            arrivals, end = poisson(rate, seconds, mix, seed=seed), seconds
        else:
            arrivals = read_trace(trace)
            mix = dict.fromkeys(sorted({a.model for a in arrivals}), 1.0)
            end = arrivals[-1].at if arrivals else 0.0
        if not arrivals or warmup >= end:
            raise UsageError("no request is due after the warm-up.")
        files = _files(onnx or [], mix)
        load = Load(
            url=client.url,
            arrivals=arrivals,
            tenants=_tenants(client, mix, tenants, question_count, files),
            deadline=None if deadline_ms is None else deadline_ms / 1e3,
            check=check,
            timeout=timeout,
            seed=seed,
        )
        run(load)
    report = _report(load, warmup, end)
    if as_json_:
        print_json(report)
    else:
        _print(load, warmup, end, report)


def _tenants(
    client: Client, mix: Mapping[str, float], count: int, most: int, onnx: Mapping[str, Path]
) -> dict[str, list[Tenant]]:
    found = {}
    for name in mix:
        asked = questions(client, name, most, onnx=onnx.get(name))
        found[name] = [Tenant(client, name, asked) for _ in range(count)]
    return found


def _files(texts: Sequence[str], models: Mapping[str, float]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for text in texts:
        name, _, path = text.partition("=")
        if name not in models or not path:
            raise UsageError(f"--onnx {text}: write NAME=MODEL.onnx of a model that is asked.")
        files[name] = Path(path)
    return files


def _report(load: Load, begin: float, end: float) -> dict[str, Any]:
    total = summary(load.outcomes, begin, end, deadline=load.deadline)
    models = by_model(load.outcomes, begin, end, deadline=load.deadline)
    return {
        "total": as_json(total),
        "models": {name: as_json(found) for name, found in models.items()},
        "generator": {
            "locust": locust.__version__,
            "lag_ms": {k: round(v, 3) for k, v in lag_ms(load.outcomes).items()},
            "cpu_seconds": round(load.cpu_seconds, 3),
            "most_under_way": load.most_under_way,
            "requests": len(load.outcomes),
            "seed": load.seed,
        },
    }


def _print(load: Load, begin: float, end: float, report: Mapping[str, Any]) -> None:
    from rich.table import Table

    table = Table(
        title=f"{load.url}, {end - begin:g} s: requests a second, milliseconds",
        title_justify="left",
    )
    table.add_column("model")
    for column in ("offered", "accepted", "good", "p50", "p95", "p99", "wrong"):
        table.add_column(column, justify="right")
    models = by_model(load.outcomes, begin, end, deadline=load.deadline)
    total = summary(load.outcomes, begin, end, deadline=load.deadline)
    for name, found in [*models.items(), *([("all", total)] if len(models) > 1 else [])]:
        table.add_row(name, *_cells(found))
    out.print(table)
    made = report["generator"]
    for line in (
        ", ".join(f"{kind}: {count}" for kind, count in total.outcomes.items()),
        f"generator: {made['cpu_seconds']} s of processor time for {made['requests']} requests, "
        f"at most {made['most_under_way']} under way; sent late by {made['lag_ms']['p50']} ms "
        f"(median), {made['lag_ms']['p99']} ms (p99)",
    ):
        out.print(line, highlight=False, soft_wrap=True)
    if made["lag_ms"]["p99"] > LAG_MS:
        err.print("The generator was late itself: latencies are too large by as much.")


def _cells(found: Summary) -> list[str]:
    rates = [found.offered_per_second, found.accepted_per_second, found.goodput]
    times = [found.p50_ms, found.p95_ms, found.p99_ms]
    return [
        *(f"{r:.1f}" for r in rates),
        *("-" if t is None else f"{t:.1f}" for t in times),
        f"{found.wrong}/{found.checked}",
    ]


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.argv[0] = "benchmarks.load"
    run_app(app)
