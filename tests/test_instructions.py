"""Every instruction kind in a real enclave process, against the plain reference.

Odd shapes, layouts and cuts; on every instruction set and with one to three threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.programs import THREADS, SealedSheet, Sheet, cut
from vessels.errors import EnclaveError, RequestError
from vessels.program import (
    RELU,
    Activation,
    ActivationKind,
    Buffer,
    Conv,
    Copy,
    Depthwise,
    DType,
    Gather,
    Load,
    Map,
    MapCode,
    MapOp,
    MatMul,
    Parameters,
    Pool,
    PoolKind,
    Reduce,
    ReduceKind,
    View,
    Winograd,
    WinogradMode,
    dense_strides,
    float_bits,
    winograd_scratch_count,
)

Array = np.ndarray[Any, Any]
Rng = np.random.Generator
M = MapCode

ACTIVATIONS = (
    Activation(),
    RELU,
    Activation(ActivationKind.CLAMP, -0.5, 0.75),
    Activation(ActivationKind.LEAKY, 0.1),
    Activation(ActivationKind.HARD_SWISH, 1 / 6, 0.5),
)
RESIDUALS = ("none", "before", "after", "in place", "in place after")
"""What a convolution adds to its sum, and where that lies."""
INPUTS = ("dense", "slice", "turned", "one image")
"""Layouts of an image that is read."""
OUTPUTS = ("dense", "slice", "spread")
"""Layouts of an image that is written."""


def floats(rng: Rng, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def cut_view(view: View, starts: tuple[int, ...], shape: tuple[int, ...]) -> View:
    """``shape`` elements of each dimension from ``starts`` on."""
    offset = sum(a * s for a, s in zip(starts, view.strides, strict=True)) * view.dtype.size
    return View(view.buffer, view.offset + offset, view.dtype, shape, view.strides)


def image_in(sheet: Sheet, rng: Rng, shape: tuple[int, ...], layout: str) -> View:
    """A new input image of ``shape`` ``[N, H, W, C]``."""
    n, h, w, c = shape
    if layout == "slice":
        whole = sheet.input(floats(rng, n, h + 1, w + 2, c + 5))
        return cut_view(whole, (0, 1, 1, 3), shape)
    if layout == "turned":
        whole = sheet.input(floats(rng, n, h, w, c))
        _, a, b, _ = whole.strides
        last = ((h - 1) * a + (w - 1) * b) * 4
        return View(whole.buffer, last, DType.F32, shape, (whole.strides[0], -a, -b, 1))
    if layout == "one image":
        whole = sheet.input(floats(rng, 1, h, w, c))
        return View(whole.buffer, 0, DType.F32, shape, (0, *whole.strides[1:]))
    return sheet.input(floats(rng, *shape))


def image_out(
    sheet: Sheet, rng: Rng, name: str, shape: tuple[int, ...], layout: str, tolerance: float
) -> View:
    """An output image of ``shape`` in a new output of random contents."""
    n, h, w, c = shape
    size, starts = (n, h, w, c), (0, 0, 0, 0)
    if layout == "slice":
        size, starts = (n, h, w, c + 7), (0, 0, 0, 4)
    elif layout == "spread":
        size, starts = (n, h + 2, w + 3, c + 16), (0, 1, 2, 16)
    filled = sheet.input(floats(rng, *size))
    whole = sheet.output(name, size, tolerance=tolerance, filled=filled)
    return cut_view(whole, starts, shape)


def residual_of(sheet: Sheet, rng: Rng, output: View, kind: str) -> View | None:
    if kind == "none":
        return None
    if kind.startswith("in place"):
        return output
    return image_in(sheet, rng, output.shape, "slice" if output.shape[3] % 2 else "dense")


def parameters(rng: Rng, *shape: int) -> Parameters:
    """Weights of ``shape`` that keep sums near 1, and a bias."""
    scale = np.float32(1 / np.sqrt(np.prod(shape[:-1])))
    return Parameters(floats(rng, *shape) * scale, floats(rng, shape[-1]))


def cycles(*values: Sequence[Any]) -> list[Iterator[Any]]:
    """Each of ``values`` over and over; of lengths without common factor they meet in all ways."""
    return [itertools.cycle(v) for v in values]


def output_size(size: int, pads: int, kernel: int, stride: int, dilation: int) -> int:
    return (size + pads - (kernel - 1) * dilation - 1) // stride + 1


WINDOWS: tuple[tuple[Any, ...], ...] = (
    # image H W, kernel, stride, dilation, top left bottom right
    (1, 1, (1, 1), (1, 1), (1, 1), (0, 0, 0, 0)),
    (1, 29, (1, 1), (1, 1), (1, 1), (0, 0, 0, 0)),
    (7, 9, (1, 1), (1, 1), (1, 1), (0, 0, 0, 0)),
    (7, 9, (1, 1), (2, 3), (1, 1), (0, 0, 0, 0)),
    (1, 1, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    (8, 7, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    (13, 15, (3, 3), (2, 2), (1, 1), (0, 1, 1, 0)),
    (9, 8, (3, 3), (1, 1), (2, 3), (2, 3, 2, 3)),
    (6, 11, (5, 5), (1, 1), (1, 1), (2, 2, 2, 2)),
    (12, 10, (5, 5), (2, 1), (1, 1), (4, 0, 1, 3)),
    (17, 4, (7, 1), (1, 1), (1, 1), (3, 0, 3, 0)),
    (1, 33, (1, 7), (1, 2), (1, 1), (0, 6, 0, 2)),
    (5, 6, (2, 4), (3, 1), (1, 1), (1, 0, 0, 3)),
    (4, 4, (3, 2), (4, 5), (1, 1), (0, 1, 2, 0)),
    (2, 3, (3, 3), (1, 1), (3, 2), (3, 2, 4, 3)),
)
CHANNELS = (1, 33, 3, 16, 64, 8, 20)
OUT_CHANNELS = (1, 16, 17, 48, 70, 32, 97)


def convolutions(sheet: Sheet, rng: Rng) -> None:
    """Windows, channels, layouts, activations, residuals and cuts in turn, so that they mix."""
    turns = cycles(CHANNELS, OUT_CHANNELS, ACTIVATIONS, RESIDUALS, INPUTS, OUTPUTS)
    batches = itertools.cycle((1, 1, 3, 1, 2))
    cuts = itertools.cycle(((1, None), (2, None), (1, 7), (3, None), (1, 32), (1, 1)))
    for number in range(8 * len(WINDOWS)):
        h, w, kernel, stride, dilation, pads = WINDOWS[number % len(WINDOWS)]
        if number % len(WINDOWS) == 0:
            next(turns[1]), next(turns[5]), next(cuts)
        c, o, activation, residual, read, written = (next(turn) for turn in turns)
        n, (panels, depth) = next(batches), next(cuts)
        whole = kernel[0] * kernel[1] * c
        if residual.startswith("in place") and depth is not None and depth < whole:
            depth = None  # partial sums rest in the output
        if depth == 1 and whole > 64:
            depth = 64
        shape = (
            n,
            output_size(h, pads[0] + pads[2], kernel[0], stride[0], dilation[0]),
            output_size(w, pads[1] + pads[3], kernel[1], stride[1], dilation[1]),
            o,
        )
        name = (
            f"conv {number}: {n}x{h}x{w}x{c} to {o}, kernel {kernel}, stride {stride}, dilation "
            f"{dilation}, pads {pads}, {activation.kind.name}, residual {residual}, "
            f"{read} to {written}, {panels} panels of {depth or 'all'}"
        )
        image = image_in(sheet, rng, (n, h, w, c), read)
        output = image_out(sheet, rng, name, shape, written, 1e-5)
        conv = Conv(
            image, output, residual_of(sheet, rng, output, residual), kernel, stride, dilation,
            pads[:2], activation, residual.endswith("after"), parameters(rng, *kernel, c, o),
        )  # fmt: skip
        sheet.add(Conv(**{**vars(conv), "cut": cut(conv, panels, depth)}))


def widths(sheet: Sheet, rng: Rng) -> None:
    """Every width up to some blocks of pixels, so that every remainder is met; and large images,
    of which each thread gets a part."""
    sizes = [(1, w) for w in range(1, 34)] + [(5, w) for w in range(1, 18)] + [(30, 31)]
    for (h, w), (side, stride), o in zip(
        sizes, itertools.cycle(((1, 1), (3, 1), (3, 2))), itertools.cycle((40, 16, 97, 64))
    ):
        c, pad = 6, side // 2
        shape = (
            1,
            output_size(h, 2 * pad, side, stride, 1),
            output_size(w, 2 * pad, side, stride, 1),
            o,
        )
        output = sheet.output(f"width {h}x{w}, {side}x{side}, stride {stride}", shape)
        conv = Conv(
            sheet.input(floats(rng, 1, h, w, c)), output, None, (side, side), (stride, stride),
            (1, 1), (pad, pad), RELU, False, parameters(rng, side, side, c, o),
        )  # fmt: skip
        sheet.add(Conv(**{**vars(conv), "cut": cut(conv)}))
        again = sheet.output(f"depthwise width {h}x{w}, {side}x{side}, stride {stride}", shape)
        layer = Depthwise(
            output, again, None, (3, 3), (1, 1), (1, 1), (1, 1), RELU, False,
            parameters(rng, 3, 3, o),
        )  # fmt: skip
        sheet.add(Depthwise(**{**vars(layer), "cut": cut(layer)}))


def rows_as_taps(sheet: Sheet, rng: Rng) -> None:
    """An image whose pixels overlap: how lowering reads few channels."""
    for c, kw, stride in ((3, 7, 2), (1, 3, 1), (3, 3, 1)):
        n, h, w, o = 2, 9, 21, 40
        whole = sheet.input(floats(rng, n, h, w, c))
        image = View(
            whole.buffer, 0, DType.F32, (n, h, w - kw + 1, kw * c), (h * w * c, w * c, c, 1)
        )
        shape = (n, output_size(h, 2, 3, stride, 1), output_size(w, 0, kw, stride, 1), o)
        output = image_out(sheet, rng, f"overlapping {c} {kw} {stride}", shape, "dense", 1e-5)
        conv = Conv(
            image, output, None, (3, 1), (stride, stride), (1, 1), (1, 0), RELU, False,
            parameters(rng, 3, 1, kw * c, o),
        )  # fmt: skip
        sheet.add(Conv(**{**vars(conv), "cut": cut(conv)}))


def winograds(sheet: Sheet, rng: Rng) -> None:
    images = (
        (1, 4, 4, 8, (1, 1)), (2, 5, 7, 16, (1, 1)), (1, 13, 9, 33, (0, 1)), (3, 6, 10, 20, (2, 0)),
        (1, 1, 1, 3, (1, 1)), (1, 2, 17, 70, (1, 2)), (1, 19, 22, 64, (1, 1)), (2, 3, 3, 1, (2, 2)),
        (1, 41, 38, 12, (1, 1)),
    )  # fmt: skip
    turns = cycles(OUT_CHANNELS, ACTIVATIONS, RESIDUALS, INPUTS, OUTPUTS)
    cuts = itertools.cycle(((1, None), (8, 8), (14, 32), (5, 7), (32, None), (2, 1), (13, 16)))
    for number in range(5 * len(images)):
        n, h, w, c, (top, left) = images[number % len(images)]
        o, activation, residual, read, written = (next(turn) for turn in turns)
        block, depth = next(cuts)
        # More rows below than above, now and then; at most until windows begin below the image.
        height, width = h + 2 * top - 2 + number % 2, w + 2 * left - 2
        shape = (n, min(max(height, 1), h + top), min(max(width, 1), w + left), o)
        image = image_in(sheet, rng, (n, h, w, c), read)
        for mode in WinogradMode:
            name = (
                f"winograd {number} {mode.name}: {n}x{h}x{w}x{c} to {shape}, padding {top} {left}, "
                f"{activation.kind.name}, residual {residual}, {read} to {written}, "
                f"blocks of {block}, depth {depth or 'all'}"
            )
            output = image_out(sheet, rng, name, shape, written, 1e-4)
            draft = Winograd(
                image, output, residual_of(sheet, rng, output, residual), (top, left), activation,
                residual.endswith("after"), mode, block, output, parameters(rng, 3, 3, c, o),
            )  # fmt: skip
            pieces = cut(draft, 1, depth)
            count = winograd_scratch_count(mode, shape, c, pieces.depth_per_chunk, block, THREADS)
            space = View.dense(Buffer(f"space of {name}", count * 4), DType.F32, (count,))
            sheet.add(Winograd(**{**vars(draft), "workspace": space, "cut": pieces}))


def depthwises(sheet: Sheet, rng: Rng) -> None:
    turns = cycles(
        (1, 16, 33, 70, 8), ACTIVATIONS, RESIDUALS, INPUTS, OUTPUTS, (1, 2, 1), (1, 3, 2, 1)
    )
    for number in range(4 * len(WINDOWS)):
        h, w, kernel, stride, dilation, pads = WINDOWS[number % len(WINDOWS)]
        if number % len(WINDOWS) == 0:
            next(turns[0]), next(turns[3])
        c, activation, residual, read, written, n, panels = (next(turn) for turn in turns)
        shape = (
            n,
            output_size(h, pads[0] + pads[2], kernel[0], stride[0], dilation[0]),
            output_size(w, pads[1] + pads[3], kernel[1], stride[1], dilation[1]),
            c,
        )
        name = (
            f"depthwise {number}: {n}x{h}x{w}x{c}, kernel {kernel}, stride {stride}, dilation "
            f"{dilation}, pads {pads}, {activation.kind.name}, residual {residual}, "
            f"{read} to {written}, {panels} panels"
        )
        image = image_in(sheet, rng, (n, h, w, c), read)
        output = image_out(sheet, rng, name, shape, written, 1e-5)
        layer = Depthwise(
            image, output, residual_of(sheet, rng, output, residual), kernel, stride, dilation,
            pads[:2], activation, residual.endswith("after"), parameters(rng, *kernel, c),
        )  # fmt: skip
        sheet.add(Depthwise(**{**vars(layer), "cut": cut(layer, panels)}))


def pools(sheet: Sheet, rng: Rng) -> None:
    turns = cycles((1, 16, 33, 70, 8), INPUTS, OUTPUTS, (1, 2, 1, 3))
    for number, (h, w, kernel, stride, dilation, pads) in enumerate(WINDOWS):
        c, read, written, n = (next(turn) for turn in turns)
        if (h, w) == (2, 3):
            continue  # its dilated windows step over the whole image
        image = image_in(sheet, rng, (n, h, w, c), read)
        shape = (
            n,
            output_size(h, pads[0] + pads[2], kernel[0], stride[0], dilation[0]),
            output_size(w, pads[1] + pads[3], kernel[1], stride[1], dilation[1]),
            c,
        )
        for reduction, counted in ((PoolKind.MAX, False), (PoolKind.AVERAGE, False),
                                   (PoolKind.AVERAGE, True)):  # fmt: skip
            name = (
                f"pool {number} {reduction.name} {counted}: {n}x{h}x{w}x{c}, {kernel}, {stride}, "
                f"{dilation}, {pads}, {read} to {written}"
            )
            output = image_out(sheet, rng, name, shape, written, 1e-6)
            sheet.add(Pool(image, output, reduction, kernel, stride, dilation, pads, counted))


FLOATS = np.array(
    [0, -0.0, 0.5, -0.5, 1, -1, 1.5, -1.5, 2.5, 3, -7, 20, 87, -87, 1e-20, 1e20, -1e20,
     np.inf, -np.inf, np.nan],
    np.float32,
)  # fmt: skip
INTEGERS = np.array(
    [0, 1, -1, 2, 3, -3, 7, 31, 63, 64, 65, -64, 1 << 31, 1 << 40, (1 << 63) - 1, -1 << 63],
    np.int64,
)
SMOOTH = (M.EXP, M.LOG, M.SQRT, M.SIGMOID, M.TANH, M.ERF, M.SIN, M.COS, M.TAN, M.ASIN, M.ACOS,
          M.ATAN, M.SINH, M.COSH, M.ASINH, M.ACOSH, M.ATANH, M.SOFTPLUS, M.POW_F)  # fmt: skip
"""Compared within a domain where the reference is right to the last bits; the others exactly."""


def map_inputs(code: MapCode, rng: Rng) -> list[Array]:
    """Arguments that meet each other in all pairs, and a few hundred random ones."""
    if code in SMOOTH:
        x = floats(rng, 517) * 2
        if code in (M.LOG, M.SQRT, M.POW_F):
            x = abs(x) + np.float32(1e-3)
        if code in (M.ASIN, M.ACOS, M.ATANH):
            x = np.clip(x / 3, -0.99, 0.99)
        if code == M.ACOSH:
            x = abs(x) + np.float32(1.01)
        return [x, floats(rng, 517)][: 2 if code == M.POW_F else 1]
    whole = (code >= M.NEG_I and code != M.SELECT_F) or code == M.I_TO_F
    x = INTEGERS if whole else FLOATS
    more = rng.integers(-100, 100, 500) if whole else floats(rng, 500) * 3
    first = np.concatenate([np.repeat(x, len(x)), more]).astype(x.dtype)
    second = np.concatenate([np.tile(x, len(x)), more[::-1]]).astype(x.dtype)
    if code == M.SELECT_F or code == M.SELECT_I:
        third = second[::-1].copy()
        choice = rng.integers(-1, 2, len(first))
        return [choice, first, third]
    binary = M.ADD_F <= code <= M.MOD_F or M.LT_F <= code <= M.EQ_F or code >= M.ADD_I
    return [first, second] if binary else [first]


def maps(sheet: Sheet, rng: Rng) -> None:
    """Each operation alone, then types, broadcasting, fills and longer expressions."""
    for code in MapCode:
        if code in (M.CONST_F, M.CONST_I):
            continue
        arrays = map_inputs(code, rng)
        inputs = tuple(sheet.input(a) for a in arrays)
        whole = M.LT_F <= code <= M.POW_I or code in (M.SELECT_I, M.F_TO_I)
        dtype = DType.I64 if whole else DType.F32
        tolerance = 2e-6 if code in SMOOTH else 1e-7
        output = sheet.output(f"map {code.name}", arrays[0].shape, dtype, tolerance)
        arguments = (*range(len(inputs)), 0, 0)[:3]
        sheet.add(Map(inputs, output, (MapOp(code, *arguments),)))
    types = {
        DType.I8: np.array([-128, -1, 0, 127], np.int8),
        DType.U8: np.array([0, 1, 255, 128], np.uint8),
        DType.BOOL: np.array([True, False, True, True]),
        DType.I32: np.array([-(1 << 31), 255, 256, -129], np.int32),
        DType.I64: np.array([1 << 40, -1, 0, 300]),
    }
    for (a, values), b in itertools.product(types.items(), types):
        source = sheet.input(np.tile(values, 9))
        sheet.add(Map((source,), sheet.output(f"{a.name} to {b.name}", (36,), b), ()))
    for shape in ((1,), (3, 5, 7), (2, 1, 33), (5, 4, 3, 2, 3)):
        name = "x".join(map(str, shape))
        a, b = sheet.input(floats(rng, *shape)), sheet.input(floats(rng, *shape[1:], 1))
        row = View(b.buffer, 0, DType.F32, shape, (0, *dense_strides(shape[1:])))
        turned = View(
            a.buffer, (shape[0] - 1) * a.strides[0] * 4, DType.F32, shape,
            (-a.strides[0], *a.strides[1:]),
        )  # fmt: skip
        count = len(shape)
        scalar = View(b.buffer, 0, DType.F32, shape, (0,) * count)
        output = sheet.output(f"map of {name}", shape)
        ops = (
            MapOp(M.MUL_F, 0, 1),
            MapOp(M.CONST_F, float_bits(0.25)),
            MapOp(M.ADD_F, 3, 4),
            MapOp(M.TANH, 5),
            MapOp(M.LT_F, 2, 6),
            MapOp(M.SELECT_F, 7, 6, 2),
        )
        sheet.add(Map((turned, row, scalar), output, ops))
        sheet.add(Map((output, a), output, (MapOp(M.SUB_F, 0, 1),)))
        back = sheet.output(f"map across of {name}", shape[::-1])
        across = View(back.buffer, 0, DType.F32, shape, back.strides[::-1])
        sheet.add(Map((a,), across, (MapOp(M.NEG_F, 0),)))


def reductions(sheet: Sheet, rng: Rng) -> None:
    shapes = (((4, 7), 1), ((1, 1), 1), ((5, 3, 9, 2), 2), ((67,), 0), ((3, 33, 5), 1),
              ((2, 65, 3), 2), ((40, 1), 1))  # fmt: skip
    for (shape, rank), kind in itertools.product(shapes, ReduceKind):
        ordinal = kind >= ReduceKind.ARG_MAX_FIRST
        for dtype in (DType.F32, DType.I32, DType.I64):
            array: Array = rng.integers(-3, 4, shape).astype(dtype.numpy)
            if dtype == DType.F32 and kind == ReduceKind.PROD:
                array = rng.uniform(0.8, 1.2, shape).astype(np.float32)
            elif dtype == DType.F32 and not ordinal:
                array = floats(rng, *shape)
            x = sheet.input(array)
            scale = 1 / 7 if dtype == DType.F32 and not ordinal else 1.0
            gives = DType.I64 if ordinal else dtype
            layouts = {"dense": x}
            if rank and len(shape) == 2:
                back = sheet.input(np.ascontiguousarray(array.T))
                layouts["columns"] = View(back.buffer, 0, dtype, shape, back.strides[::-1])
            if len(shape) == 3:
                a, b, c = x.strides
                last = (shape[1] - 1) * b * dtype.size
                layouts["turned"] = View(x.buffer, last, dtype, shape, (a, -b, c))
                layouts["again"] = View(x.buffer, 0, dtype, shape, (0, b, c))
            for layout, view in layouts.items():
                name = f"reduce {kind.name} {dtype.name} {shape} {rank} {layout}"
                output = sheet.output(name, shape[:rank], gives, 1e-5)
                sheet.add(Reduce(view, output, kind, scale))


def copies(sheet: Sheet, rng: Rng) -> None:
    for dtype in (DType.F32, DType.U8, DType.I64, DType.I32, DType.BOOL, DType.I8):
        for shape in ((1,), (5,), (33, 17), (2, 3, 19), (3, 4, 5, 6)):
            array = rng.integers(0, 2 if dtype == DType.BOOL else 100, shape).astype(dtype.numpy)
            x = sheet.input(array)
            name = f"{dtype.name} {shape}"
            for number, order in enumerate(itertools.permutations(range(len(shape)))):
                if number % 5 and len(shape) > 3:
                    continue
                moved = tuple(shape[i] for i in order)
                strides = tuple(x.strides[i] for i in order)
                output = sheet.output(f"copy {name} {order}", moved, dtype)
                sheet.add(Copy(View(x.buffer, 0, dtype, moved, strides), output))
            last = (x.count - 1) * dtype.size
            turned = View(x.buffer, last, dtype, shape, tuple(-s for s in x.strides))
            sheet.add(Copy(turned, sheet.output(f"turned {name}", shape, dtype)))
            again = (3, *shape)
            repeated = View(x.buffer, 0, dtype, again, (0, *x.strides))
            sheet.add(Copy(repeated, sheet.output(f"repeated {name}", again, dtype)))
            large = sheet.output(f"inside {name}", tuple(d + 3 for d in shape), dtype)
            sheet.add(Copy(x, cut_view(large, (2,) * len(shape), shape)))
            halves = View(
                x.buffer,
                0,
                dtype,
                tuple(-(-d // 2) for d in shape),
                tuple(2 * s for s in x.strides),
            )
            sheet.add(Copy(halves, sheet.output(f"halves of {name}", halves.shape, dtype)))


def gathers(sheet: Sheet, rng: Rng) -> None:
    for dtype, index in itertools.product((DType.F32, DType.U8, DType.I64), (np.int32, np.int64)):
        for shape, axis, picks in (
            ((7,), 0, (5,)), ((7, 3), 0, (2, 4)), ((4, 9, 5), 1, (3,)), ((4, 9, 33), 2, (2, 2)),
            ((2, 1, 6), 1, (1,)), ((3, 5), 1, ()),
        ):  # fmt: skip
            data = sheet.input(rng.integers(0, 100, shape).astype(dtype.numpy))
            size = shape[axis]
            indices = sheet.input(np.asarray(rng.integers(-size, size, picks), index))
            name = f"gather {dtype.name} {np.dtype(index).name} {shape} {axis} {picks}"
            result = (*shape[:axis], *picks, *shape[axis + 1 :])
            sheet.add(Gather(data, indices, sheet.output(name, result, dtype), axis))
            turned = View(
                indices.buffer, (indices.count - 1) * indices.dtype.size, indices.dtype, picks,
                tuple(-s for s in indices.strides),
            )  # fmt: skip
            large = sheet.output(f"{name} turned", tuple(d + 2 for d in result), dtype)
            sheet.add(Gather(data, turned, cut_view(large, (1,) * len(result), result), axis))


def products(sheet: Sheet, rng: Rng) -> None:
    for m, k, n in ((1, 1, 1), (1, 70, 33), (17, 5, 1), (13, 64, 48), (33, 31, 70), (2, 3, 16)):
        for batch in ((), (3,), (2, 3)):
            a, b = sheet.input(floats(rng, *batch, m, k)), sheet.input(floats(rng, *batch, k, n))
            name = f"matmul {batch} {m} {k} {n}"
            shape = (*batch, m, n)
            tolerance = 1e-5 if k > 1 else 1e-6
            sheet.add(MatMul(a, b, sheet.output(name, shape, tolerance=tolerance)))
            back_a, back_b = (sheet.input(floats(rng, *batch, *d)) for d in ((k, m), (n, k)))
            turned_a, turned_b = (
                View(v.buffer, 0, DType.F32, s, (*v.strides[:-2], v.strides[-1], v.strides[-2]))
                for v, s in ((back_a, a.shape), (back_b, b.shape))
            )
            sheet.add(MatMul(turned_a, b, sheet.output(f"{name} first turned", shape)))
            sheet.add(MatMul(a, turned_b, sheet.output(f"{name} second turned", shape)))
            large = sheet.output(f"{name} both turned", tuple(d + 1 for d in shape))
            sheet.add(MatMul(turned_a, turned_b, cut_view(large, (1,) * len(shape), shape)))
            if batch:
                again = View(
                    b.buffer, 0, DType.F32, b.shape, (*(0 for _ in batch), *b.strides[-2:])
                )
                sheet.add(MatMul(a, again, sheet.output(f"{name} second again", shape)))


def loads(sheet: Sheet, rng: Rng) -> None:
    for count in (1, 15, 16, 17, 64, 65, 1000):
        data = floats(rng, count)
        for turn in range(3):  # every third one is resident
            buffer = Buffer(f"constant {count} {turn}", data.nbytes, "constant", data)
            sheet.add(Load(View.dense(buffer, DType.U8, (data.nbytes,)), 0, 0))
            source = View.dense(buffer, DType.F32, (count,))
            sheet.add(Copy(source, sheet.output(f"load {count} {turn}", (count,))))


SHEETS: dict[str, Callable[[Sheet, Rng], None]] = {
    "conv": convolutions,
    "widths": widths,
    "overlapping": rows_as_taps,
    "winograd": winograds,
    "depthwise": depthwises,
    "pool": pools,
    "map": maps,
    "reduce": reductions,
    "copy": copies,
    "gather": gathers,
    "matmul": products,
    "load": loads,
}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SealedSheet]:
    """The sheets by name, each sealed once."""
    folder = tmp_path_factory.mktemp("sheets")

    @cache
    def sealed_sheet(name: str) -> SealedSheet:
        sheet = Sheet()
        SHEETS[name](sheet, np.random.default_rng(11))
        return SealedSheet.of(sheet, Path(folder / name))

    return sealed_sheet


@pytest.mark.parametrize("threads", [1, 2, THREADS])
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("name", SHEETS)
def test_instructions(
    sealed: Callable[[str], SealedSheet],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    isa: str,
    threads: int,
) -> None:
    monkeypatch.setenv("VESSELS_ISA", isa)
    try:
        sealed(name).check(threads)
    except EnclaveError as error:
        if "which this CPU does not have" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize(("threads", "slots"), [(1, 8), (2, 5), (THREADS, 2)])
@pytest.mark.parametrize("name", SHEETS)
def test_batches(sealed: Callable[[str], SealedSheet], name: str, threads: int, slots: int) -> None:
    sealed(name).check_batches(threads, slots)


@pytest.mark.parametrize("threads", [1, THREADS])
def test_an_index_out_of_range_refuses_that_run_alone(tmp_path: Path, threads: int) -> None:
    sheet = Sheet()
    data = sheet.input(np.arange(12, dtype=np.float32).reshape(4, 3))
    indices = sheet.input(np.array([3, -4, 0, 1, 2]))
    gathered = sheet.output("gathered", (5, 3))
    sheet.add(Gather(data, indices, gathered, 0))
    sheet.add(Map((gathered,), sheet.output("negated", (5, 3)), (MapOp(M.NEG_F, 0),)))
    sealed_sheet = SealedSheet.of(sheet, tmp_path / "gather")
    with sealed_sheet.enclave(threads) as enclave:
        for wrong in (4, -5, 1 << 62, -(1 << 63)):
            bad = {**sheet.feeds, "x1": np.array([0, 1, wrong, 2, 3])}
            with pytest.raises(RequestError, match="an index lies outside a dimension of 4"):
                enclave.run(bad)
            with pytest.raises(RequestError, match="index"):
                enclave.run_timed(bad)
            assert not sheet.differences(enclave.run(sheet.feeds), sealed_sheet.wanted)
            outputs, times = enclave.run_timed(sheet.feeds)
            assert not sheet.differences(outputs, sealed_sheet.wanted)
            assert len(times) == len(sheet.instructions)
