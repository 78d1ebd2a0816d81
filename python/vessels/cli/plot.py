"""``vessels plot``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vessels import api
from vessels.cli.common import out, progress
from vessels.cli.inspect import Sealed


def plot(
    model: Sealed,
    key: Annotated[Path, typer.Option(metavar="MODEL.key", help="Key file.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="MAP.svg", help="The picture: .svg or .png.")
    ],
) -> None:
    """Draw the memory map of a sealed model: every buffer over time and pool address."""
    with progress("drawing"):
        api.plot(model, output, key=key)
    out.print(f"wrote {output}", highlight=False, soft_wrap=True)
