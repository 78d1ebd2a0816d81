"""The study's plots: from plain values to figures, with nothing of the page they stand in.

Every function returns a new :class:`matplotlib.figure.Figure`, drawn in the colours of
:data:`vessels.study.svg.PALETTE`, of a size that stays legible on a phone: a page that has room
sets two beside each other. Text is never taken for mathematics, so any name may be drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vessels.study.analysis import CACHE_PAGE_COUNT
from vessels.study.distances import thinned
from vessels.study.drawing import (
    KIND_NAMES,
    MARKERS,
    MIB,
    POLICIES,
    counts,
    epc_line,
    legend_below,
    mib_axis,
    new,
    plain_log,
)
from vessels.study.maps import KIND_OF_BLOCK
from vessels.study.result import (
    KINDS,
    PAGE_SIZE,
    BudgetPoint,
    CurvePoint,
    Kind,
    LatencyPoint,
    PeerPoint,
    PlanAnalysis,
    Study,
    TenantsPoint,
)
from vessels.study.svg import PALETTE, style
from vessels.study.wording import count_text, rate_text, size_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

USE_BINS = (
    (1, 1, "once"),
    (2, 2, "twice"),
    (3, 4, "3\N{EN DASH}4"),
    (5, 16, "5\N{EN DASH}16"),
    (17, 1 << 62, "more"),
)
FIRST_BIN = CACHE_PAGE_COUNT.bit_length() - 1
"""Exponent of the least reuse distance drawn: nearer touches are one use of a page."""
_CURVE_POINTS = 240
_DASHES = ((0, (5, 1.5)), (0, (2, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (1, 1)))


def pool_parts(plan: PlanAnalysis) -> dict[Kind, int]:
    """Bytes of the pool by kind, adding up to it.

    Where activations and workspaces share their places, as in a planned pool, the shared memory
    is called activations.
    """
    sizes: dict[Kind, int] = dict.fromkeys(KINDS, 0)
    for block in plan.blocks:
        kind = KIND_OF_BLOCK[block.kind]
        if kind != "workspace" or plan.policy == "conventional":
            sizes[kind] += block.size
    sizes["activations"] = 0
    sizes["activations"] = max(0, plan.pool_size - sum(sizes.values()))
    return sizes


def allocation(study: Study) -> Figure:
    """Cause 1: what each way of allocating takes, as bars by kind, against the EPC."""
    with style():
        figure, axes = new(3.7)
        rows: list[tuple[str, dict[Kind, int] | int]] = [
            ("planned", pool_parts(study.planned)),
            ("conventional", pool_parts(study.conventional)),
            ("Darknet, by rule", study.footprint.darknet_size),
        ]
        if study.footprint.onnxruntime_size is not None:
            rows.append(("ONNX Runtime", study.footprint.onnxruntime_size))
        for y, (_, parts) in enumerate(rows):
            left = 0.0
            shares = parts.items() if isinstance(parts, dict) else [("peer", parts)]
            for kind, size in shares:
                if size:
                    axes.barh(
                        y,
                        size / MIB,
                        left=left,
                        height=0.62,
                        color=PALETTE[kind],
                        edgecolor=PALETTE["page"],
                        linewidth=0.6,
                        label=kind,
                    )
                left += size / MIB
            axes.annotate(
                size_text(left * MIB),
                (left, y),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=10,
                bbox={"facecolor": PALETTE["page"], "edgecolor": "none", "pad": 1.5},
            )
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.tick_params(axis="y", length=0, labelcolor=PALETTE["ink"])
        axes.grid(False, axis="y")
        longest = max(p if isinstance(p, int) else sum(p.values()) for _, p in rows)
        axes.set_xlim(0, max(1.25 * longest, 1.1 * study.epc_size) / MIB)
        axes.set_xlabel("MiB")
        epc_line(axes, study.epc_size)
        handles, labels = axes.get_legend_handles_labels()
        seen = {label: handle for handle, label in zip(handles, labels, strict=True)}
        kinds = [k for k in KINDS if k in seen]
        figure.legend(
            [seen[k] for k in kinds],
            [KIND_NAMES[k] for k in kinds],
            loc="outside lower center",
            ncols=3,
            columnspacing=1.2,
        )
        return figure


def uses(plan: PlanAnalysis) -> Figure:
    """Cause 2: how often a prediction uses each page, as shares of each kind's pages."""
    from matplotlib.patches import Patch

    with style():
        figure, axes = new(3.4)
        kinds = [r for r in reversed(plan.reuse) if sum(r.touch_counts.values())]
        for y, reuse in enumerate(kinds):
            total = sum(reuse.touch_counts.values())
            left = 0.0
            for number, (low, high, _) in enumerate(USE_BINS):
                pages = sum(c for n, c in reuse.touch_counts.items() if low <= n <= high)
                axes.barh(
                    y,
                    100 * pages / total,
                    left=left,
                    height=0.62,
                    color=PALETTE[f"used-{number + 1}"],
                    edgecolor=PALETTE["page"],
                    linewidth=0.6,
                )
                left += 100 * pages / total
            axes.annotate(
                size_text(total * PAGE_SIZE),
                (100, y),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=10,
                annotation_clip=False,
            )
        axes.set_title(plan.policy)
        axes.set_yticks(range(len(kinds)), [KIND_NAMES[r.kind] for r in kinds])
        axes.tick_params(axis="y", length=0, labelcolor=PALETTE["ink"])
        axes.grid(False, axis="y")
        axes.set_xlim(0, 122)
        axes.set_xticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
        axes.spines["bottom"].set_bounds(0, 100)
        axes.set_xlabel("share of its pages")
        figure.legend(
            [Patch(color=PALETTE[f"used-{n + 1}"]) for n in range(len(USE_BINS))],
            [name for _, _, name in USE_BINS],
            title="used in a prediction",
            title_fontsize=10.5,
            loc="outside lower center",
            ncols=len(USE_BINS),
            columnspacing=1,
        )
        return figure


