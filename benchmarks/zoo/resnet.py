"""ResNet (He et al., 2016), as in torchvision (stride in a bottleneck's 3x3)."""

from __future__ import annotations

import onnx

from benchmarks.zoo.network import Network, Value

_BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_BRANCH_SCALE = 0.3
"""Gain of the last batch norm of a residual branch: the trunk grows slowly over 50 blocks."""


def resnet(net: Network, depth: int) -> onnx.ModelProto:
    """ResNet-18 (basic blocks), -50, -101 or -152 (bottlenecks)."""
    block = _basic if depth < 50 else _bottleneck
    x = net.relu(net.batch_norm(net.conv(net.input, 64, 7, stride=2, padding=3)))
    x = net.max_pool(x, 3, 2, padding=1)
    for stage, count in enumerate(_BLOCKS[depth]):
        for index in range(count):
            x = block(net, x, 64 << stage, 2 if stage and not index else 1)
    return net.model(logits=net.linear(net.flatten(net.global_average_pool(x)), 1000))


def _basic(net: Network, x: Value, width: int, stride: int) -> Value:
    y = net.relu(net.batch_norm(net.conv(x, width, 3, stride=stride, padding=1)))
    y = net.batch_norm(net.conv(y, width, 3, padding=1), scale=_BRANCH_SCALE)
    return net.relu(net.add(y, _shortcut(net, x, width, stride)))


def _bottleneck(net: Network, x: Value, width: int, stride: int) -> Value:
    y = net.relu(net.batch_norm(net.conv(x, width, 1)))
    y = net.relu(net.batch_norm(net.conv(y, width, 3, stride=stride, padding=1)))
    y = net.batch_norm(net.conv(y, 4 * width, 1), scale=_BRANCH_SCALE)
    return net.relu(net.add(y, _shortcut(net, x, 4 * width, stride)))


def _shortcut(net: Network, x: Value, channels: int, stride: int) -> Value:
    """The trunk itself, or its projection where the shape changes."""
    if stride == 1 and x.channels == channels:
        return x
    return net.batch_norm(net.conv(x, channels, 1, stride=stride))
