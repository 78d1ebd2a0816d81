"""DenseNet (Huang et al., 2017), as in torchvision.

Each dense layer concatenates all features of its block so far anew, which is how
exporters write it: a planner that copies at every ``Concat`` pays for it.
"""

from __future__ import annotations

import onnx

from benchmarks.zoo.network import Network, Value

_BLOCKS = {121: (6, 12, 24, 16), 201: (6, 12, 48, 32)}
_GROWTH = 32


def densenet(net: Network, depth: int) -> onnx.ModelProto:
    """DenseNet-121 or -201: growth 32, bottlenecks of 128 channels."""
    x = net.relu(net.batch_norm(net.conv(net.input, 64, 7, stride=2, padding=3)))
    x = net.max_pool(x, 3, 2, padding=1)
    for index, layers in enumerate(_BLOCKS[depth]):
        if index:
            x = net.conv(net.relu(net.batch_norm(x)), x.channels // 2, 1)
            x = net.average_pool(x, 2, 2)
        x = _block(net, x, layers)
    x = net.global_average_pool(net.relu(net.batch_norm(x)))
    return net.model(logits=net.linear(net.flatten(x), 1000))


def _block(net: Network, x: Value, layers: int) -> Value:
    features = [x]
    for _ in range(layers):
        y = net.concat(features) if len(features) > 1 else x
        y = net.conv(net.relu(net.batch_norm(y)), 4 * _GROWTH, 1)
        y = net.conv(net.relu(net.batch_norm(y)), _GROWTH, 3, padding=1)
        features.append(y)
    return net.concat(features)
