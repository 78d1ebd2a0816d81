"""Element-wise operators: each is one :class:`~vessels.program.Map`."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from vessels.lower.builder import DTYPES, Body, Op, Refusal, lowers, require
from vessels.program import DType, MapCode, MapOp, View

M = MapCode

_UNARY_F = {
    "Exp": M.EXP, "Log": M.LOG, "Sqrt": M.SQRT, "Reciprocal": M.RECIPROCAL, "Floor": M.FLOOR,
    "Ceil": M.CEIL, "Round": M.ROUND, "Sigmoid": M.SIGMOID, "Tanh": M.TANH, "Erf": M.ERF,
    "Sin": M.SIN, "Cos": M.COS, "Tan": M.TAN, "Asin": M.ASIN, "Acos": M.ACOS, "Atan": M.ATAN,
    "Sinh": M.SINH, "Cosh": M.COSH, "Asinh": M.ASINH, "Acosh": M.ACOSH, "Atanh": M.ATANH,
    "Softplus": M.SOFTPLUS,
}  # fmt: skip
_UNARY_BOTH = {
    "Neg": (M.NEG_F, M.NEG_I),
    "Abs": (M.ABS_F, M.ABS_I),
    "Sign": (M.SIGN_F, M.SIGN_I),
}
_BINARY = {
    "Add": (M.ADD_F, M.ADD_I),
    "Sub": (M.SUB_F, M.SUB_I),
    "Mul": (M.MUL_F, M.MUL_I),
    "Div": (M.DIV_F, M.DIV_I),
    "Min": (M.MIN_F, M.MIN_I),
    "Max": (M.MAX_F, M.MAX_I),
    "Sum": (M.ADD_F, M.ADD_I),
}
_LOGICAL = {
    "And": M.AND_I, "Or": M.OR_I, "Xor": M.XOR_I,
    "BitwiseAnd": M.AND_I, "BitwiseOr": M.OR_I, "BitwiseXor": M.XOR_I,
}  # fmt: skip


def elementwise(op: Op, expression: Callable[..., int], *indices: int) -> None:
    """Lowers ``op`` to a map over the inputs ``indices``; scalar constants become immediates."""
    shape = op.out_shape()
    inputs: list[View] = []
    constants: dict[int, float | int] = {}
    for index in indices:
        array = op.const(index)
        if array is not None and array.size == 1 and op.value(index).dtype in DTYPES:
            constants[index] = array.reshape(-1)[0].item()
            continue
        inputs.append(op.view(index))
    dtype = op.out_dtype()

    def body_of(body: Body, *registers: int) -> int:
        rest = iter(registers)
        arguments = []
        for index in indices:
            if index not in constants:
                arguments.append(next(rest))
            elif op.builder.dtype(op.value(index)) == DType.F32:
                arguments.append(body.f(float(constants[index])))
            else:
                arguments.append(body.i(int(constants[index])))
        return expression(body, *arguments)

    name = op.node.outputs[0].name or op.type
    output = op.builder.like(shape, dtype, inputs, name)
    op.set(op.builder.map(inputs, output, body_of))


def is_float(op: Op, index: int = 0) -> bool:
    """Whether input ``index`` is float32; refuses dtypes that the instruction set lacks."""
    return op.builder.dtype(op.value(index)) == DType.F32


def _everything(op: Op) -> tuple[int, ...]:
    return tuple(range(len(op.node.inputs)))


@lowers(*_UNARY_F)
def unary_float(op: Op) -> None:
    op.floats()
    elementwise(op, lambda b, x: b.op(_UNARY_F[op.type], x), 0)


@lowers(*_UNARY_BOTH)
def unary_both(op: Op) -> None:
    code = _UNARY_BOTH[op.type][0 if is_float(op) else 1]
    elementwise(op, lambda b, x: b.op(code, x), 0)


@lowers(*_BINARY)
def variadic(op: Op) -> None:
    if len(op.node.inputs) == 1:
        op.set(op.view())
        return
    code = _BINARY[op.type][0 if is_float(op) else 1]

    def expression(b: Body, first: int, *rest: int) -> int:
        for register in rest:
            first = b.op(code, first, register)
        return first

    elementwise(op, expression, *_everything(op))


@lowers("Mean")
def mean(op: Op) -> None:
    op.floats()
    count = len(op.node.inputs)
    if count == 1:
        op.set(op.view())
        return

    def expression(b: Body, first: int, *rest: int) -> int:
        for register in rest:
            first = b.op(M.ADD_F, first, register)
        return b.op(M.DIV_F, first, b.f(count))

    elementwise(op, expression, *_everything(op))


@lowers(*_LOGICAL)
def logical(op: Op) -> None:
    elementwise(op, lambda b, x, y: b.op(_LOGICAL[op.type], x, y), 0, 1)


@lowers("Not")
def logical_not(op: Op) -> None:
    elementwise(op, lambda b, x: b.is_zero(x), 0)


@lowers("BitwiseNot")
def bitwise_not(op: Op) -> None:
    elementwise(op, lambda b, x: b.op(M.NOT_I, x), 0)


@lowers("BitShift")
def bit_shift(op: Op) -> None:
    require(op.out_dtype() == DType.U8, "only uint8")
    left = op.attr("direction") == "LEFT"
    elementwise(op, lambda b, x, y: b.op(M.SHL_I if left else M.SHR_I, x, y), 0, 1)


@lowers("Less", "LessOrEqual", "Equal", "Greater", "GreaterOrEqual")
def compare(op: Op) -> None:
    kinds = {"Less": (M.LT_F, M.LT_I), "Equal": (M.EQ_F, M.EQ_I), "LessOrEqual": (M.LE_F, M.LE_I)}
    name = op.type.replace("Greater", "Less")
    code = kinds[name][0 if is_float(op) else 1]
    if op.type.startswith("Greater"):
        elementwise(op, lambda b, x, y: b.op(code, y, x), 0, 1)
    else:
        elementwise(op, lambda b, x, y: b.op(code, x, y), 0, 1)


@lowers("IsNaN")
def is_nan(op: Op) -> None:
    op.floats()
    elementwise(op, lambda b, x: b.op(M.IS_NAN, x), 0)


@lowers("IsInf")
def is_inf(op: Op) -> None:
    op.floats()
    positive, negative = op.attr("detect_positive", 1), op.attr("detect_negative", 1)

    def expression(b: Body, x: int) -> int:
        if positive and negative:
            p, n = b.op(M.IS_INF_POSITIVE, x), b.op(M.IS_INF_NEGATIVE, x)
            return b.op(M.OR_I, p, n)
        if not positive and not negative:
            return b.i(0)
        return b.op(M.IS_INF_POSITIVE if positive else M.IS_INF_NEGATIVE, x)

    elementwise(op, expression, 0)


@lowers("Pow")
def power(op: Op) -> None:
    base, exponent = is_float(op, 0), is_float(op, 1)

    def expression(b: Body, x: int, y: int) -> int:
        if not base and not exponent:
            return b.op(M.POW_I, x, y)
        x = x if base else b.op(M.I_TO_F, x)
        y = y if exponent else b.op(M.I_TO_F, y)
        if _immediate(b, y) == 2.0:
            result = b.op(M.MUL_F, x, x)
        elif _immediate(b, y) == 0.5:
            result = b.op(M.SQRT, x)
        else:
            result = b.op(M.POW_F, x, y)
        return result if base else b.op(M.F_TO_I, result)

    elementwise(op, expression, 0, 1)


def _immediate(b: Body, register: int) -> float | None:
    """The value of a register that holds a float32 immediate."""
    if register < len(b.inputs):
        return None
    found: MapOp = b.ops[register - len(b.inputs)]
    if found.code != M.CONST_F:
        return None
    return float(np.uint32(found.x).view(np.float32))


@lowers("Mod")
def modulo(op: Op) -> None:
    c_like = bool(op.attr("fmod", 0))
    if is_float(op):
        require(c_like, "fmod=0 on floats")
        elementwise(op, lambda b, x, y: b.op(M.FMOD, x, y), 0, 1)
    else:
        elementwise(op, lambda b, x, y: b.op(M.REM_I if c_like else M.MOD_I, x, y), 0, 1)


@lowers("Where")
def where(op: Op) -> None:
    code = M.SELECT_F if op.out_dtype() == DType.F32 else M.SELECT_I
    elementwise(op, lambda b, c, x, y: b.op(code, c, x, y), 0, 1, 2)


@lowers("Cast", "CastLike")
def cast(op: Op) -> None:
    source, target = op.builder.dtype(op.value(0)), op.out_dtype()
    if source == target:
        op.set(op.view())
        return

    def expression(b: Body, x: int) -> int:
        if target == DType.BOOL and source == DType.F32:
            return b.is_zero(b.op(M.EQ_F, x, b.f(0.0)))
        if target == DType.F32:
            return b.op(M.I_TO_F, x)
        if source == DType.F32:
            return b.op(M.F_TO_I, x)
        if target == DType.BOOL:
            return b.is_zero(b.is_zero(x))
        return x

    elementwise(op, expression, 0)


@lowers("Clip")
def clip(op: Op) -> None:
    """Bounds are attributes before opset 11, then inputs that need not be constant."""
    floats = is_float(op)
    lower, upper = (M.MAX_F, M.MIN_F) if floats else (M.MAX_I, M.MIN_I)
    if op.version < 11:
        low, high = (op.attr(n) for n in ("min", "max"))

        def fixed(b: Body, x: int) -> int:
            x = x if low is None else b.op(lower, x, b.f(low))
            return x if high is None else b.op(upper, x, b.f(high))

        elementwise(op, fixed, 0)
        return
    given = [i for i in (1, 2) if op.has(i)]

    def expression(b: Body, x: int, *bounds: int) -> int:
        for index, bound in zip(given, bounds, strict=True):
            x = b.op(lower if index == 1 else upper, x, bound)
        return x

    elementwise(op, expression, 0, *given)


@lowers("Relu")
def relu(op: Op) -> None:
    if is_float(op):
        elementwise(op, lambda b, x: b.op(M.MAX_F, x, b.f(0.0)), 0)
    else:
        elementwise(op, lambda b, x: b.op(M.MAX_I, x, b.i(0)), 0)


def _select(b: Body, condition: int, yes: int, no: int) -> int:
    return b.op(M.SELECT_F, condition, yes, no)


def _negative(b: Body, x: int) -> int:
    return b.op(M.LT_F, x, b.f(0.0))


def _exp_minus_1(b: Body, x: int, alpha: float) -> int:
    # Of min(x, 0), so that the branch not taken stays finite.
    e = b.op(M.EXP, b.op(M.MIN_F, x, b.f(0.0)))
    return b.op(M.MUL_F, b.op(M.SUB_F, e, b.f(1.0)), b.f(alpha))


@lowers("LeakyRelu")
def leaky_relu(op: Op) -> None:
    op.floats()
    alpha = float(op.attr("alpha", 0.01))
    elementwise(op, lambda b, x: _select(b, _negative(b, x), b.op(M.MUL_F, x, b.f(alpha)), x), 0)


@lowers("PRelu")
def prelu(op: Op) -> None:
    op.floats()
    elementwise(op, lambda b, x, s: _select(b, _negative(b, x), b.op(M.MUL_F, x, s), x), 0, 1)


@lowers("ThresholdedRelu")
def thresholded_relu(op: Op) -> None:
    op.floats()
    alpha = float(op.attr("alpha", 1.0))
    elementwise(op, lambda b, x: _select(b, b.op(M.LT_F, b.f(alpha), x), x, b.f(0.0)), 0)


@lowers("Elu")
def elu(op: Op) -> None:
    op.floats()
    alpha = float(op.attr("alpha", 1.0))
    elementwise(op, lambda b, x: _select(b, _negative(b, x), _exp_minus_1(b, x, alpha), x), 0)


@lowers("Selu")
def selu(op: Op) -> None:
    op.floats()
    alpha = float(op.attr("alpha", 1.67326319217681884765625))
    gamma = float(op.attr("gamma", 1.05070102214813232421875))

    def expression(b: Body, x: int) -> int:
        y = _select(b, _negative(b, x), _exp_minus_1(b, x, alpha), x)
        return b.op(M.MUL_F, y, b.f(gamma))

    elementwise(op, expression, 0)


@lowers("Celu")
def celu(op: Op) -> None:
    op.floats()
    alpha = float(op.attr("alpha", 1.0))

    def expression(b: Body, x: int) -> int:
        negative = _exp_minus_1(b, b.op(M.DIV_F, x, b.f(alpha)), alpha)
        return b.op(M.ADD_F, b.op(M.MAX_F, x, b.f(0.0)), negative)

    require(alpha > 0, "alpha is not positive")
    elementwise(op, expression, 0)


def _affine_clamp(b: Body, x: int, alpha: float, beta: float) -> int:
    y = b.op(M.ADD_F, b.op(M.MUL_F, x, b.f(alpha)), b.f(beta))
    return b.op(M.MIN_F, b.op(M.MAX_F, y, b.f(0.0)), b.f(1.0))


@lowers("HardSigmoid")
def hard_sigmoid(op: Op) -> None:
    op.floats()
    alpha, beta = float(op.attr("alpha", 0.2)), float(op.attr("beta", 0.5))
    elementwise(op, lambda b, x: _affine_clamp(b, x, alpha, beta), 0)


@lowers("HardSwish")
def hard_swish(op: Op) -> None:
    op.floats()
    elementwise(op, lambda b, x: b.op(M.MUL_F, x, _affine_clamp(b, x, 1 / 6, 0.5)), 0)


@lowers("Softsign")
def softsign(op: Op) -> None:
    op.floats()
    elementwise(op, lambda b, x: b.op(M.DIV_F, x, b.op(M.ADD_F, b.op(M.ABS_F, x), b.f(1.0))), 0)


@lowers("Mish")
def mish(op: Op) -> None:
    op.floats()
    elementwise(op, lambda b, x: b.op(M.MUL_F, x, b.op(M.TANH, b.op(M.SOFTPLUS, x))), 0)


@lowers("Swish")
def swish(op: Op) -> None:
    op.floats()
    alpha = float(op.attr("alpha", 1.0))

    def expression(b: Body, x: int) -> int:
        y = x if alpha == 1.0 else b.op(M.MUL_F, x, b.f(alpha))
        return b.op(M.MUL_F, x, b.op(M.SIGMOID, y))

    elementwise(op, expression, 0)


@lowers("Gelu")
def gelu(op: Op) -> None:
    op.floats()
    approximate = op.attr("approximate", "none")

    def expression(b: Body, x: int) -> int:
        half = b.op(M.MUL_F, x, b.f(0.5))
        if approximate == "none":
            inner = b.op(M.ERF, b.op(M.MUL_F, x, b.f(math.sqrt(0.5))))
        else:
            cube = b.op(M.MUL_F, b.op(M.MUL_F, x, x), x)
            total = b.op(M.ADD_F, x, b.op(M.MUL_F, cube, b.f(0.044715)))
            inner = b.op(M.TANH, b.op(M.MUL_F, total, b.f(math.sqrt(2 / math.pi))))
        return b.op(M.MUL_F, half, b.op(M.ADD_F, inner, b.f(1.0)))

    if approximate not in ("none", "tanh"):
        raise Refusal(f"approximate={approximate!r}")
    elementwise(op, expression, 0)


@lowers("BatchNormalization")
def batch_normalization(op: Op) -> None:
    op.only_output()
    op.floats()
    require(not op.attr("training_mode", 0), "training mode")
    arrays = [op.const(i) for i in range(1, 5)]
    require(all(a is not None for a in arrays), "parameters are not constant")
    scale, bias, mu, variance = (np.asarray(a, np.float64) for a in arrays)
    factor = scale / np.sqrt(variance + float(op.attr("epsilon", 1e-5)))
    shape = (-1, *[1] * (op.rank - 2))
    builder = op.builder
    name = op.node.outputs[0].name or op.type
    a = builder.constant_view(factor.astype(np.float32).reshape(shape), f"{name}.scale")
    b = builder.constant_view(
        (bias - mu * factor).astype(np.float32).reshape(shape), f"{name}.bias"
    )
    x = op.view()
    output = builder.like(op.out_shape(), DType.F32, [x], name)
    op.set(builder.map([x, a, b], output, lambda m, x, a, b: m.op(M.ADD_F, m.op(M.MUL_F, x, a), b)))
