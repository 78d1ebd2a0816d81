"""``vessels study``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from vessels.cli.build import Model, Shapes
from vessels.cli.common import (
    AsJson,
    mib,
    out,
    parse_counts,
    parse_shapes,
    parse_size,
    print_json,
    progress,
)
from vessels.files import check_destination
from vessels.study.result import LatencyPoint, Policy, Study
from vessels.study.wording import at_epc, consequence, verdict

POLICIES: tuple[Policy, ...] = ("conventional", "planned")

_NANOSECONDS = {"ns": 1.0, "us": 1e3, "\u00b5s": 1e3, "\u03bcs": 1e3, "ms": 1e6}


_MEASURED: dict[str, Callable[[LatencyPoint], str]] = {
    "EPC faults per prediction": lambda p: f"{p.faults:,.0f}",
    "  by the analysis": lambda p: f"{p.predicted_policy:,}",
    "latency": lambda p: f"{p.median_ms:.2f} ms",
}


def parse_duration(text: str) -> float:
    """``12us``, ``800ns``, ``0.02ms`` to nanoseconds; for Typer."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ns|us|\u00b5s|\u03bcs|ms)\s*", text)
    if match is None or float(match.group(1)) == 0:
        raise typer.BadParameter(f"{text!r} is no time; write one like 12us or 800ns.")
    return float(match.group(1)) * _NANOSECONDS[match.group(2)]


def study(
    model: Model,
    epc: Annotated[
        int,
        typer.Option(parser=parse_size, metavar="SIZE", help="The EPC, for all tenants together."),
    ] = "93MiB",  # type: ignore[assignment]
    tenants: Annotated[
        str, typer.Option(metavar="1,2,4,8", help="Numbers of enclaves at work at once.")
    ] = "1,2,4,8",
    threads: Annotated[int, typer.Option(min=1, help="Worker threads of each enclave.")] = 1,
    shape: Shapes = None,
    fault_cost: Annotated[
        float | None,
        typer.Option(
            parser=parse_duration,
            metavar="TIME",
            help="What a page fault shall cost, as in 12us: the emulator waits for the rest.",
        ),
    ] = None,
    analysis_only: Annotated[
        bool, typer.Option("--analysis-only", help="Run nothing: no times, no emulator.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=60, help="Time for each measured point.")
    ] = 2.0,
    peer: Annotated[
        bool,
        typer.Option(
            "--peer",
            help="Also ONNX Runtime under a memory limit. As root; may make a swap file meanwhile.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="REPORT.html",
            help="The report. Default: MODEL.study.html in this folder.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Study what a trusted processor's memory does to a model, and what a plan changes."""
    shapes = parse_shapes(shape or [])
    counts = parse_counts(tenants, "numbers of tenants")
    report = output or Path(f"{model.stem}.study.html")
    check_destination(report, keep=[model])
    # Plots and the compiler take a second to import: only who studies waits for them.
    from vessels.study.report import write
    from vessels.study.study import study as work

    with progress(f"studying {model.stem}") as tell:
        found = work(
            model,
            epc_size=epc,
            tenants=counts,
            threads=threads,
            shapes=shapes,
            fault_cost_ns=fault_cost,
            seconds=seconds,
            measured=not analysis_only,
            with_peer=peer,
            progress=tell,
        )
        tell("writing the report", 0.0)
        write(found, report)
    if as_json:
        print_json(found.as_json())
        return
    _print(found)
    out.print(f"wrote {report}", highlight=False, markup=False, soft_wrap=True)


def _print(study: Study) -> None:
    table = Table(title=f"{study.model} in {mib(study.epc_size)} of EPC", title_justify="left")
    table.add_column()
    for policy in POLICIES:
        table.add_column(policy, justify="right")
    table.add_row("pool", mib(study.conventional.pool_size), mib(study.planned.pool_size))
    points = [at_epc(study.latency, policy, study.epc_size) for policy in POLICIES]
    if any(points):
        for name, cell in _MEASURED.items():
            table.add_row(name, *(None if p is None else cell(p) for p in points))
    for count in dict.fromkeys(t.tenant_count for t in study.tenants):
        rates = {
            t.policy: f"{t.predictions_per_second:.2f}"
            for t in study.tenants
            if t.tenant_count == count
        }
        what = f"predictions per second, {count} tenant{'s' if count > 1 else ''}"
        table.add_row(what, *(rates.get(p) for p in POLICIES))
    out.print(table)
    sentences = [verdict(study), consequence(study), *study.notes]
    if study.fault_cost is not None:
        cost = study.fault_cost
        padding = (
            f" and waits {cost.padding_ns / 1e3:.1f} \N{MICRO SIGN}s more"
            if cost.padding_ns
            else ""
        )
        sentences.append(
            f"A fault of the emulator costs {cost.fault_ns / 1e3:.1f} \N{MICRO SIGN}s{padding}."
        )
    if study.unmeasured is not None:
        sentences.append(f"Not measured: {study.unmeasured}")
    for sentence in sentences:
        out.print(sentence, highlight=False, markup=False, soft_wrap=True)
