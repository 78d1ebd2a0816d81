"""SqueezeNet 1.1 (Iandola et al., 2016) and MobileNetV2 (Sandler et al., 2018), as in
torchvision."""

from __future__ import annotations

import onnx

from benchmarks.zoo.network import Network, Value

_FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
"""(squeezed, expanded) channels; a pooling goes before the third and the fifth."""

_INVERTED = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""(expansion, channels, blocks, first stride)."""


def squeezenet(net: Network) -> onnx.ModelProto:
    """SqueezeNet 1.1."""
    x = net.relu(net.conv(net.input, 64, 3, stride=2, bias=True))
    x = net.max_pool(x, 3, 2, ceil=True)
    for index, (squeezed, expanded) in enumerate(_FIRES):
        if index in (2, 4):
            x = net.max_pool(x, 3, 2, ceil=True)
        x = net.relu(net.conv(x, squeezed, 1, bias=True))
        left = net.relu(net.conv(x, expanded, 1, bias=True))
        right = net.relu(net.conv(x, expanded, 3, padding=1, bias=True))
        x = net.concat([left, right])
    x = net.relu(net.conv(x, 1000, 1, bias=True))
    return net.model(logits=net.flatten(net.global_average_pool(x)))


def mobilenet_v2(net: Network) -> onnx.ModelProto:
    """MobileNetV2 of width 1.0."""
    x = _conv(net, net.input, 32, 3, stride=2)
    for expansion, channels, blocks, stride in _INVERTED:
        for index in range(blocks):
            x = _inverted(net, x, expansion, channels, stride if index == 0 else 1)
    x = _conv(net, x, 1280, 1)
    return net.model(logits=net.linear(net.flatten(net.global_average_pool(x)), 1000))


def _inverted(net: Network, x: Value, expansion: int, channels: int, stride: int) -> Value:
    """An inverted residual with a linear bottleneck."""
    width = x.channels * expansion
    y = x if expansion == 1 else _conv(net, x, width, 1)
    y = _conv(net, y, width, 3, stride=stride, groups=width)
    if stride != 1 or x.channels != channels:
        return net.batch_norm(net.conv(y, channels, 1))
    return net.add(x, net.batch_norm(net.conv(y, channels, 1), scale=0.5))


def _conv(
    net: Network, x: Value, channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> Value:
    x = net.conv(x, channels, kernel, stride=stride, padding=kernel // 2, groups=groups)
    return net.relu6(net.batch_norm(x))
