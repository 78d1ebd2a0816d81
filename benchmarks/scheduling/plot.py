"""Goodput, p99 and the worst-off model of all policies over the load, one plot a scenario."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.scheduling.run import BOUND, Row
from benchmarks.scheduling.scenarios import POLICIES, SCENARIOS
from vessels.study.drawing import DASHED, HEIGHT, WIDTH, legend_below, plain_log
from vessels.study.svg import PALETTE, save, style

_LOOKS: dict[str, dict[str, Any]] = {
    "first come": {"color": PALETTE["conventional"], "marker": "o"},
    "first come, punctual": {"color": PALETTE["activations"], "marker": "v"},
    "static, punctual": {"color": PALETTE["staging"], "marker": "^"},
    "ours": {"color": PALETTE["planned"], "marker": "s"},
    BOUND: {"color": PALETTE["ink"], "linestyle": DASHED, "linewidth": 1.2},
}


def draw(rows: Sequence[Row], scenario: str, output: Path) -> None:
    from matplotlib.figure import Figure

    title = next(s.title for s in SCENARIOS if s.name == scenario)
    with style():
        figure = Figure(figsize=(2.4 * WIDTH, HEIGHT), layout="constrained")
        goodput, p99, worst = figure.subplots(1, 3)
        for policy in (*POLICIES, BOUND):
            points = [r for r in rows if r.scenario == scenario and r.policy == policy]
            loads = [r.load for r in points]
            goodput.plot(loads, [r.goodput for r in points], label=policy, **_LOOKS[policy])
            if policy != BOUND:
                p99.plot(loads, [r.p99_ms for r in points], **_LOOKS[policy])
                worst.plot(loads, [100 * (r.worst or 0.0) for r in points], **_LOOKS[policy])
        figure.suptitle(title, fontweight="bold")
        goodput.set_title("Answers in time, a second")
        goodput.set_ylim(bottom=0)
        p99.set_title("p99 of the answered, ms")
        plain_log(p99)
        worst.set_title("In time, worst model, %")
        worst.set_ylim(-3, 103)
        for axes in (goodput, p99, worst):
            axes.set_xlabel("load")
            axes.set_xlim(left=0)
        legend_below(figure, goodput, len(_LOOKS))
        save(figure, output)
