"""The memory map of a plan: time from left to right, the pool's addresses upwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vessels.study.drawing import DASHED, KIND_NAMES, MIB, legend_below, new
from vessels.study.result import KINDS, Kind, MapBlock, PlanAnalysis, Study
from vessels.study.svg import PALETTE, style
from vessels.study.wording import size_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path as Outline

KIND_OF_BLOCK: dict[str, Kind] = {
    "resident": "parameters",
    "activation": "activations",
    "constant": "activations",
    "scratch": "workspace",
    "staging": "staging",
    "io": "io",
}
_EDGED_SHARE = 0.012
"""Blocks of more than this share of the pool get an edge."""


def memory_maps(study: Study) -> Figure:
    """Both plans' pools over time, side by side, to ONE scale of memory."""
    with style():
        figure, (left, right) = new(4.6, ncols=2, sharey=True)
        for axes, plan in ((left, study.conventional), (right, study.planned)):
            _draw_map(axes, plan)
            axes.set_title(f"{plan.policy}\n{size_text(plan.pool_size)}")
            axes.set_xlabel("instruction")
            if study.epc_size <= 1.15 * max(study.conventional.pool_size, study.planned.pool_size):
                axes.axhline(
                    study.epc_size / MIB,
                    color=PALETTE["ink"],
                    linewidth=1,
                    linestyle=DASHED,
                )
                if axes is right:
                    axes.annotate(
                        f"EPC {size_text(study.epc_size)}",
                        (1, study.epc_size / MIB),
                        xycoords=("axes fraction", "data"),
                        xytext=(0, 4),
                        textcoords="offset points",
                        ha="right",
                        fontsize=10,
                    )
        top = max(study.conventional.pool_size, study.planned.pool_size) / MIB
        if study.epc_size / MIB <= 1.15 * top:
            top = max(top, 1.05 * study.epc_size / MIB)
        left.set_ylim(0, top)
        left.set_ylabel("address in the pool (MiB)")
        right.tick_params(axis="y", length=0)
        legend_below(figure, left, 3)
        return figure


def memory_map(plan: PlanAnalysis) -> Figure:
    """One plan's pool over time, to a scale of its own."""
    with style():
        figure, axes = new(4.6)
        _draw_map(axes, plan)
        axes.set_ylim(0, max(plan.pool_size, 1) / MIB)
        axes.set_title(f"{plan.policy}, magnified\n{size_text(plan.pool_size)}")
        axes.set_xlabel("instruction")
        axes.set_ylabel("address in the pool (MiB)")
        legend_below(figure, axes, 3)
        return figure


def _draw_map(axes: Axes, plan: PlanAnalysis) -> None:
    """Allocated memory as ground, blocks in use upon it; one outline per kind keeps it small."""
    from matplotlib.patches import PathPatch, Rectangle
    from matplotlib.path import Path as Outline

    last = max((b.stop for b in plan.blocks), default=1)
    axes.add_patch(
        Rectangle((0, 0), last, plan.pool_size / MIB, facecolor=PALETTE["idle"], edgecolor="none")
    )
    outlines: dict[tuple[Kind, bool], list[Outline]] = {}
    for block in sorted(plan.blocks, key=lambda b: b.offset):
        kind = KIND_OF_BLOCK[block.kind]
        # A thin block between two lines would be all line.
        edged = block.size > _EDGED_SHARE * plan.pool_size
        outlines.setdefault((kind, edged), []).append(_outline(block))
    for kind, edged in ((k, e) for k in KINDS for e in (False, True) if (k, e) in outlines):
        axes.add_patch(
            PathPatch(
                Outline.make_compound_path(*outlines[kind, edged]),
                facecolor=PALETTE[kind],
                edgecolor=PALETTE["page"],
                linewidth=0.25 if edged else 0,
                label=KIND_NAMES[kind],
            )
        )
    axes.set_xlim(0, last)
    axes.set_xticks([0, last])
    axes.grid(False)
    axes.spines["left"].set_visible(False)


def _outline(block: MapBlock) -> Outline:
    from matplotlib.path import Path as Outline

    left, right = block.start, block.stop
    low, high = block.offset / MIB, (block.offset + block.size) / MIB
    corners = [(left, low), (right, low), (right, high), (left, high), (left, low)]
    return Outline(corners, closed=True)
