"""Pooling and local response normalization."""

from __future__ import annotations

from vessels.lower import views
from vessels.lower.builder import Body, Op, Refusal, lowers, require
from vessels.lower.convolution import Window, as_image, channels_last, new_image, window
from vessels.program import DType, MapCode, Pool, PoolKind, View


@lowers("MaxPool", "AveragePool")
def pool(op: Op) -> None:
    op.only_output()
    op.floats()
    require(not op.attr("storage_order", 0), "storage_order=1")
    shape = op.shape()
    w = window(op, list(op.attr("kernel_shape")), list(shape[2:]))
    same = op.attr("auto_pad", "NOTSET").startswith("SAME")
    # Runtimes leave the dilation out of the padding, and so get other sizes than ONNX says.
    require(not same or w.dilation == (1, 1), "auto_pad with dilations")
    if w.kernel == w.stride == (1, 1) and not any(w.padding):
        op.set(op.view())
        return
    image = channels_last(op.builder, as_image(op.view()))
    output, logical = new_image(op)
    for axis in (0, 1):
        _check_size(op, w, axis, image.shape[1 + axis], output.shape[1 + axis])
    average = op.type == "AveragePool"
    _emit(op, image, output, w, average, average and bool(op.attr("count_include_pad", 0)))
    op.set(logical)


def _check_size(op: Op, w: Window, axis: int, size: int, found: int) -> None:
    """Refuses an inferred output size that the padding does not explain."""
    low, high = w.padding[axis], w.padding[axis + 2]
    span = size + low + high - w.extent(axis)
    if op.attr("ceil_mode", 0):
        expected = -(-span // w.stride[axis]) + 1
        # A window that would start in the padding on the far side is left out.
        if (expected - 1) * w.stride[axis] >= size + low:
            expected -= 1
    else:
        expected = span // w.stride[axis] + 1
    require(found == expected, f"output size {found} is not the expected {expected}")
    taps = range(w.kernel[axis])
    for start in range(-low, found * w.stride[axis] - low, w.stride[axis]):
        if not any(0 <= start + t * w.dilation[axis] < size for t in taps):
            raise Refusal("a window lies wholly in the padding")


def _emit(op: Op, image: View, output: View, w: Window, average: bool, count_padding: bool) -> None:
    op.builder.emit(
        Pool(
            image, output, PoolKind.AVERAGE if average else PoolKind.MAX,
            w.kernel, w.stride, w.dilation, w.padding, count_padding,
        )
    )  # fmt: skip


@lowers("GlobalAveragePool", "GlobalMaxPool")
def global_pool(op: Op) -> None:
    op.floats()
    require(op.rank in (3, 4), f"{op.rank - 2} spatial dimensions")
    image = channels_last(op.builder, as_image(op.view()))
    output, logical = new_image(op)
    w = Window((image.shape[1], image.shape[2]), (1, 1), (1, 1), (0, 0, 0, 0))
    _emit(op, image, output, w, op.type == "GlobalAveragePool", False)
    op.set(logical)


@lowers("LRN")
def local_response_normalization(op: Op) -> None:
    """The window over channels is an average pool over a view with channels as rows."""
    op.floats()
    require(op.rank == 4, f"rank {op.rank}")
    builder = op.builder
    name = op.node.outputs[0].name or op.type
    size = int(op.attr("size"))
    alpha, beta = float(op.attr("alpha", 1e-4)), float(op.attr("beta", 0.75))
    bias = float(op.attr("bias", 1.0))
    x = op.view()
    squares = builder.like(x.shape, DType.F32, [x], name)
    builder.map([x], squares, lambda b, x: b.op(MapCode.MUL_F, x, x))
    n, c, h, w = x.shape
    # The pooled image: rows are pixels, columns are channels, with one "channel".
    dense = views.permute(squares, (0, 2, 3, 1))
    image = views.reshape(dense, (1, n * h * w, c, 1))
    if image is None:
        image = views.reshape(builder.copied(dense), (1, n * h * w, c, 1))
    assert image is not None
    means = builder.new(image.shape, DType.F32, name=name)
    low = (size - 1) // 2
    # Dividing by the whole size needs the padding counted.
    padding = (0, low, 0, size - 1 - low)
    _emit(op, image, means, Window((1, size), (1, 1), (1, 1), padding), True, True)
    mean = views.reshape(means, (n, h, w, c))
    assert mean is not None
    output = builder.like(x.shape, DType.F32, [x], name)

    def normalized(b: Body, x: int, mean: int) -> int:
        base = b.op(MapCode.ADD_F, b.op(MapCode.MUL_F, mean, b.f(alpha)), b.f(bias))
        return b.op(MapCode.DIV_F, x, b.op(MapCode.POW_F, base, b.f(beta)))

    op.set(builder.map([x, views.permute(mean, (0, 3, 1, 2))], output, normalized))
