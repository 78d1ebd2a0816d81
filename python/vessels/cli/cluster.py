"""``vessels cluster``: what nodes of a Ray cluster have, and what models take of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from vessels.cli.common import mib, out, print_json
from vessels.errors import UsageError

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
    manifest: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For SGX under Gramine: the model's signed folder."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output.")
    ] = False,
) -> None:
    """Show what one environment of each model takes of a node."""
    from vessels.cluster.need import RESOURCE, need_of

    if manifest is not None and (threads is not None or len(models) > 1):
        raise UsageError("--manifest is for one model, and says its threads.")
    needs = [(m, need_of(m, threads=threads, manifest=manifest)) for m in models]
    if as_json:
        print_json(
            [
                {
                    "model": str(m), "size": n.size, RESOURCE: n.epc_mib,
                    "thread_count": n.thread_count,
                }
                for m, n in needs
            ]
        )  # fmt: skip
        return
    table = Table("model", "environment", RESOURCE, "cores")
    for model, needed in needs:
        table.add_row(str(model), mib(needed.size), str(needed.epc_mib), str(needed.thread_count))
    out.print(table)
