"""The plan ladder: how much memory a sealed model takes at each of its rungs.

One program and one set of sealed chunks; a rung is how many of the optional chunks, in the
planner's order, are resident. The first rung streams the most, the last the least. Every figure
comes from the public header: a host needs no key to know what an environment takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vessels.errors import UsageError
from vessels.program import Rung, align, pool_size
from vessels.sealed_messages import MessageSizes

if TYPE_CHECKING:
    from vessels.header import Header

KIB, MIB = 1 << 10, 1 << 20
PAGE_SIZE = 4 * KIB

MAX_SLOTS = 64
"""Most slots of one environment."""

PROCESS_SIZE = 5 * MIB
"""What a plain enclave process holds before its first worker: code, libraries, tables, heap.

This and the two below are measured (``docs/design.md``): resident memory of the process beside pool
and messages, after three predictions, on Linux x86-64 with the release build.
"""

WORKER_SIZE = 320 * KIB
"""Stack that a worker thread has touched, and what the system keeps for the thread."""

PROGRAM_FACTOR = 8
"""Bytes of heap for each byte of the sealed program: decoded, and the encoding it came from."""


@dataclass(frozen=True)
class Ladder:
    """The rungs of a sealed model; sizes are bytes.

    ``slot_size`` is what one request in work takes (I/O and arena), ``default`` the rung of who
    names none, ``thread_count`` the most worker threads. ``message_size`` is memory for sealed
    messages that each slot takes beside the pool: nothing where they fit into its arena.
    ``program_size`` is the sealed program's.
    """

    slot_size: int
    rungs: tuple[Rung, ...]
    default: int
    thread_count: int
    message_size: int
    program_size: int

    @classmethod
    def of(cls, header: Header) -> Ladder:
        """The ladder that a public header tells."""
        memory = MessageSizes.of(header.inputs, header.outputs).memory
        # What the arena has at least: ports may share memory, then it has more.
        io_size = sum(align(p.size) for p in (*header.inputs, *header.outputs))
        return cls(
            slot_size=header.slot_size,
            rungs=header.rungs,
            default=header.rung,
            thread_count=header.thread_count,
            message_size=memory if memory > header.slot_size - io_size else 0,
            program_size=header.program_size,
        )

    def pool_size(self, rung: int | None = None, slots: int = 1, threads: int | None = None) -> int:
        """Bytes of the pool; the default rung and all threads where none are given.

        More ``threads`` than the plan has room for are as many as it has. Raises
        :class:`~vessels.errors.UsageError` for a rung, slots or threads that cannot be.
        """
        number = self.default if rung is None else rung
        if not 0 <= number < len(self.rungs):
            raise UsageError(f"rung is {number}; the model has rungs 0 to {len(self.rungs) - 1}.")
        if not 1 <= slots <= MAX_SLOTS:
            raise UsageError(f"slots is {slots}; it must be 1 to {MAX_SLOTS}.")
        if threads is not None and threads < 1:
            raise UsageError(f"threads is {threads}; it must be at least 1.")
        count = self.thread_count if threads is None else min(threads, self.thread_count)
        return pool_size(self.slot_size, self.rungs[number], slots, count)

    def environment_size(
        self, rung: int | None = None, slots: int = 1, threads: int | None = None
    ) -> int:
        """Bytes of trusted memory of a plain process: its pool, messages beside it, and an
        allowance for the process itself. Arguments and errors as :meth:`pool_size`."""
        pool = self.pool_size(rung, slots, threads)
        count = self.thread_count if threads is None else min(threads, self.thread_count)
        process = PROCESS_SIZE + count * WORKER_SIZE + PROGRAM_FACTOR * self.program_size
        return _pages(pool) + slots * _pages(self.message_size) + _pages(process)


def environment_size(header: Header, rung: int, slots: int, threads: int) -> int:
    """:meth:`Ladder.environment_size` of the model with this public header."""
    return Ladder.of(header).environment_size(rung, slots, threads)


def _pages(size: int) -> int:
    return -(-size // PAGE_SIZE) * PAGE_SIZE
