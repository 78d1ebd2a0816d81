"""Check of the plan ladder: what is optional, and what each rung says of it.

Shares no code with the planner. Raises :class:`PlanError` on the first rule broken (V4, V15,
V16 of ``docs/format.md``).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from vessels.errors import PlanError
from vessels.program import Chunk, Program


def check_ladder(program: Program) -> int:
    """Check order and rungs; gives where the part of the resident region ends that is fixed.

    The regions and chunks of the program as it stands have been checked.
    """
    _check_order(program)
    optional = set(program.order)
    fixed = [c for i, c in enumerate(program.chunks) if i not in optional]
    layout = program.layout
    kept = sum(program.chunks[i].size for i in program.order if _is_resident(program.chunks[i]))
    fixed_end = layout.staging_offset - kept
    if any(c.resident_offset is None or c.resident_offset + c.size > fixed_end for c in fixed):
        raise PlanError("V4 chunks: a fixed one lies among the optional ones.")
    fixed_size = fixed_end - layout.resident_offset
    sizes = [program.chunks[i].size for i in program.order]
    if not 0 <= program.rung < len(program.rungs):
        raise PlanError(f"V16 rungs: there is no rung {program.rung}, the default.")
    for below, above in pairwise(program.rungs):
        if below.resident_count >= above.resident_count:
            raise PlanError("V16 rungs: they do not ascend.")
    for number, rung in enumerate(program.rungs):
        if not 0 <= rung.resident_count <= len(sizes):
            raise PlanError(f"V16 rung {number} keeps {rung.resident_count} of {len(sizes)}.")
        resident_size = fixed_size + sum(sizes[: rung.resident_count])
        staging_size = max(sizes[rung.resident_count :], default=0)
        if (rung.resident_size, rung.staging_size) != (resident_size, staging_size):
            raise PlanError(f"V16 rung {number}: its sizes are not those of its chunks.")
    _check_placed(program, fixed_end)
    return fixed_end


def _is_resident(chunk: Chunk) -> bool:
    return chunk.resident_offset is not None


def _check_order(program: Program) -> None:
    """It lists each chunk at most once, and all that stream."""
    seen = set(program.order)
    if len(seen) != len(program.order) or not seen <= set(range(len(program.chunks))):
        raise PlanError("V15 order: it lists a chunk twice, or one that does not exist.")
    for index, chunk in enumerate(program.chunks):
        if index not in seen and not _is_resident(chunk):
            raise PlanError(f"V15 order: chunk {index} is neither fixed nor in it.")


def _check_placed(program: Program, fixed_end: int) -> None:
    """The program stands as its rung says: what it keeps lies in order behind what is fixed."""
    rung = program.rungs[program.rung]
    layout = program.layout
    due = replace(layout, resident_size=rung.resident_size, staging_size=rung.staging_size)
    if layout != due:
        raise PlanError(f"V16 rung {program.rung}: the layout is not its.")
    at = fixed_end
    for number, index in enumerate(program.order):
        place = at if number < rung.resident_count else None
        if program.chunks[index].resident_offset != place:
            raise PlanError(f"V16 rung {program.rung}: chunk {index} is not at {place}.")
        at += program.chunks[index].size
