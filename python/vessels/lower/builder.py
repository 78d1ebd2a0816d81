"""The state of one lowering: what each graph value became, and the instructions so far.

Invariant that the later passes rely on: every element of a buffer is written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vessels.lower import views
from vessels.program import (
    MAX_MAP_REGISTERS,
    MAX_RANK,
    Buffer,
    BufferKind,
    Copy,
    DType,
    Instruction,
    Map,
    MapCode,
    MapOp,
    View,
    float_bits,
)

Array = np.ndarray[Any, Any]

DTYPES: dict[ir.DataType, DType] = {
    ir.DataType.FLOAT: DType.F32,
    ir.DataType.INT32: DType.I32,
    ir.DataType.INT64: DType.I64,
    ir.DataType.UINT8: DType.U8,
    ir.DataType.BOOL: DType.BOOL,
    ir.DataType.INT8: DType.I8,
}


class Refusal(Exception):
    """Why a node cannot be lowered; collected, never shown alone."""


def require(condition: object, reason: str) -> None:
    """Refuses the node being lowered with ``reason`` unless ``condition``."""
    if not condition:
        raise Refusal(reason)


_UNARY = {*range(MapCode.I_TO_F, MapCode.ADD_F), *range(MapCode.NEG_I, MapCode.ADD_I)} | {
    MapCode.IS_NAN,
    MapCode.IS_INF_POSITIVE,
    MapCode.IS_INF_NEGATIVE,
}
ARITY = {
    **dict.fromkeys(MapCode, 2),
    **{c: 1 for c in MapCode if c in _UNARY},
    **dict.fromkeys((MapCode.CONST_F, MapCode.CONST_I), 0),
    **dict.fromkeys((MapCode.SELECT_F, MapCode.SELECT_I), 3),
}
"""Registers that each operation reads."""


def pruned(
    inputs: Sequence[View], ops: Sequence[MapOp], result: int
) -> tuple[tuple[View, ...], list[MapOp]] | None:
    """Inputs and operations that ``result`` needs, it being the last; ``None`` if it is an input
    or there are more than :data:`MAX_MAP_REGISTERS`.
    """
    if result < len(inputs):
        return None
    needed = {result}
    for register in reversed(range(len(inputs), result + 1)):
        op = ops[register - len(inputs)]
        if register in needed:
            needed.update((op.x, op.y, op.z)[: ARITY[op.code]])
    kept = sorted(needed)
    if len(kept) > MAX_MAP_REGISTERS:
        return None
    number = {old: new for new, old in enumerate(kept)}
    renumbered = []
    for register in kept:
        if register >= len(inputs):
            op = ops[register - len(inputs)]
            arguments = [number[r] for r in (op.x, op.y, op.z)[: ARITY[op.code]]]
            renumbered.append(MapOp(op.code, *arguments) if arguments else op)
    return tuple(inputs[r] for r in kept if r < len(inputs)), renumbered


@dataclass
class Body:
    """The operations of one :class:`Map` in the making; a register is an ``int``."""

    inputs: tuple[View, ...]
    ops: list[MapOp]

    def op(self, code: MapCode, x: int = 0, y: int = 0, z: int = 0) -> int:
        """Appends an operation (or finds an equal one) and gives its register."""
        new = MapOp(code, x, y, z)
        if new in self.ops:
            return len(self.inputs) + self.ops.index(new)
        self.ops.append(new)
        return len(self.inputs) + len(self.ops) - 1

    def f(self, value: float) -> int:
        """A float32 immediate."""
        return self.op(MapCode.CONST_F, float_bits(float(np.float32(value))))

    def i(self, value: int) -> int:
        """An int64 immediate."""
        return self.op(MapCode.CONST_I, value)

    def is_zero(self, x: int) -> int:
        """1 where the integer register is 0, else 0."""
        return self.op(MapCode.EQ_I, x, self.i(0))


class Op:
    """One ONNX node seen from the lowering of its operator."""

    def __init__(self, builder: Builder, node: ir.Node) -> None:
        self.builder = builder
        self.node = node
        self.type = node.op_type
        self.version = node.version or builder.opset

    def attr(self, name: str, default: Any = None) -> Any:
        """The attribute's plain value (tensors as arrays), or ``default``."""
        attribute = self.node.attributes.get(name)
        if attribute is None:
            return default
        value = attribute.value
        if isinstance(value, ir.TensorProtocol):
            return value.numpy()
        return value

    def has(self, index: int) -> bool:
        """Whether input ``index`` is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def value(self, index: int) -> ir.Value:
        """Input ``index``, which must be given."""
        require(self.has(index), f"input {index} is missing")
        value = self.node.inputs[index]
        assert value is not None
        return value

    def const(self, index: int) -> Array | None:
        """Input ``index`` as an array if it is given and constant."""
        return self.builder.constant(self.value(index)) if self.has(index) else None

    def fixed(self, index: int, name: str) -> Array | None:
        """As :meth:`const`, but refuses what is given and not constant."""
        if not self.has(index):
            return None
        array = self.const(index)
        require(array is not None, f"{name} is not constant")
        return array

    def ints(self, name: str, index: int) -> list[int] | None:
        """A list of integers that newer opsets take as an input and older ones as an attribute."""
        array = self.fixed(index, name)
        if array is not None:
            return [int(v) for v in array.reshape(-1)]
        attribute = self.attr(name)
        return None if attribute is None else [int(v) for v in attribute]

    def view(self, index: int = 0) -> View:
        """Input ``index`` as a view; constants become constant buffers."""
        return self.builder.view(self.value(index))

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """Shape of input ``index``."""
        return self.builder.shape(self.value(index))

    @property
    def rank(self) -> int:
        """Rank of the first input."""
        return len(self.shape(0))

    def axis(self, default: int, rank: int | None = None) -> int:
        """The ``axis`` attribute, non-negative."""
        axis = int(self.attr("axis", default))
        return axis + (self.rank if rank is None else rank) if axis < 0 else axis

    def out_shape(self, index: int = 0) -> tuple[int, ...]:
        """Shape of output ``index`` as inferred."""
        return self.builder.shape(self.node.outputs[index])

    def out_dtype(self, index: int = 0) -> DType:
        """Element type of output ``index``."""
        return self.builder.dtype(self.node.outputs[index])

    def wants(self, index: int) -> bool:
        """Whether output ``index`` exists and somebody reads it."""
        outputs = self.node.outputs
        if index >= len(outputs) or not outputs[index].name:
            return False
        value = outputs[index]
        return bool(value.uses()) or value.is_graph_output()

    def only_output(self, count: int = 1) -> None:
        """Refuses outputs beyond the first ``count`` that somebody reads."""
        for index in range(count, len(self.node.outputs)):
            require(not self.wants(index), f"output {index} is used")

    def floats(self, *indices: int) -> None:
        """Refuses inputs (all given ones without ``indices``) that are not float32."""
        for index in indices or range(len(self.node.inputs)):
            if self.has(index):
                dtype = self.value(index).dtype
                require(dtype == ir.DataType.FLOAT, f"input {index} is {dtype}, not float32")

    def new(self, dtype: DType | None = None, order: Sequence[int] | None = None) -> View:
        """A new buffer's view for output 0, physically in ``order`` (outermost first)."""
        name = self.node.outputs[0].name or self.type
        return self.builder.new(
            self.out_shape(), self.out_dtype() if dtype is None else dtype, order, name
        )

    def set(self, view: View, index: int = 0) -> None:
        """Says what output ``index`` is; refuses a shape that differs from the inferred one."""
        expected = self.out_shape(index)
        require(
            view.shape == expected, f"computed shape {view.shape} differs from inferred {expected}"
        )
        require(view.dtype == self.out_dtype(index), "computed dtype differs from inferred")
        self.builder.views[self.node.outputs[index]] = view