def far_bins(plan: PlanAnalysis) -> dict[int, int]:
    """Touches of all kinds by the exponent of their reuse distance, from :data:`FIRST_BIN` up."""
    exponents = {b for r in plan.reuse for b in r.distances if b >= FIRST_BIN}
    return {b: sum(r.distances.get(b, 0) for r in plan.reuse) for b in sorted(exponents)}


def distances(plan: PlanAnalysis, *, pool_part: int, like: Sequence[PlanAnalysis]) -> Figure:
    """Cause 2: how much other memory is touched before a page is touched again.

    Bars are touches of one prediction by reuse distance, from :data:`FIRST_BIN` up. Beyond
    ``pool_part``, the bytes of the EPC that a pool can have, they fault. The axes are the same
    for all of ``like``.
    """
    with style():
        figure, axes = new(3.5)
        drawn = [far_bins(p) for p in like]
        last = max([pool_part // PAGE_SIZE, 2**FIRST_BIN]).bit_length() - 1
        bins = range(FIRST_BIN, max([last, *(b for d in drawn for b in d)]) + 1)
        bottom = [0.0] * len(bins)
        for kind in KINDS:
            reuse = next((r for r in plan.reuse if r.kind == kind), None)
            heights = [float(reuse.distances.get(b, 0)) if reuse else 0.0 for b in bins]
            if not any(heights):
                continue
            axes.bar(
                [2**b * PAGE_SIZE / MIB for b in bins],
                heights,
                [0.94 * 2**b * PAGE_SIZE / MIB for b in bins],
                bottom=bottom,
                align="edge",
                color=PALETTE[kind],
                label=KIND_NAMES[kind],
            )
            bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
        axes.set_xlim(*(2**b * PAGE_SIZE / MIB for b in (bins[0], bins[-1] + 1)))
        mib_axis(axes)
        counts(axes)
        axes.grid(False, axis="x")
        axes.set_xlabel("memory touched in between (MiB)")
        axes.set_ylabel("touches per prediction")
        axes.set_ylim(0, 1.05 * max((n for d in drawn for n in d.values()), default=1))
        axes.set_title(plan.policy)
        epc_line(axes, pool_part, label=False)
        axes.annotate(
            "faults →",
            (max(pool_part / MIB, axes.get_xlim()[0]), 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="left",
            fontsize=10,
            color=PALETTE["ink"],
        )
        legend_below(figure, axes, 3)
        return figure


def _plan_label(plan: PlanAnalysis) -> str:
    if plan.policy == "conventional":
        return "conventional"
    if plan.budget is None:
        return "planned, all streamed"
    return f"planned, {size_text(plan.budget)}"


def _curve_start(study: Study) -> float:
    """The smallest EPC drawn: half of what the planned pool takes, or the least measured."""
    smallest = study.planned.pool_size / 2 + study.footprint.runtime_size
    return 0.9 * min([smallest, study.epc_size, *(p.epc_size for p in study.latency)])


def _curves(
    study: Study, figure: Figure, axes: Axes, value: Callable[[PlanAnalysis, int], float]
) -> None:
    """Every plan's curve over the EPC's size, which holds the enclave's own memory too."""
    runtime = study.footprint.runtime_size
    plans = (study.conventional, study.planned, *study.budgets)
    start = _curve_start(study)
    largest = max(p.pool_size + runtime for p in plans)
    end = 1.25 * max([study.epc_size, largest, *(p.epc_size for p in study.latency)])
    highest = 0.0
    for number, plan in reversed(list(enumerate(plans))):
        points = _visible(plan, max(0, round(start - runtime) // PAGE_SIZE))
        heights = [value(plan, p.miss_count) for p in points]
        highest = max(highest, *heights)
        budget = number > 1
        axes.plot(
            [*((p.page_count * PAGE_SIZE + runtime) / MIB for p in points), end / MIB],
            [*heights, heights[-1]],
            drawstyle="steps-post",
            color=PALETTE["budget" if budget else plan.policy],
            linestyle=_DASHES[number % len(_DASHES)] if budget else "-",
            linewidth=1.4 if budget else 1.9,
            label=_plan_label(plan),
        )
    axes.set_xlim(start / MIB, end / MIB)
    axes.set_ylim(0, (1.7 if axes.get_yscale() == "symlog" else 1.08) * highest or 1)
    mib_axis(axes)
    axes.set_xlabel("EPC (MiB)")
    epc_line(axes, study.epc_size)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], loc="outside lower center", ncols=2, columnspacing=1.2
    )


def _visible(plan: PlanAnalysis, first_page: int) -> tuple[CurvePoint, ...]:
    """The curve from ``first_page`` on, with no more points than a drawing can show."""
    before = [p for p in plan.curve if p.page_count <= first_page]
    after = [p for p in plan.curve if p.page_count > first_page]
    start = CurvePoint(first_page, before[-1].miss_count if before else plan.touch_count)
    return thinned((start, *after), _CURVE_POINTS)


def miss_ratio(study: Study) -> Figure:
    """Share of a plan's page touches that miss in an LRU memory, over its size."""
    with style():
        figure, axes = new(3.9)
        _curves(study, figure, axes, lambda plan, count: 100 * count / max(1, plan.touch_count))
        axes.set_ylabel("touches that miss (%)")
        return figure


def miss_count(study: Study) -> Figure:
    """Misses per prediction over the EPC's size, with the faults that were measured upon them."""
    from matplotlib.ticker import FuncFormatter

    with style():
        figure, axes = new(3.9)
        axes.set_yscale("symlog", linthresh=10, linscale=0.5)
        for policy in POLICIES:
            points = [p for p in study.latency if p.policy == policy]
            if points:
                axes.plot(
                    [p.epc_size / MIB for p in points],
                    [p.faults for p in points],
                    MARKERS[policy],
                    markerfacecolor=PALETTE["page"],
                    markeredgecolor=PALETTE[policy],
                    markeredgewidth=1.6,
                    zorder=3,
                    clip_on=False,
                    label=f"{policy}, measured",
                )
        _curves(study, figure, axes, lambda plan, count: count)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: count_text(v)))
        axes.set_ylabel("misses per prediction")
        return figure


def latency(points: Sequence[LatencyPoint], peer: Sequence[PeerPoint], epc_size: int) -> Figure:
    """Latency over the EPC's size; bars from the least to the most that was measured."""
    with style():
        figure, axes = new(3.9)
        for policy in POLICIES:
            own = sorted((p for p in points if p.policy == policy), key=lambda p: p.epc_size)
            if own:
                axes.errorbar(
                    [p.epc_size / MIB for p in own],
                    [p.median_ms for p in own],
                    yerr=[
                        [max(0.0, p.median_ms - p.least_ms) for p in own],
                        [max(0.0, p.most_ms - p.median_ms) for p in own],
                    ],
                    marker=MARKERS[policy],
                    color=PALETTE[policy],
                    elinewidth=1,
                    label=policy,
                )
        if peer:
            ordered = sorted(peer, key=lambda p: p.limit_size)
            axes.plot(
                [p.limit_size / MIB for p in ordered],
                [p.median_ms for p in ordered],
                marker="^",
                linestyle=(0, (3, 1.5)),
                linewidth=1.4,
                color=PALETTE["peer"],
                label="ONNX Runtime, limited",
            )
        mib_axis(axes)
        plain_log(axes)
        axes.set_xlabel("EPC (MiB)")
        axes.set_ylabel("median latency (ms)")
        epc_line(axes, epc_size)
        legend_below(figure, axes, 2)
        return figure


def throughput(points: Sequence[TenantsPoint]) -> Figure:
    """Predictions a second of all tenants together, over how many share the EPC."""
    with style():
        figure, axes = new(3.6)
        values = [p.predictions_per_second for p in points]
        crowds = sorted({p.tenant_count for p in points})
        for policy in POLICIES:
            own = sorted((p for p in points if p.policy == policy), key=lambda p: p.tenant_count)
            axes.plot(
                [crowds.index(p.tenant_count) for p in own],
                [p.predictions_per_second for p in own],
                marker=MARKERS[policy],
                color=PALETTE[policy],
                label=policy,
            )
            for point in own:
                axes.annotate(
                    rate_text(point.predictions_per_second),
                    (crowds.index(point.tenant_count), point.predictions_per_second),
                    xytext=(0, -15 if _just_below(point, points) else 6),
                    textcoords="offset points",
                    ha="center",
                    fontsize=10,
                    color=PALETTE["ink"],
                )
        if min(values, default=1) > 0 and max(values, default=1) > 20 * min(values, default=1):
            plain_log(axes)
            axes.margins(y=0.15)
        else:
            axes.margins(y=0.18)
            axes.set_ylim(bottom=0)
        axes.set_xticks(range(len(crowds)), [str(c) for c in crowds])
        axes.grid(False, axis="x")
        axes.margins(x=0.1)
        axes.set_xlabel("tenants in one EPC")
        axes.set_ylabel("predictions per second")
        legend_below(figure, axes, 2)
        return figure


def _just_below(point: TenantsPoint, points: Sequence[TenantsPoint]) -> bool:
    """Whether another policy's point is so close above that the labels would meet."""
    value = point.predictions_per_second
    others = [
        p.predictions_per_second
        for p in points
        if p.policy != point.policy and p.tenant_count == point.tenant_count
    ]
    return any(value <= other < 1.6 * value for other in others)


def budget_latency(points: Sequence[BudgetPoint]) -> Figure:
    """Latency in plain memory over the pool's size: from all streamed to all resident."""
    with style():
        figure, axes = new(3.4)
        own = sorted(points, key=lambda p: p.pool_size)
        axes.plot(
            [p.pool_size / MIB for p in own],
            [p.median_ms for p in own],
            marker=MARKERS["planned"],
            color=PALETTE["planned"],
            clip_on=False,
        )
        axes.set_ylim(0, 1.2 * max(p.median_ms for p in own))
        axes.set_xlim(left=0)
        ends = ((0, "all streamed", "left", 9), (-1, "all resident", "right", -18))
        for place, words, align, above in ends:
            if len(own) > 1:
                axes.annotate(
                    words,
                    (own[place].pool_size / MIB, own[place].median_ms),
                    xytext=(0, above),
                    textcoords="offset points",
                    ha=align,
                    fontsize=10,
                )
        axes.set_xlabel("pool (MiB)")
        axes.set_ylabel("median latency (ms)")
        return figure
