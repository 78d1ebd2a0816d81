"""Activations recognised in the expression of a map."""

from __future__ import annotations

from typing import Any

import numpy as np

from vessels.lower.builder import ARITY
from vessels.program import Activation, ActivationKind, Map, MapCode

M = MapCode
Tree = tuple[Any, ...]
"""``("x",)`` and ``("y",)`` are inputs, ``("f", value)`` an immediate, else a code and trees."""

_COMMUTATIVE = {M.ADD_F, M.MUL_F, M.MIN_F, M.MAX_F}


def tree_of(reader: Map, own: int) -> Tree:
    """The map's expression; ``("x",)`` is input ``own``, ``("y",)`` the other one."""
    trees: list[Tree] = [("x",) if i == own else ("y",) for i in range(len(reader.inputs))]
    for op in reader.ops:
        if op.code == M.CONST_F:
            trees.append(("f", float(np.uint32(op.x).view(np.float32))))
            continue
        arity = ARITY[op.code]
        arguments = [trees[r] for r in (op.x, op.y, op.z)[:arity]]
        if op.code in _COMMUTATIVE:
            # The input first, immediates last: one shape for each pattern.
            arguments.sort(key=_rank)
        trees.append((op.code, *arguments))
    return trees[-1]


def _rank(tree: Tree) -> int:
    return {"x": 0, "y": 1, "f": 3}.get(tree[0], 2)


def substituted(tree: Tree) -> Tree:
    """``tree`` with every ``x + y`` replaced by ``x``; other uses of ``y`` remain."""
    if tree == (M.ADD_F, ("x",), ("y",)):
        return ("x",)
    if tree == ("x",):
        # The convolution's own result is used beside the sum: no pattern matches this.
        return ("other",)
    return tuple(substituted(t) if isinstance(t, tuple) else t for t in tree)


def _number(tree: Tree) -> float | None:
    return tree[1] if tree[0] == "f" else None


_X: Tree = ("x",)


def activation_of(tree: Tree) -> Activation | None:
    """The activation that computes ``tree`` of ``x``."""
    if tree == _X:
        return Activation()
    return _clamp(tree) or _leaky(tree) or _hard_swish(tree)


def _bounds(tree: Tree) -> tuple[Tree, float, float] | None:
    """``(inner, low, high)`` of ``min(max(inner, low), high)``, either part optional."""
    low, high = -np.inf, np.inf
    if tree[0] == M.MIN_F and (value := _number(tree[2])) is not None:
        high, tree = value, tree[1]
    if tree[0] == M.MAX_F and (value := _number(tree[2])) is not None:
        low, tree = value, tree[1]
    if low == -np.inf and high == np.inf:
        return None
    return tree, float(low), float(high)


def _clamp(tree: Tree) -> Activation | None:
    found = _bounds(tree)
    if found is None or found[0] != _X:
        return None
    return Activation(ActivationKind.CLAMP, found[1], found[2])


def _leaky(tree: Tree) -> Activation | None:
    if tree[0] != M.SELECT_F or tree[1] != (M.LT_F, _X, ("f", 0.0)) or tree[3] != _X:
        return None
    product = tree[2]
    if product[0] != M.MUL_F or product[1] != _X or (alpha := _number(product[2])) is None:
        return None
    return Activation(ActivationKind.LEAKY, alpha, 0.0)


def _hard_swish(tree: Tree) -> Activation | None:
    """``x * clamp(a x + b, 0, c) / c`` in the ways exporters write it."""
    factor = 1.0
    if tree[0] == M.DIV_F and (value := _number(tree[2])):
        factor, tree = 1.0 / value, tree[1]
    elif tree[0] == M.MUL_F and (value := _number(tree[2])):
        factor, tree = value, tree[1]
    if tree[0] != M.MUL_F or tree[1] != _X:
        return None
    gate = tree[2]
    if gate[0] == M.DIV_F and (value := _number(gate[2])):
        factor, gate = factor / value, gate[1]
    elif gate[0] == M.MUL_F and (value := _number(gate[2])):
        factor, gate = factor * value, gate[1]
    found = _bounds(gate)
    if found is None or found[1] != 0.0 or abs(found[2] * factor - 1.0) > 1e-6:
        return None
    inner = found[0]
    slope, offset = 1.0, 0.0
    if inner[0] == M.ADD_F and (value := _number(inner[2])) is not None:
        offset, inner = value, inner[1]
    if inner[0] == M.MUL_F and (value := _number(inner[2])) is not None:
        slope, inner = value, inner[1]
    if inner != _X:
        return None
    return Activation(
        ActivationKind.HARD_SWISH,
        float(np.float32(slope * factor)),
        float(np.float32(offset * factor)),
    )
