"""The memory map as a picture: time from left to right, pool addresses upwards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vessels.errors import UsageError
from vessels.figures import Block, BlockKind, figures, memory_map
from vessels.files import write_whole
from vessels.program import Program

_MIB = 1 << 20

_COLOURS: dict[BlockKind, str] = {
    "io": "#8c8c8c",
    "activation": "#4c86c6",
    "scratch": "#e8a33d",
    "constant": "#7b5ea7",
    "resident": "#5aa469",
    "staging": "#c9504c",
}
_LABELS: dict[BlockKind, str] = {
    "io": "request and response",
    "activation": "activations",
    "scratch": "scratch (Winograd)",
    "constant": "constants",
    "resident": "resident parameters",
    "staging": "staging (parameter chunks in flight)",
}
_MAX_LABELS = 16


def draw(program: Program, output: Path, *, title: str) -> None:
    """Draw the memory map of ``program`` to ``output`` (SVG or PNG by its suffix).

    Raises :class:`~vessels.errors.UsageError` for another suffix and
    :class:`~vessels.errors.OutputError`.
    """
    if output.suffix.lower() not in (".svg", ".png"):
        raise UsageError(f"cannot tell the format of {output}: name it .svg or .png.")
    # Drawing is rare and importing the library takes half a second.
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    blocks = memory_map(program)
    sizes = figures(program)
    count = len(program.instructions)
    # Text stays text, and equal plans give equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vessels"}):
        figure = Figure(figsize=(11, 6), layout="constrained", facecolor="white")
        axes = figure.add_subplot(facecolor="#fafafa")
        for block in blocks:
            axes.add_patch(
                Rectangle(
                    (block.start, block.offset / _MIB),
                    block.stop - block.start,
                    block.size / _MIB,
                    facecolor=_COLOURS[block.kind],
                    edgecolor="white",
                    linewidth=0.4,
                )
            )
        for block, upright in _labelled(blocks, count, sizes.pool_size):
            axes.text(
                (block.start + block.stop) / 2,
                (block.offset + block.size / 2) / _MIB,
                f"{block.name}\n{block.size / _MIB:.2f} MiB",
                ha="center",
                va="center",
                fontsize=7,
                color="white",
                rotation="vertical" if upright else "horizontal",
            )
        axes.set_xlim(0, max(count, 1))
        axes.set_ylim(0, sizes.pool_size / _MIB)
        axes.set_xlabel("instruction")
        axes.set_ylabel("pool address (MiB)")
        axes.set_title(
            f"{title}: {sizes.parameter_size / _MIB:.1f} MiB of parameters, "
            f"{count} instructions, one pool of {sizes.pool_size / _MIB:.2f} MiB"
        )
        kinds = [k for k in _COLOURS if any(b.kind == k for b in blocks)]
        figure.legend(
            handles=[Patch(color=_COLOURS[k], label=_LABELS[k]) for k in kinds],
            loc="outside lower center",
            ncols=len(kinds),
            frameon=False,
            fontsize=8,
        )
        metadata = {"Date": None} if output.suffix.lower() == ".svg" else None
        write_whole(output, lambda path: figure.savefig(path, dpi=150, metadata=metadata))


def _labelled(blocks: Sequence[Block], count: int, pool_size: int) -> list[tuple[Block, bool]]:
    """The largest blocks with room for two short lines of text, and whether it runs upwards."""
    roomy: list[tuple[Block, bool]] = []
    for block in blocks:
        width, height = (block.stop - block.start) / count, block.size / pool_size
        if width >= 0.065 and height >= 0.05:
            roomy.append((block, False))
        elif width >= 0.025 and height >= 0.16:
            roomy.append((block, True))
    return roomy[:_MAX_LABELS]
