"""``vessels cluster``: what nodes of a Ray cluster have, and what models take of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from vessels.cli.common import AsJson, mib, out, parse_size, print_json
from vessels.errors import UsageError
from vessels.ladder import MAX_SLOTS

app = typer.Typer(
    help="Sealed models on a Ray cluster; `serve run vessels.cluster:app` runs them.",
    no_args_is_help=True,
)


@app.command()
def resources(
    epc: Annotated[
        str, typer.Option(metavar="auto|SIZE", help="The trusted memory of this node.")
    ] = "auto",
) -> None:
    """Print what `ray start --resources` takes on this node: its trusted memory."""
    from vessels.cluster.need import resources_argument
    from vessels.serve.capacity import epc_size

    size = epc_size(epc)
    if size is None:
        raise UsageError("--epc none: a node of a cluster needs a figure.")
    # For scripts: nothing else, on one line.
    typer.echo(resources_argument(size))


@app.command()
def need(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL.vessel…", help="Sealed models.")],
    threads: Annotated[
        int | None, typer.Option(min=1, help="Worker threads; at most those it was built for.")
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_SLOTS, help="Most requests that one run answers."),
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE", parser=parse_size, help="Most trusted memory that it takes, like 64MiB."
        ),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For SGX under Gramine: the model's signed folder."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what one environment of each model takes of a node, and the shape it has."""
    from vessels.cluster.need import RESOURCE, need_of

    if manifest is not None and (threads or slots or memory or len(models) > 1):
        raise UsageError("--manifest is for one model, and says its threads, slots and memory.")
    needs = [
        (m, need_of(m, threads=threads, slots=slots, memory=memory, manifest=manifest))
        for m in models
    ]
    if as_json:
        print_json(
            [
                {
                    "model": str(m), "size": n.size, RESOURCE: n.epc_mib,
                    "thread_count": n.thread_count, "slot_count": n.shape.slots,
                    "rung": n.shape.rung,
                }
                for m, n in needs
            ]
        )  # fmt: skip
        return
    table = Table("model", "environment", RESOURCE, "cores", "slots", "rung")
    for model, needed in needs:
        counts = needed.epc_mib, needed.thread_count, needed.shape.slots, needed.shape.rung
        table.add_row(str(model), mib(needed.size), *map(str, counts))
    out.print(table)
