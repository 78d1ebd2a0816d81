"""``vessels kubernetes``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vessels.cli.common import err, mib

MAX_REPLICAS = (1 << 31) - 1
"""Of the Kubernetes API."""


def kubernetes(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]MODEL.vessel…", help="Sealed models; the file's name is the model's."
        ),
    ],
    keys: Annotated[
        str, typer.Option(metavar="URL", help="The model owner's key service, as pods reach it.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.yaml", help="Default: standard output."),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(help="With Vessels, Gramine and the models. Default: vessels:VERSION."),
    ] = None,
    claim: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A volume claim that holds the models instead."),
    ] = None,
    replicas: Annotated[int, typer.Option(min=0, max=MAX_REPLICAS, help="Pods of each model.")] = 1,
    rung: Annotated[
        int | None,
        typer.Option(min=0, help="Rung, as in the signed folder. Default: the model's own."),
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="Slots, as in the signed folder.")] = 1,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Worker threads, as in the signed folder. Default: all."),
    ] = None,
) -> None:
    """Write Kubernetes manifests that serve sealed models on SGX nodes."""
    from vessels.files import check_destination, write_text
    from vessels.kubernetes import Cluster, as_yaml, deployed, manifests
    from vessels.serve.config import named

    wanted = named(models)
    if output is not None:
        check_destination(output, keep=[model.path for model in wanted])
    cluster = Cluster(keys=keys, replicas=replicas, claim=claim)
    if image is not None:
        cluster = replace(cluster, image=image)
    found = [
        deployed(model.path, name=model.name, rung=rung, slots=slots, threads=threads)
        for model in wanted
    ]
    text = as_yaml(manifests(found, cluster))
    if output is None:
        print(text, end="")
    else:
        write_text(output, text)
    for model in found:
        err.print(
            f"{model.label}: {replicas} of {mib(model.epc_size)} of trusted memory each.",
            highlight=False,
        )
