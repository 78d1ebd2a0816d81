"""``vessels bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from vessels.bench import Layer, Mode, Row, bench_layers, geometric_mean
from vessels.bench import bench as measure
from vessels.cli.build import Shapes
from vessels.cli.common import AsJson, mib, out, parse_counts, parse_shapes, print_json, progress

MODES: tuple[Mode, ...] = ("streamed", "resident")


def bench(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL.onnx…", help="ONNX models.", show_default=False)
    ],
    shape: Shapes = None,
    threads: Annotated[
        str, typer.Option(metavar="1,2", help="Thread counts, one after another.")
    ] = "1,2",
    seconds: Annotated[float, typer.Option(min=0.1, help="Time for each row.")] = 4.0,
    layers: Annotated[
        bool, typer.Option("--layers", help="Time each instruction instead of whole runs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare with ONNX Runtime, in turn in one run: parameters all streamed and all resident."""
    shapes = parse_shapes(shape or [])
    thread_counts = parse_counts(threads)
    if layers:
        _layers(models, shapes, thread_counts, as_json)
        return
    rows: list[Row] = []
    with progress("bench") as report:
        for model in models:
            rows += measure(
                model, shapes=shapes, threads=thread_counts, seconds=seconds, progress=report
            )
    if as_json:
        print_json([r.as_json() for r in rows])
    else:
        out.print(_table(rows))
        if len(models) > 1:
            for thread_count in thread_counts:
                for mode in MODES:
                    some = [r for r in rows if (r.threads, r.mode) == (thread_count, mode)]
                    out.print(
                        f"geomean, {thread_count} threads, {mode}: {geometric_mean(some):.3f}",
                        highlight=False,
                    )


def _table(rows: list[Row]) -> Table:
    table = Table(title="medians; ONNX Runtime holds everything in plain memory")
    table.add_column("model")
    for name in (
        "threads", "mode", "Vessels ms", "in the enclave ms", "sealing ms", "ONNX Runtime ms",
        "ratio", "pool", "trusted memory", "ONNX Runtime memory",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for r in rows:
        table.add_row(
            r.model, str(r.threads), r.mode, f"{r.vessels_ms:.2f}", f"{r.enclave_ms:.2f}",
            f"{r.sealing_ms:.2f}", f"{r.onnxruntime_ms:.2f}", f"{r.ratio:.3f}", mib(r.pool_size),
            mib(r.enclave_trusted_memory), mib(r.onnxruntime_memory),
        )  # fmt: skip
    return table


def _layers(
    models: list[Path], shapes: dict[str, list[int]], threads: list[int], as_json: bool
) -> None:
    found: list[dict[str, Any]] = []
    for model in models:
        for thread_count in threads:
            for mode in MODES:
                with progress(f"{model.stem}, {thread_count} threads, {mode}"):
                    layers = bench_layers(model, shapes=shapes, threads=thread_count, mode=mode)
                if as_json:
                    found.append(
                        {
                            "model": model.stem,
                            "threads": thread_count,
                            "mode": mode,
                            "layers": [layer.as_json() for layer in layers],
                        }
                    )
                else:
                    title = f"{model.stem}, {thread_count} threads, {mode}"
                    out.print(_layer_table(layers, title))
    if as_json:
        print_json(found)


def _layer_table(layers: list[Layer], title: str) -> Table:
    total = sum(layer.microseconds for layer in layers)
    table = Table(title=f"{title}: {total / 1e3:.2f} ms")
    for name in ("", "instruction", "output", ""):
        table.add_column(name)
    for name in ("µs", "share", "GFLOP/s", "of peak"):
        table.add_column(name, justify="right")
    for layer in layers:
        counted = layer.flop_count > 0
        table.add_row(
            str(layer.index), layer.mnemonic, "x".join(map(str, layer.shape)), layer.detail,
            f"{layer.microseconds:.1f}", f"{layer.microseconds / total:.1%}",
            f"{layer.gflops:.1f}" if counted else "", f"{layer.peak_share:.0%}" if counted else "",
        )  # fmt: skip
    return table
