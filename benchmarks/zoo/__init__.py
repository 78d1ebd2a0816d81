"""The network zoo: well-known architectures as ONNX models with seeded random parameters.

Made with onnx's own helpers alone, so that no framework is needed. Batch norms are nodes of
their own, as in a model exported in inference mode without folding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx

from benchmarks.zoo import classic, darknet, densenet, inception, mobile, resnet
from benchmarks.zoo.network import Floats, Network

__all__ = ["NAMES", "build", "default_input_size", "example_input"]


@dataclass(frozen=True)
class _Entry:
    make: Callable[[Network], onnx.ModelProto]
    input_size: int = 224


_ZOO = {
    "alexnet": _Entry(classic.alexnet),
    "vgg16": _Entry(partial(classic.vgg, depth=16)),
    "vgg19": _Entry(partial(classic.vgg, depth=19)),
    "resnet18": _Entry(partial(resnet.resnet, depth=18)),
    "resnet50": _Entry(partial(resnet.resnet, depth=50)),
    "resnet101": _Entry(partial(resnet.resnet, depth=101)),
    "resnet152": _Entry(partial(resnet.resnet, depth=152)),
    "densenet121": _Entry(partial(densenet.densenet, depth=121)),
    "densenet201": _Entry(partial(densenet.densenet, depth=201)),
    "squeezenet": _Entry(mobile.squeezenet),
    "googlenet": _Entry(inception.googlenet),
    "inception_v3": _Entry(inception.inception_v3, 299),
    "mobilenet_v2": _Entry(mobile.mobilenet_v2),
    "darknet19": _Entry(darknet.darknet19),
    "darknet53": _Entry(darknet.darknet53),
    "yolov3": _Entry(darknet.yolov3, 416),
    "yolov3_tiny": _Entry(darknet.yolov3_tiny, 416),
}

NAMES = tuple(_ZOO)
"""Every network :func:`build` knows."""


def build(
    name: str, seed: int = 0, input_size: int | None = None, batch: int = 1
) -> onnx.ModelProto:
    """The named network: input ``input``, float32 ``[batch, 3, input_size, input_size]``.

    The same arguments give the same bytes. ``input_size`` defaults to what the
    network is usually fed. Raises ``KeyError`` for a name not in :data:`NAMES` and
    ``ValueError`` for an input size the network cannot take.
    """
    entry = _ZOO[name]
    return entry.make(Network(name, seed, input_size or entry.input_size, batch))


def default_input_size(name: str) -> int:
    """Pixels of a side of the input that :func:`build` takes unless told otherwise."""
    return _ZOO[name].input_size


def example_input(model: onnx.ModelProto, seed: int = 0) -> dict[str, Floats]:
    """A random image (mean 0, variance 1) for a model that :func:`build` made."""
    [port] = model.graph.input
    shape = [d.dim_value for d in port.type.tensor_type.shape.dim]
    rng = np.random.default_rng(seed)
    return {port.name: rng.standard_normal(shape, dtype=np.float32)}
