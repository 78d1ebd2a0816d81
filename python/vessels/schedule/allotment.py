"""How the trusted memory is divided among models: the shape that each may take.

More memory makes predictions cheaper, by fewer parameters to decrypt or by more requests that
share one decryption. Every model first gets its most frugal shape. What is left goes, step by
step, where a byte saves most core-seconds: the more, the more often the model is asked for. When
not even the most frugal shapes fit together, models take turns in theirs, and what is left is
divided among those that are asked for most for their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from vessels.schedule.model import Shape
from vessels.schedule.state import Model

KEPT_COUNT = 20
"""Over so many runs what they take is taken to be the same here."""


@dataclass(frozen=True)
class _Step:
    """From one shape of a model to a more generous one: ``saving`` for each byte of ``size``."""

    model: Model
    shape: Shape
    size: int
    saving: float


def allot(models: Sequence[Model], capacity: int | None, now: float) -> dict[Model, Shape]:
    """The most generous shape that each of ``models`` may take."""
    if capacity is None:
        return {model: frontier(model)[-1] for model in models}
    shape = {model: model.shapes[0] for model in models}
    left = capacity
    together = []
    for model in sorted(models, key=lambda m: (-m.demand(now) / m.shapes[0].size, m.index)):
        size = model.shapes[0].size + model.excess_size
        if size <= left:
            left -= size
            together.append(model)
    return shape | _grown(together, left, now)


def frontier(model: Model) -> list[Shape]:
    """The shapes worth taking, from the most frugal on, each step saving less for a byte."""
    estimates = model.estimates
    if model.frontier is None or model.frontier[0] < estimates.version - KEPT_COUNT:
        model.frontier = estimates.version, _frontier(model)
    return model.frontier[1]


def _frontier(model: Model) -> list[Shape]:
    costs = [(shape, cost(model, shape)) for shape in model.shapes]
    last, last_cost = costs[0]
    best = [last]
    while True:
        better = [(s, c) for s, c in costs if s.size > last.size and c < last_cost * (1 - 1e-9)]
        if not better:
            return best
        size, before = last.size, last_cost
        last, last_cost = max(better, key=lambda e: (before - e[1]) / (e[0].size - size))
        best.append(last)


def cost(model: Model, shape: Shape) -> float:
    """The core-seconds of one request in a full run."""
    return model.estimates.run_seconds(shape, shape.slots) * shape.threads / shape.slots


def _grown(models: Sequence[Model], left: int, now: float) -> dict[Model, Shape]:
    """Each of ``models`` at least with its most frugal shape, and ``left`` bytes divided."""
    shape = {model: model.shapes[0] for model in models}
    steps = []
    for model in models:
        demand = model.demand(now)
        shapes = frontier(model)
        for less, more in pairwise(shapes):
            size = more.size - less.size
            saving = (cost(model, less) - cost(model, more)) * demand / size
            steps.append(_Step(model, more, size, saving))
    stuck = set()
    # Steps of one model are in order, as each saves less for a byte than the one before it.
    for step in sorted(steps, key=lambda each: -each.saving):
        if step.model in stuck or step.size > left:
            stuck.add(step.model)
            continue
        left -= step.size
        shape[step.model] = step.shape
    return shape
