"""Throughput and latency over clients and models, and goodput and p99 over the load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving_evaluation.claims import MOST_P99, Verdict, mean
from benchmarks.serving_evaluation.result import ClosedPoint, OpenPoint
from benchmarks.serving_evaluation.systems import ADMITTED, DOUBLE, OURS, SYSTEMS, UNADMITTED
from vessels.study.drawing import DASHED, HEIGHT, WIDTH, legend_below, plain_log
from vessels.study.svg import PALETTE, save, style

_LOOKS: dict[str, dict[str, Any]] = {
    OURS.name: {"color": PALETTE["planned"], "marker": "s"},
    UNADMITTED.name: {"color": PALETTE["conventional"], "marker": "o"},
    ADMITTED.name: {"color": PALETTE["activations"], "marker": "^"},
}


def draw_closed(
    points: Sequence[ClosedPoint], over: Callable[[ClosedPoint], int], label: str, output: Path
) -> None:
    """Answers a second, and p99 with and without refusals, over ``over``."""
    from matplotlib.figure import Figure

    counts = sorted({over(p) for p in points})
    with style():
        figure = Figure(figsize=(1.8 * WIDTH, HEIGHT), layout="constrained")
        rates, times = figure.subplots(1, 2)
        for system in SYSTEMS:
            own = [
                (over(p), p.seen)
                for p in sorted(points, key=over)
                if p.system == system.name and p.seen is not None and p.seen.answers
            ]
            if not own:
                continue
            places = [counts.index(n) for n, _ in own]
            look = _LOOKS[system.name]
            rates.plot(places, [s.per_second for _, s in own], label=system.name, **look)
            times.plot(places, [s.patient_p99_ms for _, s in own], **look)
        rates.set_title("Answers a second")
        rates.set_ylim(bottom=0)
        times.set_title("p99 until the answer, refusals included, ms")
        plain_log(times)
        for axes in (rates, times):
            axes.set_xticks(range(len(counts)), [str(n) for n in counts])
            axes.set_xlabel(label)
        legend_below(figure, rates, len(SYSTEMS))
        save(figure, output)


def draw_open(points: Sequence[OpenPoint], verdict: Verdict | None, output: Path) -> None:
    """Goodput and p99 of accepted requests, served and simulated, means over repeats."""
    from matplotlib.figure import Figure

    factors = sorted({p.factor for p in points if p.factor is not None})
    with style():
        figure = Figure(figsize=(1.8 * WIDTH, HEIGHT), layout="constrained")
        goodput, p99 = figure.subplots(1, 2)
        shown: list[tuple[Any, Callable[[Any], float | None]]] = [
            (goodput, lambda s: s.goodput),
            (p99, lambda s: s.p99_ms),
        ]
        for axes, value in shown:
            simulated = [
                mean(points, f, lambda p, v=value: v(p.simulated) if p.simulated else None)  # type: ignore[misc]
                for f in factors
            ]
            axes.plot(
                factors, [_or_gap(v) for v in simulated], label="simulated",
                color=PALETTE["ink"], linestyle=DASHED, linewidth=1.2,
            )  # fmt: skip
            every = [(p.factor, value(p.served)) for p in points if p.factor is not None]
            axes.plot(
                [f for f, _ in every], [_or_gap(v) for _, v in every], label="served",
                linestyle="none", **_LOOKS[OURS.name],
            )  # fmt: skip
            axes.set_xlabel("requests, in times of the capacity")
            axes.set_xlim(left=0)
        goodput.set_title("Right answers a second")
        p99.set_title("p99 of accepted requests, ms")
        goodput.set_ylim(bottom=0)
        p99.set_ylim(bottom=0)
        at_double = mean(points, DOUBLE, lambda p: p.served.p99_ms)
        if verdict is not None and at_double is not None:
            limit = at_double / verdict.p99_ratio * MOST_P99
            p99.axhline(limit, color=PALETTE["muted"], linewidth=1, label="limit at 2.0")
        legend_below(figure, p99, 3)
        save(figure, output)


def _or_gap(value: float | None) -> float:
    return float("nan") if value is None else value
