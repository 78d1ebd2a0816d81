"""A small builder of convolutional networks as ONNX models with random parameters.

Random parameters are only useful for comparing two programs when the numbers
stay alive: no layer may explode, vanish, or make every input give one output.
So each :class:`Value` carries an estimate of its mean and variance over
channels and pixels (mean-field theory: Poole et al., 2016), and every layer's
parameters are drawn for the statistics of what it reads, as training would
have made them. The positive mean that ReLU leaves is half taken out of the filters:
left in, it would swamp the signal after a few dozen layers; without it, the
network would be chaotic (152 layers amplify rounding errors several hundred
times, which no trained network does).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

Floats = npt.NDArray[np.float32]

OPSET = 17
IR_VERSION = 8

_CENTRING = 0.5
"""Share of its mean that is taken out of a filter."""


@dataclass(frozen=True)
class Value:
    """A graph value: its shape without the batch, and its estimated statistics."""

    name: str
    shape: tuple[int, ...]
    mean: float = 0.0
    variance: float = 1.0

    @property
    def channels(self) -> int:
        """Channels of an image, or features of a vector."""
        return self.shape[0]


class Network:
    """Collects nodes and parameters; every method adds one operator and returns its value."""

    def __init__(self, name: str, seed: int, input_size: int, batch: int) -> None:
        self.name = name
        self.batch = batch
        self.rng = np.random.default_rng(seed)
        self.input = Value("input", (3, input_size, input_size))
        self._nodes: list[onnx.NodeProto] = []
        self._model = helper.make_model(
            helper.make_graph([], name, [], []),
            producer_name="vessels-zoo",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )

    def conv(
        self,
        x: Value,
        channels: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        groups: int = 1,
        bias: bool = False,
    ) -> Value:
        """Convolution; its output has mean 0 and variance 1."""
        kernel_h, kernel_w = _pair(kernel)
        pad_h, pad_w = _pair(padding)
        depth = x.channels // groups
        weights = self._weights((channels, depth, kernel_h, kernel_w), x)
        inputs = [self._parameter("weight", weights)]
        if bias:
            inputs.append(self._parameter("bias", self._normal((channels,), 0.1)))
        shape = (
            channels,
            _extent(x.shape[1], kernel_h, stride, 2 * pad_h),
            _extent(x.shape[2], kernel_w, stride, 2 * pad_w),
        )
        name = self._node(
            "Conv",
            [x.name, *inputs],
            kernel_shape=[kernel_h, kernel_w],
            strides=[stride, stride],
            pads=[pad_h, pad_w, pad_h, pad_w],
            dilations=[1, 1],
            group=groups,
        )
        return Value(name, shape)

    def batch_norm(self, x: Value, *, scale: float = 1.0, epsilon: float = 1e-5) -> Value:
        """Batch normalisation whose stored statistics are near those of ``x``.

        ``scale`` is the gain around which the layer's own gains are drawn; residual
        branches use less than 1 so that a deep trunk does not grow.
        """
        count = x.channels
        deviation = math.sqrt(x.variance)
        stored = {
            "gain": scale * self._uniform(count, 0.8, 1.2),
            "shift": self._normal((count,), 0.1 * scale),
            "mean": np.float32(x.mean) + self._normal((count,), 0.1 * deviation),
            "variance": np.float32(x.variance) * self._uniform(count, 0.8, 1.2),
        }
        inputs = [self._parameter(key, array) for key, array in stored.items()]
        name = self._node("BatchNormalization", [x.name, *inputs], epsilon=epsilon)
        return Value(name, x.shape, 0.0, scale * scale)

    def linear(self, x: Value, features: int, *, gain: float = 1.0) -> Value:
        """Fully connected layer on a vector, as exporters write it: ``Gemm`` with ``transB``."""
        weights = self._weights((features, x.channels), x) * np.float32(gain)
        inputs = [
            self._parameter("weight", weights),
            self._parameter("bias", self._normal((features,), 0.1)),
        ]
        name = self._node("Gemm", [x.name, *inputs], alpha=1.0, beta=1.0, transB=1)
        return Value(name, (features,), 0.0, gain * gain)

    def relu(self, x: Value) -> Value:
        """max(x, 0)."""
        return self._rectified(self._node("Relu", [x.name]), x, 0.0)

    def relu6(self, x: Value) -> Value:
        """min(max(x, 0), 6) as ``Clip`` with its limits as inputs."""
        low = self._parameter("low", np.zeros((), np.float32))
        high = self._parameter("high", np.full((), 6, np.float32))
        return self._rectified(self._node("Clip", [x.name, low, high]), x, 0.0)

    def leaky_relu(self, x: Value, slope: float = 0.1) -> Value:
        """x where positive, ``slope * x`` elsewhere."""
        return self._rectified(self._node("LeakyRelu", [x.name], alpha=slope), x, slope)

    def add(self, x: Value, y: Value) -> Value:
        """Sum of two values of one shape."""
        name = self._node("Add", [x.name, y.name])
        return Value(name, x.shape, x.mean + y.mean, x.variance + y.variance)

    def concat(self, values: Sequence[Value]) -> Value:
        """Concatenation along channels."""
        channels = sum(v.channels for v in values)
        mean = sum(v.mean * v.channels for v in values) / channels
        square = sum((v.variance + v.mean**2) * v.channels for v in values) / channels
        name = self._node("Concat", [v.name for v in values], axis=1)
        return Value(name, (channels, *values[0].shape[1:]), mean, square - mean**2)

    def max_pool(
        self,
        x: Value,
        kernel: int,
        stride: int,
        *,
        padding: int = 0,
        end_padding: int | None = None,
        ceil: bool = False,
    ) -> Value:
        """Max pooling; ``end_padding`` is that of the bottom and right when it differs."""
        end = padding if end_padding is None else end_padding
        name = self._node(
            "MaxPool",
            [x.name],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[padding, padding, end, end],
            ceil_mode=int(ceil),
        )
        height, width = (_extent(d, kernel, stride, padding + end, ceil) for d in x.shape[1:])
        # The largest of k*k neighbours lies about one deviation above the mean.
        return Value(name, (x.channels, height, width), x.mean + x.variance**0.5, 0.9 * x.variance)

    def average_pool(
        self, x: Value, kernel: int, stride: int, *, padding: int = 0, ceil: bool = False
    ) -> Value:
        """Average pooling that counts its padding, as torchvision's networks do."""
        name = self._node(
            "AveragePool",
            [x.name],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[padding] * 4,
            ceil_mode=int(ceil),
            count_include_pad=1,
        )
        height, width = (_extent(d, kernel, stride, 2 * padding, ceil) for d in x.shape[1:])
        variance = x.variance if kernel == 1 else 0.5 * x.variance
        return Value(name, (x.channels, height, width), x.mean, variance)

    def adaptive_average_pool(self, x: Value, size: int) -> Value:
        """Average pooling to ``size`` x ``size`` as exporters write it; sizes must divide."""
        height, width = x.shape[1:]
        if height != width or height % size:
            raise ValueError(
                f"{self.name}: {height}x{width} features do not divide into {size}x{size}; "
                f"choose another input size"
            )
        return self.average_pool(x, height // size, height // size)

    def global_average_pool(self, x: Value) -> Value:
        """Mean over all pixels; about half of the variance is between channels and remains."""
        name = self._node("GlobalAveragePool", [x.name])
        return Value(name, (x.channels, 1, 1), x.mean, 0.5 * x.variance)

    def upsample(self, x: Value, factor: int = 2) -> Value:
        """Nearest-neighbour enlargement by ``Resize``."""
        scales = self._parameter("scales", np.array([1, 1, factor, factor], np.float32))
        name = self._node(
            "Resize",
            [x.name, "", scales],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        return replace(x, name=name, shape=(x.channels, x.shape[1] * factor, x.shape[2] * factor))

    def flatten(self, x: Value) -> Value:
        """An image as one vector."""
        return replace(x, name=self._node("Flatten", [x.name], axis=1), shape=(math.prod(x.shape),))

    def softmax(self, x: Value) -> Value:
        """Softmax over the features of a vector."""
        return Value(self._node("Softmax", [x.name], axis=1), x.shape)

    def model(self, **outputs: Value) -> onnx.ModelProto:
        """Finishes the model; keywords name its outputs. To be called once."""
        for name, value in outputs.items():
            self._nodes.append(helper.make_node("Identity", [value.name], [name], name=name))
        graph = self._model.graph
        graph.node.extend(_without_identities(self._nodes))
        graph.input.append(self._info(self.input))
        graph.output.extend(self._info(replace(v, name=name)) for name, v in outputs.items())
        return self._model

    def _info(self, x: Value) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(x.name, TensorProto.FLOAT, [self.batch, *x.shape])

    def _node(self, op_type: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{op_type.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def _parameter(self, key: str, array: Floats) -> str:
        """Adds an initializer for the node that comes next."""
        name = f"{len(self._nodes)}.{key}"
        # Straight into the model: every other way copies hundreds of MiB once more.
        self._model.graph.initializer.add(
            name=name, dims=array.shape, data_type=TensorProto.FLOAT, raw_data=array.tobytes()
        )
        return name

    def _normal(self, shape: tuple[int, ...], deviation: float) -> Floats:
        array = self.rng.standard_normal(shape, dtype=np.float32)
        array *= np.float32(deviation)
        return array

    def _uniform(self, count: int, low: float, high: float) -> Floats:
        array: Floats = self.rng.random(count, dtype=np.float32) * np.float32(high - low)
        return array + np.float32(low)

    def _weights(self, shape: tuple[int, ...], x: Value) -> Floats:
        """Filters that give an output of variance 1 when they read ``x``."""
        fan_in = math.prod(shape[1:])
        # A depthwise filter has too few taps to lose a part of its mean.
        centring = _CENTRING if shape[1] > 1 else 0.0
        power = x.variance + ((1 - centring) * x.mean) ** 2
        weights = self._normal(shape, 1 / math.sqrt(fan_in * power))
        if centring:
            axes = tuple(range(1, len(shape)))
            weights -= np.float32(centring) * weights.mean(axis=axes, keepdims=True)
        return weights

    def _rectified(self, name: str, x: Value, slope: float) -> Value:
        """Statistics of ``max(x, 0) + slope * min(x, 0)`` for a Gaussian ``x``."""
        deviation = math.sqrt(x.variance)
        t = x.mean / deviation
        density = math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
        above = 0.5 * (1 + math.erf(t / math.sqrt(2)))
        mean_above = x.mean * above + deviation * density
        square_above = (x.mean**2 + x.variance) * above + x.mean * deviation * density
        mean = mean_above + slope * (x.mean - mean_above)
        square = square_above + slope**2 * (x.mean**2 + x.variance - square_above)
        return Value(name, x.shape, mean, square - mean**2)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _extent(size: int, kernel: int, stride: int, padding: int, ceil: bool = False) -> int:
    """Output extent of a window; in ``ceil`` mode a window may hang over the end."""
    extent = (size + padding - kernel + (stride - 1 if ceil else 0)) // stride + 1
    # A window that starts in the end padding is dropped (all padding here is symmetric).
    if ceil and (extent - 1) * stride >= size + padding // 2:
        extent -= 1
    return extent


def _without_identities(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Gives output names to the nodes that compute them; outputs here have no other reader."""
    names = {n.input[0]: n.output[0] for n in nodes if n.op_type == "Identity"}
    kept = [n for n in nodes if n.op_type != "Identity"]
    for node in kept:
        if node.output[0] in names:
            node.output[0] = names[node.output[0]]
    return kept
