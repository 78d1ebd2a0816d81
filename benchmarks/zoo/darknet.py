"""Darknet-19 and -53 and YOLOv3 (Redmon and Farhadi, 2016 and 2018), as in Darknet's cfg files.

The YOLO networks end in their raw detection maps: what follows in Darknet is decoding, not
network.
"""

from __future__ import annotations

import onnx

from benchmarks.zoo.network import Network, Value

_HEAD_CHANNELS = 3 * (4 + 1 + 80)
"""Three anchors, each a box, an objectness and COCO's 80 classes."""

_LOGIT_GAIN = 4.0
"""Logits wide enough that the softmax over 1000 classes is far from uniform."""


def darknet19(net: Network) -> onnx.ModelProto:
    """Darknet-19, the classifier under YOLOv2."""
    stages = (
        (32,),
        (64,),
        (128, 64, 128),
        (256, 128, 256),
        (512, 256, 512, 256, 512),
        (1024, 512, 1024, 512, 1024),
    )
    x = net.input
    for index, stage in enumerate(stages):
        if index:
            x = net.max_pool(x, 2, 2)
        for position, channels in enumerate(stage):
            x = _conv(net, x, channels, 3 if position % 2 == 0 else 1)
    # Class maps are read before they are averaged: their means are already far apart.
    x = net.conv(_scaled(x, _LOGIT_GAIN / 2), 1000, 1, bias=True)
    return net.model(probabilities=net.softmax(net.flatten(net.global_average_pool(x))))


def darknet53(net: Network) -> onnx.ModelProto:
    """Darknet-53, the classifier under YOLOv3."""
    x = net.flatten(net.global_average_pool(_backbone(net)[-1]))
    return net.model(probabilities=net.softmax(net.linear(x, 1000, gain=_LOGIT_GAIN)))


def yolov3(net: Network) -> onnx.ModelProto:
    """YOLOv3; meant for 416x416; maps at strides 32, 16 and 8."""
    quarter, half, x = _backbone(net)[-3:]
    outputs: dict[str, Value] = {}
    for name, channels, skip in (
        ("large", 512, half),
        ("medium", 256, quarter),
        ("small", 128, None),
    ):
        for _ in range(2):
            x = _conv(net, _conv(net, x, channels, 1), 2 * channels, 3)
        x = _conv(net, x, channels, 1)
        outputs[name] = net.conv(_conv(net, x, 2 * channels, 3), _HEAD_CHANNELS, 1, bias=True)
        if skip is not None:
            x = net.concat([net.upsample(_conv(net, x, channels // 2, 1)), skip])
    return net.model(**outputs)


def yolov3_tiny(net: Network) -> onnx.ModelProto:
    """YOLOv3-tiny; meant for 416x416; maps at strides 32 and 16."""
    x = _conv(net, net.input, 16, 3)
    for channels in (32, 64, 128, 256):
        x = _conv(net, net.max_pool(x, 2, 2), channels, 3)
    skip = x
    x = _conv(net, net.max_pool(x, 2, 2), 512, 3)
    # Darknet pads a pooling of stride 1 at the bottom and the right only.
    x = _conv(net, net.max_pool(x, 2, 1, end_padding=1), 1024, 3)
    x = _conv(net, x, 256, 1)
    large = net.conv(_conv(net, x, 512, 3), _HEAD_CHANNELS, 1, bias=True)
    x = net.concat([net.upsample(_conv(net, x, 128, 1)), skip])
    medium = net.conv(_conv(net, x, 256, 3), _HEAD_CHANNELS, 1, bias=True)
    return net.model(large=large, medium=medium)


def _backbone(net: Network) -> list[Value]:
    """Darknet-53's features after each of its five stages."""
    x = _conv(net, net.input, 32, 3)
    stages: list[Value] = []
    for channels, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        x = _conv(net, x, channels, 3, stride=2)
        for _ in range(blocks):
            y = _conv(net, x, channels // 2, 1)
            x = net.add(x, _conv(net, y, channels, 3, scale=0.3))
        stages.append(x)
    return stages


def _conv(
    net: Network,
    x: Value,
    channels: int,
    kernel: int,
    *,
    stride: int = 1,
    scale: float = 1.0,
) -> Value:
    x = net.conv(x, channels, kernel, stride=stride, padding=kernel // 2)
    return net.leaky_relu(net.batch_norm(x, scale=scale))


def _scaled(x: Value, gain: float) -> Value:
    """``x`` declared quieter than it is, so that what reads it is ``gain`` times louder."""
    return Value(x.name, x.shape, x.mean / gain, x.variance / gain**2)
