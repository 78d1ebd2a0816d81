"""Fusion on instructions: maps into maps, activations and residuals into convolutions.

Buffers are written once (element by element), so an instruction may be moved to
where its result is first read; fused instructions stand at the place of their reader.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vessels.lower import views
from vessels.lower.builder import ARITY, pruned
from vessels.lower.patterns import activation_of, substituted, tree_of
from vessels.program import (
    MAX_MAP_REGISTERS,
    ActivationKind,
    Buffer,
    Conv,
    Depthwise,
    DType,
    Instruction,
    Map,
    MapCode,
    MapOp,
    Parameters,
    Reduce,
    ReduceKind,
    View,
)

M = MapCode
_TRUTH = {
    M.LT_F, M.LE_F, M.EQ_F, M.IS_NAN, M.IS_INF_POSITIVE, M.IS_INF_NEGATIVE,
    M.LT_I, M.LE_I, M.EQ_I,
}  # fmt: skip
_MAX_PATTERN_OPS = 12


def fuse(instructions: Sequence[Instruction]) -> list[Instruction]:
    """Alternates fusion into convolutions and of maps until nothing changes."""
    current = list(instructions)
    while True:
        absorbed = _round(current, into_convolutions=True)
        merged = _round(absorbed, into_convolutions=False)
        if len(merged) == len(current) and all(map(operator.is_, merged, current)):
            return merged
        current = merged


def _round(instructions: list[Instruction], *, into_convolutions: bool) -> list[Instruction]:
    slots: list[Instruction | None] = list(instructions)
    writers: dict[Buffer, list[int]] = defaultdict(list)
    readers: dict[Buffer, list[int]] = defaultdict(list)
    for i, instruction in enumerate(instructions):
        for view in instruction.writes:
            writers[view.buffer].append(i)
        for buffer in {v.buffer for v in instruction.reads}:
            readers[buffer].append(i)
    touched: set[int] = set()
    for i, instruction in enumerate(instructions):
        if not isinstance(instruction, Map | Reduce):
            continue
        sole = [
            b
            for b in {v.buffer for v in instruction.reads}
            if b.kind == "arena" and b in writers and readers[b] == [i]
        ]
        # The latest producer first: of two convolutions that are added, it takes the residual.
        for buffer in sorted(sole, key=lambda b: -writers[b][-1]):
            made = [slots[j] for j in writers[buffer]]
            if touched.intersection(writers[buffer]) or any(p is None for p in made):
                continue
            producers = [p for p in made if p is not None]
            if into_convolutions:
                fused = _into_convolutions(producers, instruction)
            else:
                fused = _of_maps(producers, instruction)
            if fused is None:
                continue
            *changed, last = fused
            for j, producer in zip(writers[buffer], changed, strict=True):
                slots[j] = producer
                touched.add(j)
            slots[i] = last
            touched.add(i)
            for j in writers[buffer]:
                for read in {v.buffer for v in instructions[j].reads}:
                    readers[read] = sorted({i if k == j else k for k in readers[read]})
            break
    return [s for s in slots if s is not None]


def _of_maps(producers: list[Instruction], reader: Map | Reduce) -> list[Instruction | None] | None:
    """What the producers and their reader become, in order, if they are maps that merge."""
    if len(producers) != 1 or not isinstance(first := producers[0], Map):
        return None
    if isinstance(reader, Reduce):
        squares = _sum_of_squares(first, reader)
        return None if squares is None else [None, squares]
    merged = _merged(first, reader)
    return None if merged is None else [None, merged]


def _into_convolutions(
    producers: list[Instruction], reader: Map | Reduce
) -> list[Instruction | None] | None:
    """What the producers and their reader become, in order, if a convolution takes it in."""
    if isinstance(reader, Reduce) or not all(isinstance(p, Conv | Depthwise) for p in producers):
        return None
    convs = [p for p in producers if isinstance(p, Conv | Depthwise)]
    if len(convs) > 1:
        return _activated_parts(convs, reader)
    absorbed = _absorbed(convs[0], reader)
    if absorbed is not None:
        return [None, absorbed]
    return _with_bias(convs[0], reader)


def _sum_of_squares(first: Map, reader: Reduce) -> Reduce | None:
    """A sum over a map that only squares reads the map's input."""
    if reader.reduction != ReduceKind.SUM or first.output.dtype != DType.F32:
        return None
    if len(first.inputs) != 1 or first.ops != (MapOp(M.MUL_F, 0, 0),):
        return None
    moved = views.regroup(first.inputs[0], first.output, reader.input)
    if moved is None:
        return None
    return replace(reader, input=moved, reduction=ReduceKind.SUM_SQUARE)


