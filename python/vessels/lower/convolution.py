"""Convolutions and transposed convolutions on channels-last images."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from vessels.lower import views
from vessels.lower.builder import Array, Builder, Op, lowers, require
from vessels.program import (
    MAX_PADDED_CHANNELS,
    Activation,
    Conv,
    Depthwise,
    DType,
    Parameters,
    View,
)

NHWC = (0, 2, 3, 1)
"""``[N, C, H, W]`` to ``[N, H, W, C]``."""
NCHW = (0, 3, 1, 2)
"""``[N, H, W, C]`` to ``[N, C, H, W]``."""
FEW_CHANNELS = 8
"""Below so many input channels a kernel row is read as one tap."""


@dataclass(frozen=True)
class Window:
    """A 2-d sliding window; ``padding`` is (top, left, bottom, right)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]

    def extent(self, axis: int) -> int:
        """Input cells from the first to the last tap along ``axis`` (0 or 1)."""
        return (self.kernel[axis] - 1) * self.dilation[axis] + 1


def window(op: Op, kernel: list[int], input_size: list[int]) -> Window:
    """The window of ``op``; 1-d ones get a leading dimension of one element.

    ``input_size`` holds the spatial dimensions of the input.
    """
    rank = len(kernel)
    require(rank in (1, 2), f"{rank} spatial dimensions")
    stride = list(op.attr("strides") or [1] * rank)
    dilation = list(op.attr("dilations") or [1] * rank)
    pads = list(op.attr("pads") or [0] * 2 * rank)
    auto = op.attr("auto_pad", "NOTSET")
    if auto == "VALID":
        pads = [0] * 2 * rank
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        for i in range(rank):
            out = -(-input_size[i] // stride[i])
            total = (out - 1) * stride[i] + (kernel[i] - 1) * dilation[i] + 1 - input_size[i]
            total = max(total, 0)
            small, large = total // 2, total - total // 2
            pads[i], pads[i + rank] = (small, large) if auto == "SAME_UPPER" else (large, small)
    else:
        require(auto == "NOTSET", f"auto_pad={auto}")
    require(min(pads) >= 0, "negative padding")
    if rank == 1:
        kernel, stride, dilation = [1, *kernel], [1, *stride], [1, *dilation]
        pads = [0, pads[0], 0, pads[1]]
    return Window(
        (kernel[0], kernel[1]),
        (stride[0], stride[1]),
        (dilation[0], dilation[1]),
        (pads[0], pads[1], pads[2], pads[3]),
    )


def as_image(view: View) -> View:
    """A rank-3 ``[N, C, W]`` or rank-4 ``[N, C, H, W]`` view as rank 4."""
    return views.insert(view, 2) if len(view.shape) == 3 else view


def channels_last(builder: Builder, view: View) -> View:
    """``[N, C, H, W]`` as ``[N, H, W, C]`` with channel stride 1, copied if it must be."""
    image = views.permute(view, NHWC)
    if image.shape[3] == 1:
        return replace(image, strides=(*image.strides[:3], 1))
    if image.strides[3] == 1 and min(image.strides) >= 0:
        return image
    return builder.copied(image)


def new_image(op: Op, name: str | None = None) -> tuple[View, View]:
    """A new channels-last output: as ``[N, H, W, C]`` and with the shape of output 0."""
    shape = op.out_shape()
    require(len(shape) in (3, 4), f"{len(shape) - 2} spatial dimensions")
    n, c, *spatial = shape
    h, w = spatial if len(spatial) == 2 else (1, *spatial)
    image = op.builder.new((n, h, w, c), DType.F32, name=name or op.node.outputs[0].name or op.type)
    logical = views.permute(image, NCHW)
    return image, views.drop(logical, 2) if len(shape) == 3 else logical


def padded_width(builder: Builder, image: View, left: int, right: int) -> View:
    """``[N, H, W, C]`` in a buffer with ``left`` and ``right`` zero columns more."""
    n, h, w, c = image.shape
    out = builder.new((n, h, left + w + right, c), image.dtype, name=image.buffer.name)
    if left:
        builder.fill(views.cut(out, 2, 0, left), 0)
    if right:
        builder.fill(views.cut(out, 2, left + w, right), 0)
    builder.emit_copy(image, views.cut(out, 2, left, w))
    return out


@lowers("Conv")
def convolution(op: Op) -> None:
    op.floats()
    weights = op.const(1)
    require(weights is not None, "weights are not constant")
    assert weights is not None
    bias = op.fixed(2, "bias")
    if weights.ndim == 3:
        weights = weights[:, :, None, :]
    require(weights.ndim == 4, f"{weights.ndim - 2} spatial dimensions")
    out_channels = weights.shape[0]
    if bias is None:
        bias = np.zeros(out_channels, np.float32)
    shape = op.shape()
    kernel = list(weights.shape[2:]) if len(shape) == 4 else [weights.shape[3]]
    declared = op.attr("kernel_shape")
    require(declared is None or list(declared) == kernel, "kernel_shape differs from the weights")
    w = window(op, kernel, list(shape[2:]))
    image = views.permute(as_image(op.view()), NHWC)
    output, logical = new_image(op)
    for axis in (0, 1):
        size = image.shape[1 + axis] + w.padding[axis] + w.padding[axis + 2]
        expected = (size - w.extent(axis)) // w.stride[axis] + 1
        require(expected == output.shape[1 + axis], "output shape differs from inferred")
    group = int(op.attr("group", 1))
    in_channels = image.shape[3]
    hwio = np.ascontiguousarray(np.transpose(weights, (2, 3, 1, 0)), np.float32)
    if group == 1:
        _emit(op.builder, image, output, hwio, bias, w)
    elif group == in_channels == out_channels:
        x = channels_last(op.builder, views.permute(image, NCHW))
        _emit_depthwise(op.builder, x, output, np.ascontiguousarray(hwio[:, :, 0]), bias, w)
    else:
        x = channels_last(op.builder, views.permute(image, NCHW))
        c, o = in_channels // group, out_channels // group
        for g in range(group):
            part = slice(g * o, (g + 1) * o)
            _emit(
                op.builder, views.cut(x, 3, g * c, c), views.cut(output, 3, g * o, o),
                np.ascontiguousarray(hwio[..., part]), bias[part], w,
            )  # fmt: skip
    op.set(logical)


def _cropped(
    builder: Builder, image: View, output: View, bias: Array, w: Window
) -> tuple[View, View, Window] | None:
    """``image``, the rows and columns of ``output`` whose windows meet it, and the window there.

    The others are filled with the bias: no instruction may have a window wholly outside of its
    input. ``None`` when all are.
    """
    value = np.asarray(bias, np.float32)

    def fill(rows: tuple[int, int], columns: tuple[int, int]) -> None:
        if rows[1] > 0 and columns[1] > 0:
            target = views.cut(views.cut(output, 1, *rows), 2, *columns)
            builder.map([builder.constant_view(value, "bias")], target)

    (first, count), (left, width) = (
        _meeting(w, axis, image.shape[1 + axis], output.shape[1 + axis]) for axis in (0, 1)
    )
    height, whole = output.shape[1], (0, output.shape[2])
    if count <= 0 or width <= 0:
        fill((0, height), whole)
        return None
    fill((0, first), whole)
    fill((first + count, height - first - count), whole)
    fill((first, count), (0, left))
    fill((first, count), (left + width, output.shape[2] - left - width))
    part = views.cut(views.cut(output, 1, first, count), 2, left, width)
    padding = [w.padding[0] - first * w.stride[0], w.padding[1] - left * w.stride[1]]
    for axis, pad in enumerate(padding):
        if pad < 0:  # a stride beyond the kernel has stepped over the first cells
            image = views.cut(image, 1 + axis, -pad, image.shape[1 + axis] + pad)
            padding[axis] = 0
    # The padding at the end only says how large the output is, which its shape does already.
    return image, part, replace(w, padding=(padding[0], padding[1], *w.padding[2:]))


def _meeting(w: Window, axis: int, size: int, count: int) -> tuple[int, int]:
    """First and number of the ``count`` windows along ``axis`` that begin before the input's
    end and end after its beginning."""
    pad, stride = w.padding[axis], w.stride[axis]
    first = max(0, -(-(pad - w.extent(axis) + 1) // stride))
    stop = min(count, -(-(size + pad) // stride))
    return first, stop - first


def _append(
    builder: Builder,
    kind: type[Conv] | type[Depthwise],
    image: View,
    output: View,
    parameters: Parameters,
    w: Window,
) -> None:
    """Emits one instruction whose windows all start inside ``image``."""
    reads_padding = any(w.padding) or any(
        (output.shape[1 + i] - 1) * w.stride[i] + w.extent(i) > image.shape[1 + i] for i in (0, 1)
    )
    require(
        not reads_padding or image.shape[3] <= MAX_PADDED_CHANNELS,
        f"padding with more than {MAX_PADDED_CHANNELS} channels",
    )
    builder.emit(
        kind(
            image, output, None, w.kernel, w.stride, w.dilation, w.padding[:2], Activation(),
            False, parameters,
        )
    )  # fmt: skip


def _emit_depthwise(
    builder: Builder, image: View, output: View, weights: Array, bias: Array, w: Window
) -> None:
    """One :class:`Depthwise` of ``image`` into ``output``; ``weights`` are ``[KH, KW, C]``."""
    part = _cropped(builder, image, output, bias, w)
    if part is None:
        return
    image, output, w = part
    _append(builder, Depthwise, image, output, Parameters(weights, bias), w)


def _emit(builder: Builder, image: View, output: View, hwio: Array, bias: Array, w: Window) -> None:
    """One :class:`Conv` of ``image`` ``[N, H, W, C]`` (any strides) into ``output``."""
    part = _cropped(builder, image, output, bias, w)
    if part is None:
        return
    image, output, w = part
    kh, kw, c, o = hwio.shape
    top, left, _, right = w.padding
    if c < FEW_CHANNELS and kw > 1 and w.dilation[1] == 1:
        # Padding on the right beyond the last window is never read.
        width = (output.shape[2] - 1) * w.stride[1] + kw
        right = max(0, width - left - image.shape[2])
        rows_touch = image.strides[2] == c and (c == 1 or image.strides[3] == 1)
        if left or right or not rows_touch or min(image.strides) < 0:
            image = padded_width(builder, image, left, right)
        n, h, padded, _ = image.shape
        rows = replace(
            image,
            shape=(n, h, padded - kw + 1, kw * c),
            strides=(image.strides[0], image.strides[1], c, 1),
        )
        w = Window((kh, 1), w.stride, w.dilation, (top, 0, w.padding[2], 0))
        image, hwio = rows, hwio.reshape(kh, 1, kw * c, o)
    else:
        image = channels_last(builder, views.permute(image, NCHW))
    parameters = Parameters(np.ascontiguousarray(hwio, np.float32), bias.astype(np.float32))
    _append(builder, Conv, image, output, parameters, w)


@lowers("ConvTranspose")
def transposed_convolution(op: Op) -> None:
    """As stride-1 convolutions, one for each phase of the output positions modulo the stride."""
    op.floats()
    weights = op.const(1)
    require(weights is not None, "weights are not constant")
    assert weights is not None
    shape = op.shape()
    rank = len(shape) - 2
    require(rank in (1, 2), f"{rank} spatial dimensions")
    if rank == 1:
        weights = weights[:, :, None, :]
    group = int(op.attr("group", 1))
    out_channels = weights.shape[1] * group
    bias = op.fixed(2, "bias")
    if bias is None:
        bias = np.zeros(out_channels, np.float32)
    output, logical = new_image(op)
    image = channels_last(op.builder, as_image(op.view()))
    one = [1] if rank == 1 else []
    stride = one + list(op.attr("strides") or [1] * rank)
    dilation = one + list(op.attr("dilations") or [1] * rank)
    begin = _transposed_padding(op, rank, stride, dilation, list(weights.shape[2:]), image, output)
    phases = [
        _phases(output.shape[1 + i], weights.shape[2 + i], stride[i], dilation[i], begin[i])
        for i in (0, 1)
    ]
    c, o = weights.shape[0] // group, weights.shape[1]
    for g in range(group):
        source = views.cut(image, 3, g * c, c)
        target = views.cut(output, 3, g * o, o)
        hwio = np.transpose(weights[g * c : (g + 1) * c], (2, 3, 0, 1))
        for row in phases[0]:
            for column in phases[1]:
                _emit_phase(
                    op.builder, source, target, hwio, bias[g * o : (g + 1) * o], row, column, stride
                )
    op.set(logical)


@dataclass(frozen=True)
class _Phase:
    """Output positions ``start, start + stride, ..`` along one axis.

    Position ``t`` of ``count`` reads input ``t + offset + i * dilation`` with kernel element
    ``taps[i]``; without taps it is the bias alone.
    """

    start: int
    count: int
    taps: tuple[int, ...]
    offset: int
    dilation: int


def _phases(size: int, kernel: int, stride: int, dilation: int, begin: int) -> list[_Phase]:
    phases = []
    for r in range(min(stride, size)):
        taps = sorted(
            ((r + begin - k * dilation) // stride, k)
            for k in range(kernel)
            if (r + begin - k * dilation) % stride == 0
        )
        step = taps[1][0] - taps[0][0] if len(taps) > 1 else 1
        offset = taps[0][0] if taps else 0
        assert all(q == offset + i * step for i, (q, _) in enumerate(taps))
        count = -(-(size - r) // stride)
        phases.append(_Phase(r, count, tuple(k for _, k in taps), offset, step))
    return phases


def _emit_phase(
    builder: Builder,
    image: View,
    output: View,
    hwio: Array,
    bias: Array,
    row: _Phase,
    column: _Phase,
    stride: list[int],
) -> None:
    target = views.cut(output, 1, row.start, row.count, stride[0])
    target = views.cut(target, 2, column.start, column.count, stride[1])
    source, padding, visible = image, [0, 0], True
    for i, phase in enumerate((row, column)):
        if phase.offset <= 0:
            padding[i] = -phase.offset
        elif phase.offset < image.shape[1 + i]:
            source = views.cut(source, 1 + i, phase.offset, image.shape[1 + i] - phase.offset)
        else:
            visible = False
    value = np.asarray(bias, np.float32)
    if not row.taps or not column.taps or not visible:
        builder.map([builder.constant_view(value, "bias")], target)
        return
    kernel = np.ascontiguousarray(hwio[list(row.taps)][:, list(column.taps)], np.float32)
    w = Window(
        (len(row.taps), len(column.taps)), (1, 1), (row.dilation, column.dilation),
        (padding[0], padding[1], 0, 0),
    )  # fmt: skip
    part = _cropped(builder, source, target, value, w)
    if part is None:
        return
    source, target, w = part
    _append(builder, Conv, source, target, Parameters(kernel, value), w)


def _transposed_padding(
    op: Op,
    rank: int,
    stride: list[int],
    dilation: list[int],
    kernel: list[int],
    image: View,
    output: View,
) -> list[int]:
    """Padding at the beginning of H and W, as the operator's documentation defines it."""
    if rank == 1:
        kernel = [1, kernel[-1]]
    auto = op.attr("auto_pad", "NOTSET")
    declared = op.attr("output_shape")
    extra = list(op.attr("output_padding") or [0] * rank)
    extra = [0, *extra] if rank == 1 else extra
    full = [
        stride[i] * (image.shape[1 + i] - 1) + extra[i] + (kernel[i] - 1) * dilation[i] + 1
        for i in (0, 1)
    ]
    if auto == "NOTSET" and declared is None:
        pads = list(op.attr("pads") or [0] * 2 * rank)
        pads = [0, pads[0], 0, pads[1]] if rank == 1 else pads
        for i in (0, 1):
            require(full[i] - pads[i] - pads[i + 2] == output.shape[1 + i], "shape differs")
        return pads[:2]
    begin = []
    for i in (0, 1):
        total = full[i] - output.shape[1 + i]
        if auto == "VALID":
            require(total == 0, "shape differs")
        require(total >= 0, "output_shape larger than the full output")
        begin.append(total - total // 2 if auto == "SAME_LOWER" else total // 2)
    if auto == "NOTSET" and any((full[i] - output.shape[1 + i]) % 2 for i in (0, 1)):
        # Runtimes disagree with the documentation on the side of the odd cell.
        require(False, "output_shape that needs odd padding")
    return begin


def product(builder: Builder, a: View, weights: Array, bias: Array | None, name: str) -> View:
    """``a`` ``[.., M, K]`` times ``weights`` ``[K, N]`` plus ``bias`` ``[N]``, dense."""
    k, n = weights.shape
    m = math.prod(a.shape[:-1])
    flat = views.reshape(a, (1, 1, m, k))
    if flat is None or (flat.strides[3] != 1 and k != 1) or flat.strides[2] < 0:
        flat = views.reshape(builder.copied(a), (1, 1, m, k))
    assert flat is not None
    if k == 1:
        flat = replace(flat, strides=(*flat.strides[:3], 1))
    output = builder.new((1, 1, m, n), DType.F32, name=name)
    if bias is None:
        bias = np.zeros(n, np.float32)
    builder.emit(
        Conv(
            flat, output, None, (1, 1), (1, 1), (1, 1), (0, 0), Activation(), False,
            Parameters(
                np.ascontiguousarray(weights, np.float32).reshape(1, 1, k, n),
                np.ascontiguousarray(bias, np.float32),
            ),
        )
    )  # fmt: skip
    result = views.reshape(output, (*a.shape[:-1], n))
    assert result is not None
    return result
