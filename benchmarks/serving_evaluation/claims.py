"""What was expected of serving, and what came: sentences and figures that the results decide."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.load.outcomes import Summary
from benchmarks.serving_evaluation.overload import Loaded, Overload
from benchmarks.serving_evaluation.result import ClosedPoint, OpenPoint
from benchmarks.serving_evaluation.systems import ADMITTED, BUSY, DOUBLE, OURS, UNADMITTED

MOST_P99 = 2.0
"""Times the p99 at 90 % that the p99 at twice the capacity may be."""
LEAST_GOODPUT = 0.95
"""Of capacity, at twice as much."""
COLLAPSED = 0.5
"""Of ours; a system that answers less is called collapsed."""


@dataclass(frozen=True)
class Verdict:
    """On overload; ``p99_ratio`` and ``goodput_share`` are what the limits are for."""

    capacity: float
    p99_ratio: float
    goodput_share: float

    @property
    def p99_kept(self) -> bool:
        return self.p99_ratio <= MOST_P99

    @property
    def goodput_kept(self) -> bool:
        return self.goodput_share >= LEAST_GOODPUT


def mean(
    points: Sequence[OpenPoint], factor: float, value: Callable[[OpenPoint], float | None]
) -> float | None:
    """Over the repeats at ``factor``; ``None`` where one has none, or there is no repeat."""
    found = [value(p) for p in points if p.factor == factor]
    known = [v for v in found if v is not None]
    return statistics.mean(known) if known and len(known) == len(found) else None


def verdict(found: Loaded) -> Verdict | None:
    """Whether the limits are kept.

    The capacity is what clients in a closed loop were answered ``beside`` the loads that limits are
    for, or what was answered at one of these if that is more: each the mean of as many turns. What
    is the most of many single points would be more by what the machine's noise is.
    """
    points = found.open
    busy = mean(points, BUSY, lambda p: p.served.p99_ms)
    double = mean(points, DOUBLE, lambda p: p.served.p99_ms)
    goodput = mean(points, DOUBLE, lambda p: p.served.goodput)
    if not busy or double is None or goodput is None:
        return None
    closed = [p.seen.per_second for p in found.beside if p.seen is not None]
    at_busy = mean(points, BUSY, lambda p: p.served.goodput) or 0.0
    most = max(statistics.mean(closed), at_busy, goodput)
    return Verdict(most, double / busy, goodput / most)


def expectations(
    clients: Sequence[ClosedPoint],
    tenants: Sequence[ClosedPoint],
    overload: Overload,
) -> str:
    """A section of the page."""
    lines = [
        *_crowds(clients, tenants),
        *_overload(overload.one),
        *_overload(overload.small),
        *_likeness("one model", overload.one.open),
        *_likeness("many models", overload.mixed),
    ]
    return "## What was expected, and what came\n\n" + "\n".join(f"- {line}" for line in lines)


def _crowds(clients: Sequence[ClosedPoint], tenants: Sequence[ClosedPoint]) -> list[str]:
    lines = []
    closed = [*clients, *tenants]
    ours = [p for p in closed if p.system == OURS.name]
    wrong = sum(p.seen.wrong for p in closed if p.seen is not None)
    answers = sum(p.seen.answers for p in closed if p.seen is not None)
    faults = max((p.faults for p in ours), default=0.0)
    none = "none" if not wrong else f"{wrong} were"
    lines.append(f"**No wrong answer**: of {answers:,} answers {none}.")
    lines.append(
        "**Ours never pages**: "
        + ("holds at every point." if faults == 0 else f"up to {faults:.1f} faults an answer.")
    )
    for what, chosen in _largest(clients, tenants):
        by_system = {p.system: p for p in chosen}
        best = by_system.get(OURS.name)
        if best is None or best.seen is None:
            continue
        rate = best.seen.per_second
        for name in (UNADMITTED.name, ADMITTED.name):
            if (other := by_system.get(name)) is not None:
                lines.append(f"**{what}, {name}**: {_against(other, rate)}.")
    return lines


def _largest(
    clients: Sequence[ClosedPoint], tenants: Sequence[ClosedPoint]
) -> list[tuple[str, list[ClosedPoint]]]:
    """The points with most clients, and those with most tenants."""
    most = max(p.clients for p in clients)
    crowded = [p for p in clients if p.clients == most]
    many = max(p.tenants for p in tenants)
    shared = [p for p in tenants if p.tenants == many]
    return [
        (f"{crowded[0].network}, {most} clients", crowded),
        (f"{many} models of {shared[0].network}", shared),
    ]


def _against(other: ClosedPoint, rate: float) -> str:
    if other.seen is None:
        return f"not served at all: {other.refusal}".rstrip(".")
    share = other.seen.per_second / rate if rate else 0.0
    text = f"{other.seen.per_second:.3g} answers a second against {rate:.3g} of ours"
    if share < COLLAPSED:
        text += f", {1 / share:.1f} times fewer" if share else ""
    elif share > 1:
        text += ", which is more"
    return f"{text}; {other.faults:,.0f} faults an answer"


def _overload(found: Loaded) -> list[str]:
    judged = verdict(found)
    if judged is None:
        return []
    network = found.open[0].network
    p99 = "kept" if judged.p99_kept else "MISSED"
    goodput = "kept" if judged.goodput_kept else "MISSED"
    return [
        f"**{network}: at twice the capacity the p99 of accepted requests is within {MOST_P99:g} "
        f"times that at 90 %**: {judged.p99_ratio:.2f} times: {p99}.",
        f"**{network}: and goodput is at least {LEAST_GOODPUT:.0%} of capacity**: "
        f"{judged.goodput_share:.1%}: {goodput}.",
    ]


def _likeness(what: str, points: Sequence[OpenPoint]) -> list[str]:
    pairs = [(p.served, p.simulated) for p in points if p.simulated is not None]
    if not pairs:
        return []

    def most(value: Callable[[Summary], float | None]) -> str:
        apart = [
            abs(mine / other - 1)
            for one, two in pairs
            if (mine := value(one)) is not None and (other := value(two))
        ]
        return f"{max(apart):.0%}" if apart else "nothing"

    return [
        f"**The served system behaves as the simulator says, {what}**: goodput is at most "
        f"{most(lambda s: s.goodput)} apart, p50 {most(lambda s: s.p50_ms)}, p99 "
        f"{most(lambda s: s.p99_ms)} (table below)."
    ]
