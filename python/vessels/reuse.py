"""Reuse: buffers that take over the place of one that dies in the same instruction.

Requires instructions in their final order; ensures that two buffers share a place only where the
instruction set allows an output to be exactly an input's view, and where nothing touches the old
buffer afterwards nor the new one before. The buffers stay two: the plan gives them one offset, so
:mod:`vessels.check` can still tell the data of the one from the other's.
"""

from __future__ import annotations

from collections.abc import Sequence

from vessels.program import Buffer, Conv, Depthwise, Instruction, Map, View, Winograd


def takeovers(instruction: Instruction) -> list[tuple[Buffer, Buffer]]:
    """Pairs ``(old, new)``: arena buffers that ``new`` may lie upon in ``instruction``.

    Whether ``old`` dies there and ``new`` begins there is for the caller to see.
    """
    if isinstance(instruction, Map):
        output = instruction.output
        readers: list[View] = [v for v in instruction.inputs if _same(v, output)]
    elif isinstance(instruction, Conv | Winograd | Depthwise) and instruction.residual is not None:
        if isinstance(instruction, Conv) and _cuts_depth(instruction):
            return []
        output = instruction.output
        readers = [v for v in (instruction.residual,) if _same(v, output)]
    else:
        return []
    pairs: dict[tuple[Buffer, Buffer], None] = {}
    for view in readers:
        others = [v for v in instruction.reads if v.buffer is view.buffer]
        # Another view of the old buffer, and a convolution's input in any case, would be
        # overwritten while it is still to be read.
        if len(others) == 1 or (isinstance(instruction, Map) and all(v == view for v in others)):
            pairs[view.buffer, output.buffer] = None
    return list(pairs)


def _cuts_depth(conv: Conv) -> bool:
    """Whether partial sums rest in the output, which then cannot hold the residual as well."""
    if conv.cut is None:
        return False
    return conv.cut.depth_per_chunk < conv.kernel[0] * conv.kernel[1] * conv.input.shape[3]


def _same(view: View, output: View) -> bool:
    """Whether both have one geometry, in two arena buffers."""
    return (
        view.buffer.kind == output.buffer.kind == "arena"
        and view.buffer is not output.buffer
        and view.offset == output.offset
        and view.shape == output.shape
        and view.strides == output.strides
        and view.dtype.size == output.dtype.size
    )


def shared_places(instructions: Sequence[Instruction]) -> dict[Buffer, Buffer]:
    """For every buffer that takes over a place, the first buffer of that place."""
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    for index, instruction in enumerate(instructions):
        for view in (*instruction.reads, *instruction.writes):
            first.setdefault(view.buffer, index)
            last[view.buffer] = index
    place: dict[Buffer, Buffer] = {}
    for index, instruction in enumerate(instructions):
        for old, new in takeovers(instruction):
            if last[old] == index and first[new] == index and new not in place:
                place[new] = place.get(old, old)
                break
    return place
