"""Place: an offset in one arena for everything that is live at some time.

Requires half-open lifetimes; ensures 64-byte aligned offsets at which no two items that live at the
same time overlap. The search is :mod:`omnimalloc`'s ``supermalloc``; what it returns is checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omnimalloc import Allocation
from omnimalloc.allocators import SupermallocAllocator

from vessels.errors import PlanError
from vessels.program import ALIGNMENT, align

_SECONDS = 0.7
"""Time the search may take before the best it has is taken."""


@dataclass(frozen=True)
class Item:
    """``size`` bytes that live during instructions ``start .. stop`` (half-open)."""

    size: int
    start: int
    stop: int


@dataclass(frozen=True)
class Placement:
    """``offsets`` in bytes, in the order of the items; ``size`` bytes hold them all.

    No placement can be smaller than ``lower_bound``, the most bytes live at one time.
    """

    offsets: tuple[int, ...]
    size: int
    lower_bound: int


def place(items: Sequence[Item], *, seconds: float = _SECONDS) -> Placement:
    """Offsets of ``items``; raises :class:`PlanError` when the result does not hold."""
    if not items:
        return Placement((), 0, 0)
    # In units of the alignment every offset is aligned of itself.
    allocations = tuple(
        Allocation(id=i, size=max(1, -(-item.size // ALIGNMENT)), start=item.start, end=item.stop)
        for i, item in enumerate(items)
    )
    solver = SupermallocAllocator(timeout=seconds, num_threads=1)
    by_id = {a.id: a.offset for a in solver.allocate(allocations)}
    offsets = tuple((by_id[i] or 0) * ALIGNMENT for i in range(len(items)))
    validate(items, offsets)
    size = max(o + align(max(i.size, 1)) for o, i in zip(offsets, items, strict=True))
    return Placement(offsets, size, lower_bound(items))


def stack(items: Sequence[Item]) -> Placement:
    """Every item in memory of its own, one after the other; lifetimes are not looked at."""
    offsets: list[int] = []
    at = 0
    for item in items:
        offsets.append(at)
        at += align(max(item.size, 1))
    return Placement(tuple(offsets), at, lower_bound(items))


def lower_bound(items: Sequence[Item]) -> int:
    """Most bytes, padded to the alignment, that live at one time."""
    changes: dict[int, int] = {}
    for item in items:
        size = align(max(item.size, 1))
        changes[item.start] = changes.get(item.start, 0) + size
        changes[item.stop] = changes.get(item.stop, 0) - size
    live = most = 0
    for time in sorted(changes):
        live += changes[time]
        most = max(most, live)
    return most


def validate(items: Sequence[Item], offsets: Sequence[int]) -> None:
    """Raise :class:`PlanError` where offsets are misaligned or two live items overlap."""
    starts: list[tuple[int, int]] = sorted((item.start, i) for i, item in enumerate(items))
    live: list[int] = []
    for _, index in starts:
        item, low = items[index], offsets[index]
        if low < 0 or low % ALIGNMENT:
            raise PlanError(f"placement: item {index} at offset {low} is not aligned.")
        live = [other for other in live if items[other].stop > item.start]
        for other in live:
            start = offsets[other]
            if low < start + items[other].size and start < low + item.size:
                raise PlanError(f"placement: items {other} and {index} overlap at offset {low}.")
        live.append(index)
