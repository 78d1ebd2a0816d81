"""LRU stack distances of a trace, and from them the misses of every size of memory at once.

The stack distance of a touch is the number of distinct pages touched since the last touch of the
same page, itself included: an LRU memory of that many pages still holds it, a smaller one does
not (Mattson, Gecsei, Slutz, Traiger, "Evaluation techniques for storage hierarchies", IBM Systems
Journal 9(2), 1970). Here the distances come from counting, for each touch, the earlier ones whose
own last touch lies further back; that is done for all touches at once, one bit of their rank at a
time, in O(n log n).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vessels.study.result import PAGE_SIZE, CurvePoint

Array = np.ndarray[Any, Any]

_LEAF_BITS = 5
"""Ranks that differ in these bits only are compared pair by pair."""


def stack_distances(pages: Array) -> Array:
    """The LRU stack distance of every touch, int32; -1 where a page is touched first."""
    previous = _previous(pages)
    again = previous >= 0
    # Of two touches with no last touch neither lies further back: those come first, in any order.
    has_next = np.zeros(len(pages), np.int64)
    has_next[previous[again]] = 1
    first_count = len(pages) - int(np.count_nonzero(again))
    ranks = np.cumsum(~again) - 1
    ranks[again] = first_count + (np.cumsum(has_next) - has_next)[previous[again]]
    # All touches up to the last one of the same page have theirs further back.
    found = smaller_before(ranks) - previous
    return np.where(again, found, -1).astype(np.int32)


def steady_distances(pages: Array) -> Array:
    """The distances in a prediction that follows an equal one: none is -1.

    They are those of :func:`stack_distances`, but for each page's first touch, which looks back
    to the page's last touch in the prediction before.
    """
    distances = stack_distances(pages)
    if len(pages) == 0:
        return distances
    firsts = np.flatnonzero(distances < 0)
    _, backwards = np.unique(pages[::-1], return_index=True)
    by_page = np.argsort(pages[firsts], kind="stable")
    lasts = np.empty(len(firsts), np.int64)
    lasts[by_page] = len(pages) - 1 - backwards
    # Not touched in between are the pages that come later here and were done with earlier there.
    ranks = np.empty(len(firsts), np.int64)
    ranks[np.argsort(lasts)] = np.arange(len(firsts))
    later = ranks - smaller_before(ranks)
    distances[firsts] = len(firsts) - later
    return distances


def miss_curve(distances: Array) -> tuple[CurvePoint, ...]:
    """The misses of an LRU memory of every size: one point where they change, from 0 pages on.

    A size between two points misses as often as the lower one. A first touch (-1) always misses.
    """
    counts = np.bincount(distances[distances > 0], minlength=1)
    sizes = np.flatnonzero(counts)
    misses = len(distances) - np.cumsum(counts[sizes])
    points = [CurvePoint(0, len(distances))]
    points += [CurvePoint(int(s), int(m)) for s, m in zip(sizes, misses, strict=True)]
    return tuple(points)


def thinned(
    curve: Sequence[CurvePoint], count: int = 400, keep: Sequence[int] = ()
) -> tuple[CurvePoint, ...]:
    """At most ``count`` of the points, evenly along the logarithm of both axes.

    The first and the last point stay, and those that hold for the sizes ``keep``, in pages;
    between the others the curve is to be drawn through the points.
    """
    if len(curve) <= count:
        return tuple(curve)
    sizes = np.array([p.page_count for p in curve], np.float64)
    misses = np.array([p.miss_count for p in curve], np.float64)
    length = np.abs(np.diff(np.log1p(sizes))) / np.log1p(sizes[-1])
    height = np.abs(np.diff(np.log1p(misses))) / max(np.log1p(misses[0]), 1.0)
    along = np.concatenate([[0.0], np.cumsum(length + height)])
    fixed = {0, len(curve) - 1}
    fixed |= {int(np.searchsorted(sizes, size, side="right")) - 1 for size in keep}
    wanted = np.linspace(0.0, along[-1], max(count - len(fixed), 2))
    chosen = fixed | {int(i) for i in np.searchsorted(along, wanted[1:-1])}
    return tuple(curve[i] for i in sorted(chosen))


def misses(curve: Sequence[CurvePoint], epc_size: int) -> int:
    """Misses of an LRU memory of ``epc_size`` bytes, by a whole curve."""
    sizes = [p.page_count for p in curve]
    index = int(np.searchsorted(sizes, epc_size // PAGE_SIZE, side="right")) - 1
    return curve[index].miss_count


def smaller_before(ranks: Array) -> Array:
    """For each element of a permutation of ``0..n``, how many smaller ones come before it."""
    count = len(ranks)
    leaf = 1 << _LEAF_BITS
    padded = -(-count // leaf) * leaf
    # Padding comes last and is largest.
    values = np.arange(padded, dtype=np.int32)
    values[:count] = ranks
    counts = np.zeros(padded, np.int32)
    places = np.arange(padded, dtype=np.int32)
    # Before each step, ranks that agree above `bit` lie together, in their first order, where
    # they would lie if sorted.
    for bit in range(max(padded - 1, 1).bit_length() - 1, _LEAF_BITS - 1, -1):
        group = (values >> (bit + 1)) << (bit + 1)
        upper = ((values >> bit) & 1).astype(np.bool_)
        below = np.cumsum(~upper, dtype=np.int32)
        # Zero bits before this element in its group; every earlier group is full, half of it zeros.
        below -= (group >> 1) + ~upper
        target = np.where(upper, places + (1 << bit) - below, group + below)
        counts += np.where(upper, below, 0)
        moved_values, moved_counts = np.empty_like(values), np.empty_like(counts)
        moved_values[target] = values
        moved_counts[target] = counts
        values, counts = moved_values, moved_counts
    leaves = np.ascontiguousarray(values.reshape(-1, leaf).T)
    sums = np.ascontiguousarray(counts.reshape(-1, leaf).T)
    for later in range(1, leaf):
        for earlier in range(later):
            sums[later] += leaves[earlier] < leaves[later]
    result = np.empty(padded, np.int32)
    result[leaves.ravel()] = sums.ravel()
    return result[ranks]


def _previous(pages: Array) -> Array:
    """For each touch the index of the last touch of the same page, or -1."""
    order = np.argsort(pages, kind="stable")
    same = pages[order][1:] == pages[order][:-1]
    previous = np.full(len(pages), -1, np.int64)
    previous[order[1:][same]] = order[:-1][same]
    return previous
