"""A plain interpreter of lowered and planned programs: the oracle for lowering and kernels.

Every instruction is a few lines of NumPy over strided windows of real bytes, so
that what a view means is tested too. Slow and obviously right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vessels.program import (
    Activation,
    ActivationKind,
    Buffer,
    Conv,
    Copy,
    Depthwise,
    DType,
    Gather,
    Instruction,
    LoweredProgram,
    Map,
    MapCode,
    MatMul,
    Parameters,
    Pool,
    PoolKind,
    Reduce,
    ReduceKind,
    View,
    Winograd,
)

Array = np.ndarray[Any, Any]
F = np.float32
M = MapCode


def run(program: LoweredProgram, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of a lowered program; memory that was never written reads as NaN bytes."""
    memory = Memory()
    for port in program.inputs:
        array = inputs[port.name]
        assert array.shape == port.view.shape and array.dtype == port.view.dtype.numpy
        memory.window(port.view)[...] = array
    with np.errstate(all="ignore"):
        for instruction in program.instructions:
            step(memory, instruction)
    return {p.name: memory.window(p.view).copy() for p in program.outputs}


class Memory:
    """A run of bytes for each buffer, filled with 0xff until written."""

    def __init__(self) -> None:
        self.bytes: dict[Buffer, Array] = {}

    def window(self, view: View) -> Array:
        """The view's elements, writable in place."""
        raw = self.bytes.get(view.buffer)
        if raw is None:
            raw = np.full(view.buffer.size, 0xFF, np.uint8)
            if view.buffer.data is not None:
                data = np.ascontiguousarray(view.buffer.data).reshape(-1).view(np.uint8)
                raw[: data.size] = data
            self.bytes[view.buffer] = raw
        low, high = view.span()
        assert low >= 0 and high <= raw.size, f"{view} leaves its buffer"
        size = view.dtype.size
        return np.ndarray(
            view.shape,
            view.dtype.numpy,
            raw.data,
            view.offset,
            tuple(s * size for s in view.strides),
        )


def step(memory: Memory, instruction: Instruction) -> None:
    """Runs one instruction."""
    window = memory.window
    match instruction:
        case Conv() | Depthwise() | Winograd():
            residual = None if instruction.residual is None else window(instruction.residual)
            assert instruction.parameters is not None
            result = convolution(instruction, window(instruction.input), instruction.parameters)
            if residual is not None and not instruction.residual_after:
                result = result + residual
            result = activated(result, instruction.activation)
            if residual is not None and instruction.residual_after:
                result = result + residual
            window(instruction.output)[...] = result
        case MatMul():
            product = np.matmul(window(instruction.a), window(instruction.b))
            window(instruction.output)[...] = product
        case Pool():
            window(instruction.output)[...] = pooled(instruction, window(instruction.input))
        case Map():
            store(window(instruction.output), mapped(instruction, window))
        case Reduce():
            window(instruction.output)[...] = reduced(instruction, window(instruction.input))
        case Copy():
            window(instruction.output)[...] = window(instruction.input).copy()
        case Gather():
            data, indices = window(instruction.data), window(instruction.indices)
            size = data.shape[instruction.axis]
            if np.any((indices < -size) | (indices >= size)):
                raise IndexError("gather: an index is out of range")
            window(instruction.output)[...] = np.take(data, indices, axis=instruction.axis)
        case _:
            raise TypeError(f"no instruction of the set: {instruction.mnemonic}")


def activated(x: Array, activation: Activation) -> Array:
    """The activation of float32 ``x``."""
    a, b = F(activation.a), F(activation.b)
    match activation.kind:
        case ActivationKind.NONE:
            return x
        case ActivationKind.CLAMP:
            return np.minimum(np.maximum(x, a), b)
        case ActivationKind.LEAKY:
            return np.where(x >= 0, x, a * x)
        case ActivationKind.HARD_SWISH:
            return np.asarray(x * np.minimum(np.maximum(a * x + b, F(0)), F(1)))


def convolution(
    instruction: Conv | Depthwise | Winograd, x: Array, parameters: Parameters
) -> Array:
    """``[N, OH, OW, O]`` without residual and activation, summed tap by tap."""
    if isinstance(instruction, Winograd):
        kernel, stride, dilation = (3, 3), (1, 1), (1, 1)
    else:
        kernel, stride, dilation = instruction.kernel, instruction.stride, instruction.dilation
    n, oh, ow, o = instruction.output.shape
    weights = parameters.weights
    total = np.broadcast_to(parameters.bias, (n, oh, ow, o)).astype(F)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows = np.arange(oh) * stride[0] - instruction.padding[0] + i * dilation[0]
            columns = np.arange(ow) * stride[1] - instruction.padding[1] + j * dilation[1]
            good_rows = np.flatnonzero((rows >= 0) & (rows < x.shape[1]))
            good_columns = np.flatnonzero((columns >= 0) & (columns < x.shape[2]))
            part = x[:, rows[good_rows]][:, :, columns[good_columns]]
            if isinstance(instruction, Depthwise):
                value = part * weights[i, j]
            else:
                value = np.tensordot(part, weights[i, j], axes=1)
            total[np.ix_(np.arange(n), good_rows, good_columns)] += value
    return total