class Builder:
    """Buffers, instructions and the views that stand for graph values."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.views: dict[ir.Value, View] = {}
        self.instructions: list[Instruction] = []
        self._constants: dict[tuple[DType, bytes], Buffer] = {}

    def constant(self, value: ir.Value) -> Array | None:
        """The value's array if it is constant."""
        return None if value.const_value is None else value.const_value.numpy()

    def dtype(self, value: ir.Value) -> DType:
        """The value's element type; refuses those that the instruction set lacks."""
        require(value.dtype in DTYPES, f"{value.name!r} has dtype {value.dtype}")
        assert value.dtype is not None
        return DTYPES[value.dtype]

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """The value's shape; refuses unknown, empty and too deep ones."""
        if value.shape is None and value.const_value is not None:
            shape = tuple(int(d) for d in value.const_value.shape)  # type: ignore[arg-type]
        else:
            require(value.shape is not None, f"the shape of {value.name!r} is unknown")
            assert value.shape is not None
            require(value.shape.is_static(), f"the shape of {value.name!r} is not static")
            shape = tuple(int(d) for d in value.shape.numpy())
        require(0 not in shape, f"{value.name!r} has no elements (shape {shape})")
        require(len(shape) <= MAX_RANK, f"{value.name!r} has rank {len(shape)} > {MAX_RANK}")
        return shape

    def view(self, value: ir.Value) -> View:
        """The view of a value already lowered, or of a constant."""
        found = self.views.get(value)
        if found is not None:
            return found
        array = self.constant(value)
        require(array is not None, f"{value.name!r} has no value")
        assert array is not None
        self.dtype(value)
        self.shape(value)
        return self.constant_view(array, value.name or "constant")

    def constant_view(self, array: Array, name: str) -> View:
        """A dense view of a constant buffer with the array's elements; equal ones are shared."""
        try:
            dtype = DType.of(array.dtype)
        except KeyError:
            raise Refusal(f"constant {name!r} has dtype {array.dtype}") from None
        require(array.size, f"constant {name!r} has no elements")
        data = np.ascontiguousarray(array).reshape(-1)
        key = (dtype, data.tobytes())
        buffer = self._constants.get(key)
        if buffer is None:
            buffer = Buffer(name, data.nbytes, "constant", data)
            self._constants[key] = buffer
        return View.dense(buffer, dtype, array.shape)

    def new(
        self,
        shape: Sequence[int],
        dtype: DType,
        order: Sequence[int] | None = None,
        name: str = "",
        kind: BufferKind = "arena",
    ) -> View:
        """A view of a new buffer, dense with its dimensions in ``order`` (outermost first)."""
        shape = tuple(shape)
        require(len(shape) <= MAX_RANK, f"rank {len(shape)} > {MAX_RANK}")
        buffer = Buffer(name, math.prod(shape) * dtype.size, kind)
        if order is None:
            return View.dense(buffer, dtype, shape)
        physical = View.dense(buffer, dtype, tuple(shape[i] for i in order))
        return views.permute(physical, np.argsort(np.asarray(order, np.int64)).tolist())

    def emit(self, instruction: Instruction) -> None:
        """Appends an instruction."""
        self.instructions.append(instruction)

    def emit_copy(self, source: View, target: View) -> None:
        """Appends a :class:`Copy`."""
        self.emit(Copy(source, target))

    def copied(self, view: View, order: Sequence[int] | None = None) -> View:
        """A copy of ``view`` in a new buffer, dense with its dimensions in ``order``."""
        out = self.new(view.shape, view.dtype, order, view.buffer.name)
        self.emit(Copy(view, out))
        return out

    def reshaped(self, view: View, shape: tuple[int, ...]) -> View:
        """``view`` reshaped; copied first where its strides do not allow it."""
        require(len(shape) <= MAX_RANK, f"rank {len(shape)} > {MAX_RANK}")
        direct = views.reshape(view, shape)
        if direct is not None:
            return direct
        out = views.reshape(self.copied(view), shape)
        assert out is not None
        return out

    def map(
        self, inputs: Sequence[View], output: View, expression: Callable[..., int] | None = None
    ) -> View:
        """Emits a :class:`Map` of ``expression(body, *registers)``; inputs are broadcast."""
        unique: list[View] = []
        registers: list[int] = []
        for view in inputs:
            full = views.broadcast(view, output.shape)
            if full not in unique:
                unique.append(full)
            registers.append(unique.index(full))
        body = Body(tuple(unique), [])
        if expression is not None:
            result = expression(body, *registers)
            if result < len(unique):
                body = Body((unique[result],), [])
            else:
                kept = pruned(unique, body.ops, result)
                require(kept is not None, "too many operands")
                assert kept is not None
                body = Body(*kept)
        self.emit(Map(body.inputs, output, tuple(body.ops)))
        return output

    def fill(self, output: View, value: float | int) -> None:
        """Fills ``output`` with one value."""
        if output.dtype == DType.F32:
            self.map((), output, lambda b: b.f(float(value)))
        else:
            self.map((), output, lambda b: b.i(int(value)))

    def like(self, shape: tuple[int, ...], dtype: DType, inputs: Sequence[View], name: str) -> View:
        """A new view in the physical order of the largest input (C order if that is broadcast)."""
        full = [v for v in inputs if v.shape == shape]
        best = max(full, key=lambda v: v.count, default=None)
        return self.new(shape, dtype, views.order(best) if best is not None else None, name)


Lowering = Callable[[Op], None]
REGISTRY: dict[str, Lowering] = {}


def lowers(*names: str) -> Callable[[Lowering], Lowering]:
    """Registers the lowering of the operators ``names`` of the default ONNX domain."""

    def register(function: Lowering) -> Lowering:
        for name in names:
            REGISTRY[name] = function
        return function

    return register
