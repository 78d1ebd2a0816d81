"""Geometry of strided views: permute, reshape, slice, broadcast and regroup without moving data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vessels.program import View, dense_strides


def permute(view: View, perm: Sequence[int]) -> View:
    """Dimensions of ``view`` in the order ``perm``."""
    return replace(
        view,
        shape=tuple(view.shape[p] for p in perm),
        strides=tuple(view.strides[p] for p in perm),
    )


def reshape(view: View, shape: tuple[int, ...]) -> View | None:
    """``view`` with another ``shape`` of the same count in C order; ``None`` if it needs a copy."""
    old = [(d, s) for d, s in zip(view.shape, view.strides, strict=True) if d != 1]
    strides = [1] * len(shape)
    i = 0  # first old dimension not used yet
    j = 0  # first new one
    while i < len(old) and j < len(shape):
        if shape[j] == 1:
            j += 1
            continue
        old_end, new_end = i + 1, j + 1
        old_count, new_count = old[i][0], shape[j]
        while old_count != new_count:
            if new_count < old_count:
                new_count *= shape[new_end]
                new_end += 1
            else:
                old_count *= old[old_end][0]
                old_end += 1
        if any(old[k][1] != old[k + 1][0] * old[k + 1][1] for k in range(i, old_end - 1)):
            return None
        step = old[old_end - 1][1]
        for k in reversed(range(j, new_end)):
            strides[k] = step
            step *= shape[k]
        i, j = old_end, new_end
    # The strides of dimensions of one element are free; make them those of a dense view.
    free = dense_strides(shape)
    final = tuple(f if d == 1 else s for d, s, f in zip(shape, strides, free, strict=True))
    return replace(view, shape=shape, strides=final)


def broadcast(view: View, shape: tuple[int, ...]) -> View:
    """``view`` broadcast to ``shape`` as NumPy does, by stride 0."""
    lead = len(shape) - len(view.shape)
    strides = [0] * lead
    for d, s, target in zip(view.shape, view.strides, shape[lead:], strict=True):
        strides.append(s if d == target else 0)
    return replace(view, shape=shape, strides=tuple(strides))


def cut(view: View, axis: int, start: int, count: int, step: int = 1) -> View:
    """``count`` elements of dimension ``axis`` from ``start`` on; ``step`` may be negative."""
    shape, strides = list(view.shape), list(view.strides)
    offset = view.offset + start * strides[axis] * view.dtype.size
    shape[axis] = count
    strides[axis] *= step
    return replace(view, offset=offset, shape=tuple(shape), strides=tuple(strides))


def insert(view: View, axis: int, stride: int = 1) -> View:
    """A dimension of one element before ``axis``."""
    shape, strides = view.shape, view.strides
    return replace(
        view,
        shape=(*shape[:axis], 1, *shape[axis:]),
        strides=(*strides[:axis], stride, *strides[axis:]),
    )


def drop(view: View, axis: int) -> View:
    """Without dimension ``axis``, of which element 0 is kept."""
    shape, strides = view.shape, view.strides
    return replace(
        view, shape=shape[:axis] + shape[axis + 1 :], strides=strides[:axis] + strides[axis + 1 :]
    )


def same(a: View, b: View) -> bool:
    """Whether two views pair the same elements: strides of dimensions of one element are free."""
    return (
        a.buffer is b.buffer
        and a.offset == b.offset
        and a.dtype == b.dtype
        and a.shape == b.shape
        and all(d == 1 or s == t for d, s, t in zip(a.shape, a.strides, b.strides, strict=True))
    )


def normal(view: View) -> View:
    """``view`` with the strides of dimensions of one element as a dense view has them.

    They are free; one choice makes views that pair the same elements equal.
    """
    strides = list(view.strides)
    step = 1
    for i in reversed(range(len(strides))):
        if view.shape[i] == 1:
            strides[i] = step
        step = max(1, abs(strides[i]) * view.shape[i])
    return replace(view, strides=tuple(strides))


def is_bijective(view: View) -> bool:
    """Whether the view touches a gapless run of elements, each once."""
    step = 1
    for s, d in sorted((s, d) for d, s in zip(view.shape, view.strides, strict=True) if d != 1):
        if s != step:
            return False
        step *= d
    return True


def covers(view: View) -> bool:
    """Whether the view touches every byte of its buffer exactly once."""
    return (
        is_bijective(view) and view.offset == 0 and view.count * view.dtype.size == view.buffer.size
    )


def order(view: View) -> tuple[int, ...]:
    """Dimensions from the physically outermost to the innermost."""
    return tuple(sorted(range(len(view.shape)), key=lambda i: (-abs(view.strides[i]), i)))


def regroup(view: View, source: View, target: View) -> View | None:
    """``view``, which pairs with ``source``, as it pairs with ``target``.

    ``source`` and ``target`` see the same memory in different shapes; ``view`` has the
    shape of ``source`` on any memory. ``None`` when no strides express it.
    """
    if source.offset != target.offset or source.dtype != target.dtype:
        return None
    if source.shape == target.shape and same(source, target):
        return view
    # Atoms: (memory stride, count left, stride of `view`), innermost first.
    atoms = sorted(
        (s, d, v)
        for d, s, v in zip(source.shape, source.strides, view.strides, strict=True)
        if d != 1
    )
    wanted = sorted(
        (s, i) for i, (d, s) in enumerate(zip(target.shape, target.strides, strict=True)) if d != 1
    )
    strides = [1] * len(target.shape)
    for memory_stride, i in wanted:
        left = target.shape[i]
        step = 1
        while left > 1:
            if not atoms:
                return None
            s, d, v = atoms.pop(0)
            if s != memory_stride * step or s <= 0:
                return None
            taken = d if left % d == 0 else left
            if d % taken:
                return None
            if step == 1:
                strides[i] = v
            elif v != strides[i] * step:
                return None
            if taken < d:
                atoms.insert(0, (s * taken, d // taken, v * taken))
            left //= taken
            step *= taken
    if atoms:
        return None
    return replace(view, shape=target.shape, strides=tuple(strides))
