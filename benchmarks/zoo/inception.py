"""GoogLeNet (Szegedy et al., 2015) and Inception-v3 (2016), as in torchvision without heads
for training.

GoogLeNet's ``5x5`` branch has 3x3 kernels, as torchvision's (and TensorFlow's) has.
"""

from __future__ import annotations

import onnx

from benchmarks.zoo.network import Network, Value


def googlenet(net: Network) -> onnx.ModelProto:
    """GoogLeNet with batch norm: nine modules."""
    x = _conv(net, net.input, 64, 7, stride=2, padding=3)
    x = net.max_pool(x, 3, 2, ceil=True)
    x = _conv(net, _conv(net, x, 64, 1), 192, 3, padding=1)
    x = net.max_pool(x, 3, 2, ceil=True)
    x = _module(net, x, 64, (96, 128), (16, 32), 32)
    x = _module(net, x, 128, (128, 192), (32, 96), 64)
    x = net.max_pool(x, 3, 2, ceil=True)
    x = _module(net, x, 192, (96, 208), (16, 48), 64)
    x = _module(net, x, 160, (112, 224), (24, 64), 64)
    x = _module(net, x, 128, (128, 256), (24, 64), 64)
    x = _module(net, x, 112, (144, 288), (32, 64), 64)
    x = _module(net, x, 256, (160, 320), (32, 128), 128)
    x = net.max_pool(x, 2, 2, ceil=True)
    x = _module(net, x, 256, (160, 320), (32, 128), 128)
    x = _module(net, x, 384, (192, 384), (48, 128), 128)
    return _classifier(net, x)


def inception_v3(net: Network) -> onnx.ModelProto:
    """Inception-v3; meant for 299x299."""
    x = _conv(net, net.input, 32, 3, stride=2)
    x = _conv(net, _conv(net, x, 32, 3), 64, 3, padding=1)
    x = net.max_pool(x, 3, 2)
    x = _conv(net, _conv(net, x, 80, 1), 192, 3)
    x = net.max_pool(x, 3, 2)
    for pooled in (32, 64, 64):
        x = _inception_a(net, x, pooled)
    x = _inception_b(net, x)
    for width in (128, 160, 160, 192):
        x = _inception_c(net, x, width)
    x = _inception_d(net, x)
    for _ in range(2):
        x = _inception_e(net, x)
    return _classifier(net, x)


def _classifier(net: Network, x: Value) -> onnx.ModelProto:
    return net.model(logits=net.linear(net.flatten(net.global_average_pool(x)), 1000))


def _conv(
    net: Network,
    x: Value,
    channels: int,
    kernel: int | tuple[int, int],
    *,
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
) -> Value:
    x = net.conv(x, channels, kernel, stride=stride, padding=padding)
    return net.relu(net.batch_norm(x, epsilon=1e-3))


def _row(net: Network, x: Value, channels: int, length: int) -> Value:
    """1 x ``length`` kernel, same size."""
    return _conv(net, x, channels, (1, length), padding=(0, length // 2))


def _column(net: Network, x: Value, channels: int, length: int) -> Value:
    """``length`` x 1 kernel, same size."""
    return _conv(net, x, channels, (length, 1), padding=(length // 2, 0))


def _module(
    net: Network,
    x: Value,
    direct: int,
    middle: tuple[int, int],
    large: tuple[int, int],
    pooled: int,
) -> Value:
    """GoogLeNet's module; the pairs are (reduced, final) channels."""
    return net.concat(
        [
            _conv(net, x, direct, 1),
            _conv(net, _conv(net, x, middle[0], 1), middle[1], 3, padding=1),
            _conv(net, _conv(net, x, large[0], 1), large[1], 3, padding=1),
            _conv(net, net.max_pool(x, 3, 1, padding=1, ceil=True), pooled, 1),
        ]
    )


def _inception_a(net: Network, x: Value, pooled: int) -> Value:
    double = _conv(net, _conv(net, x, 64, 1), 96, 3, padding=1)
    return net.concat(
        [
            _conv(net, x, 64, 1),
            _conv(net, _conv(net, x, 48, 1), 64, 5, padding=2),
            _conv(net, double, 96, 3, padding=1),
            _conv(net, net.average_pool(x, 3, 1, padding=1), pooled, 1),
        ]
    )


def _inception_b(net: Network, x: Value) -> Value:
    double = _conv(net, _conv(net, x, 64, 1), 96, 3, padding=1)
    return net.concat(
        [
            _conv(net, x, 384, 3, stride=2),
            _conv(net, double, 96, 3, stride=2),
            net.max_pool(x, 3, 2),
        ]
    )


def _inception_c(net: Network, x: Value, width: int) -> Value:
    single = _row(net, _conv(net, x, width, 1), width, 7)
    double = _column(net, _conv(net, x, width, 1), width, 7)
    double = _column(net, _row(net, double, width, 7), width, 7)
    return net.concat(
        [
            _conv(net, x, 192, 1),
            _column(net, single, 192, 7),
            _row(net, double, 192, 7),
            _conv(net, net.average_pool(x, 3, 1, padding=1), 192, 1),
        ]
    )


def _inception_d(net: Network, x: Value) -> Value:
    long = _column(net, _row(net, _conv(net, x, 192, 1), 192, 7), 192, 7)
    return net.concat(
        [
            _conv(net, _conv(net, x, 192, 1), 320, 3, stride=2),
            _conv(net, long, 192, 3, stride=2),
            net.max_pool(x, 3, 2),
        ]
    )


def _inception_e(net: Network, x: Value) -> Value:
    single = _conv(net, x, 384, 1)
    double = _conv(net, _conv(net, x, 448, 1), 384, 3, padding=1)
    return net.concat(
        [
            _conv(net, x, 320, 1),
            net.concat([_row(net, single, 384, 3), _column(net, single, 384, 3)]),
            net.concat([_row(net, double, 384, 3), _column(net, double, 384, 3)]),
            _conv(net, net.average_pool(x, 3, 1, padding=1), 192, 1),
        ]
    )
