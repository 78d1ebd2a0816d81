"""``python -m benchmarks.serving_evaluation``: measure what is missing, and write the page.

``docs/evaluation-serving.md`` and its plots are written, or with ``--quick`` a page of its own.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.serving_evaluation.bench import ROOT, tell
from benchmarks.serving_evaluation.page import NAME, write_page
from benchmarks.serving_evaluation.run import run
from benchmarks.serving_evaluation.systems import QUICK, Settings


def main(
    quick: Annotated[
        bool, typer.Option("--quick", help="Few points, short times: to see that it works.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Take results of other versions of the code, too.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the page. Default: docs, with --quick the results'."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Folder of the results. Default: in build.")
    ] = None,
) -> None:
    """Measure serving in a small EPC, and write what came out as a page."""
    logging.getLogger("vessels").setLevel(logging.ERROR)
    results = folder or ROOT / "build" / (f"{NAME}-quick" if quick else NAME)
    found = run(QUICK if quick else Settings(), results, keep=keep)
    page = write_page(found, output or (results if quick else ROOT / "docs"))
    tell(f"wrote {page}")


if __name__ == "__main__":
    typer.run(main)
