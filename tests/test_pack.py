"""Packing against the layout's definition, element by element."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.networks import Net
from vessels.pack import ConstantChunks, LayerChunks, Shape
from vessels.program import Conv, Cut, Depthwise, DType, View, Winograd, WinogradMode, panel_widths


def conv(kernel: int, channels: int, out_channels: int) -> Conv:
    net = Net(size=4)
    net.conv(net.input(channels), out_channels, kernel)
    made = net.instructions[0]
    assert isinstance(made, Conv)
    return made


def with_cut(layer: Conv | Winograd | Depthwise, panels: int, depth: int) -> LayerChunks:
    shape = Shape.of(layer)
    count = len(shape.chunk_sizes(panels, depth))
    return LayerChunks.of(replace(layer, cut=Cut(5, count, panels, depth)))


@pytest.mark.parametrize("out_channels", [1, 16, 17, 32, 40, 70])
@pytest.mark.parametrize(("kernel", "channels"), [(1, 3), (3, 5)])
@pytest.mark.parametrize("cut_depth", [False, True])
def test_conv(out_channels: int, kernel: int, channels: int, cut_depth: bool) -> None:
    layer = conv(kernel, channels, out_channels)
    assert layer.parameters is not None
    depth = kernel * kernel * channels
    step = 2 if cut_depth else depth
    panels = 1 if cut_depth else 2
    chunks = with_cut(layer, panels, step)
    assert [c.nbytes for c in chunks] == chunks.shape.chunk_sizes(panels, step)
    widths = panel_widths(out_channels)
    weights = layer.parameters.weights.reshape(depth, out_channels)
    index = 0
    for first in range(0, len(widths), panels):
        for start in range(0, depth, step):
            expected: list[float] = []
            for panel in range(first, min(first + panels, len(widths))):
                channels_here = range(panel * 32, panel * 32 + widths[panel])
                expected += [
                    float(layer.parameters.bias[o]) if o < out_channels and start == 0 else 0.0
                    for o in channels_here
                ]
                for k in range(start, min(start + step, depth)):
                    expected += [
                        float(weights[k, o]) if o < out_channels else 0.0 for o in channels_here
                    ]
            assert chunks.chunk(index).tolist() == expected
            index += 1
    assert index == chunks.cut.chunk_count


@pytest.mark.parametrize("step", [8, 3])
def test_winograd(step: int) -> None:
    layer = conv(3, 8, 20)
    space = View.dense(layer.output.buffer, DType.F32, (1,))
    winograd = Winograd(
        layer.input, layer.output, None, (1, 1), layer.activation, False, WinogradMode.INPUT, 4,
        space, layer.parameters,
    )  # fmt: skip
    chunks = with_cut(winograd, 1, step)
    assert layer.parameters is not None
    for index in range(chunks.cut.chunk_count):
        rows = chunks.chunk(index).reshape(-1, 32)[1:].reshape(-1, 9, 32)
        for c in range(rows.shape[0]):
            for tap in range(9):
                weights = layer.parameters.weights[tap // 3, tap % 3, index * step + c]
                assert rows[c, tap].tolist() == [*weights.tolist(), *[0.0] * 12]


def test_depthwise() -> None:
    net = Net(size=4)
    net.depthwise(net.input(70))
    layer = net.instructions[0]
    assert isinstance(layer, Depthwise) and layer.parameters is not None
    chunks = with_cut(layer, 2, 9)
    first, second = chunks.chunk(0).reshape(10, 64), chunks.chunk(1).reshape(10, 16)
    np.testing.assert_array_equal(first[0], layer.parameters.bias[:64])
    np.testing.assert_array_equal(first[1:], layer.parameters.weights.reshape(9, 70)[:, :64])
    np.testing.assert_array_equal(second[1:, :6], layer.parameters.weights.reshape(9, 70)[:, 64:])
    assert not second[:, 6:].any()


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000, 4096])
def test_constant(size: int) -> None:
    data = np.arange(size, dtype=np.uint8)
    chunks = ConstantChunks.of(data, 256)
    parts = [chunks.chunk(i) for i in range(chunks.chunk_count)]
    assert [len(p) for p in parts] == chunks.chunk_sizes()
    assert all(len(p) % 64 == 0 and len(p) <= 256 for p in parts)
    whole = np.concatenate(parts)
    assert (
        whole[:size].tolist() == data.tolist() and not whole[size:].any() and len(whole) < size + 64
    )
