"""Plots over several networks, for an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vessels.study.drawing import DASHED, MARKERS, POLICIES, legend_below, mib_axis, new
from vessels.study.result import TenantsPoint
from vessels.study.svg import PALETTE, style
from vessels.study.wording import mib_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def network_bars(
    networks: Sequence[str],
    series: dict[str, Sequence[float | None]],
    *,
    label: str,
    text: Callable[[float], str] = mib_number,
    reference: tuple[float, str] | None = None,
    logarithmic: bool = False,
) -> Figure:
    """Bars of one or two policies for each of several networks, from top to bottom.

    ``series`` is keyed by ``conventional`` and ``planned`` (or one of them); ``None`` is a bar
    that is not there. ``reference`` is a value to draw a line at, with its name.
    """
    with style():
        figure, axes = new(0.9 + len(networks) * (0.26 + 0.2 * len(series)))
        height = 0.8 / max(1, len(series))
        for number, (name, values) in enumerate(series.items()):
            for y, value in enumerate(values):
                if value is None:
                    continue
                place = y + (number - (len(series) - 1) / 2) * height
                axes.barh(
                    place,
                    value,
                    height=0.92 * height,
                    color=PALETTE[name],
                    label=name,
                )
                axes.annotate(
                    text(value),
                    (value, place),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=9.5,
                )
        shown = [v for values in series.values() for v in values if v is not None]
        shown += [reference[0]] if reference is not None else []
        if logarithmic:
            axes.set_xlim(min(shown, default=1) / 2, max(shown, default=1) * 2)
            mib_axis(axes)
        else:
            axes.set_xlim(0, 1.15 * max(shown, default=1))
        axes.margins(y=0.02)
        axes.set_yticks(range(len(networks)), list(networks))
        axes.tick_params(axis="y", length=0, labelcolor=PALETTE["ink"])
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set_xlabel(label)
        if reference is not None:
            axes.axvline(
                reference[0], color=PALETTE["ink"], linewidth=1, linestyle=DASHED, zorder=1.5
            )
            axes.annotate(
                reference[1],
                (reference[0], 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=10,
            )
        if len(series) > 1:
            handles, labels = axes.get_legend_handles_labels()
            seen = dict(zip(labels, handles, strict=True))
            figure.legend(
                list(seen.values()), list(seen), loc="outside lower center", ncols=len(seen)
            )
        return figure


def network_scaling(networks: Sequence[tuple[str, Sequence[TenantsPoint]]]) -> Figure:
    """Throughput over tenants for several networks, each as a multiple of the planned one's
    with one tenant: small plots of one scale."""
    with style():
        columns = 2
        rows = max(1, -(-len(networks) // columns))
        figure, grid = new(
            0.8 + 1.5 * rows, nrows=rows, ncols=columns, sharex=True, sharey=True, squeeze=False
        )
        panels = list(grid.flat)
        counts = sorted({p.tenant_count for _, points in networks for p in points})
        for axes, (name, points) in zip(panels, networks, strict=False):
            base = next(
                (
                    p.predictions_per_second
                    for p in points
                    if p.policy == "planned" and p.tenant_count == min(counts)
                ),
                0.0,
            )
            for policy in POLICIES:
                own = sorted(
                    (p for p in points if p.policy == policy), key=lambda p: p.tenant_count
                )
                if base > 0:
                    axes.plot(
                        [counts.index(p.tenant_count) for p in own],
                        [p.predictions_per_second / base for p in own],
                        marker=MARKERS[policy],
                        markersize=4,
                        color=PALETTE[policy],
                        label=policy,
                    )
            axes.set_title(name)
            axes.set_xticks(range(len(counts)), [str(c) for c in counts])
        # One scale for all: it takes in every line.
        panels[0].set_ylim(bottom=0)
        for axes in panels[len(networks) :]:
            axes.set_visible(False)
        # The lowest panel of each column carries the axis.
        for axes in panels[max(0, len(networks) - columns) : len(networks)]:
            axes.tick_params(axis="x", labelbottom=True)
            axes.set_xlabel("tenants in one EPC")
        figure.supylabel(
            "throughput (planned, one tenant = 1)", fontsize=11, color=PALETTE["muted"]
        )
        if networks:
            legend_below(figure, panels[0], 2)
        return figure