# Maps into maps


def _merged(first: Map, second: Map) -> Map | None:
    """``second`` with ``first`` in place of the inputs that read its output."""
    if not _keeps_value(first) or not views.is_bijective(first.output):
        return None
    sources = [v for v in second.inputs if v.buffer is first.output.buffer]
    if any(s != sources[0] for s in sources) or sources[0].count != first.output.count:
        return None
    if second.output.count != first.output.count:
        return None
    moved = [views.regroup(v, first.output, sources[0]) for v in first.inputs]
    inputs: list[View] = []
    first_registers: list[int] = []
    for view in moved:
        if view is None:
            return None
        first_registers.append(_place(inputs, view))
    second_registers: list[int | None] = []
    for view in second.inputs:
        is_first = view.buffer is first.output.buffer
        second_registers.append(None if is_first else _place(inputs, view))
    ops: list[MapOp] = []
    _append(ops, len(inputs), first_registers, first.ops)
    result = first_registers[-1]
    registers = [result if r is None else r for r in second_registers]
    _append(ops, len(inputs), registers, second.ops)
    if len(inputs) + len(ops) > MAX_MAP_REGISTERS:
        return None
    kept = pruned(inputs, ops, registers[-1])
    return None if kept is None else Map(kept[0], second.output, tuple(kept[1]))


def _place(inputs: list[View], view: View) -> int:
    if view not in inputs:
        inputs.append(view)
    return inputs.index(view)


def _append(
    ops: list[MapOp], input_count: int, registers: list[int], more: Sequence[MapOp]
) -> None:
    """Appends ``more`` renumbered; ``registers`` maps its registers and grows with it."""
    for op in more:
        if op.code in (M.CONST_F, M.CONST_I):
            new = op
        else:
            new = MapOp(op.code, registers[op.x], registers[op.y], registers[op.z])
        if new not in ops:
            ops.append(new)
        registers.append(input_count + ops.index(new))


def _keeps_value(first: Map) -> bool:
    """Whether storing the result and reading it back gives the register's value."""
    if first.output.dtype in (DType.F32, DType.I64):
        return True
    return bool(first.ops) and first.output.dtype == DType.BOOL and first.ops[-1].code in _TRUTH


# Maps into convolutions


def _absorbed(conv: Conv | Depthwise, reader: Map) -> Conv | Depthwise | None:
    """``conv`` with ``reader`` as its activation and residual."""
    if reader.output.dtype != DType.F32 or len(reader.inputs) > 2 or not reader.ops:
        return None
    if len(reader.ops) > _MAX_PATTERN_OPS or not views.is_bijective(conv.output):
        return None
    own = [i for i, v in enumerate(reader.inputs) if v.buffer is conv.output.buffer]
    if len(own) != 1:
        return None
    source = reader.inputs[own[0]]
    output = views.regroup(reader.output, source, conv.output)
    if output is None or not _channels_last(output):
        return None
    tree = tree_of(reader, own[0])
    if len(reader.inputs) == 1:
        activation = activation_of(tree)
        free = conv.activation.kind == ActivationKind.NONE and not conv.residual_after
        if activation is None or not free:
            return None
        return replace(conv, output=output, activation=activation)
    if conv.residual is not None:
        return None
    other = reader.inputs[1 - own[0]]
    residual = views.regroup(other, source, conv.output)
    if residual is None or other.dtype != DType.F32 or not _channels_last(residual):
        return None
    if conv.activation.kind != ActivationKind.NONE:
        if tree != (M.ADD_F, ("x",), ("y",)):
            return None
        return replace(conv, output=output, residual=residual, residual_after=True)
    before = activation_of(substituted(tree))
    if before is not None:
        return replace(conv, output=output, residual=residual, activation=before)
    if tree[0] == M.ADD_F and tree[2] == ("y",):
        inner = activation_of(tree[1])
    elif tree[0] == M.ADD_F and tree[1] == ("y",):
        inner = activation_of(tree[2])
    else:
        return None
    if inner is None:
        return None
    return replace(conv, output=output, residual=residual, activation=inner, residual_after=True)


