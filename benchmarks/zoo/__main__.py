"""``python -m benchmarks.zoo NAME -o FILE.onnx``: writes a network of the zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import onnx
import typer

from benchmarks import zoo


def main(
    name: Annotated[str | None, typer.Argument(help="Network; see --list.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="ONNX file.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random parameters.")] = 0,
    input_size: Annotated[int | None, typer.Option(help="Pixels of a side.")] = None,
    batch: Annotated[int, typer.Option(help="Images per prediction.")] = 1,
    list_names: Annotated[bool, typer.Option("--list", help="Show all networks.")] = False,
) -> None:
    """Write a network of the zoo, with random parameters, as an ONNX model."""
    if list_names:
        for known in zoo.NAMES:
            size = zoo.default_input_size(known)
            typer.echo(f"{known:14}{batch}x3x{size}x{size}")
        return
    if name not in zoo.NAMES:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(zoo.NAMES)}")
    try:
        model = zoo.build(name, seed, input_size, batch)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    onnx.save(model, output or Path(f"{name}.onnx"))


typer.run(main)
