"""The plans that a study compares: compiled once, analysed, sealed, and timed without paging."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vessels import importer
from vessels.bench import random_inputs
from vessels.lower import lower
from vessels.plan import Plan, make_plan
from vessels.ports import Port
from vessels.program import LoweredProgram
from vessels.seal import read_header, seal
from vessels.simplify import simplify
from vessels.study import measure
from vessels.study.analysis import analyse
from vessels.study.distances import steady_distances
from vessels.study.replacement import steady_faults
from vessels.study.result import PAGE_SIZE, PlanAnalysis, Policy
from vessels.study.trace import page_trace

Array = np.ndarray[Any, Any]
Progress = Callable[[str, float], None]

_BUDGET_PARTS = (0.25, 0.5, 0.75, 1.0)
"""Budgets on the way from the pool of the plan that streams to that with everything resident."""


@dataclass(frozen=True)
class Prepared:
    """A plan, analysed and sealed; ``plain`` is how it did without paging, if it was run."""

    plan: Plan
    analysis: PlanAnalysis
    subject: measure.Subject
    plain: measure.Plain | None


def prepare(
    model: Path,
    *,
    shapes: Mapping[str, Sequence[int]],
    threads: int,
    epc_size: int,
    plain_seconds: float | None,
    folder: Path,
    progress: Progress,
) -> list[Prepared]:
    """The conventional plan, the one that streams, and those for budgets up to all resident.

    Sealed files go to ``folder``. Each plan is run for about ``plain_seconds``, if given.
    """
    progress("compiling", 0.0)
    plans = _plans(lower(simplify(importer.load(model, shapes))), threads)
    key = secrets.token_bytes(32)
    done: list[Prepared] = []
    for index, (policy, budget, plan) in enumerate(plans):
        progress(f"plan {index + 1} of {len(plans)}", index / len(plans))
        analysis = analyse(plan, policy=policy, budget=budget, epc_size=epc_size)
        path = folder / f"{index}.vessel"
        seal(plan, key, path)
        subject = measure.Subject(
            policy=policy,
            path=path,
            key=key,
            pool_size=plan.pool_size,
            inputs=random_inputs(Port.of(read_header(path).inputs)),
            predict=_Predictor(plan).faults,
        )
        plain = None
        if plain_seconds is not None:
            plain = measure.plain(subject, threads, plain_seconds, layers=budget is None)
            analysis = _with_times(analysis, plain.microseconds)
        done.append(Prepared(plan, analysis, subject, plain))
    return done


def _plans(lowered: LoweredProgram, threads: int) -> list[tuple[Policy, int | None, Plan]]:
    streamed = make_plan(lowered, threads=threads)
    resident = make_plan(lowered, threads=threads, resident=True)
    plans: list[tuple[Policy, int | None, Plan]] = [
        ("conventional", None, make_plan(lowered, threads=threads, policy="conventional")),
        ("planned", None, streamed),
    ]
    more = resident.pool_size - streamed.pool_size
    for part in _BUDGET_PARTS if more > 0 else ():
        size = streamed.pool_size + math.ceil(part * more)
        plans.append(("planned", size, make_plan(lowered, threads=threads, memory=size)))
    return plans


def _with_times(analysis: PlanAnalysis, microseconds: Sequence[float]) -> PlanAnalysis:
    if not microseconds:
        return analysis
    pairs = zip(analysis.layers, microseconds, strict=True)
    return replace(analysis, layers=tuple(replace(row, microseconds=t) for row, t in pairs))


class _Predictor:
    """The analysis' word on a plan's faults; what is expensive is worked out when asked for."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    @cached_property
    def _pages(self) -> Array:
        pages: Array = page_trace(self._plan.program).pages
        return pages

    @cached_property
    def _distances(self) -> Array:
        return np.sort(steady_distances(self._pages))

    def faults(self, page_count: int) -> tuple[int, int]:
        """Of a steady prediction in so many pages: under LRU, under the emulator's policy."""
        if page_count * PAGE_SIZE >= self._plan.pool_size:
            return 0, 0
        hits = int(np.searchsorted(self._distances, page_count, side="right"))
        return len(self._distances) - hits, steady_faults(self._pages, page_count)[0]
