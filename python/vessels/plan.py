"""Plan: from a lowered program to one whose every byte has its place.

The passes in turn: :mod:`~vessels.order`, :mod:`~vessels.reuse`, :mod:`~vessels.stream`,
residency, :mod:`~vessels.place`, then :mod:`~vessels.check`. Without a budget everything streams.
Under a budget several strategies are planned and the one of least estimated cost is taken; each
strategy keeps as long a prefix of its chunks resident as fits, so more budget never costs time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vessels.check import check
from vessels.cost import CYCLES_PER_NS, decryption_cycles, instruction_cycles
from vessels.errors import BudgetError, UsageError
from vessels.order import order
from vessels.pack import Array, ConstantChunks, LayerChunks
from vessels.place import Item, Placement, place
from vessels.program import (
    Buffer,
    Chunk,
    Conv,
    Depthwise,
    DType,
    Instruction,
    Load,
    LoweredProgram,
    PoolLayout,
    Program,
    View,
    Winograd,
    align,
)
from vessels.reuse import shared_places
from vessels.stream import KIB, SMALLEST, STANDARD, Chunking, stream

MIB = 1 << 20

CONSTANT_CHUNK_SIZE = 256 * KIB
"""Most bytes of a constant that one chunk holds."""

SMALL_CONSTANT = 8 * KIB
"""A constant up to this size costs more to load in every run than to keep."""

SMALL_CONSTANTS = 1 * MIB
"""All small constants together take at most this; the rest stream."""

SCRATCH_SLACK = 3 * MIB // 2
"""Bytes by which scratch may raise the arena above its peak without scratch.

Winograd's workspaces mostly fit under that peak. The slack is for networks whose peak is below
the workspace of their 3x3 layers (AlexNet); it keeps every network in its table of the README.
"""

MAX_THREADS = 64


@dataclass(frozen=True)
class Strategy:
    """What is decided before memory is given out.

    ``scratch_slack`` is ``None`` for direct convolution throughout; ``resident_constants`` bounds
    the size of a constant that is resident from the outset, in bytes, and of all of them.
    """

    scratch_slack: int | None
    chunking: Chunking = STANDARD
    resident_constants: tuple[int, int] = (SMALL_CONSTANT, SMALL_CONSTANTS)


ALL_CONSTANTS = (1 << 60, 1 << 60)
STREAMED = Strategy(SCRATCH_SLACK)
RESIDENT = Strategy(1 << 60, resident_constants=ALL_CONSTANTS)
STRATEGIES: tuple[Strategy, ...] = (
    Strategy(None, SMALLEST, (0, 0)),
    Strategy(None),
    Strategy(0, SMALLEST, (0, 0)),
    *(
        Strategy(slack, resident_constants=constants)
        for slack in (0, SCRATCH_SLACK, 6 * MIB, 1 << 60)
        for constants in ((SMALL_CONSTANT, SMALL_CONSTANTS), ALL_CONSTANTS)
    ),
)
"""From frugal to fast; a budget chooses among them."""


@dataclass(frozen=True)
class Lifetime:
    """A buffer's rectangle in the memory map: pool bytes, instructions ``start .. stop``."""

    name: str
    kind: str
    offset: int
    size: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Plan:
    """A planned program with its parameters; chunk tags are empty until it is sealed.

    All sizes are bytes; ``staging_size`` is that of all threads; ``activation_lower_bound`` is the
    largest set of live buffers over the instructions, scratch included. ``estimated_ns`` orders
    plans of one network; it is no promise.
    """

    name: str
    program: Program
    activation_lower_bound: int
    scratch_size: int
    estimated_ns: float
    lifetimes: tuple[Lifetime, ...]
    _sources: tuple[tuple[LayerChunks | ConstantChunks, int], ...]

    def chunk(self, index: int) -> bytes:
        """The plain bytes of chunk ``index``, packed when asked for."""
        source, number = self._sources[index]
        packed: Array = source.chunk(number)
        return packed.tobytes()

    @property
    def pool_size(self) -> int:
        return self.program.layout.size

    @property
    def activation_size(self) -> int:
        return self.program.layout.arena_size

    @property
    def staging_size(self) -> int:
        return self.program.layout.staging_size * self.program.layout.thread_count

    @property
    def resident_size(self) -> int:
        return self.program.layout.resident_size

    @property
    def io_size(self) -> int:
        return self.program.layout.io_size

    @property
    def parameter_size(self) -> int:
        return sum(c.size for c in self.program.chunks)

    @property
    def chunk_count(self) -> int:
        return len(self.program.chunks)

    @property
    def instruction_count(self) -> int:
        return len(self.program.instructions)


