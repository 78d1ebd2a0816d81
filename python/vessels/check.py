"""Check: every rule a planned program must keep; shares no code with the planner.

``docs/format.md`` numbers the rules (V1 to V16); the enclave's validator refuses by the same ones.
Here data has an owner as well, its buffer: bytes that another buffer has overwritten while they
are still to be read are found, which no reader of the sealed program could tell. Raises
:class:`PlanError` on the first rule broken.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from vessels.check_ladder import check_ladder
from vessels.check_shapes import check_cut, check_shapes
from vessels.errors import PlanError
from vessels.program import (
    ALIGNMENT,
    MAX_RANK,
    Buffer,
    Conv,
    Depthwise,
    Instruction,
    Load,
    Map,
    Program,
    View,
    Winograd,
)

MAX_INSTRUCTIONS = 65_536
MAX_CHUNKS = 1 << 20
MAX_POOL_SIZE = 1 << 40

_NOBODY = -1
_RESIDENT = -2
_SCRATCH = -3


def check(program: Program) -> None:
    """Raise :class:`PlanError`, naming rule and instruction, unless ``program`` keeps all rules.

    Under a second for ResNet-152; takes four bytes for each four bytes of io and arena. It holds
    for every rung: only fixed chunks, which are where they are in all of them, have views.
    """
    _check_layout(program)
    _check_chunks(program)
    fixed_end = check_ladder(program)
    for index, instruction in enumerate(program.instructions):
        try:
            _check_views(program, instruction, fixed_end)
            check_shapes(instruction)
            check_cut(instruction, program.chunks, program.layout.thread_count)
        except PlanError as error:
            raise PlanError(f"instruction {index} ({instruction.mnemonic}): {error}") from None
    for port in (*program.inputs, *program.outputs):
        _check_port(program, port.name, port.view)
    _check_references(program)
    _Memory(program, fixed_end).run()


def _check_layout(program: Program) -> None:
    layout = program.layout
    sizes = (layout.io_size, layout.arena_size, layout.resident_size, layout.staging_size)
    if any(s < 0 or s % ALIGNMENT for s in sizes) or layout.thread_count < 1:
        raise PlanError(f"V2 layout: sizes {sizes} must be multiples of {ALIGNMENT}.")
    if layout.size > MAX_POOL_SIZE:
        raise PlanError(f"V2 layout: a pool of {layout.size} bytes is absurd.")
    if len(program.instructions) > MAX_INSTRUCTIONS or len(program.chunks) > MAX_CHUNKS:
        raise PlanError("V1 counts: too many instructions or chunks.")


def _check_chunks(program: Program) -> None:
    layout = program.layout
    ranges: list[tuple[int, int]] = []
    for index, chunk in enumerate(program.chunks):
        if chunk.size <= 0 or chunk.size % ALIGNMENT:
            raise PlanError(f"V3 chunk {index}: size {chunk.size} is no multiple of {ALIGNMENT}.")
        if chunk.resident_offset is None:
            if chunk.size > layout.staging_size:
                raise PlanError(f"V3 chunk {index}: {chunk.size} bytes exceed the staging buffer.")
        else:
            ranges.append((chunk.resident_offset, chunk.resident_offset + chunk.size))
            if chunk.resident_offset % ALIGNMENT:
                raise PlanError(f"V4 chunk {index}: its resident offset is not aligned.")
    at = layout.resident_offset
    for low, high in sorted(ranges):
        if low < at or high > layout.staging_offset:
            raise PlanError(f"V4 chunks: resident bytes {low}..{high} overlap or are outside.")
        at = high


def _check_views(program: Program, instruction: Instruction, fixed_end: int) -> None:
    for view in instruction.reads:
        _check_view(program, view, fixed_end, "readable")
    slot_end = program.layout.resident_offset
    for view in instruction.writes:
        _check_view(program, view, slot_end, "writable")
    if instruction.scratch is not None:
        _check_view(program, instruction.scratch, slot_end, "writable")
        if program.offsets[instruction.scratch.buffer] % ALIGNMENT:
            raise PlanError("V5 view: the workspace is not aligned.")


def _check_view(program: Program, view: View, limit: int, regions: str) -> None:
    rank = len(view.shape)
    if rank > MAX_RANK or rank != len(view.strides) or any(d < 1 for d in view.shape):
        raise PlanError(f"V5 view: shape {view.shape} with strides {view.strides} is malformed.")
    low, high = view.span()
    if low < 0 or high > view.buffer.size:
        raise PlanError(f"V5 view: bytes {low}..{high} are outside of buffer {view.buffer.name}.")
    base = program.offsets[view.buffer]
    _check_alignment(base, view)
    if base + low < 0 or base + high > limit:
        where = f"{base + low}..{base + high}"
        raise PlanError(f"V6 region: bytes {where} are outside of the {regions} regions.")
    if base + low < program.layout.slot_size < base + high:
        raise PlanError(f"V6 region: bytes {base + low}..{base + high} leave their slot.")


def _check_alignment(base: int, view: View) -> None:
    if (base + view.offset) % view.dtype.size:
        raise PlanError(f"V5 view: address {base + view.offset} is not aligned to its dtype.")


def _check_port(program: Program, name: str, view: View) -> None:
    low, high = view.span()
    base = program.offsets[view.buffer]
    _check_alignment(base, view)
    if not view.is_dense or base + low < 0 or base + high > program.layout.io_size:
        raise PlanError(f"V7 port {name}: not a dense view inside the I/O region.")


def _check_references(program: Program) -> None:
    """Every chunk is read by exactly one instruction, or is fixed."""
    seen = [0] * len(program.chunks)
    for instruction in program.instructions:
        for index in _chunks_of(instruction):
            seen[index] += 1
    optional = set(program.order)
    for index, count in enumerate(seen):
        if count > 1 or (count == 0 and index in optional):
            raise PlanError(f"V8 chunk {index} is read by {count} instructions.")


def _chunks_of(instruction: Instruction) -> range:
    if isinstance(instruction, Load):
        return range(instruction.first_chunk, instruction.first_chunk + instruction.chunk_count)
    if isinstance(instruction, Conv | Winograd | Depthwise) and instruction.cut is not None:
        cut = instruction.cut
        return range(cut.first_chunk, cut.first_chunk + cut.chunk_count)
    return range(0)


def _may_share(instruction: Instruction, read: View) -> bool:
    """Whether ``read`` may be the very view that the instruction writes."""
    if isinstance(instruction, Map):
        return True
    if isinstance(instruction, Conv):
        # Partial sums of a cut depth rest in the output.
        cut = instruction.cut
        depth = instruction.kernel[0] * instruction.kernel[1] * instruction.input.shape[3]
        whole = cut is not None and cut.depth_per_chunk == depth
        return read is instruction.residual and whole
    if isinstance(instruction, Winograd | Depthwise):
        return read is instruction.residual
    return False


class _Memory:
    """The pool as cells of the smallest element in use, each owned by a buffer."""

    def __init__(self, program: Program, fixed_end: int) -> None:
        self.program = program
        views = [v for i in program.instructions for v in (*i.reads, *i.writes)]
        views += [p.view for p in (*program.inputs, *program.outputs)]
        self.cell_size = min((v.dtype.size for v in views), default=4)
        count = fixed_end // self.cell_size
        self.owner = np.full(count, _NOBODY, np.int32)
        self.mark = np.zeros(count, np.bool_)
        self.numbers: dict[Buffer, int] = {}

    def run(self) -> None:
        """Go through the program once, as the enclave will."""
        optional = set(self.program.order)
        for index, chunk in enumerate(self.program.chunks):
            if index not in optional and chunk.resident_offset is not None:
                first = chunk.resident_offset // self.cell_size
                self.owner[first : first + chunk.size // self.cell_size] = _RESIDENT
        for port in self.program.inputs:
            self._write(port.view, self._number(port.view.buffer))
        for index, instruction in enumerate(self.program.instructions):
            where = f"instruction {index} ({instruction.mnemonic})"
            self._check_overlaps(instruction, where)
            for view in instruction.reads:
                self._check_read(view, where)
            if instruction.scratch is not None:
                self._write(instruction.scratch, _SCRATCH)
            for view in instruction.writes:
                self._write(view, self._number(view.buffer))
        for port in self.program.outputs:
            self._check_read(port.view, f"output {port.name}")

    def _number(self, buffer: Buffer) -> int:
        return self.numbers.setdefault(buffer, len(self.numbers))

    def _address(self, view: View) -> int:
        return self.program.offsets[view.buffer] + view.offset

    def _span(self, view: View) -> tuple[int, int]:
        base = self.program.offsets[view.buffer]
        low, high = view.span()
        return base + low, base + high

    def _cells(self, array: np.ndarray[Any, Any], view: View) -> np.ndarray[Any, Any]:
        """The cells of ``array`` that ``view`` covers; broadcast dimensions are taken once."""
        if view.is_dense:
            low, high = self._span(view)
            return array[low // self.cell_size : high // self.cell_size]
        each = view.dtype.size // self.cell_size
        dims = [(d, s * each) for d, s in zip(view.shape, view.strides, strict=True) if s and d > 1]
        if each > 1:
            dims.append((each, 1))
        return as_strided(
            array[self._address(view) // self.cell_size :],
            [d for d, _ in dims],
            [s * array.itemsize for _, s in dims],
        )

    def _write(self, view: View, owner: int) -> None:
        self._cells(self.owner, view)[...] = owner

    def _check_read(self, view: View, where: str) -> None:
        owners = self._cells(self.owner, view)
        low, high = self._span(view)
        if low >= self.program.layout.resident_offset:
            if not bool((owners == _RESIDENT).all()):
                raise PlanError(f"V9 unwritten: {where} reads resident bytes that no chunk fills.")
        elif not bool((owners == self._number(view.buffer)).all()):
            wrong = owners[owners != self._number(view.buffer)].flat[0]
            what = "never written" if wrong == _NOBODY else "overwritten before"
            raise PlanError(
                f"V9 unwritten: {where} reads bytes {low}..{high} of buffer {view.buffer.name}, "
                f"some of them {what}."
            )

    def _check_overlaps(self, instruction: Instruction, where: str) -> None:
        writes = list(instruction.writes)
        scratch = instruction.scratch
        for view in writes:
            if not view.is_dense and not self._is_injective(view):
                raise PlanError(f"V10 overlap: {where} writes a view that overlaps itself.")
            for read in instruction.reads:
                same = (
                    self._address(read) == self._address(view)
                    and (read.shape, read.strides) == (view.shape, view.strides)
                    and read.dtype.size == view.dtype.size
                )
                if same and _may_share(instruction, read):
                    continue
                if self._meet(view, read):
                    raise PlanError(f"V11 overlap: {where} writes over what it reads.")
        if scratch is not None:
            for view in (*instruction.reads, *writes):
                if self._meet(scratch, view):
                    raise PlanError(f"V12 overlap: {where} has its workspace over an operand.")

    def _is_injective(self, view: View) -> bool:
        """Whether no two elements share a byte: strides nest, or the marks say so."""
        reach = 0
        for step, count in sorted(
            (abs(s), d) for d, s in zip(view.shape, view.strides, strict=True) if d > 1
        ):
            if step <= reach:
                break
            reach += step * (count - 1)
        else:
            return True
        if any(s == 0 and d > 1 for d, s in zip(view.shape, view.strides, strict=True)):
            return False
        with_marks = self._cells(self.mark, view)
        with_marks[...] = True
        low, high = self._span(view)
        window = self.mark[low // self.cell_size : -(-high // self.cell_size)]
        count = int(np.count_nonzero(window))
        window[...] = False
        return count == view.count * (view.dtype.size // self.cell_size)

    def _meet(self, a: View, b: View) -> bool:
        """Whether two views share a byte, exactly."""
        a_low, a_high = self._span(a)
        b_low, b_high = self._span(b)
        if a_high <= b_low or b_high <= a_low:
            return False
        if a.is_dense and b.is_dense:
            return True
        cells = self._cells(self.mark, a)
        cells[...] = True
        meet = bool(self._cells(self.mark, b).any())
        cells[...] = False
        return meet
