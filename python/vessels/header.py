"""The public header of a sealed model: decoded, and held against its program.

Anybody may have written it. What it says is believed once the program, of which it is associated
data, has been opened and :func:`disagreement` finds none; before, a host may plan with it, so that
its numbers must at least be those of some ladder.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from itertools import pairwise
from typing import Any

import cbor2

from vessels.program import ALIGNMENT, MAX_RANK, DType, Program, Rung, pool_size

BUILD_ID_SIZE = 32
TAG_SIZE = 16
MAX_RUNGS = 64
MAX_THREADS = 256
MAX_SIZE = 1 << 40
"""Most bytes of a region, and of a pool of one slot."""


@dataclass(frozen=True)
class HeaderPort:
    """A named input or output as the public header lists it."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of its elements."""
        return self.dtype.size * math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """The public part of a sealed model.

    ``slot_size`` is what one request in work takes (I/O and arena), ``rung`` the default one of
    ``rungs``. ``program_size`` is the encrypted program's, which stands before the header.
    """

    build_id: bytes
    key_check: bytes
    slot_size: int
    rungs: tuple[Rung, ...]
    rung: int
    thread_count: int
    inputs: tuple[HeaderPort, ...]
    outputs: tuple[HeaderPort, ...]
    program_size: int = 0

    @property
    def pool_size(self) -> int:
        """Bytes of the pool at the default rung, for one slot and all threads."""
        return pool_size(self.slot_size, self.rungs[self.rung], 1, self.thread_count)

    def encoded(self) -> bytes:
        """The header's CBOR."""
        inputs, outputs = (
            [[p.name, int(p.dtype), list(p.shape)] for p in ports]
            for ports in (self.inputs, self.outputs)
        )
        rungs = [list(astuple(r)) for r in self.rungs]
        return cbor2.dumps(
            [
                self.build_id, self.key_check, self.slot_size, rungs, self.rung,
                self.thread_count, inputs, outputs,
            ],
            canonical=True,
        )  # fmt: skip


def decode_header(fields: Any, program_size: int) -> Header:
    """The header of decoded CBOR; raises anything when ``fields`` are none."""
    build_id, key_check, slot_size, rungs, rung, thread_count, inputs, outputs = fields
    if (type(build_id), len(build_id)) != (bytes, BUILD_ID_SIZE):
        raise ValueError("build_id")
    if (type(key_check), len(key_check)) != (bytes, TAG_SIZE):
        raise ValueError("key_check")
    listed = tuple(Rung(*r) for r in rungs)
    numbers = (slot_size, rung, thread_count, *(n for r in listed for n in astuple(r)))
    if any(type(n) is not int or not 0 <= n < 1 << 64 for n in numbers):
        raise ValueError("numbers")
    return Header(
        build_id, key_check, slot_size, listed, rung, thread_count,
        _ports(inputs), _ports(outputs), program_size,
    )  # fmt: skip


def _ports(fields: Any) -> tuple[HeaderPort, ...]:
    ports: list[HeaderPort] = []
    for name, dtype, shape in fields:
        if type(name) is not str or len(shape) > MAX_RANK:
            raise ValueError("port")
        if any(type(d) is not int or not 1 <= d < 1 << 32 for d in shape):
            raise ValueError("shape")
        ports.append(HeaderPort(name, DType(dtype), tuple(shape)))
    if len({p.name for p in ports}) != len(ports):
        raise ValueError("two ports of one name")
    return tuple(ports)


def ladder_problem(header: Header) -> str | None:
    """What keeps the header's rungs from being a ladder, whatever the program (rule S13)."""
    if not 1 <= len(header.rungs) <= MAX_RUNGS:
        return f"it has {len(header.rungs)} rungs; a model has 1 to {MAX_RUNGS}"
    if header.rung >= len(header.rungs):
        return f"its default rung, {header.rung}, is none of its {len(header.rungs)}"
    if not 1 <= header.thread_count <= MAX_THREADS:
        return f"it has {header.thread_count} threads; a model has 1 to {MAX_THREADS}"
    counts = [r.resident_count for r in header.rungs]
    if any(a >= b for a, b in pairwise(counts)):
        return "its rungs do not ascend"
    sizes = [header.slot_size]
    sizes += [size for r in header.rungs for size in (r.resident_size, r.staging_size)]
    if any(size % ALIGNMENT for size in sizes):
        return f"a region's size is no multiple of {ALIGNMENT}"
    pools = (pool_size(header.slot_size, r, 1, header.thread_count) for r in header.rungs)
    if any(size > MAX_SIZE for size in (*sizes, *pools)):
        return "a region or a pool is absurdly large"
    return None


def disagreement(header: Header, program: Program) -> str | None:
    """In what header and program differ (rule S10), or ``None``; the program is at no rung."""
    layout = program.layout
    if layout.slot_size != header.slot_size or layout.thread_count != header.thread_count:
        return "slot size or threads"
    sizes = [program.chunks[i].size for i in program.order]
    for number, rung in enumerate(header.rungs):
        kept, streamed = sizes[: rung.resident_count], sizes[rung.resident_count :]
        due = Rung(len(kept), program.fixed_size + sum(kept), max(streamed, default=0))
        if rung != due:
            return f"rung {number}"
    for ports, listed in ((program.inputs, header.inputs), (program.outputs, header.outputs)):
        if [(p.view.dtype, p.view.shape) for p in ports] != [(p.dtype, p.shape) for p in listed]:
            return "inputs or outputs"
    return None
