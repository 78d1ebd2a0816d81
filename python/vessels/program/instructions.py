"""The instructions, one class each; the docstrings are their specification."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from vessels.program.views import PANEL_WIDTH, WINOGRAD_GAP, View, panel_widths


@dataclass(frozen=True, eq=False)
class Parameters:
    """Plain float32 parameters of one instruction, before they are cut and packed.

    ``weights`` is ``[kernel_h, kernel_w, C, O]`` for :class:`Conv`, and
    ``[kernel_h, kernel_w, C]`` for :class:`Depthwise`; ``bias`` is ``[O]`` or ``[C]``.
    """

    weights: np.ndarray[Any, Any]
    bias: np.ndarray[Any, Any]


@dataclass(frozen=True)
class Cut:
    """How an instruction's parameters are cut into chunks.

    A chunk holds ``panels_per_chunk`` panels of output channels and
    ``depth_per_chunk`` of the reduction; where the depth is cut,
    ``panels_per_chunk`` is 1 and the chunks of a panel follow each other.
    Layout of a chunk, float32, for each panel of width ``w`` in turn:

    * conv: ``bias[w]`` then ``weights[depth][w]``, depth running over
      ``(kernel_h, kernel_w, C)`` flattened;
    * winograd: ``bias[w]`` then ``weights[depth][9][w]``, depth running over C;
    * depthwise (all panels of the chunk as one, ``w`` their summed width):
      ``bias[w]`` then ``weights[kernel_h * kernel_w][w]``.

    Only the first depth piece's bias counts, the others hold zeros. Channels
    beyond the layer's are zeros.
    """

    first_chunk: int
    chunk_count: int
    panels_per_chunk: int
    depth_per_chunk: int


class ActivationKind(enum.IntEnum):
    """What is applied at the store, to float32."""

    NONE = 0
    CLAMP = 1  # min(max(x, a), b)
    LEAKY = 2  # x if x >= 0 else a * x
    HARD_SWISH = 3  # x * min(max(a * x + b, 0), 1)


@dataclass(frozen=True)
class Activation:
    """An activation fused into a store."""

    kind: ActivationKind = ActivationKind.NONE
    a: float = 0.0
    b: float = 0.0


RELU = Activation(ActivationKind.CLAMP, 0.0, float("inf"))


class Instruction:
    """Base of all instructions; ``reads`` and ``writes`` are all views they touch."""

    kind: ClassVar[int]
    mnemonic: ClassVar[str]
    _reads: ClassVar[tuple[str, ...]]
    _writes: ClassVar[tuple[str, ...]] = ("output",)

    @property
    def reads(self) -> tuple[View, ...]:
        """Views read, scratch excluded."""
        return tuple(self._views(self._reads))

    @property
    def writes(self) -> tuple[View, ...]:
        """Views written, scratch excluded."""
        return tuple(self._views(self._writes))

    @property
    def scratch(self) -> View | None:
        """Memory needed only while the instruction runs, shared by its threads."""
        return None

    def _views(self, names: tuple[str, ...]) -> Iterator[View]:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, View):
                yield value
            elif isinstance(value, tuple):
                yield from value

    def with_views(self, change: Callable[[View], View]) -> Self:
        """A copy with every view, scratch included, passed through ``change``."""
        changes: dict[str, Any] = {}
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if isinstance(value, View):
                changes[f.name] = change(value)
            elif isinstance(value, tuple) and any(isinstance(v, View) for v in value):
                changes[f.name] = tuple(change(v) for v in value)
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


@dataclass(frozen=True)
class Load(Instruction):
    """Decrypts chunks ``first_chunk .. first_chunk + chunk_count`` into ``output``.

    ``output`` is dense. Chunk ``i`` fills bytes ``i * chunk_size ..`` of it, where
    ``chunk_size`` is the size of the first chunk; the last may be padded with
    up to 63 zero bytes that are not stored.
    """

    kind = 0
    mnemonic = "load"
    _reads = ()
    output: View
    first_chunk: int
    chunk_count: int


@dataclass(frozen=True)
class _Convolution(Instruction):
    """The fields of :class:`Conv` and :class:`Depthwise`."""

    _reads = ("input", "residual")
    input: View
    output: View
    residual: View | None
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    activation: Activation
    residual_after: bool
    parameters: Parameters | None = None
    cut: Cut | None = None


@dataclass(frozen=True)
class Conv(_Convolution):
    """2-d convolution, cross-correlation as ONNX ``Conv``; float32.

    ``input`` ``[N, H, W, C]`` and ``output`` ``[N, OH, OW, O]``, both with channel
    stride 1 (``output`` may be a strided slice of a larger image). Taps outside
    the input read zero; ``padding`` is ``(top, left)``, bottom and right follow
    from the output's shape. With ``residual`` (shape of ``output``) the sum is
    taken before the activation, or after it if ``residual_after``. A matrix
    product ``[M, K] x [K, N]`` is a 1x1 convolution with N=H=1, W=M.
    """

    kind = 1
    mnemonic = "conv"


class WinogradMode(enum.IntEnum):
    """What is transformed once and kept in scratch while the instruction runs."""

    INPUT = 0  # all input tiles; each thread streams and transforms parameters
    PARAMETERS = 1  # all parameters; each thread transforms blocks of input tiles


@dataclass(frozen=True)
class Winograd(Instruction):
    """3x3 stride-1 convolution by Winograd F(4x4, 3x3) (Lavin and Gray, 2016); float32.

    Semantics are those of :class:`Conv` with ``kernel`` (3, 3), ``stride`` and
    ``dilation`` (1, 1). Its depth is channels; a chunk holds one panel or a piece of one.
    ``workspace`` is dense float32; for how it is divided and how large it must be see
    :func:`winograd_scratch_count`.
    """

    kind = 2
    mnemonic = "winograd"
    _reads = ("input", "residual")
    input: View
    output: View
    residual: View | None
    padding: tuple[int, int]
    activation: Activation
    residual_after: bool
    mode: WinogradMode
    tile_block: int
    workspace: View
    parameters: Parameters | None = None
    cut: Cut | None = None

    @property
    def scratch(self) -> View | None:
        return self.workspace


def winograd_scratch_count(
    mode: WinogradMode,
    output_shape: tuple[int, ...],
    channel_count: int,
    depth_per_chunk: int,
    tile_block: int,
    thread_count: int,
) -> int:
    """Float32 elements of workspace that a :class:`Winograd` needs.

    ``T`` is the number of 4x4 output tiles, ``B`` is ``tile_block`` (tiles that go
    through the 36 products together), ``N = ceil(T/B)``, ``P`` is the summed panel
    width of ``Q`` panels, ``D`` is ``depth_per_chunk``, ``G`` is :data:`WINOGRAD_GAP`:

    * ``INPUT``: ``36 N (C B + G)`` shared, then for each thread
      ``36 (32 D + G) + 36 N (32 B + G)``.
    * ``PARAMETERS``: ``36 (C P + Q G) + P`` shared, then for each thread
      ``36 (C B + G) + 36 (32 B + G)``.
    """
    n, height, width, out_channels = output_shape
    blocks = -(-n * -(-height // 4) * -(-width // 4) // tile_block)
    values = 36 * (channel_count * tile_block + WINOGRAD_GAP)
    sums = 36 * (PANEL_WIDTH * tile_block + WINOGRAD_GAP)
    if mode == WinogradMode.INPUT:
        shared = blocks * values
        private = 36 * (PANEL_WIDTH * depth_per_chunk + WINOGRAD_GAP) + blocks * sums
    else:
        widths = panel_widths(out_channels)
        shared = 36 * (channel_count * sum(widths) + len(widths) * WINOGRAD_GAP) + sum(widths)
        private = values + sums
    return shared + thread_count * private


@dataclass(frozen=True)
class Depthwise(_Convolution):
    """Convolution of each channel with its own kernel (ONNX ``Conv``, group = C = O); float32.

    ``input`` ``[N, H, W, C]``, ``output`` ``[N, OH, OW, C]``; otherwise as :class:`Conv`.
    """

    kind = 3
    mnemonic = "depthwise"


@dataclass(frozen=True)
class MatMul(Instruction):
    """Batched product of two activations: ``[*B, M, K] x [*B, K, N] -> [*B, M, N]``; float32.

    All three have the same rank; batch dimensions broadcast by stride 0.
    """

    kind = 4
    mnemonic = "matmul"
    _reads = ("a", "b")
    a: View
    b: View
    output: View


class PoolKind(enum.IntEnum):
    """Reduction over a window."""

    MAX = 0
    AVERAGE = 1


@dataclass(frozen=True)
class Pool(Instruction):
    """2-d pooling (ONNX ``MaxPool``, ``AveragePool``); float32, channels-last, channel stride 1.

    Cells outside the input are skipped. The average divides by the number of
    cells inside the input or, with ``count_padding``, inside the input grown by
    ``padding`` (top, left, bottom, right).
    """

    kind = 5
    mnemonic = "pool"
    _reads = ("input",)
    input: View
    output: View
    reduction: PoolKind
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]
    count_padding: bool


class MapCode(enum.IntEnum):
    """Operations of a map expression.

    Registers are float32 (``F``) or int64 (``I``); narrower integers and booleans
    (0 or 1) are widened when read and wrap when stored; a store to ``BOOL``
    writes ``value != 0``. Integer arithmetic wraps; division truncates, and by
    zero gives 0.
    """

    # immediates; the first argument is the value (bits for float32)
    CONST_F = 0
    CONST_I = 1
    # conversions
    I_TO_F = 2
    F_TO_I = 3  # truncates, saturates, NaN gives 0
    # float32 -> float32
    NEG_F = 10
    ABS_F = 11
    EXP = 12
    LOG = 13
    SQRT = 14
    RECIPROCAL = 15
    FLOOR = 16
    CEIL = 17
    ROUND = 18  # half to even
    SIGMOID = 19
    TANH = 20
    ERF = 21
    SIN = 22
    COS = 23
    TAN = 24
    ASIN = 25
    ACOS = 26
    ATAN = 27
    SINH = 28
    COSH = 29
    ASINH = 30
    ACOSH = 31
    ATANH = 32
    SIGN_F = 33
    SOFTPLUS = 34
    # float32, float32 -> float32
    ADD_F = 40
    SUB_F = 41
    MUL_F = 42
    DIV_F = 43
    MIN_F = 44  # NaN if either is
    MAX_F = 45
    POW_F = 46
    FMOD = 47  # C fmod
    MOD_F = 48  # result has the divisor's sign
    # float32 [, float32] -> int64 (0 or 1)
    LT_F = 60
    LE_F = 61
    EQ_F = 62
    IS_NAN = 63
    IS_INF_POSITIVE = 64
    IS_INF_NEGATIVE = 65
    # int64 -> int64
    NEG_I = 70
    ABS_I = 71
    SIGN_I = 72
    NOT_I = 73  # bitwise
    # int64, int64 -> int64
    ADD_I = 80
    SUB_I = 81
    MUL_I = 82
    DIV_I = 83
    MIN_I = 84
    MAX_I = 85
    REM_I = 86  # sign of the dividend
    MOD_I = 87  # sign of the divisor
    AND_I = 88
    OR_I = 89
    XOR_I = 90
    SHL_I = 91
    SHR_I = 92  # of the unsigned value; 64 and more give 0
    LT_I = 93
    LE_I = 94
    EQ_I = 95
    POW_I = 96  # negative exponents give 0
    # int64, T, T -> T: second if the first is not zero, else third
    SELECT_F = 100
    SELECT_I = 101


@dataclass(frozen=True)
class MapOp:
    """One operation; arguments are register numbers (unused ones are 0).

    Register ``i`` is input ``i`` for the first ``len(inputs)``, then the result of
    each operation in turn.
    """

    code: MapCode
    x: int = 0
    y: int = 0
    z: int = 0


MAX_MAP_REGISTERS = 32


@dataclass(frozen=True)
class Map(Instruction):
    """A fused element-wise expression; the last register is stored.

    All ``inputs`` have the shape of ``output``; they broadcast by stride 0. At
    most :data:`MAX_MAP_REGISTERS` registers. Without operations it is a copy that
    converts between types of the same register kind; without inputs, a fill.
    """

    kind = 6
    mnemonic = "map"
    _reads = ("inputs",)
    inputs: tuple[View, ...]
    output: View
    ops: tuple[MapOp, ...]


class ReduceKind(enum.IntEnum):
    """Reductions; the ARG ones give int64 positions in the flattened reduced part."""

    SUM = 0
    PROD = 1
    MAX = 2
    MIN = 3
    SUM_SQUARE = 4
    SUM_ABS = 5
    ARG_MAX_FIRST = 6
    ARG_MAX_LAST = 7
    ARG_MIN_FIRST = 8
    ARG_MIN_LAST = 9


@dataclass(frozen=True)
class Reduce(Instruction):
    """Reduces the dimensions of ``input`` after the first ``rank(output)``.

    ``input`` has shape ``output.shape + reduced``; float32, int32 or int64, and
    ``output`` the same type (int64 for the ARG kinds). A float32 result is
    multiplied by ``scale`` (a mean is a sum scaled); for integers it is 1.
    """

    kind = 7
    mnemonic = "reduce"
    _reads = ("input",)
    input: View
    output: View
    reduction: ReduceKind
    scale: float = 1.0


@dataclass(frozen=True)
class Copy(Instruction):
    """Copies elements between views of one shape and dtype: transpose, slice, pad, concat."""

    kind = 8
    mnemonic = "copy"
    _reads = ("input",)
    input: View
    output: View


@dataclass(frozen=True)
class Gather(Instruction):
    """ONNX ``Gather``: ``output[i.., j.., k..] = data[i.., indices[j..], k..]``.

    ``i..`` are the ``axis`` first dimensions of ``data``. ``indices`` is int32 or int64,
    negative ones count from the end; one out of range refuses the run. The
    addresses it touches depend on ``indices``: with private indices that is a
    page-level leak (docs/threat-model.md).
    """

    kind = 9
    mnemonic = "gather"
    _reads = ("data", "indices")
    data: View
    indices: View
    output: View
    axis: int


INSTRUCTIONS: tuple[type[Instruction], ...] = (
    Load, Conv, Winograd, Depthwise, MatMul, Pool, Map, Reduce, Copy, Gather,
)  # fmt: skip
