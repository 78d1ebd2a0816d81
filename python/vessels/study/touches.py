"""The recorder of a trace: byte ranges in the order of use become pages in the order of touch.

A kernel's model says for whole arrays of byte ranges at which *step* of its instruction each is
used; ranges of one step follow each other in the order in which they were added. Ranges of one
step that adjoin are touched in one sweep.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vessels.program import PoolLayout, Program, View
from vessels.study.result import KINDS, PAGE_SIZE

Array = np.ndarray[Any, Any]

IO, ARENA, PARAMETERS, WORKSPACE, STAGING = (
    KINDS.index(k) for k in ("io", "activations", "parameters", "workspace", "staging")
)


@dataclass(frozen=True)
class Pages:
    """Ranges of pages, ``first`` to ``last``, each with the step at which it is touched."""

    steps: Array
    first: Array
    last: Array


def page_ranges(steps: Any, starts: Any, sizes: Any) -> Pages:
    """The pages of byte ranges, all broadcast to one shape; empty ranges (size <= 0) are dropped.

    Neighbours of one step that adjoin, in order, become one.
    """
    steps, starts, sizes = np.broadcast_arrays(steps, starts, sizes)
    used = (sizes > 0).ravel()
    steps, starts, sizes = steps.ravel()[used], starts.ravel()[used], sizes.ravel()[used]
    first, last = starts // PAGE_SIZE, (starts + sizes - 1) // PAGE_SIZE
    if len(steps) == 0:
        return Pages(steps, first, last)
    apart = (steps[1:] != steps[:-1]) | (first[1:] > last[:-1] + 1) | (first[1:] < first[:-1])
    begins = np.flatnonzero(np.concatenate([[True], apart]))
    return Pages(steps[begins], first[begins], np.maximum.reduceat(last, begins))


class Touches:
    """The trace in the making.

    :meth:`add` and :meth:`add_pages` note touches of one instruction, :meth:`flush` puts all noted
    since the last one in order of their steps.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._pending: list[tuple[int, Pages]] = []
        self._pages: list[Array] = []
        self._kinds: list[Array] = []
        self._instructions: list[Array] = []

    @property
    def layout(self) -> PoolLayout:
        return self.program.layout

    def address(self, view: View) -> int:
        """Pool offset of the view's first element."""
        return self.program.offsets[view.buffer] + view.offset

    def kind_at(self, offset: int) -> int:
        """The kind of memory, as an index of ``KINDS``, of the region at a pool offset."""
        if offset < self.layout.arena_offset:
            return IO
        if offset < self.layout.resident_offset:
            return ARENA
        return PARAMETERS if offset < self.layout.staging_offset else STAGING

    def add(self, kind: int, steps: Any, starts: Any, sizes: Any) -> None:
        """``sizes`` bytes at pool offsets ``starts`` are touched at ``steps``; all broadcast."""
        self.add_pages(kind, page_ranges(steps, starts, sizes))

    def add_pages(self, kind: int, pages: Pages, later: int = 0) -> None:
        """Ranges of pages are touched ``later`` steps after their own."""
        if len(pages.steps) > 0:
            self._pending.append((kind, Pages(pages.steps + later, pages.first, pages.last)))

    def flush(self, instruction: int) -> None:
        """All touches noted become part of the trace, as those of ``instruction``."""
        if not self._pending:
            return
        steps = np.concatenate([p.steps for _, p in self._pending])
        order = np.argsort(steps, kind="stable")
        first = np.concatenate([p.first for _, p in self._pending])[order]
        last = np.concatenate([p.last for _, p in self._pending])[order]
        counts = [len(p.steps) for _, p in self._pending]
        kinds = np.repeat(np.array([k for k, _ in self._pending], np.uint8), counts)[order]
        self._pending = []
        lengths = last - first + 1
        ends = np.cumsum(lengths)
        pages = (np.arange(ends[-1]) + np.repeat(first - (ends - lengths), lengths)).astype(
            np.int32
        )
        kinds = np.repeat(kinds, lengths)
        new = np.concatenate([[True], (pages[1:] != pages[:-1]) | (kinds[1:] != kinds[:-1])])
        self._pages.append(pages[new])
        self._kinds.append(kinds[new])
        self._instructions.append(np.full(np.count_nonzero(new), instruction, np.int32))

    def finished(self) -> tuple[Array, Array, Array]:
        """Pages, instructions and kinds of all touches; none repeats the one before."""
        pages = np.concatenate([np.empty(0, np.int32), *self._pages])
        instructions = np.concatenate([np.empty(0, np.int32), *self._instructions])
        kinds = np.concatenate([np.empty(0, np.uint8), *self._kinds])
        new = np.arange(len(pages)) == 0
        for values in (pages, instructions, kinds):
            new[1:] |= values[1:] != values[:-1]
        return pages[new], instructions[new], kinds[new]