def pooled(instruction: Pool, x: Array) -> Array:
    """Each output cell from the list of its input cells."""
    n, oh, ow, c = instruction.output.shape
    out = np.empty((n, oh, ow, c), F)
    height, width = x.shape[1:3]
    top, left, bottom, right = instruction.padding
    for y in range(oh):
        for z in range(ow):
            rows = [
                y * instruction.stride[0] - top + i * instruction.dilation[0]
                for i in range(instruction.kernel[0])
            ]
            columns = [
                z * instruction.stride[1] - left + j * instruction.dilation[1]
                for j in range(instruction.kernel[1])
            ]
            inside_rows = [r for r in rows if 0 <= r < height]
            inside_columns = [q for q in columns if 0 <= q < width]
            cells = x[:, inside_rows][:, :, inside_columns]
            if instruction.reduction == PoolKind.MAX:
                out[:, y, z] = cells.max(axis=(1, 2))
                continue
            if instruction.count_padding:
                counted_rows = [r for r in rows if -top <= r < height + bottom]
                counted_columns = [q for q in columns if -left <= q < width + right]
                count = len(counted_rows) * len(counted_columns)
            else:
                count = len(inside_rows) * len(inside_columns)
            out[:, y, z] = cells.sum(axis=(1, 2), dtype=F) / F(count)
    return out


def reduced(instruction: Reduce, x: Array) -> Array:
    """The reduction of the trailing dimensions."""
    kept = instruction.output.shape
    flat = x.reshape(*kept, -1)
    result: Array
    match instruction.reduction:
        case ReduceKind.SUM:
            result = flat.sum(-1, dtype=x.dtype)
        case ReduceKind.PROD:
            result = flat.prod(-1, dtype=x.dtype)
        case ReduceKind.MAX:
            result = flat.max(-1)
        case ReduceKind.MIN:
            result = flat.min(-1)
        case ReduceKind.SUM_SQUARE:
            result = (flat * flat).sum(-1, dtype=x.dtype)
        case ReduceKind.SUM_ABS:
            result = np.abs(flat).sum(-1, dtype=x.dtype)
        case ReduceKind.ARG_MAX_FIRST:
            result = flat.argmax(-1).astype(np.int64)
        case ReduceKind.ARG_MIN_FIRST:
            result = flat.argmin(-1).astype(np.int64)
        case ReduceKind.ARG_MAX_LAST:
            result = (flat.shape[-1] - 1 - flat[..., ::-1].argmax(-1)).astype(np.int64)
        case ReduceKind.ARG_MIN_LAST:
            result = (flat.shape[-1] - 1 - flat[..., ::-1].argmin(-1)).astype(np.int64)
    return np.asarray(result * F(instruction.scale)) if result.dtype == F else result


def store(output: Array, value: Array) -> None:
    """Stores a register: integers wrap, booleans are ``value != 0``."""
    if output.dtype == np.bool_:
        output[...] = value != 0
    else:
        assert (value.dtype == F) == (output.dtype == F), "register kind differs from the output"
        output[...] = value.astype(output.dtype)


def mapped(instruction: Map, window: Callable[[View], Array]) -> Array:
    """The last register, of the output's shape."""
    registers: list[Array] = []
    for view in instruction.inputs:
        x = window(view)
        registers.append(x.copy() if view.dtype == DType.F32 else x.astype(np.int64))
    for op in instruction.ops:
        if op.code == M.CONST_F:
            value = np.asarray(np.uint32(op.x).view(F))
        elif op.code == M.CONST_I:
            value = np.asarray(op.x, np.int64)
        else:
            function = _OPS[op.code]
            arity = function.__code__.co_argcount
            value = function(*(registers[r] for r in (op.x, op.y, op.z)[:arity]))
        registers.append(np.asarray(value))
    return np.broadcast_to(registers[-1], instruction.output.shape)


def _truth(x: Any) -> Array:
    return np.asarray(x).astype(np.int64)


def _to_int(x: Array) -> Array:
    limit = 2.0**63
    clipped = np.clip(np.nan_to_num(np.trunc(x.astype(np.float64)), nan=0.0), -limit, limit)
    result = np.where(np.abs(clipped) < limit, clipped, 0).astype(np.int64)
    result = np.where(clipped >= limit, np.iinfo(np.int64).max, result)
    return np.where(clipped <= -limit, np.iinfo(np.int64).min, result)


def _divide(x: Array, y: Array) -> Array:
    safe = np.where(y == 0, 1, y)
    quotient = x // safe
    quotient = quotient + ((x % safe != 0) & ((x < 0) != (safe < 0)))
    return np.where(y == 0, 0, quotient)