def make_plan(
    lowered: LoweredProgram,
    *,
    memory: int | None = None,
    threads: int = 2,
    resident: bool = False,
) -> Plan:
    """Plan ``lowered`` for a pool of at most ``memory`` bytes and ``threads`` worker threads.

    Without ``memory`` all parameters stream, or none with ``resident``. The plan has been checked.
    Raises :class:`BudgetError`, naming the least possible budget.
    """
    if not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"threads must be 1 to {MAX_THREADS}, not {threads}.")
    instructions = _ordered(lowered.instructions)
    if memory is None:
        strategy = RESIDENT if resident else STREAMED
        draft = _Draft(lowered, instructions, strategy, threads)
        plan = draft.finish(len(draft.optional) if resident else 0)
    else:
        plan = _within(lowered, instructions, threads, memory)
    check(plan.program)
    return plan


def _ordered(given: tuple[Instruction, ...]) -> tuple[Instruction, ...]:
    """The better of the given order and the one found, places taken over counted."""
    found = order(given)

    def peak(instructions: tuple[Instruction, ...]) -> int:
        return max(_live_sizes(_places(instructions), len(instructions)), default=0)

    return found if peak(found) < peak(given) else given


def _within(
    lowered: LoweredProgram, instructions: tuple[Instruction, ...], threads: int, memory: int
) -> Plan:
    """The plan of least estimated cost whose pool is at most ``memory`` bytes."""
    best: tuple[tuple[float, int], _Draft, int] | None = None
    drafts: dict[tuple[object, ...], _Draft] = {}
    for strategy in STRATEGIES:
        draft = _Draft(lowered, instructions, strategy, threads)
        if draft.identity in drafts:
            continue
        drafts[draft.identity] = draft
        if draft.least_size > memory:
            continue
        count = draft.most_resident(memory)
        if count is None:
            continue
        # Of equally fast plans the one of fewer, larger chunks.
        cost = draft.cycles(count), len(draft.parts)
        if best is None or cost < best[0]:
            best = cost, draft, count
    if best is not None:
        return best[1].finish(best[2])
    smallest = min(draft.pool_size(k) for draft in drafts.values() for k in draft.resident_counts)
    raise BudgetError(
        f"a pool of {memory} bytes ({memory / MIB:.2f} MiB) is too small for {lowered.name} with "
        f"{threads} thread{'s' if threads > 1 else ''}; the smallest possible budget is "
        f"{smallest} bytes ({smallest / MIB:.2f} MiB)."
    )


@dataclass
class _Place:
    """Arena buffers that lie upon each other, and the instructions during which they live."""

    buffers: list[Buffer]
    size: int
    start: int
    stop: int


def _places(instructions: Sequence[Instruction]) -> list[_Place]:
    """The places the arena must hold, scratch included."""
    shared = shared_places(instructions)
    places: dict[Buffer, _Place] = {}
    for index, instruction in enumerate(instructions):
        views = [*instruction.reads, *instruction.writes]
        if instruction.scratch is not None:
            views.append(instruction.scratch)
        for view in views:
            buffer = view.buffer
            if buffer.kind in ("input", "output"):
                continue
            key = shared.get(buffer, buffer)
            place_ = places.setdefault(key, _Place([], 0, index, index + 1))
            if buffer not in place_.buffers:
                place_.buffers.append(buffer)
                place_.size = max(place_.size, align(buffer.size))
            place_.stop = index + 1
    return list(places.values())


