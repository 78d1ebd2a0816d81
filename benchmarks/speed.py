"""``python -m benchmarks.speed``: how fast Vessels is beside ONNX Runtime, and what is promised.

Ratios are Vessels' median time over that of ONNX Runtime with everything in plain memory;
below 1 is faster.
"""

from __future__ import annotations

import json
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import onnx
import typer
from rich.console import Console
from rich.table import Table

import vessels
from benchmarks import zoo
from vessels.bench import Mode, Row, bench, geometric_mean

NETWORKS = ("alexnet", "vgg16", "resnet50", "densenet201", "mobilenet_v2")
MODES: tuple[Mode, ...] = ("streamed", "resident")

COLD_START_LIMIT_MS = 150.0
BUILD_LIMIT_SECONDS = 10.0


@dataclass(frozen=True)
class Limit:
    """What a mode promises: the geometric mean over the networks and any single ratio."""

    mean: float
    single: float


LIMITS: dict[Mode, Limit] = {"streamed": Limit(0.95, 1.25), "resident": Limit(0.85, 1.10)}

ALEXNET_STREAMED_LIMIT = 1.50
"""AlexNet is nearly all fully connected: at batch 1, decryption bounds it."""

log = Console(stderr=True)


def single_limit(row: Row) -> float:
    """The largest ratio that ``row`` may have."""
    if row.model == "alexnet" and row.mode == "streamed":
        return ALEXNET_STREAMED_LIMIT
    return LIMITS[row.mode].single


def measure_ratios(networks: Sequence[str], threads: Sequence[int], seconds: float) -> list[Row]:
    """All rows of ``vessels bench`` for the named networks of the zoo."""
    rows: list[Row] = []
    for name in networks:
        with _saved(name) as path:
            for row in bench(path, threads=threads, modes=MODES, seconds=seconds):
                log.print(
                    f"{row.model}, {row.threads} threads, {row.mode}: {row.vessels_ms:.1f} ms, "
                    f"ONNX Runtime {row.onnxruntime_ms:.1f} ms"
                )
                rows.append(row)
    return rows


def measure_cold_start(name: str = "resnet50", repeat: int = 5) -> float:
    """Median milliseconds from launching an enclave to its first prediction, sealed file cached."""
    key = secrets.token_bytes(32)
    with _saved(name) as path:
        sealed = path.with_suffix(".vessel")
        vessels.build(path, sealed, key=key)
        inputs = zoo.example_input(onnx.load(path))
        times: list[float] = []
        for _ in range(repeat):
            start = time.perf_counter()
            with vessels.Enclave(sealed, key=key) as enclave:
                enclave.run(inputs)
                times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def measure_build(name: str = "resnet152") -> float:
    """Seconds to compile and seal a network from its ONNX file."""
    with _saved(name) as path:
        start = time.perf_counter()
        vessels.build(path, path.with_suffix(".vessel"), key=secrets.token_bytes(32))
        return time.perf_counter() - start


def means(rows: Sequence[Row]) -> list[tuple[int, Mode, float]]:
    """(threads, mode, geometric mean of the ratios), as measured."""
    groups: dict[tuple[int, Mode], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.threads, row.mode), []).append(row)
    return [(threads, mode, geometric_mean(group)) for (threads, mode), group in groups.items()]


def main(
    networks: Annotated[str, typer.Option(help="Networks of the zoo, comma-separated.")] = ",".join(
        NETWORKS
    ),
    threads: Annotated[str, typer.Option(help="Thread counts, comma-separated.")] = "1,2",
    seconds: Annotated[float, typer.Option(help="Seconds of timing for each row.")] = 4.0,
    ratios_only: Annotated[
        bool, typer.Option("--ratios-only", help="Leave out cold start and build time.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Measure what the project promises about speed, beside the limits it set itself."""
    names = networks.split(",")
    if unknown := [n for n in names if n not in zoo.NAMES]:
        raise typer.BadParameter(f"not in the zoo: {', '.join(unknown)}")
    try:
        thread_counts = [int(t) for t in threads.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{threads!r} is not a list of thread counts") from error
    rows = measure_ratios(names, thread_counts, seconds)
    cold_start_ms = None if ratios_only else measure_cold_start()
    build_seconds = None if ratios_only else measure_build()
    if as_json:
        report: dict[str, Any] = {
            "rows": [row.as_json() for row in rows],
            "geometric_means": [
                {"threads": t, "mode": mode, "ratio": mean} for t, mode, mean in means(rows)
            ],
            "cold_start_ms": cold_start_ms,
            "build_seconds": build_seconds,
        }
        typer.echo(json.dumps(report, indent=2))
        return
    # Into a file or pipe, Rich would squeeze the table into 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(_ratio_table(rows))
    console.print(_summary_table(rows, cold_start_ms, build_seconds))


def _ratio_table(rows: Sequence[Row]) -> Table:
    table = Table(title="Vessels beside ONNX Runtime in plain memory")
    for column in ("network", "threads", "parameters"):
        table.add_column(column)
    for column in ("Vessels ms", "ONNX Runtime ms", "ratio", "limit", "pool MiB", "trusted MiB"):
        table.add_column(column, justify="right")
    table.add_column("ONNX Runtime MiB", justify="right")
    for row in rows:
        limit = single_limit(row)
        table.add_row(
            row.model,
            str(row.threads),
            row.mode,
            f"{row.vessels_ms:.2f}",
            f"{row.onnxruntime_ms:.2f}",
            _judged(row.ratio, limit),
            f"{limit:.2f}",
            _mib(row.pool_size),
            _mib(row.enclave_trusted_memory),
            _mib(row.onnxruntime_memory),
        )
    return table


def _summary_table(
    rows: Sequence[Row], cold_start_ms: float | None, build_seconds: float | None
) -> Table:
    table = Table(title="Summary")
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("limit", justify="right")
    for threads, mode, mean in means(rows):
        limit = LIMITS[mode].mean
        table.add_row(
            f"geometric mean, {threads} threads, {mode}", _judged(mean, limit), f"{limit:.2f}"
        )
    if cold_start_ms is not None:
        table.add_row(
            "cold start, ResNet-50, ms",
            _judged(cold_start_ms, COLD_START_LIMIT_MS, digits=0),
            f"{COLD_START_LIMIT_MS:.0f}",
        )
    if build_seconds is not None:
        table.add_row(
            "build, ResNet-152, s",
            _judged(build_seconds, BUILD_LIMIT_SECONDS, digits=1),
            f"{BUILD_LIMIT_SECONDS:.0f}",
        )
    return table


def _judged(value: float, limit: float, digits: int = 2) -> str:
    """The value, red and marked where it is over its limit."""
    text = f"{value:.{digits}f}"
    return text if value <= limit else f"[red]{text} over[/red]"


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f}"


@contextmanager
def _saved(name: str) -> Iterator[Path]:
    """A network of the zoo as a file in a folder of its own, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="vessels-") as folder:
        path = Path(folder) / f"{name}.onnx"
        onnx.save(zoo.build(name), path)
        yield path


if __name__ == "__main__":
    typer.run(main)