def _channels_last(view: View) -> bool:
    """Whether a convolution may write the view, or read it as its residual."""
    return (view.shape[3] == 1 or view.strides[3] == 1) and all(
        d == 1 or s > 0 for d, s in zip(view.shape, view.strides, strict=True)
    )


def _with_bias(conv: Conv | Depthwise, reader: Map) -> list[Instruction | None] | None:
    """Moves a constant that ``reader`` adds for each channel into the convolution's bias."""
    if conv.activation.kind != ActivationKind.NONE or conv.parameters is None:
        return None
    if not views.is_bijective(conv.output):
        return None
    own = [i for i, v in enumerate(reader.inputs) if v.buffer is conv.output.buffer]
    uses = [op for op in reader.ops if own and _uses(op, own[0])]
    if len(own) != 1 or len(uses) != 1 or uses[0].code != M.ADD_F or uses[0].x == uses[0].y:
        return None
    source = reader.inputs[own[0]]
    addend = uses[0].y if uses[0].x == own[0] else uses[0].x
    vector = _channel_vector(conv, reader, source, addend)
    if vector is None:
        return None
    parameters = Parameters(conv.parameters.weights, conv.parameters.bias + vector)
    registers = list(range(len(reader.inputs)))
    ops: list[MapOp] = []
    for op in reader.ops:
        if op is uses[0]:
            registers.append(own[0])
        else:
            _append(ops, len(reader.inputs), registers, [op])
    if registers[-1] == own[0]:
        output = views.regroup(reader.output, source, conv.output)
        if output is None or not _channels_last(output):
            return None
        return [None, replace(conv, output=output, parameters=parameters)]
    kept = pruned(reader.inputs, ops, registers[-1])
    if kept is None:
        return None
    return [replace(conv, parameters=parameters), Map(kept[0], reader.output, tuple(kept[1]))]


def _uses(op: MapOp, register: int) -> bool:
    if op.code in (M.CONST_F, M.CONST_I):
        return False
    return register in (op.x, op.y, op.z)[: ARITY[op.code]]


def _channel_vector(
    conv: Conv | Depthwise, reader: Map, source: View, register: int
) -> np.ndarray[Any, Any] | None:
    """The constant that a register holds for each output channel of ``conv``."""
    channels = conv.output.shape[3]
    if register >= len(reader.inputs):
        op = reader.ops[register - len(reader.inputs)]
        if op.code != M.CONST_F:
            return None
        return np.full(channels, np.uint32(op.x).view(np.float32), np.float32)
    view = reader.inputs[register]
    if view.buffer.data is None or view.dtype != DType.F32:
        return None
    moved = views.regroup(view, source, conv.output)
    if moved is None or any(
        d != 1 and s for d, s in zip(moved.shape[:3], moved.strides, strict=False)
    ):
        return None
    start = moved.offset // 4
    flat = view.buffer.data.reshape(-1)
    return np.asarray(flat[start + np.arange(channels) * moved.strides[3]], np.float32)


def _activated_parts(convs: list[Conv | Depthwise], reader: Map) -> list[Instruction | None] | None:
    """An activation of what several convolutions wrote together, taken in by each of them."""
    if len(reader.inputs) != 1 or len(reader.ops) > _MAX_PATTERN_OPS or not reader.ops:
        return None
    source, output = reader.inputs[0], reader.output
    if not views.covers(source) or not views.same(replace(source, buffer=output.buffer), output):
        return None
    if any(c.activation.kind != ActivationKind.NONE for c in convs):
        return None
    activation = activation_of(tree_of(reader, 0))
    if activation is None:
        return None
    return [
        *(
            replace(c, output=replace(c.output, buffer=output.buffer), activation=activation)
            for c in convs
        ),
        None,
    ]
