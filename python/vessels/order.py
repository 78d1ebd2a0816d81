"""Order: the instruction order that needs the least live memory.

Requires a valid program order; ensures an order that keeps every dependency and whose peak of
live arena bytes is never above that of the given one. A beam search over schedules: states that
have scheduled the same instructions are the same state, so the search is exact where the network
is narrow, which is nearly everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vessels.program import Buffer, Instruction, View, align
from vessels.reuse import takeovers

_WORK = 8_000
"""Expansions that bound the search: beam width times instructions."""


def order(instructions: Sequence[Instruction]) -> tuple[Instruction, ...]:
    """``instructions`` in the order found to need the least live memory.

    Deterministic; under a second for a thousand instructions.
    """
    graph = _Graph(instructions)
    given = tuple(range(len(instructions)))
    found = _search(graph, limit=peak_of(graph, given))
    return tuple(instructions[i] for i in (given if found is None else found))


def peak_size(instructions: Sequence[Instruction]) -> int:
    """Largest number of arena bytes that are live during an instruction, taken over ones once.

    Scratch and constants do not count: they are decided after the order.
    """
    graph = _Graph(instructions)
    return peak_of(graph, range(len(instructions)))


def dependencies(instructions: Sequence[Instruction]) -> list[set[int]]:
    """For each instruction those that must run before it: RAW, WAR and WAW by byte overlap."""
    before: list[set[int]] = [set() for _ in instructions]
    accesses: dict[Buffer, list[tuple[int, View, bool]]] = {}
    for index, instruction in enumerate(instructions):
        new = [(v, False) for v in instruction.reads] + [(v, True) for v in instruction.writes]
        for view, writes in new:
            for other, other_view, other_writes in accesses.get(view.buffer, ()):
                if (writes or other_writes) and other != index and overlap(view, other_view):
                    before[index].add(other)
        for view, writes in new:
            accesses.setdefault(view.buffer, []).append((index, view, writes))
    return before


def overlap(a: View, b: View) -> bool:
    """Whether two views of one buffer may share a byte; ``False`` is certain.

    Tells apart the channel slices of a concatenation, which interleave: runs of bytes that repeat
    at a common period and never meet within it.
    """
    a_low, a_high = a.span()
    b_low, b_high = b.span()
    if a_high <= b_low or b_high <= a_low:
        return False
    a_run, a_steps = _runs(a)
    b_run, b_steps = _runs(b)
    period = math.gcd(*a_steps, *b_steps)
    if period == 0:
        return True
    distance = (b_low - a_low) % period
    return distance < a_run or distance + b_run > period


def _runs(view: View) -> tuple[int, list[int]]:
    """Bytes of the view's contiguous runs, and the byte steps between them."""
    size = view.dtype.size
    run = size
    steps: list[int] = []
    dims = sorted((abs(s) * size, d) for d, s in zip(view.shape, view.strides, strict=True))
    for step, count in dims:
        if count == 1 or step == 0:
            continue
        if step == run and not steps:
            run *= count
        else:
            steps.append(step)
    return run, steps


@dataclass(frozen=True)
class _Touch:
    """An arena buffer an instruction touches: all that touch it as a bit set, and its size."""

    accesses: int
    size: int


class _Graph:
    """Dependencies and buffer uses as bit sets over instruction numbers."""

    def __init__(self, instructions: Sequence[Instruction]) -> None:
        before = dependencies(instructions)
        self.count = len(instructions)
        self.before = [sum(1 << j for j in s) for s in before]
        self.after: list[list[int]] = [[] for _ in instructions]
        for index, earlier in enumerate(before):
            for j in earlier:
                self.after[j].append(index)
        accesses: dict[Buffer, int] = {}
        for index, instruction in enumerate(instructions):
            for view in (*instruction.reads, *instruction.writes):
                if view.buffer.kind == "arena":
                    accesses[view.buffer] = accesses.get(view.buffer, 0) | 1 << index
        touch = {b: _Touch(bits, align(b.size)) for b, bits in accesses.items()}
        self.touches: list[list[_Touch]] = []
        self.takeovers: list[list[tuple[_Touch, _Touch]]] = []
        for instruction in instructions:
            views = (*instruction.reads, *instruction.writes)
            self.touches.append([touch[b] for b in {v.buffer: 0 for v in views} if b in touch])
            self.takeovers.append([(touch[a], touch[b]) for a, b in takeovers(instruction)])

    def step(self, done: int, live: int, index: int) -> tuple[int, int]:
        """Live bytes during instruction ``index`` and after it, when ``done`` have run."""
        bit = 1 << index
        during = live
        after = live
        for touch in self.touches[index]:
            if not touch.accesses & done:
                during += touch.size
                after += touch.size
            if not touch.accesses & ~(done | bit):
                after -= touch.size
        for old, new in self.takeovers[index]:
            if not old.accesses & ~(done | bit) and not new.accesses & done:
                during -= min(old.size, new.size)
                break
        return during, after


def peak_of(graph: _Graph, schedule: Sequence[int]) -> int:
    """Largest live bytes of a schedule."""
    done = live = peak = 0
    for index in schedule:
        during, live = graph.step(done, live, index)
        done |= 1 << index
        peak = max(peak, during)
    return peak


@dataclass(frozen=True)
class _State:
    """A partial schedule, as a list linked backwards."""

    peak: int
    live: int
    done: int
    ready: tuple[int, ...]
    last: int
    previous: _State | None


def _search(graph: _Graph, limit: int) -> list[int] | None:
    """A schedule whose peak is below ``limit``, the least that the beam finds, or ``None``."""
    width = max(4, min(512, _WORK // max(graph.count, 1)))
    ready = tuple(i for i in range(graph.count) if not graph.before[i])
    beam = [_State(0, 0, 0, ready, -1, None)]
    for _ in range(graph.count):
        following: dict[int, _State] = {}
        for state in beam:
            for index in state.ready:
                during, live = graph.step(state.done, state.live, index)
                peak = max(state.peak, during)
                done = state.done | 1 << index
                old = following.get(done)
                if peak >= limit or (old is not None and old.peak <= peak):
                    continue
                freed = [j for j in graph.after[index] if not graph.before[j] & ~done]
                ready = (*(i for i in state.ready if i != index), *freed)
                following[done] = _State(peak, live, done, ready, index, state)
        # Ties keep the given order as far as they can: it is the author's.
        beam = sorted(following.values(), key=lambda s: (s.peak, s.live, s.last))[:width]
        if not beam:
            return None
    schedule: list[int] = []
    end = beam[0]
    while end.previous is not None:
        schedule.append(end.last)
        end = end.previous
    return schedule[::-1]
