"""AlexNet (Krizhevsky, 2014) and VGG (Simonyan and Zisserman, 2015), as in torchvision."""

from __future__ import annotations

import onnx

from benchmarks.zoo.network import Network, Value

_VGG_STAGES = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""3x3 convolutions between poolings."""


def alexnet(net: Network) -> onnx.ModelProto:
    """AlexNet: five convolutions, three fully connected layers."""
    x = net.relu(net.conv(net.input, 64, 11, stride=4, padding=2, bias=True))
    x = net.max_pool(x, 3, 2)
    x = net.relu(net.conv(x, 192, 5, padding=2, bias=True))
    x = net.max_pool(x, 3, 2)
    for channels in (384, 256, 256):
        x = net.relu(net.conv(x, channels, 3, padding=1, bias=True))
    x = net.max_pool(x, 3, 2)
    return _classifier(net, net.adaptive_average_pool(x, 6))


def vgg(net: Network, depth: int) -> onnx.ModelProto:
    """VGG of 16 or 19 layers with parameters (configurations D and E)."""
    x = net.input
    for channels, count in zip((64, 128, 256, 512, 512), _VGG_STAGES[depth], strict=True):
        for _ in range(count):
            x = net.relu(net.conv(x, channels, 3, padding=1, bias=True))
        x = net.max_pool(x, 2, 2)
    return _classifier(net, net.adaptive_average_pool(x, 7))


def _classifier(net: Network, x: Value) -> onnx.ModelProto:
    x = net.flatten(x)
    for _ in range(2):
        x = net.relu(net.linear(x, 4096))
    return net.model(logits=net.linear(x, 1000))
