"""``python -m benchmarks.batch``: what a request costs when several are run together.

Slots share each parameter chunk that is decrypted, so a batch saves the decryption of all its
requests but one. A request is timed from its sealing to its opened answer; the enclave's own
processor time is less disturbed by whatever else the machine does.
"""

from __future__ import annotations

import json
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import onnx
import typer
from rich.console import Console
from rich.table import Table

import vessels
from benchmarks import zoo

NETWORKS = ("alexnet", "resnet50", "mobilenet_v2")
BATCHES = (1, 2, 4, 8)

log = Console(stderr=True)


@dataclass(frozen=True)
class Row:
    """Medians over batches of one size, for each request of them."""

    model: str
    threads: int
    batch: int
    request_ms: float
    processor_ms: float
    pool_size: int


def measure(name: str, threads: Sequence[int], batches: Sequence[int], seconds: float) -> list[Row]:
    """All rows of a network of the zoo, with all parameters streamed.

    The batch sizes take turns, so that what disturbs one disturbs all.
    """
    rows = []
    key = secrets.token_bytes(32)
    with tempfile.TemporaryDirectory(prefix="vessels-") as folder:
        path = Path(folder) / f"{name}.onnx"
        model = zoo.build(name)
        onnx.save(model, path)
        inputs = zoo.example_input(model)
        sealed = path.with_suffix(".vessel")
        vessels.build(path, sealed, key=key, threads=max(threads))
        for count in threads:
            with vessels.Enclave(sealed, key=key, threads=count, slots=max(batches)) as enclave:
                times: dict[int, list[tuple[float, float]]] = {batch: [] for batch in batches}
                end = time.perf_counter() + seconds * len(batches)
                while time.perf_counter() < end:
                    for batch in batches:
                        before = _processor_seconds(enclave.pid)
                        start = time.perf_counter()
                        enclave.run_batch([inputs] * batch)
                        took = time.perf_counter() - start
                        spent = _processor_seconds(enclave.pid) - before
                        times[batch].append((took / batch, spent / batch))
                for batch, pairs in times.items():
                    # The first brings caches and threads back.
                    took, spent = (statistics.median(x) for x in zip(*pairs[1:], strict=True))
                    pool_size = enclave.ready.pool_size
                    rows.append(Row(name, count, batch, took * 1e3, spent * 1e3, pool_size))
                    log.print(f"{name}, {count} threads, batch {batch}: {took * 1e3:.1f} ms")
    return rows


def main(
    networks: Annotated[str, typer.Option(help="Networks of the zoo, comma-separated.")] = ",".join(
        NETWORKS
    ),
    threads: Annotated[str, typer.Option(help="Thread counts, comma-separated.")] = "1,2",
    batches: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = ",".join(
        map(str, BATCHES)
    ),
    seconds: Annotated[float, typer.Option(help="Seconds of timing for each row.")] = 4.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure the time of a request by the size of its batch."""
    rows = [
        row
        for name in networks.split(",")
        for row in measure(name, _numbers(threads), _numbers(batches), seconds)
    ]
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    table = Table(title="Batches, all parameters streamed")
    for column in ("network", "threads", "batch", "ms a request", "processor ms", "pool MiB"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for row in rows:
        table.add_row(
            row.model,
            str(row.threads),
            str(row.batch),
            f"{row.request_ms:.2f}",
            f"{row.processor_ms:.2f}",
            f"{row.pool_size / (1 << 20):.1f}",
        )
    # Into a file or pipe, Rich would squeeze the table into 80 columns.
    (Console() if sys.stdout.isatty() else Console(width=120)).print(table)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a list of numbers") from error


def _processor_seconds(pid: int) -> float:
    """Processor time that all threads of a process have had."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


if __name__ == "__main__":
    typer.run(main)
