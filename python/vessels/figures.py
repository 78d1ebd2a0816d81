"""Figures and memory map of a planned program, worked out from the program alone.

The planner has figures of its own; these come from what the enclave will run, so that
``vessels inspect`` of a sealed file does not repeat what the planner believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import as_strided

from vessels.program import Instruction, Load, Program, View

Array = np.ndarray[Any, Any]

_SAMPLES_PER_AXIS = 6

BlockKind = Literal["io", "activation", "constant", "scratch", "resident", "staging"]
_MOVABLE: tuple[BlockKind, ...] = ("activation", "constant", "scratch")


@dataclass(frozen=True)
class Figures:
    """What ``vessels inspect`` prints; all sizes in bytes.

    ``activation_size`` is the arena, ``activation_lower_bound`` the largest set of live buffers
    over the instructions as ordered, scratch included: no placement of them can be smaller.
    ``staging_size`` is that of all threads together.
    """

    pool_size: int
    activation_size: int
    activation_lower_bound: int
    scratch_size: int
    staging_size: int
    resident_size: int
    io_size: int
    parameter_size: int
    chunk_count: int
    instruction_count: int
    thread_count: int

    def as_json(self) -> dict[str, int]:
        """The figures by name."""
        return asdict(self)


@dataclass(frozen=True)
class Block:
    """A rectangle of the memory map: bytes ``offset .. offset + size`` of the pool are in use
    from instruction ``start`` up to, not including, ``stop``."""

    kind: BlockKind
    name: str
    offset: int
    size: int
    start: int
    stop: int


def figures(program: Program) -> Figures:
    """All figures of ``program``; under a second for networks of a few hundred instructions."""
    layout = program.layout
    scratch = [i.scratch for i in program.instructions]
    live = live_sizes(memory_map(program), len(program.instructions))
    return Figures(
        pool_size=layout.size,
        activation_size=layout.arena_size,
        activation_lower_bound=max(live, default=0),
        scratch_size=max((v.count * v.dtype.size for v in scratch if v is not None), default=0),
        staging_size=layout.staging_size * layout.thread_count,
        resident_size=layout.resident_size,
        io_size=layout.io_size,
        parameter_size=sum(c.size for c in program.chunks),
        chunk_count=len(program.chunks),
        instruction_count=len(program.instructions),
        thread_count=layout.thread_count,
    )


def live_sizes(blocks: Sequence[Block], instruction_count: int) -> list[int]:
    """Bytes of the arena in use during each instruction.

    Blocks that lie upon each other, as an in-place result on its operand, count once.
    """
    sizes: list[int] = []
    movable = sorted((b for b in blocks if b.kind in _MOVABLE), key=lambda b: b.offset)
    for index in range(instruction_count):
        size = end = 0
        for block in movable:
            if block.start <= index < block.stop:
                stop = block.offset + block.size
                size += max(0, stop - max(end, block.offset))
                end = max(end, stop)
        sizes.append(size)
    return sizes


def memory_map(program: Program) -> list[Block]:
    """Every buffer of the pool with its lifetime, largest first.

    Buffers are told from the accesses: bytes written by an instruction live until their last
    reader; what interleaves with it at the same time (slices of a concatenation) joins it.
    """
    arena = _Arena(program)
    count = len(program.instructions)
    layout = program.layout
    resident = layout.resident_offset
    blocks = [
        Block("io", "request and response", 0, layout.io_size, 0, count),
        Block("resident", "resident parameters", resident, layout.resident_size, 0, count),
    ]
    for thread in range(layout.thread_count):
        offset = layout.staging_offset + thread * layout.staging_size
        blocks.append(
            Block("staging", f"staging of thread {thread}", offset, layout.staging_size, 0, count)
        )
    # values[w] is what the w-th write of an arena view left; 0 stands for nothing.
    values: list[_Value | None] = [None]
    writer = np.zeros(arena.cell_count, np.int32)
    for index, instruction in enumerate(program.instructions):
        for view in filter(arena.holds, instruction.reads):
            for number in np.unique(_sample(arena.cells(writer, view))):
                if (value := values[int(number)]) is not None:
                    value.stop = index + 1
        if (scratch := instruction.scratch) is not None and arena.holds(scratch):
            start, stop = arena.span(scratch)
            blocks.append(
                Block("scratch", f"{index} {instruction.mnemonic} scratch", start, stop - start,
                      index, index + 1)
            )  # fmt: skip
        for view in instruction.writes:
            if arena.holds(view):
                arena.fill(writer, view, len(values))
                values.append(_Value(instruction, index, *arena.span(view), index, index + 1))
    blocks += [
        Block("constant" if isinstance(v.instruction, Load) else "activation",
              f"{v.index} {v.instruction.mnemonic}", v.low, v.high - v.low, v.start, v.stop)
        for v in _joined([v for v in values if v is not None])
    ]  # fmt: skip
    return sorted((b for b in blocks if b.size > 0), key=lambda b: b.size, reverse=True)


@dataclass
class _Value:
    """Bytes ``low .. high`` of the pool written by one instruction, and their lifetime."""

    instruction: Instruction
    index: int
    low: int
    high: int
    start: int
    stop: int


def _joined(values: list[_Value]) -> list[_Value]:
    """Values that share bytes at the same time are parts of one buffer."""
    done: list[_Value] = []
    for value in sorted(values, key=lambda v: (v.start, v.low)):
        for other in done:
            if (
                value.start < other.stop - 1
                and value.low < other.high
                and other.low < value.high
                and other.start != value.start
            ) or (other.start == value.start and value.low < other.high and other.low < value.high):
                other.low = min(other.low, value.low)
                other.high = max(other.high, value.high)
                other.stop = max(other.stop, value.stop)
                break
        else:
            done.append(value)
    return done


def _sample(cells: Array) -> Array:
    """A few positions of every axis but the last of a view; its last axis whole.

    Slices that different instructions wrote (of a concatenation) lie along channels, which is the
    last axis: no writer that matters for a picture is missed.
    """
    cells = cells[..., 0]
    for axis, length in enumerate(cells.shape[:-1]):
        if length > _SAMPLES_PER_AXIS:
            keep = np.linspace(0, length - 1, _SAMPLES_PER_AXIS).astype(np.intp)
            cells = np.take(cells, keep, axis=axis)
    return cells


class _Arena:
    """The arena as cells of the smallest element in use, and views as arrays of cells."""

    def __init__(self, program: Program) -> None:
        views = [v for i in program.instructions for v in (*i.reads, *i.writes)]
        self.cell_size = min((v.dtype.size for v in views), default=4)
        self.program = program
        self.start = program.layout.arena_offset
        self.cell_count = program.layout.arena_size // self.cell_size

    def address(self, view: View) -> int:
        """Pool offset of the view's first element."""
        return self.program.offsets[view.buffer] + view.offset

    def span(self, view: View) -> tuple[int, int]:
        """Half-open range of pool bytes from the view's lowest to its highest."""
        low, high = view.span()
        base = self.program.offsets[view.buffer]
        return base + low, base + high

    def holds(self, view: View) -> bool:
        """Whether the view lies in the arena, not in the I/O or resident region."""
        low, high = self.span(view)
        return self.start <= low and high <= self.start + self.cell_count * self.cell_size

    def cells(self, array: Array, view: View) -> Array:
        """The cells of ``array`` that ``view`` covers; empty for a view outside the arena."""
        if not self.holds(view):
            return array[:0]
        per_element = view.dtype.size // self.cell_size
        first = (self.address(view) - self.start) // self.cell_size
        step = array.itemsize
        return as_strided(
            array[first:],
            (*view.shape, per_element),
            (*(s * per_element * step for s in view.strides), step),
        )

    def fill(self, array: Array, view: View, value: int | bool) -> None:
        """Set all cells of ``view``."""
        if view.is_dense and self.holds(view):
            low, high = self.span(view)
            array[(low - self.start) // self.cell_size : (high - self.start) // self.cell_size] = (
                value
            )
        else:
            self.cells(array, view)[...] = value
