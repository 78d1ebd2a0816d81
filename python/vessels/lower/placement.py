"""Copies that need not happen: a buffer that is copied whole moves to where it is copied to.

So producers write straight into their slice of a concatenation or into an output
buffer, and concatenations that list the same parts share one buffer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vessels.lower import views
from vessels.program import Buffer, Conv, Copy, Depthwise, Instruction, Pool, View


@dataclass(frozen=True)
class _Move:
    """Element ``p`` of a buffer becomes ``p // inner * outer + p % inner + offset`` of another."""

    target: Buffer
    inner: int
    outer: int
    offset: int

    def apply(self, view: View) -> View | None:
        """The moved view; ``None`` where no strides express it."""
        start = view.offset // view.dtype.size
        strides = []
        low = high = start % self.inner
        for d, s in zip(view.shape, view.strides, strict=True):
            if d == 1 or s == 0:
                strides.append(s)
            elif s % self.inner == 0:
                strides.append(s // self.inner * self.outer)
            else:
                low += min(0, (d - 1) * s)
                high += max(0, (d - 1) * s)
                strides.append(s)
        if low < 0 or high >= self.inner:
            return None
        moved = start // self.inner * self.outer + start % self.inner + self.offset
        return replace(
            view,
            buffer=self.target,
            offset=moved * view.dtype.size,
            strides=tuple(strides),
        )


def _move(source: View, target: View) -> _Move | None:
    """The move that takes ``source`` to ``target``, two views of one shape."""
    inner, outer = source.buffer.size // source.dtype.size, 0
    for d, s, t in zip(source.shape, source.strides, target.strides, strict=True):
        if d != 1 and s != t and 0 < s < inner:
            inner, outer = s, t
    start = source.offset // source.dtype.size
    offset = target.offset // source.dtype.size - start // inner * outer - start % inner
    move = _Move(target.buffer, inner, outer, offset)
    moved = move.apply(source)
    return move if moved is not None and views.same(moved, target) else None


def place(instructions: Sequence[Instruction]) -> list[Instruction]:
    """Removes the copies that a move of a buffer makes needless; later copies come first.

    An exporter's growing concatenations list all earlier parts each time: with the
    last one settled first, the others turn out to be its prefixes.
    """
    work = _Work(instructions)
    for index in reversed(range(len(instructions))):
        instruction = work.slots[index]
        if isinstance(instruction, Copy):
            source = instruction.input
            if views.covers(source) and source.buffer.kind == "arena":
                move = _move(source, instruction.output)
                if move is not None and move.target is not source.buffer:
                    work.try_move(source.buffer, move)
    for index in reversed(range(len(instructions))):
        instruction = work.slots[index]
        if isinstance(instruction, Copy) and instruction.output.buffer.kind == "arena":
            _drop_duplicate(work, instruction.output.buffer)
    return [i for i in work.slots if i is not None]


class _Work:
    """The instructions, by position, and which of them use a buffer."""

    def __init__(self, instructions: Sequence[Instruction]) -> None:
        self.slots: list[Instruction | None] = list(instructions)
        self.users: dict[Buffer, set[int]] = defaultdict(set)
        for i, instruction in enumerate(instructions):
            for view in (*instruction.reads, *instruction.writes):
                self.users[view.buffer].add(i)

    def try_move(self, buffer: Buffer, move: _Move) -> bool:
        """Moves all views of ``buffer`` if every instruction allows it; drops idle copies."""
        changed: dict[int, Instruction] = {}
        for i in self.users[buffer]:
            instruction = self.slots[i]
            assert instruction is not None
            moved = _with_move(instruction, buffer, move)
            if moved is None:
                return False
            changed[i] = moved
        for i, instruction in changed.items():
            idle = isinstance(instruction, Copy) and views.same(
                instruction.input, instruction.output
            )
            self.slots[i] = None if idle else instruction
            if idle:
                self.users[move.target].discard(i)
            else:
                self.users[move.target].add(i)
        del self.users[buffer]
        return True


def _with_move(instruction: Instruction, buffer: Buffer, move: _Move) -> Instruction | None:
    failed = False

    def change(view: View) -> View:
        nonlocal failed
        if view.buffer is not buffer:
            return view
        moved = move.apply(view)
        failed = failed or moved is None
        return moved or view

    changed = instruction.with_views(change)
    return None if failed or not _allowed(changed) else changed


def _allowed(instruction: Instruction) -> bool:
    """Whether images still have channel stride 1."""
    if not isinstance(instruction, Conv | Depthwise | Pool):
        return True
    return all(
        v.shape[3] == 1 or v.strides[3] == 1 for v in (*instruction.reads, *instruction.writes)
    )


def _drop_duplicate(work: _Work, buffer: Buffer) -> None:
    """Where ``buffer`` holds nothing but copies of one other buffer, readers go to that one."""
    writers = []
    for i in work.users[buffer]:
        instruction = work.slots[i]
        if instruction is not None and any(v.buffer is buffer for v in instruction.writes):
            if not isinstance(instruction, Copy):
                return
            writers.append(instruction)
    if not writers or writers[0].input.buffer.kind not in ("arena", "output"):
        return
    moves = [_move(w.output, w.input) for w in writers]
    # A part of one pixel per block fits any block: take the move that explains all parts.
    for move in moves:
        if move is None or move.target is buffer:
            continue
        if all(
            (moved := move.apply(w.output)) is not None and views.same(moved, w.input)
            for w in writers
        ):
            work.try_move(buffer, move)
            return
