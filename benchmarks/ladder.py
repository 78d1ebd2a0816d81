"""``python -m benchmarks.ladder``: what the rungs of one ladder lose.

A ladder is planned once, for its default rung; a plan for a budget alone may also choose other
algorithms and other chunks. Both are compared by the planner's own estimate, at equal pools: no
time is measured.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import zoo
from vessels import importer
from vessels.cost import estimated_ns
from vessels.lower import lower
from vessels.plan import make_plan
from vessels.simplify import simplify

NETWORKS = ("alexnet", "vgg16", "resnet50", "densenet201", "mobilenet_v2", "squeezenet")
MIB = 1 << 20


@dataclass(frozen=True)
class Loss:
    """A rung of the streamed plan's ladder beside the plan for a pool of its size."""

    network: str
    rung: int
    resident_size: int
    pool_size: int
    rung_ms: float
    plan_ms: float

    @property
    def ratio(self) -> float:
        """How many times as long the rung is expected to take."""
        return self.rung_ms / self.plan_ms


def losses(name: str, threads: int) -> list[Loss]:
    """All rungs of a network of the zoo."""
    lowered = lower(simplify(importer.load(zoo.build(name), {})))
    program = make_plan(lowered, threads=threads).program
    found = []
    for number in range(len(program.rungs)):
        placed = program.at(number)
        size = placed.layout.size
        alone = make_plan(lowered, threads=threads, memory=size)
        found.append(
            Loss(
                name, number, placed.layout.resident_size, size,
                estimated_ns(placed) / 1e6, alone.estimated_ns / 1e6,
            )
        )  # fmt: skip
    return found


def main(
    networks: Annotated[list[str] | None, typer.Argument(help="Of the zoo.")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Estimates at each rung, and of a plan made for as large a pool."""
    found: list[Loss] = []
    for name in networks or NETWORKS:
        Console(stderr=True).print(f"planning {name}")
        found += losses(name, threads)
    if as_json:
        print(json.dumps([{**asdict(x), "ratio": x.ratio} for x in found], indent=2))
        return
    table = Table(title=f"estimates, {threads} thread{'s' if threads > 1 else ''}")
    for column in ("network", "rung", "resident MiB", "pool MiB", "rung ms", "plan ms", "ratio"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for x in found:
        table.add_row(
            x.network, str(x.rung), f"{x.resident_size / MIB:.1f}", f"{x.pool_size / MIB:.1f}",
            f"{x.rung_ms:.2f}", f"{x.plan_ms:.2f}", f"{x.ratio:.3f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
