"""Stream: the algorithm of every convolution and how its parameters are cut into chunks.

Requires the instructions in their final order and the bytes that are free at each of them; ensures
that every convolution has a cut, and that no scratch takes more than was free. Which chunks stay
resident is decided in :mod:`vessels.plan`, when the memory is known that is left for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vessels.cost import instruction_cycles
from vessels.pack import Shape
from vessels.program import (
    Buffer,
    Conv,
    Cut,
    Depthwise,
    DType,
    Instruction,
    View,
    Winograd,
    WinogradMode,
    winograd_scratch_count,
)

KIB = 1 << 10

LARGEST_CHUNK = 320 * KIB
"""A panel with all its depth is cut along the depth when it is larger."""

SHARED_CHUNK = 32 * KIB
"""Parameters of a whole layer up to this size are one chunk: every thread decrypts it, which costs
less than reading the layer's input once for each chunk."""

TILE_BLOCKS = (14, 12, 10, 8)
WINOGRAD_DEPTHS = (32, 64, 96, 128)
MIN_WINOGRAD_CHANNELS = 8
MIN_WINOGRAD_OUTPUTS = 16
MIN_WINOGRAD_IMAGE = 4


@dataclass(frozen=True)
class Chunking:
    """``target_size``: bytes a chunk of several panels or a piece of the depth should have;
    ``largest_size``: bytes it may have when that keeps a panel whole."""

    target_size: int = 160 * KIB
    largest_size: int = LARGEST_CHUNK


STANDARD = Chunking()
"""Fits an L2 cache beside what is computed with it."""

SMALLEST = Chunking(16 * KIB, 16 * KIB)
"""For the smallest possible budget: decryption in such pieces is a quarter slower."""


def stream(
    instructions: Sequence[Instruction],
    free: Sequence[int],
    *,
    thread_count: int,
    chunking: Chunking,
) -> tuple[Instruction, ...]:
    """``instructions`` with every convolution's algorithm and cut chosen.

    ``free[i]`` are the bytes that instruction ``i`` may take as scratch. Chunks are numbered from
    0 for each instruction; numbering them through is for later, as constants have chunks too.
    """
    done: list[Instruction] = []
    for instruction, room in zip(instructions, free, strict=True):
        if isinstance(instruction, Conv):
            done.append(_fastest(instruction, room, thread_count, chunking))
        elif isinstance(instruction, Depthwise):
            done.append(replace(instruction, cut=cut(instruction, thread_count, chunking)))
        else:
            done.append(instruction)
    return tuple(done)


def cut(
    instruction: Conv | Winograd | Depthwise,
    thread_count: int,
    chunking: Chunking,
    largest_depth: int | None = None,
) -> Cut:
    """How to cut an instruction's parameters: whole panels where they are small, else the depth.

    At least as many chunks as threads where there are panels enough, since work is shared by
    chunks. A :class:`Winograd` chunk is one panel at most, and ``largest_depth`` bounds its
    ``depth_per_chunk``.
    """
    shape = Shape.of(instruction)
    panel_count = len(shape.widths)
    row_size = 4 * max(shape.widths) * shape.row_count
    panel_size = 4 * max(shape.widths) + row_size * shape.depth
    if isinstance(instruction, Depthwise):
        # The kernels read all taps of a channel together.
        return _whole(shape, panel_size, thread_count, chunking)
    if panel_size <= chunking.largest_size and isinstance(instruction, Conv):
        return _whole(shape, panel_size, thread_count, chunking)
    most = min(largest_depth or shape.depth, shape.depth)
    if panel_size > chunking.largest_size:
        most = min(most, max(1, (chunking.target_size - 4 * max(shape.widths)) // row_size))
    pieces = -(-shape.depth // most)
    depth = -(-shape.depth // pieces)
    if depth > 8:
        # Whole groups of 8 keep the pieces aligned, but never more than fits.
        depth = min(-(-depth // 8) * 8, most)
    pieces = -(-shape.depth // depth)
    return Cut(0, panel_count * pieces, 1, min(depth, shape.depth))


def _whole(shape: Shape, panel_size: int, thread_count: int, chunking: Chunking) -> Cut:
    panel_count = len(shape.widths)
    if panel_count * panel_size <= min(SHARED_CHUNK, chunking.largest_size):
        return Cut(0, 1, panel_count, shape.depth)
    most = max(1, chunking.target_size // panel_size)
    count = -(-panel_count // most)
    count = min(panel_count, -(-count // thread_count) * thread_count)
    panels = -(-panel_count // count)
    return Cut(0, -(-panel_count // panels), panels, shape.depth)


def _fastest(conv: Conv, room: int, thread_count: int, chunking: Chunking) -> Instruction:
    """The candidate of least estimated cost whose scratch fits."""
    direct = replace(conv, cut=cut(conv, thread_count, chunking))
    best: Instruction = direct
    least = instruction_cycles(direct, thread_count)
    for candidate in _winograds(conv, room, thread_count, chunking):
        cycles = instruction_cycles(candidate, thread_count)
        if cycles < least:
            best, least = candidate, cycles
    return best


def _winograds(conv: Conv, room: int, thread_count: int, chunking: Chunking) -> Iterator[Winograd]:
    """All Winograd forms of ``conv`` whose workspace fits in ``room`` bytes."""
    n, height, width, out_channels = conv.output.shape
    channels = conv.input.shape[-1]
    if (
        (conv.kernel, conv.stride, conv.dilation) != ((3, 3), (1, 1), (1, 1))
        or channels < MIN_WINOGRAD_CHANNELS
        or out_channels < MIN_WINOGRAD_OUTPUTS
        or min(height, width) < MIN_WINOGRAD_IMAGE
        or conv.parameters is None
    ):
        return
    tiles = n * -(-height // 4) * -(-width // 4)
    blocks = sorted({-(-tiles // -(-tiles // block)) for block in TILE_BLOCKS}, reverse=True)
    for mode in WinogradMode:
        depths = [d for d in WINOGRAD_DEPTHS if d < channels]
        if mode == WinogradMode.PARAMETERS or channels <= WINOGRAD_DEPTHS[-1]:
            depths.append(channels)
        for depth in depths if mode == WinogradMode.INPUT else depths[-1:]:
            for block in blocks:
                candidate = Winograd(
                    input=conv.input,
                    output=conv.output,
                    residual=conv.residual,
                    padding=conv.padding,
                    activation=conv.activation,
                    residual_after=conv.residual_after,
                    mode=mode,
                    tile_block=block,
                    workspace=conv.output,
                    parameters=conv.parameters,
                )
                parts = cut(candidate, thread_count, chunking, depth)
                count = winograd_scratch_count(
                    mode, conv.output.shape, channels, parts.depth_per_chunk, block, thread_count
                )
                if count * 4 > room:
                    continue
                scratch = Buffer(f"scratch of {conv.output.buffer.name}", count * 4)
                workspace = View.dense(scratch, DType.F32, (count,))
                yield replace(candidate, workspace=workspace, cut=parts)
