"""The exact analysis of one plan: what it allocates, how it uses its pages, and what an LRU memory
of any size would miss in a steady prediction.

From the program alone; :mod:`~vessels.study.trace` says what is taken for granted. One worker
thread, predictions one after the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vessels.figures import memory_map
from vessels.plan import Plan
from vessels.program import Conv, Depthwise, Instruction, Load, Program, View, Winograd, align
from vessels.study.distances import miss_curve, misses, steady_distances
from vessels.study.result import (
    KINDS,
    PAGE_SIZE,
    Kind,
    KindReuse,
    LayerRow,
    MapBlock,
    PlanAnalysis,
    Policy,
)
from vessels.study.touches import Touches
from vessels.study.trace import Trace, page_trace

__all__ = ["CACHE_PAGE_COUNT", "allocated_sizes", "analyse", "misses"]

Array = np.ndarray[Any, Any]

CACHE_PAGE_COUNT = 256
"""Pages of 1 MiB, a core's L2 cache: a page touched again within so many others is still in one
use, as a chunk is that is kept while it meets all pixels."""


def analyse(plan: Plan, *, policy: Policy, budget: int | None, epc_size: int) -> PlanAnalysis:
    """All that is exact about ``plan``; ``miss_count`` of layers is for ``epc_size`` bytes of LRU.

    ``curve`` has every size at which misses change (:func:`vessels.study.distances.thinned` makes
    fewer points of it); :func:`misses` reads it. Touches of request and response are in it and
    in no layer.
    """
    program = plan.program
    trace = page_trace(program)
    distances = steady_distances(trace.pages)
    return PlanAnalysis(
        policy=policy,
        budget=budget,
        pool_size=plan.pool_size,
        touch_count=len(trace),
        reuse=_reuse(program, trace, distances),
        curve=miss_curve(distances),
        blocks=tuple(
            MapBlock(b.kind, b.name, b.offset, b.size, b.start, b.stop) for b in memory_map(program)
        ),
        layers=_layers(program, trace, distances, epc_size),
    )


def allocated_sizes(program: Program) -> dict[Kind, int]:
    """Bytes by kind as if nothing shared its place: what the same program would allocate if every
    tensor, every workspace and every parameter chunk had memory of its own.

    Parameters that stream count as staging, so that both together are all parameters.
    """
    touches = Touches(program)
    sizes = dict.fromkeys(KINDS, 0)
    counted = set()
    for instruction in program.instructions:
        for view in (*instruction.reads, *instruction.writes):
            kind = KINDS[touches.kind_at(touches.address(view))]
            if kind == "activations" and view.buffer not in counted:
                counted.add(view.buffer)
                sizes["activations"] += align(view.buffer.size)
        if instruction.scratch is not None:
            sizes["workspace"] += align(instruction.scratch.buffer.size)
    for chunk in program.chunks:
        sizes["staging" if chunk.resident_offset is None else "parameters"] += chunk.size
    sizes["io"] = program.layout.io_size
    return sizes


def _reuse(program: Program, trace: Trace, distances: Array) -> tuple[KindReuse, ...]:
    sizes = allocated_sizes(program)
    page_count = -(-program.layout.size // PAGE_SIZE)
    begins = distances > CACHE_PAGE_COUNT
    begins[np.unique(trace.pages, return_index=True)[1]] = True
    found = []
    for number, kind in enumerate(KINDS):
        of_kind = trace.kinds == number
        pages = trace.pages[of_kind]
        touched = np.unique(pages)
        uses = np.bincount(pages[begins[of_kind]], minlength=page_count)[touched]
        counts = np.bincount(np.maximum(uses, 1), minlength=1)
        # The exponent of a float is the power of two below.
        powers = np.bincount(np.frexp(distances[of_kind].astype(np.float64))[1] - 1, minlength=1)
        found.append(
            KindReuse(
                kind=kind,
                allocated_size=sizes[kind],
                page_count=len(touched),
                touch_counts={int(n): int(counts[n]) for n in np.flatnonzero(counts)},
                distances={int(b): int(powers[b]) for b in np.flatnonzero(powers)},
            )
        )
    return tuple(found)


def _layers(
    program: Program, trace: Trace, distances: Array, epc_size: int
) -> tuple[LayerRow, ...]:
    missed = trace.instructions[distances > epc_size // PAGE_SIZE]
    count = len(program.instructions)
    misses_by_layer = np.bincount(missed + 1, minlength=count + 2)[1:]
    rows = []
    for index, instruction in enumerate(program.instructions):
        scratch = instruction.scratch
        rows.append(
            LayerRow(
                index=index,
                mnemonic=instruction.mnemonic,
                shape=instruction.writes[0].shape,
                parameter_size=sum(program.chunks[c].size for c in _chunks(instruction)),
                read_size=sum(_distinct_size(v) for v in instruction.reads),
                written_size=sum(_distinct_size(v) for v in instruction.writes),
                workspace_size=0 if scratch is None else _distinct_size(scratch),
                miss_count=int(misses_by_layer[index]),
                microseconds=0.0,
            )
        )
    return tuple(rows)


def _chunks(instruction: Instruction) -> range:
    """The parameter chunks an instruction reads."""
    if isinstance(instruction, Load):
        return range(instruction.first_chunk, instruction.first_chunk + instruction.chunk_count)
    if isinstance(instruction, Conv | Winograd | Depthwise):
        assert instruction.cut is not None
        cut = instruction.cut
        return range(cut.first_chunk, cut.first_chunk + cut.chunk_count)
    return range(0)


def _distinct_size(view: View) -> int:
    """Bytes of a view, broadcast elements counted once."""
    count = 1
    for length, stride in zip(view.shape, view.strides, strict=True):
        count *= length if stride else 1
    return count * view.dtype.size
