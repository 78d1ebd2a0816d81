"""Hand-made programs: many instructions in one pool, run by an enclave process and by the
reference interpreter.

Every buffer has a place of its own, so that whatever an instruction writes besides its output
shows: all outputs are filled before, and compared as a whole.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import vessels
from tests import reference
from vessels.check import check
from vessels.pack import ConstantChunks, LayerChunks
from vessels.plan import Plan
from vessels.program import (
    Buffer,
    Chunk,
    Conv,
    Copy,
    Cut,
    Depthwise,
    DType,
    Instruction,
    Load,
    LoweredProgram,
    Map,
    MapCode,
    MapOp,
    PoolLayout,
    Port,
    Program,
    Rung,
    View,
    Winograd,
    align,
    float_bits,
    panel_widths,
)
from vessels.seal import seal

Array = np.ndarray[Any, Any]

THREADS = 3
"""Most threads of a sheet's program."""

UNTOUCHED = 7.0
"""What an output holds where nothing is written."""


def cut(instruction: Conv | Winograd | Depthwise, panels: int = 1, depth: int | None = None) -> Cut:
    """A cut of ``panels`` per chunk or, with one panel, of at most ``depth``."""
    parameters = instruction.parameters
    assert parameters is not None
    weights = parameters.weights
    if isinstance(instruction, Winograd):
        whole: int = weights.shape[2]
    elif isinstance(instruction, Depthwise):
        whole = weights.shape[0] * weights.shape[1]
    else:
        whole = int(np.prod(weights.shape[:-1]))
    depth = min(depth or whole, whole)
    groups = -(-len(panel_widths(weights.shape[-1])) // panels)
    return Cut(0, groups * -(-whole // depth), panels, depth)


@dataclass
class Sheet:
    """A program in the making; every case's output is a port named after the case."""

    feeds: dict[str, Array] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    tolerances: dict[str, float] = field(default_factory=dict)
    """By output: largest difference relative to the largest magnitude."""
    _inputs: list[Port] = field(default_factory=list)
    _outputs: list[Port] = field(default_factory=list)

    def input(self, array: Array) -> View:
        """A dense view of a new input that holds ``array``."""
        name = f"x{len(self._inputs)}"
        dtype = DType.of(array.dtype)
        view = View.dense(Buffer(name, array.nbytes, "input"), dtype, array.shape)
        self.feeds[name] = array
        self._inputs.append(Port(name, view))
        return view

    def output(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: DType = DType.F32,
        tolerance: float = 1e-5,
        filled: View | None = None,
    ) -> View:
        """A dense view of a new output that holds :data:`UNTOUCHED`, or a copy of ``filled``."""
        assert name not in self.tolerances, name
        size = int(np.prod(shape)) * dtype.size
        view = View.dense(Buffer(name, size, "output"), dtype, shape)
        self._outputs.append(Port(name, view))
        self.tolerances[name] = tolerance
        if filled is not None:
            self.add(Copy(filled, view))
        elif dtype == DType.F32:
            self.add(Map((), view, (MapOp(MapCode.CONST_F, float_bits(UNTOUCHED)),)))
        else:
            self.add(Map((), view, (MapOp(MapCode.CONST_I, int(UNTOUCHED)),)))
        return view

    def add(self, instruction: Instruction) -> None:
        """The next instruction; chunks are numbered when the sheet is sealed."""
        self.instructions.append(instruction)

    def expected(self) -> dict[str, Array]:
        """What the reference interpreter gives, by output."""
        steps = tuple(i for i in self.instructions if not isinstance(i, Load))
        program = LoweredProgram("sheet", tuple(self._inputs), tuple(self._outputs), steps)
        return reference.run(program, self.feeds)

    def plan(self) -> Plan:
        """All buffers one after the other; of every third layer the chunks are fixed."""
        offsets: dict[Buffer, int] = {}
        io_size = _place([p.view.buffer for p in (*self._inputs, *self._outputs)], offsets, 0)
        used = [v.buffer for i in self.instructions for v in (*i.reads, *i.writes)]
        used += [i.scratch.buffer for i in self.instructions if i.scratch is not None]
        arena_size = _place(used, offsets, io_size) - io_size
        sources: list[tuple[LayerChunks | ConstantChunks, int]] = []
        chunks: list[Chunk] = []
        instructions: list[Instruction] = []
        at = io_size + arena_size
        for number, instruction in enumerate(self.instructions):
            first = len(chunks)
            source: LayerChunks | ConstantChunks
            if isinstance(instruction, Load):
                data = instruction.output.buffer.data
                assert data is not None
                source = ConstantChunks.of(data, 256)
                sizes = source.chunk_sizes()
                instruction = replace(instruction, first_chunk=first, chunk_count=len(sizes))
            elif isinstance(instruction, Conv | Winograd | Depthwise):
                assert instruction.cut is not None
                source = LayerChunks.of(instruction)
                sizes = source.shape.chunk_sizes(
                    instruction.cut.panels_per_chunk, instruction.cut.depth_per_chunk
                )
                instruction = replace(instruction, cut=replace(instruction.cut, first_chunk=first))
            else:
                instructions.append(instruction)
                continue
            instructions.append(instruction)
            for index, size in enumerate(sizes):
                resident = at if number % 3 == 0 else None
                at += size if resident is not None else 0
                chunks.append(Chunk(size, resident, b""))
                sources.append((source, index))
        order = [i for i, c in enumerate(chunks) if c.resident_offset is None]
        sizes = [chunks[i].size for i in order]
        fixed_size = at - io_size - arena_size
        rungs = tuple(
            Rung(count, fixed_size + sum(sizes[:count]), max(sizes[count:], default=0))
            for count in sorted({0, len(order) // 2, len(order)})
        )
        program = Program(
            PoolLayout(io_size, arena_size, fixed_size, 0, THREADS), tuple(self._inputs),
            tuple(self._outputs), tuple(chunks), tuple(instructions), offsets, tuple(order), rungs,
        ).at(0)  # fmt: skip
        check(program)
        return Plan(
            name="sheet",
            program=program,
            activation_lower_bound=arena_size,
            scratch_size=0,
            estimated_ns=0,
            _sources=tuple(sources),
        )

    def differences(self, found: dict[str, Array], wanted: dict[str, Array]) -> list[str]:
        """A line for each output that is further off than it may be."""
        lines = []
        for name, expected in wanted.items():
            actual = found[name]
            if actual.dtype != np.float32:
                wrong = actual != expected
            else:
                with np.errstate(all="ignore"):
                    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
                    limit = self.tolerances[name] * np.nanmax(
                        np.where(np.isinf(expected), 0, abs(expected)), initial=0
                    )
                    wrong = ~(same | (abs(actual - expected) <= limit))
            if wrong.any():
                where = tuple(int(i) for i in np.argwhere(wrong)[0])
                lines.append(
                    f"{name}: {np.count_nonzero(wrong)} of {wrong.size} are wrong, "
                    f"first {where}: {actual[where]} for {expected[where]}"
                )
        return lines


def _place(buffers: list[Buffer], offsets: dict[Buffer, int], at: int) -> int:
    """Gives the buffers that have none yet a place from ``at`` on; where they end."""
    for buffer in buffers:
        if buffer not in offsets:
            offsets[buffer] = at
            at += align(buffer.size)
    return at


@dataclass(frozen=True)
class SealedSheet:
    """A sheet as a file, with its key and the reference's outputs."""

    sheet: Sheet
    path: Path
    key: bytes
    wanted: dict[str, Array]

    @classmethod
    def of(cls, sheet: Sheet, path: Path) -> SealedSheet:
        """Seals ``sheet`` to ``path``."""
        key = secrets.token_bytes(32)
        seal(sheet.plan(), key, path)
        return cls(sheet, path, key, sheet.expected())

    @contextmanager
    def enclave(self, threads: int, slots: int = 1) -> Iterator[vessels.Enclave]:
        """A process that has opened it."""
        with vessels.Enclave(self.path, key=self.key, threads=threads, slots=slots) as enclave:
            yield enclave

    def check(self, threads: int) -> None:
        """Runs it twice, since the second run finds what the first left in the pool."""
        with self.enclave(threads) as enclave:
            for _ in range(2):
                wrong = self.sheet.differences(enclave.run(self.sheet.feeds), self.wanted)
                assert not wrong, "\n".join(wrong)

    def check_batches(self, threads: int, slots: int) -> None:
        """Batches of every size give what lone runs do, to the bit, each request for itself."""
        feeds = [
            {name: np.roll(array, 7 * i) for name, array in self.sheet.feeds.items()}
            for i in range(slots)
        ]
        with self.enclave(threads) as enclave:
            alone = [_bytes(enclave.run(f)) for f in feeds]
        with self.enclave(threads, slots) as enclave:
            for count in {slots, 1 + slots // 2, 1}:
                outputs = enclave.run_batch(feeds[-count:])
                for found, wanted in zip(outputs, alone[-count:], strict=True):
                    wrong = [n for n, value in _bytes(found).items() if value != wanted[n]]
                    assert not wrong, (count, wrong)


def _bytes(outputs: dict[str, Array]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in outputs.items()}