def _safe(function: Callable[[Array, Array], Array], x: Array, y: Array) -> Array:
    return np.where(y == 0, 0, function(x, np.where(y == 0, 1, y)))


def _shift_left(x: Array, y: Array) -> Array:
    good = (y >= 0) & (y < 64)
    return np.where(good, np.left_shift(x, np.where(good, y, 0)), 0)


def _shift_right(x: Array, y: Array) -> Array:
    good = (y >= 0) & (y < 64)
    shifted = np.right_shift(x.astype(np.uint64), np.where(good, y, 0).astype(np.uint64))
    return np.where(good, shifted.astype(np.int64), 0)


def _elementwise(function: Callable[[float], float]) -> Callable[[Array], Array]:
    vectorized = np.vectorize(function, otypes=[np.float64])
    return lambda x: vectorized(x).astype(F)


_erf = _elementwise(math.erf)

_OPS: dict[MapCode, Any] = {
    M.I_TO_F: lambda x: x.astype(F),
    M.F_TO_I: lambda x: _to_int(x),
    M.NEG_F: lambda x: -x,
    M.ABS_F: lambda x: np.abs(x),
    M.EXP: lambda x: np.exp(x),
    M.LOG: lambda x: np.log(x),
    M.SQRT: lambda x: np.sqrt(x),
    M.RECIPROCAL: lambda x: F(1) / x,
    M.FLOOR: lambda x: np.floor(x),
    M.CEIL: lambda x: np.ceil(x),
    M.ROUND: lambda x: np.rint(x),
    M.SIGMOID: lambda x: (1 / (1 + np.exp(-x.astype(np.float64)))).astype(F),
    M.TANH: lambda x: np.tanh(x),
    M.ERF: lambda x: _erf(x),
    M.SIN: lambda x: np.sin(x),
    M.COS: lambda x: np.cos(x),
    M.TAN: lambda x: np.tan(x),
    M.ASIN: lambda x: np.arcsin(x),
    M.ACOS: lambda x: np.arccos(x),
    M.ATAN: lambda x: np.arctan(x),
    M.SINH: lambda x: np.sinh(x),
    M.COSH: lambda x: np.cosh(x),
    M.ASINH: lambda x: np.arcsinh(x),
    M.ACOSH: lambda x: np.arccosh(x),
    M.ATANH: lambda x: np.arctanh(x),
    M.SIGN_F: lambda x: np.sign(x),
    M.SOFTPLUS: lambda x: np.logaddexp(x, F(0)),
    M.ADD_F: lambda x, y: x + y,
    M.SUB_F: lambda x, y: x - y,
    M.MUL_F: lambda x, y: x * y,
    M.DIV_F: lambda x, y: x / y,
    M.MIN_F: lambda x, y: np.minimum(x, y),
    M.MAX_F: lambda x, y: np.maximum(x, y),
    M.POW_F: lambda x, y: np.power(x, y),
    M.FMOD: lambda x, y: np.fmod(x, y),
    M.MOD_F: lambda x, y: np.mod(x, y),
    M.LT_F: lambda x, y: _truth(x < y),
    M.LE_F: lambda x, y: _truth(x <= y),
    M.EQ_F: lambda x, y: _truth(x == y),
    M.IS_NAN: lambda x: _truth(np.isnan(x)),
    M.IS_INF_POSITIVE: lambda x: _truth(np.isposinf(x)),
    M.IS_INF_NEGATIVE: lambda x: _truth(np.isneginf(x)),
    M.NEG_I: lambda x: -x,
    M.ABS_I: lambda x: np.abs(x),
    M.SIGN_I: lambda x: np.sign(x),
    M.NOT_I: lambda x: ~x,
    M.ADD_I: lambda x, y: x + y,
    M.SUB_I: lambda x, y: x - y,
    M.MUL_I: lambda x, y: x * y,
    M.DIV_I: lambda x, y: _divide(x, y),
    M.MIN_I: lambda x, y: np.minimum(x, y),
    M.MAX_I: lambda x, y: np.maximum(x, y),
    M.REM_I: lambda x, y: _safe(np.fmod, x, y),
    M.MOD_I: lambda x, y: _safe(np.mod, x, y),
    M.AND_I: lambda x, y: x & y,
    M.OR_I: lambda x, y: x | y,
    M.XOR_I: lambda x, y: x ^ y,
    M.SHL_I: lambda x, y: _shift_left(x, y),
    M.SHR_I: lambda x, y: _shift_right(x, y),
    M.LT_I: lambda x, y: _truth(x < y),
    M.LE_I: lambda x, y: _truth(x <= y),
    M.EQ_I: lambda x, y: _truth(x == y),
    M.POW_I: lambda x, y: np.where(y < 0, 0, np.power(x, np.maximum(y, 0))),
    M.SELECT_F: lambda c, x, y: np.where(c != 0, x, y),
    M.SELECT_I: lambda c, x, y: np.where(c != 0, x, y),
}
