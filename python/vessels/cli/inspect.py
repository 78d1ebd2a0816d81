"""``vessels inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vessels import api
from vessels.cli.build import print_inspection
from vessels.cli.common import AsJson, print_json, progress

Sealed = Annotated[Path, typer.Argument(metavar="MODEL.vessel", help="The sealed model.")]


def inspect(
    model: Sealed,
    key: Annotated[
        Path | None,
        typer.Option(metavar="MODEL.key", help="Key file; shows what is encrypted, too."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the interface and the memory of a sealed model; with the key, all of its plan."""
    with progress("inspecting"):
        found = api.inspect(model, key=key)
    if as_json:
        print_json(found.as_json())
    else:
        print_inspection(found, str(model))
