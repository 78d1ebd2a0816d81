"""Whole programs: lowered, over virtual buffers, and planned, ready to be encoded."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vessels.program.instructions import Activation, Cut, Instruction
from vessels.program.views import Buffer, View


@dataclass(frozen=True)
class Port:
    """A named input or output: a dense view of an I/O buffer."""

    name: str
    view: View


@dataclass(frozen=True)
class LoweredProgram:
    """What lowering makes and planning takes: instructions over virtual buffers."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True)
class Chunk:
    """A parameter chunk as the program lists it.

    ``resident_offset`` is its offset in the pool when it is decrypted once at
    load, ``None`` when it streams. It is that of the program's rung, and of every rung for a
    chunk that is fixed.
    """

    size: int
    resident_offset: int | None
    tag: bytes


@dataclass(frozen=True)
class Rung:
    """How much is resident: fixed chunks, and the first ``resident_count`` of the optional ones.

    ``resident_size`` is theirs together, ``staging_size`` that of one thread: the largest chunk
    that still streams.
    """

    resident_count: int
    resident_size: int
    staging_size: int


def pool_size(slot_size: int, rung: Rung, slots: int, threads: int) -> int:
    """Bytes of a pool that holds ``slots`` requests at a time and stages for ``threads``."""
    return slots * slot_size + rung.resident_size + threads * rung.staging_size


@dataclass(frozen=True)
class PoolLayout:
    """Sizes of the regions of a pool of one slot, in the order they lie in it.

    ``staging_size`` is that of one thread; the pool ends with ``thread_count`` of them.
    """

    io_size: int
    arena_size: int
    resident_size: int
    staging_size: int
    thread_count: int

    @property
    def arena_offset(self) -> int:
        return self.io_size

    @property
    def slot_size(self) -> int:
        """What one request in work takes: I/O and arena."""
        return self.io_size + self.arena_size

    @property
    def resident_offset(self) -> int:
        return self.slot_size

    @property
    def staging_offset(self) -> int:
        return self.resident_offset + self.resident_size

    @property
    def size(self) -> int:
        """The whole pool."""
        return self.staging_offset + self.staging_size * self.thread_count


@dataclass(frozen=True)
class Program:
    """A planned program, ready to be encoded: every buffer has a pool offset.

    ``order`` lists the optional chunks as the planner would have them resident, the first first;
    all others are fixed: resident in every rung, at the same place. ``layout`` and the resident
    offsets of ``chunks`` are those of ``rungs[rung]``, laid out for one slot and all threads;
    :meth:`at` gives the program at another rung. Instructions are the same at all of them.
    """

    layout: PoolLayout
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    chunks: tuple[Chunk, ...]
    instructions: tuple[Instruction, ...]
    offsets: Mapping[Buffer, int] = field(hash=False)
    order: tuple[int, ...]
    rungs: tuple[Rung, ...]
    rung: int = 0

    @property
    def fixed_size(self) -> int:
        """Bytes of the resident region that are the same in every rung."""
        optional = (self.chunks[i] for i in self.order)
        return self.layout.resident_size - sum(
            c.size for c in optional if c.resident_offset is not None
        )

    def at(self, rung: int) -> Program:
        """The program at ``rungs[rung]``: optional chunks one after the other, in ``order``."""
        chosen = self.rungs[rung]
        layout = replace(
            self.layout, resident_size=chosen.resident_size, staging_size=chosen.staging_size
        )
        chunks = list(self.chunks)
        at = layout.resident_offset + self.fixed_size
        for number, index in enumerate(self.order):
            kept = number < chosen.resident_count
            chunks[index] = replace(chunks[index], resident_offset=at if kept else None)
            at += chunks[index].size
        return replace(self, layout=layout, chunks=tuple(chunks), rung=rung)

    def encoded(self) -> list[Any]:
        """The program as nested lists of integers, bytes and ``None``, for CBOR.

        It is the same at every rung.
        """

        def view(v: View | None) -> list[Any] | None:
            if v is None:
                return None
            address = self.offsets[v.buffer] + v.offset
            return [address, int(v.dtype), list(v.shape), list(v.strides)]

        layout = self.layout
        optional = set(self.order)
        return [
            [layout.io_size, layout.arena_size, self.fixed_size, layout.thread_count],
            [view(p.view) for p in self.inputs],
            [view(p.view) for p in self.outputs],
            [
                [c.size, None if i in optional else c.resident_offset, c.tag]
                for i, c in enumerate(self.chunks)
            ],
            [[i.kind, _fields(i, view)] for i in self.instructions],
            list(self.order),
        ]


def float_bits(value: float) -> int:
    """The IEEE 754 binary32 bits of ``value``."""
    bits: int = struct.unpack("<I", struct.pack("<f", value))[0]
    return bits


def _fields(instruction: Instruction, view: Callable[[View | None], Any]) -> list[Any]:
    """An instruction's fields in declaration order; plain parameters are not encoded."""
    out: list[Any] = []
    for f in dataclasses.fields(instruction):  # type: ignore[arg-type]
        value = getattr(instruction, f.name)
        if f.name == "parameters":
            continue
        if value is None or isinstance(value, View):
            out.append(view(value))
        elif isinstance(value, Activation):
            out.append([int(value.kind), float_bits(value.a), float_bits(value.b)])
        elif isinstance(value, Cut):
            out.append(list(dataclasses.astuple(value)))
        elif isinstance(value, bool):
            out.append(value)
        elif isinstance(value, int):
            out.append(int(value))
        elif isinstance(value, float):
            out.append(float_bits(value))
        elif f.name == "inputs":
            out.append([view(v) for v in value])
        elif f.name == "ops":
            out.append([[int(op.code), op.x, op.y, op.z] for op in value])
        else:
            out.append([int(v) for v in value])
    return out
