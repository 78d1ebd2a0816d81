"""Darknet's allocation rule, counted by hand; ONNX Runtime's growth, where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from benchmarks import zoo
from tests.conftest import small_model
from vessels import importer
from vessels.study.footprint import darknet_size, footprint

F = 4
"""Bytes of a float."""


def network(nodes: list[onnx.NodeProto], shape: list[int], **constants: tuple[int, ...]) -> int:
    """What Darknet takes for ``nodes``, from ``x`` of ``shape`` to ``y``."""
    rank = 2 if nodes[-1].op_type == "Flatten" else len(shape)
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, [None] * rank)],
        [numpy_helper.from_array(np.ones(s, np.float32), n) for n, s in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return darknet_size(importer.load(model))


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


NORM = {"scale": (16,), "shift": (16,), "mean": (16,), "variance": (16,)}


def test_convolution_batch_norm_and_activation_are_one_layer() -> None:
    found = network(
        [
            node("Conv", "x w", "a", pads=[1, 1, 1, 1]),
            node("BatchNormalization", "a scale shift mean variance", "b"),
            node("LeakyRelu", "b", "y"),
        ],
        [1, 8, 10, 10],
        w=(16, 8, 3, 3),
        **NORM,
    )
    input_count, output_count = 8 * 100, 16 * 100
    weights, workspace = 16 * 8 * 9, 100 * 9 * 8
    # Biases, scales, rolling mean, rolling variance.
    assert found == F * (input_count + weights + 4 * 16 + output_count + workspace)


def test_the_largest_workspace_serves_all() -> None:
    found = network(
        [
            node("Conv", "x w", "a", group=8, pads=[1, 1, 1, 1]),
            node("Conv", "a v", "y", strides=[2, 2]),
        ],
        [1, 8, 10, 10],
        w=(8, 1, 3, 3),
        v=(4, 8, 2, 2),
    )
    layers = (72 + 8 + 800) + (4 * 8 * 4 + 4 + 4 * 25)
    # Nine taps of one channel at 100 pixels against four taps of eight channels at 25.
    assert found == F * (800 + layers + max(100 * 9 * 1, 25 * 4 * 8))


def test_batch_multiplies_outputs_alone() -> None:
    def size(batch: int) -> int:
        nodes = [node("Conv", "x w", "y")]
        return network(nodes, [batch, 8, 10, 10], w=(16, 8, 3, 3))

    assert size(3) - size(2) == size(2) - size(1) == F * (800 + 16 * 64)


def test_layers_of_their_own() -> None:
    """A batch norm before its convolution, a sum, a concatenation, a pooling; a view is none."""
    found = network(
        [
            node("BatchNormalization", "x scale shift mean variance", "a"),
            node("Relu", "a", "b"),
            node("Add", "b x", "c"),
            node("Relu", "c", "d"),
            node("Concat", "d x", "e", axis=1),
            node("MaxPool", "e", "f", kernel_shape=[2, 2], strides=[2, 2]),
            node("Flatten", "f", "y"),
        ],
        [1, 16, 4, 4],
        **NORM,
    )
    assert found == F * (256 + (256 + 4 * 16) + 256 + 512 + 128)


def test_an_activation_of_what_is_still_read_has_memory_of_its_own() -> None:
    def nodes(other: str) -> list[onnx.NodeProto]:
        return [node("Conv", "x w", "a"), node("Sigmoid", "a", "b"), node("Mul", f"b {other}", "y")]

    apart, in_place = (network(nodes(o), [1, 2, 8, 8], w=(2, 2, 1, 1)) for o in ("a", "x"))
    assert apart - in_place == F * 128


def test_connected() -> None:
    found = network(
        [node("Gemm", "x w b", "a", transB=1), node("Relu", "a", "y")], [1, 32], w=(10, 32), b=(10,)
    )
    assert found == F * (32 + 320 + 10 + 10)


@pytest.mark.heavy
def test_vgg16() -> None:
    """Its parameters, every output, and the patches of its second convolution."""
    found = darknet_size(importer.load(zoo.build("vgg16")))
    convolutions = [
        (2, 224, 64), (2, 112, 128), (3, 56, 256), (3, 28, 512), (3, 14, 512),
    ]  # fmt: skip
    outputs = sum(n * side * side * channels for n, side, channels in convolutions)
    outputs += sum((side // 2) ** 2 * channels for _, side, channels in convolutions)
    connected = 4096 + 4096 + 1000
    parameters = 138_357_544
    workspace = 224 * 224 * 9 * 64
    at_least = F * (3 * 224 * 224 + parameters + outputs + connected + workspace)
    # Operators between them may have outputs, all of them small.
    assert at_least <= found <= at_least + (1 << 20)


def test_footprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "m.onnx"
    onnx.save(small_model(), model)
    inputs = {"image": np.zeros((1, 3, 16, 16), np.float32)}
    found = footprint(model, inputs, runtime_size=123)
    assert found.runtime_size == 123
    assert found.darknet_size == darknet_size(importer.load(model))
    assert found.onnxruntime_size is not None and 0 < found.onnxruntime_size < 100 << 20
    # As if it were not installed.
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert footprint(model, inputs, runtime_size=0).onnxruntime_size is None
