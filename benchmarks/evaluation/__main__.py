"""``python -m benchmarks.evaluation``: the study over the zoo, and the page made from it.

When all networks are there, ``docs/evaluation.md`` and its plots are written.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import zoo
from benchmarks.evaluation.page import write_page
from benchmarks.evaluation.run import NETWORKS, QUICK, ROOT, Settings, log, run


def main(
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="This network; repeatable.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Short times, few tenants, no peer.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Take results of other versions of the code, too.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the page. Default: docs, of a part or --quick the results'."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Folder of the results. Default: build/evaluation.")
    ] = None,
) -> None:
    """Study the zoo's networks and write what came out as a page."""
    names = tuple(dict.fromkeys(only)) if only else NETWORKS
    if unknown := [n for n in names if n not in zoo.NAMES]:
        raise typer.BadParameter(f"not in the zoo: {', '.join(unknown)}")
    logging.getLogger("vessels").setLevel(logging.ERROR)
    results_folder = folder or ROOT / "build" / ("evaluation-quick" if quick else "evaluation")
    results = run(names, results_folder, QUICK if quick else Settings(), keep=keep)
    whole = names == NETWORKS and not quick
    page = write_page(results, output or (ROOT / "docs" if whole else results_folder))
    log.print(f"wrote {page}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
