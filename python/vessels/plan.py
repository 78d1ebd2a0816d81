"""Plan: from a lowered program to one whose every byte has its place.

The passes in turn: :mod:`~vessels.order`, :mod:`~vessels.reuse`, :mod:`~vessels.stream`,
residency, :mod:`~vessels.place`, then :mod:`~vessels.check`. Without a budget everything streams.
Under a budget several strategies are planned and the one of least estimated cost is taken; each
strategy keeps as long a prefix of its chunks resident as fits, so more budget never costs time.

Every plan is a ladder (:mod:`~vessels.rungs`): what is resident beside what it was planned for is
for who runs it to choose. The conventional plan has no choice: it is one more strategy, the memory
of today's systems, to compare with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from vessels.check import check
from vessels.cost import estimated_ns
from vessels.draft import (
    MIB,
    SMALL_CONSTANT,
    SMALL_CONSTANTS,
    Draft,
    Strategy,
    arena_places,
    live_sizes,
)
from vessels.errors import BudgetError, UsageError
from vessels.order import order
from vessels.pack import Array, ConstantChunks, LayerChunks
from vessels.program import (
    Buffer,
    Chunk,
    Instruction,
    LoweredProgram,
    PoolLayout,
    Program,
    Rung,
    align,
)
from vessels.rungs import ladder_counts
from vessels.stream import SMALLEST

SCRATCH_SLACK = 3 * MIB // 2
"""Bytes by which scratch may raise the arena above its peak without scratch.

Winograd's workspaces mostly fit under that peak. The slack is for networks whose peak is below
the workspace of their 3x3 layers (AlexNet); it keeps every network in its table of the README.
"""

MAX_THREADS = 64


ALL_CONSTANTS = (1 << 60, 1 << 60)
STREAMED = Strategy(SCRATCH_SLACK)
RESIDENT = Strategy(1 << 60, resident_constants=ALL_CONSTANTS)
CONVENTIONAL = Strategy(1 << 60, resident_constants=ALL_CONSTANTS, reuse=False)
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

Policy = Literal["planned", "conventional"]
"""``planned``: memory is reused, in the order that needs the least of it. ``conventional``: all
parameters resident, every tensor and workspace in memory of its own, in the given order."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A planned program with its parameters; chunk tags are empty until it is sealed.

    All figures are those of the program's rung, the default one of its ladder. All sizes are
    bytes; ``staging_size`` is that of all threads; ``activation_lower_bound`` is the largest set of
    live buffers over the instructions, scratch included. ``estimated_ns`` orders plans of one
    network; it is no promise.
    """

    name: str
    program: Program
    activation_lower_bound: int
    scratch_size: int
    estimated_ns: float
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
    policy: Policy = "planned",
) -> Plan:
    """Plan ``lowered`` for a pool of at most ``memory`` bytes and ``threads`` worker threads.

    Without ``memory`` all parameters stream, or none with ``resident``. The ``conventional`` plan
    keeps all of them resident and takes no budget. The plan has been checked. Raises
    :class:`BudgetError`, naming the least possible budget, and :class:`UsageError`.
    """
    if not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"threads must be 1 to {MAX_THREADS}, not {threads}.")
    if policy == "conventional":
        if memory is not None:
            raise UsageError("a conventional plan takes what it takes: it has no memory budget.")
        plan = _whole(lowered, lowered.instructions, CONVENTIONAL, threads, ladder=False)
    elif policy != "planned":
        raise UsageError(f"policy is {policy!r}; it must be planned or conventional.")
    else:
        instructions = _ordered(lowered.instructions)
        if memory is not None:
            plan = _within(lowered, instructions, threads, memory)
        elif resident:
            plan = _whole(lowered, instructions, RESIDENT, threads)
        else:
            plan = _finished(Draft(lowered, instructions, STREAMED, threads), 0)
    check(plan.program)
    return plan


def _ordered(given: tuple[Instruction, ...]) -> tuple[Instruction, ...]:
    """The better of the given order and the one found, places taken over counted."""
    found = order(given)

    def peak(instructions: tuple[Instruction, ...]) -> int:
        return max(live_sizes(arena_places(instructions), len(instructions)), default=0)

    return found if peak(found) < peak(given) else given


def _within(
    lowered: LoweredProgram, instructions: tuple[Instruction, ...], threads: int, memory: int
) -> Plan:
    """The plan of least estimated cost whose pool is at most ``memory`` bytes."""
    best: tuple[tuple[float, int], Draft, int] | None = None
    drafts: dict[tuple[object, ...], Draft] = {}
    for strategy in STRATEGIES:
        draft = Draft(lowered, instructions, strategy, threads)
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
        return _finished(best[1], best[2])
    smallest = min(draft.pool_size(k) for draft in drafts.values() for k in draft.resident_counts)
    raise BudgetError(
        f"a pool of {memory} bytes ({memory / MIB:.2f} MiB) is too small for {lowered.name} with "
        f"{threads} thread{'s' if threads > 1 else ''}; the smallest possible budget is "
        f"{smallest} bytes ({smallest / MIB:.2f} MiB)."
    )


def _whole(
    lowered: LoweredProgram,
    instructions: tuple[Instruction, ...],
    strategy: Strategy,
    threads: int,
    *,
    ladder: bool = True,
) -> Plan:
    """The plan of ``strategy`` with every chunk resident."""
    draft = Draft(lowered, instructions, strategy, threads)
    return _finished(draft, len(draft.optional), ladder=ladder)


def _finished(draft: Draft, resident_count: int, *, ladder: bool = True) -> Plan:
    """The plan of ``draft`` with the first ``resident_count`` optional chunks resident.

    Without ``ladder`` it has no other rung, and they lie in the order of their use.
    """
    counts = ladder_counts(draft.kept_sizes, resident_count) if ladder else [resident_count]
    rungs = tuple(
        Rung(k, draft.fixed_size + int(draft.kept_sizes[k]), int(draft.staging_sizes[k]))
        for k in counts
    )
    # Laid out with no optional chunk; `at` places those of a rung.
    layout = PoolLayout(
        io_size=draft.io_size,
        arena_size=draft.placement.size,
        resident_size=draft.fixed_size,
        staging_size=0,
        thread_count=draft.threads,
    )
    offsets: dict[Buffer, int] = {}
    at = 0
    for port in (*draft.lowered.inputs, *draft.lowered.outputs):
        if port.view.buffer not in offsets:
            offsets[port.view.buffer] = at
            at += align(port.view.buffer.size)
    for place_, offset in zip(draft.places, draft.placement.offsets, strict=True):
        for buffer in place_.buffers:
            offsets[buffer] = layout.arena_offset + offset
    chunks = [Chunk(p.size, None, b"") for p in draft.parts]
    at = layout.resident_offset
    for index in draft.fixed:
        chunks[index] = replace(chunks[index], resident_offset=at)
        constant = draft.parts[index].constant
        assert constant is not None
        offsets.setdefault(constant, at)
        at += chunks[index].size
    program = Program(
        layout, draft.lowered.inputs, draft.lowered.outputs, tuple(chunks), draft.instructions,
        offsets, tuple(draft.optional if ladder else sorted(draft.optional)), rungs,
    ).at(counts.index(resident_count))  # fmt: skip
    scratch = [i.scratch.buffer.size for i in draft.instructions if i.scratch is not None]
    return Plan(
        name=draft.lowered.name,
        program=program,
        activation_lower_bound=draft.placement.lower_bound,
        scratch_size=max(scratch, default=0),
        estimated_ns=estimated_ns(program),
        _sources=tuple((p.source, p.number) for p in draft.parts),
    )
