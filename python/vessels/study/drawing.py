"""What all plots have in common: size, axes, the line at the EPC.

A plot stays legible on a phone; a page that has room sets two beside each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vessels.study.result import Kind, Policy
from vessels.study.svg import PALETTE
from vessels.study.wording import count_text, size_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIB = 1 << 20
WIDTH, HEIGHT = 5.2, 3.5
"""Inches of one plot; its text is 11 points high."""

POLICIES: tuple[Policy, ...] = ("conventional", "planned")
MARKERS: dict[Policy, str] = {"conventional": "o", "planned": "s"}
KIND_NAMES: dict[Kind, str] = {
    "parameters": "parameters",
    "activations": "activations",
    "workspace": "workspace",
    "staging": "staging",
    "io": "input, output",
}
DASHED = (0, (4, 3))


def new(height: float = HEIGHT, **arguments: Any) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(**arguments)


def legend_below(figure: Figure, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    seen = dict(zip(labels, handles, strict=True))
    figure.legend(
        list(seen.values()),
        list(seen),
        loc="outside lower center",
        ncols=columns,
        columnspacing=1.2,
    )


def mib_axis(axes: Axes) -> None:
    """Ticks of a logarithmic axis of MiB as plain numbers: ``0.5  1  2  5  10``."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    steps = (1.0,) if high > 300 * low else (1.0, 3.0) if high > 60 * low else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def plain_log(axes: Axes) -> None:
    """Ticks of a logarithmic value axis as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    steps = (1.0,) if high > 100 * low else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda v, _: count_text(v) if v >= 1 else f"{v:g}")
    )
    axes.yaxis.set_minor_formatter(NullFormatter())


def epc_line(axes: Axes, epc_size: int, *, label: bool = True) -> None:
    x = epc_size / MIB
    axes.axvline(x, color=PALETTE["ink"], linewidth=1, linestyle=DASHED, zorder=1.5)
    if label:
        axes.annotate(
            f"EPC {size_text(epc_size)}",
            (x, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=10,
            color=PALETTE["ink"],
        )


def counts(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: count_text(v)))
