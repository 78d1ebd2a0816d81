"""``vessels build``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from vessels import api
from vessels.api import Inspection
from vessels.cli.common import (
    AsJson,
    mib,
    out,
    parse_shapes,
    parse_size,
    print_json,
    progress,
    sizes_table,
)
from vessels.files import is_there

Model = Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The ONNX model.")]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape", metavar="NAME=1,3,48,320", help="Shape of an input; for each dynamic one."
    ),
]


def build(
    model: Model,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="MODEL.vessel", help="The sealed model.")
    ],
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL.key",
            help="Key file; made (mode 0600) if there is none. Default: the output with .key.",
        ),
    ] = None,
    shape: Shapes = None,
    memory: Annotated[
        int | None,
        typer.Option(
            parser=parse_size,
            metavar="SIZE",
            help="Most bytes of the pool, as in 16MiB: parameters that fit stay resident. "
            "Default: all stream. Another rung may be chosen when the model is run.",
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Most worker threads.")] = 2,
    policy: Annotated[
        Literal["planned", "conventional"],
        typer.Option(
            help="conventional: the memory of today's systems, to compare with. All parameters "
            "resident, every tensor and workspace in memory of its own.",
        ),
    ] = "planned",
    as_json: AsJson = False,
) -> None:
    """Compile an ONNX model to a plan for one small memory pool, and seal it."""
    key_file = key or output.with_suffix(".key")
    fresh = not is_there(key_file)
    with progress("building") as report:
        built = api.build(
            model,
            output,
            key=key_file,
            shapes=parse_shapes(shape or []),
            memory=memory,
            threads=threads,
            policy=policy,
            progress=report,
        )
    if as_json:
        print_json({"model": str(output), "key": str(key_file), **built.as_json()})
        return
    print_inspection(built, f"{output} ({mib(output.stat().st_size)})")
    out.print(f"{'made' if fresh else 'used'} key {key_file}", highlight=False, soft_wrap=True)


def print_inspection(model: Inspection, title: str) -> None:
    """The interface and the figures of a model for people."""
    ports = [(f"input {p.name}", p.describe()) for p in model.inputs]
    ports += [(f"output {p.name}", p.describe()) for p in model.outputs]
    rows = [
        *ports,
        ("pool", mib(model.pool_size)),
        ("a slot: one request in work", mib(model.ladder.slot_size)),
        ("threads, at most", str(model.thread_count)),
    ]
    if (f := model.figures) is not None:
        rows += [
            ("  activations and scratch", mib(f.activation_size)),
            ("    largest live set", mib(f.activation_lower_bound)),
            ("    largest scratch", mib(f.scratch_size)),
            ("  staging, all threads", mib(f.staging_size)),
            ("  resident parameters", mib(f.resident_size)),
            ("  request and response", mib(f.io_size)),
            ("parameters", f"{mib(f.parameter_size)} in {f.chunk_count} chunks"),
            ("instructions", str(f.instruction_count)),
        ]
    out.print(sizes_table(rows, title))
    out.print(_rungs_table(model))


def _rungs_table(model: Inspection) -> Table:
    ladder = model.ladder
    table = Table(title="Rungs: the choice of who runs it", title_justify="left")
    names = ["rung", "resident", "pool of one slot"]
    for name in names if model.estimated_ms is None else [*names, "estimated"]:
        table.add_column(name, justify="right")
    for number, rung in enumerate(ladder.rungs):
        mark = " (default)" if number == ladder.default else ""
        row = [f"{number}{mark}", mib(rung.resident_size), mib(ladder.pool_size(number))]
        if model.estimated_ms is not None:
            row.append(f"{model.estimated_ms[number]:.2f} ms")
        table.add_row(*row)
    return table