def _live_sizes(places: Sequence[_Place], instruction_count: int) -> list[int]:
    """Bytes live during each instruction."""
    change = np.zeros(instruction_count + 1, np.int64)
    for p in places:
        change[p.start] += p.size
        change[p.stop] -= p.size
    return [int(s) for s in np.cumsum(change)[:-1]]


@dataclass
class _Part:
    """A chunk of the plan: where its bytes come from, and whose it is."""

    source: LayerChunks | ConstantChunks
    number: int
    size: int
    constant: Buffer | None
    """The resident constant it is a part of."""


class _Draft:
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
        places = [p for p in _places(loaded) if p.buffers[0] not in self.constants]
        live = _live_sizes(places, len(loaded))
        if strategy.scratch_slack is None:
            free = [0] * len(loaded)
        else:
            limit = max(live, default=0) + strategy.scratch_slack
            free = [limit - used for used in live]
        chosen = stream(loaded, free, thread_count=threads, chunking=strategy.chunking)
        self.parts: list[_Part] = []
        self.instructions = self._number(chosen, strategy.chunking)
        self.places = [p for p in _places(self.instructions) if p.buffers[0] not in self.constants]
        self.arena_lower_bound = max(_live_sizes(self.places, len(chosen)), default=0)
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
                self.parts += [_Part(layer, n, size, None) for n, size in enumerate(sizes)]
                done.append(numbered)
            else:
                done.append(instruction)
        return tuple(done)

    def _add_constant(self, constant: Buffer, largest: int, *, resident: bool) -> int:
        assert constant.data is not None
        source = ConstantChunks.of(constant.data, largest)
        sizes = source.chunk_sizes()
        owner = constant if resident else None
        self.parts += [_Part(source, n, size, owner) for n, size in enumerate(sizes)]
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
            self._placement = place([Item(p.size, p.start, p.stop) for p in self.places])
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

    def finish(self, resident_count: int) -> Plan:
        """The plan with the first ``resident_count`` optional chunks resident."""
        kept = [*self.fixed, *sorted(self.optional[:resident_count])]
        layout = PoolLayout(
            io_size=self.io_size,
            arena_size=self.placement.size,
            resident_size=sum(self.parts[i].size for i in kept),
            staging_size=int(self.staging_sizes[resident_count]),
            thread_count=self.threads,
        )
        offsets: dict[Buffer, int] = {}
        at = 0
        for port in (*self.lowered.inputs, *self.lowered.outputs):
            if port.view.buffer not in offsets:
                offsets[port.view.buffer] = at
                at += align(port.view.buffer.size)
        for place_, offset in zip(self.places, self.placement.offsets, strict=True):
            for buffer in place_.buffers:
                offsets[buffer] = layout.arena_offset + offset
        resident: dict[int, int] = {}
        at = layout.resident_offset
        for index in kept:
            resident[index] = at
            constant = self.parts[index].constant
            if constant is not None:
                offsets.setdefault(constant, at)
            at += self.parts[index].size
        chunks = tuple(Chunk(p.size, resident.get(i), b"") for i, p in enumerate(self.parts))
        program = Program(
            layout, self.lowered.inputs, self.lowered.outputs, chunks, self.instructions, offsets
        )
        scratch = [i.scratch.buffer.size for i in self.instructions if i.scratch is not None]
        return Plan(
            name=self.lowered.name,
            program=program,
            activation_lower_bound=self.placement.lower_bound,
            scratch_size=max(scratch, default=0),
            estimated_ns=self.cycles(resident_count) / CYCLES_PER_NS,
            lifetimes=tuple(self._lifetimes(program)),
            _sources=tuple((p.source, p.number) for p in self.parts),
        )

    def _lifetimes(self, program: Program) -> list[Lifetime]:
        """A rectangle per place; constants by their own kind, scratch as such."""
        scratch = {i.scratch.buffer for i in self.instructions if i.scratch is not None}
        found: list[Lifetime] = []
        for place_ in self.places:
            buffer = place_.buffers[0]
            kind = "scratch" if buffer in scratch else buffer.kind
            offset = program.offsets[buffer]
            name = buffer.name
            found.append(Lifetime(name, kind, offset, place_.size, place_.start, place_.stop))
        return found


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
