"""A strategy carried through for one network, up to the choice of what stays resident.

:mod:`vessels.plan` tries strategies and chooses; what it compares is made here: the instructions
with their chunks numbered, the places that the arena must hold, and what each number of resident
chunks takes and saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vessels.cost import decryption_cycles, instruction_cycles
from vessels.pack import ConstantChunks, LayerChunks
from vessels.place import Item, Placement, place, stack
from vessels.program import (
    Buffer,
    Conv,
    Depthwise,
    DType,
    Instruction,
    Load,
    LoweredProgram,
    View,
    Winograd,
    align,
)
from vessels.reuse import shared_places
from vessels.stream import KIB, STANDARD, Chunking, stream

MIB = 1 << 20

CONSTANT_CHUNK_SIZE = 256 * KIB
"""Most bytes of a constant that one chunk holds."""

SMALL_CONSTANT = 8 * KIB
"""A constant up to this size costs more to load in every run than to keep."""

SMALL_CONSTANTS = 1 * MIB
"""All small constants together take at most this; the rest stream."""


@dataclass(frozen=True)
class Strategy:
    """What is decided before memory is given out.

    ``scratch_slack`` is ``None`` for direct convolution throughout; ``resident_constants`` bounds
    the size of a constant that is resident from the outset, in bytes, and of all of them. Without
    ``reuse`` every buffer and every scratch has memory of its own.
    """

    scratch_slack: int | None
    chunking: Chunking = STANDARD
    resident_constants: tuple[int, int] = (SMALL_CONSTANT, SMALL_CONSTANTS)
    reuse: bool = True


@dataclass
class Place:
    """Arena buffers that lie upon each other, and the instructions during which they live."""

    buffers: list[Buffer]
    size: int
    start: int
    stop: int


def arena_places(instructions: Sequence[Instruction], *, reuse: bool = True) -> list[Place]:
    """The places the arena must hold, scratch included; without ``reuse`` no buffer takes over."""
    shared = shared_places(instructions) if reuse else {}
    places: dict[Buffer, Place] = {}
    for index, instruction in enumerate(instructions):
        views = [*instruction.reads, *instruction.writes]
        if instruction.scratch is not None:
            views.append(instruction.scratch)
        for view in views:
            buffer = view.buffer
            if buffer.kind in ("input", "output"):
                continue
            key = shared.get(buffer, buffer)
            place_ = places.setdefault(key, Place([], 0, index, index + 1))
            if buffer not in place_.buffers:
                place_.buffers.append(buffer)
                place_.size = max(place_.size, align(buffer.size))
            place_.stop = index + 1
    return list(places.values())


def live_sizes(places: Sequence[Place], instruction_count: int) -> list[int]:
    """Bytes live during each instruction."""
    change = np.zeros(instruction_count + 1, np.int64)
    for p in places:
        change[p.start] += p.size
        change[p.stop] -= p.size
    return [int(s) for s in np.cumsum(change)[:-1]]


@dataclass
class Part:
    """A chunk of the plan: where its bytes come from, and whose it is."""

    source: LayerChunks | ConstantChunks
    number: int
    size: int
    constant: Buffer | None
    """The resident constant it is a part of."""


class Draft:
    """A strategy carried through for one network, up to the choice of what is resident."""

    def __init__(
        self,
        lowered: LoweredProgram,
        instructions: tuple[Instruction, ...],
        strategy: Strategy,
        threads: int,
    ) -> None:
        self.lowered = lowered
        self.threads = threads
        self.constants = _resident_constants(instructions, strategy.resident_constants)
        loaded = _with_loads(instructions, self.constants)
        self.reuse = strategy.reuse
        live = live_sizes(self._places(loaded), len(loaded))
        if strategy.scratch_slack is None:
            free = [0] * len(loaded)
        else:
            limit = max(live, default=0) + strategy.scratch_slack
            free = [limit - used for used in live]
        chosen = stream(loaded, free, thread_count=threads, chunking=strategy.chunking)
        self.parts: list[Part] = []
        self.instructions = self._number(chosen, strategy.chunking)
        self.places = self._places(self.instructions)
        self.arena_lower_bound = max(live_sizes(self.places, len(chosen)), default=0)
        self.identity = (
            tuple((type(i), i.scratch and i.scratch.count) for i in self.instructions),
            tuple(p.size for p in self.parts),
        )
        self._placement: Placement | None = None
        self.fixed = [i for i, p in enumerate(self.parts) if p.constant is not None]
        # Largest first, so that what still streams needs less staging.
        self.optional = sorted(
            (i for i, p in enumerate(self.parts) if p.constant is None),
            key=lambda i: (-self.parts[i].size, i),
        )
        sizes = np.array([self.parts[i].size for i in self.optional], np.int64)
        self.kept_sizes = np.concatenate([[0], np.cumsum(sizes)])
        self.staging_sizes = np.concatenate([sizes, [0]])
        self.computing = sum(instruction_cycles(i, threads) for i in self.instructions)
        self.decrypting = np.array([decryption_cycles(int(s), threads) for s in sizes])

    def _places(self, instructions: Sequence[Instruction]) -> list[Place]:
        found = arena_places(instructions, reuse=self.reuse)
        return [p for p in found if p.buffers[0] not in self.constants]

    def _number(
        self, instructions: Sequence[Instruction], chunking: Chunking
    ) -> tuple[Instruction, ...]:
        """Number all chunks through: resident constants first, then in the order of use."""
        for constant in self.constants:
            self._add_constant(constant, CONSTANT_CHUNK_SIZE, resident=True)
        largest = min(CONSTANT_CHUNK_SIZE, chunking.largest_size)
        done: list[Instruction] = []
        for instruction in instructions:
            first = len(self.parts)
            if isinstance(instruction, Load):
                count = self._add_constant(instruction.output.buffer, largest, resident=False)
                done.append(replace(instruction, first_chunk=first, chunk_count=count))
            elif isinstance(instruction, Conv | Winograd | Depthwise):
                assert instruction.cut is not None
                cut = replace(instruction.cut, first_chunk=first)
                numbered = replace(instruction, cut=cut)
                layer = LayerChunks.of(numbered)
                sizes = layer.shape.chunk_sizes(cut.panels_per_chunk, cut.depth_per_chunk)
                self.parts += [Part(layer, n, size, None) for n, size in enumerate(sizes)]
                done.append(numbered)
            else:
                done.append(instruction)
        return tuple(done)

    def _add_constant(self, constant: Buffer, largest: int, *, resident: bool) -> int:
        assert constant.data is not None
        source = ConstantChunks.of(constant.data, largest)
        sizes = source.chunk_sizes()
        owner = constant if resident else None
        self.parts += [Part(source, n, size, owner) for n, size in enumerate(sizes)]
        return len(sizes)

    @property
    def io_size(self) -> int:
        """Bytes of the region that holds request and response."""
        ports = (*self.lowered.inputs, *self.lowered.outputs)
        return sum(align(b.size) for b in {p.view.buffer: 0 for p in ports})

    @property
    def fixed_size(self) -> int:
        """Bytes of the constants that are resident in any case."""
        return sum(self.parts[i].size for i in self.fixed)

    @property
    def resident_counts(self) -> range:
        """How many of the optional chunks may be resident."""
        return range(len(self.optional) + 1)

    @property
    def placement(self) -> Placement:
        """Where the arena's places lie; found once."""
        if self._placement is None:
            items = [Item(p.size, p.start, p.stop) for p in self.places]
            self._placement = place(items) if self.reuse else stack(items)
        return self._placement

    @property
    def least_size(self) -> int:
        """A bound below every pool of this draft, without placing."""
        streams = self.kept_sizes + self.staging_sizes * self.threads
        return self.io_size + self.arena_lower_bound + self.fixed_size + int(streams.min())

    def pool_size(self, resident_count: int) -> int:
        """Bytes of the pool with the first ``resident_count`` optional chunks resident."""
        kept = int(self.kept_sizes[resident_count])
        staging = int(self.staging_sizes[resident_count]) * self.threads
        return self.io_size + self.placement.size + self.fixed_size + kept + staging

    def most_resident(self, memory: int) -> int | None:
        """Most optional chunks that fit in a pool of ``memory`` bytes; ``None`` if none will."""
        fits = [k for k in self.resident_counts if self.pool_size(k) <= memory]
        return max(fits, default=None)

    def cycles(self, resident_count: int) -> float:
        """Estimated cycles of a run; decryption is what residency saves."""
        return self.computing + float(self.decrypting[resident_count:].sum())


def _resident_constants(
    instructions: Sequence[Instruction], limits: tuple[int, int]
) -> tuple[Buffer, ...]:
    """The constants to keep: smallest first, each and all together within ``limits`` bytes."""
    read = {v.buffer: 0 for i in instructions for v in i.reads if v.buffer.kind == "constant"}
    kept: list[Buffer] = []
    total = 0
    for constant in sorted(read, key=lambda b: b.size):
        total += align(constant.size)
        if constant.size > limits[0] or total > limits[1]:
            break
        kept.append(constant)
    return tuple(kept)


def _with_loads(
    instructions: Sequence[Instruction], resident: Sequence[Buffer]
) -> tuple[Instruction, ...]:
    """``instructions`` with a load of each streamed constant right before its first reader."""
    present = set(resident)
    done: list[Instruction] = []
    for instruction in instructions:
        for view in instruction.reads:
            constant = view.buffer
            if constant.kind == "constant" and constant not in present:
                present.add(constant)
                done.append(Load(View.dense(constant, DType.U8, (constant.size,)), 0, 0))
        done.append(instruction)
    return tuple(done)
