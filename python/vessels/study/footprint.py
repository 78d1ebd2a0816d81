"""Footprint: the memory of one network by other systems' rules.

ONNX Runtime's is measured. Darknet's is worked out on paper, from the network as imported: batch
norms, activations and residual sums are still nodes of their own.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from vessels import importer
from vessels.memory import onnxruntime_memory
from vessels.study.result import Footprint

Array = np.ndarray[Any, Any]

_FLOAT_SIZE = 4

_ACTIVATIONS = frozenset(
    [
        "Celu", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu",
        "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Tanh", "ThresholdedRelu",
    ]
)  # fmt: skip
_NO_MEMORY = frozenset(["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"])
"""Other shapes of the same bytes, and what passes its input on."""
_CONNECTED = frozenset(["Gemm", "MatMul"])


def footprint(
    model: Path,
    inputs: Mapping[str, Array],
    *,
    runtime_size: int,
    shapes: Mapping[str, Sequence[int]] | None = None,
    threads: int = 1,
) -> Footprint:
    """The footprint of ``model`` elsewhere; ``inputs`` are what ONNX Runtime is run with.

    ``runtime_size`` is what an enclave process of ours was seen to hold beside its pool. Raises
    :class:`~vessels.errors.ModelError` and, where ONNX Runtime refuses the model,
    :class:`~vessels.errors.VesselsError`.
    """
    return Footprint(
        onnxruntime_size=onnxruntime_size(model, inputs, threads),
        darknet_size=darknet_size(importer.load(model, shapes or {})),
        runtime_size=runtime_size,
    )


def onnxruntime_size(model: Path, inputs: Mapping[str, Array], threads: int) -> int | None:
    """Growth of a fresh process that loads and runs ``model`` with ONNX Runtime.

    ``None`` where that is not installed; see :func:`vessels.memory.onnxruntime_memory`.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    return onnxruntime_memory(model, inputs, threads)


def darknet_size(model: ir.Model) -> int:
    """Bytes that Darknet's allocation rule takes for a prediction with ``model``, as imported.

    The rule, from github.com/pjreddie/darknet and its successor github.com/AlexeyAB/darknet:

    - ``make_*_layer`` gives every layer an ``output`` of its own, ``batch * outputs`` floats, for
      the life of the network (``convolutional_layer.c``, ``connected_layer.c``,
      ``maxpool_layer.c``, ``shortcut_layer.c`` for residual sums, ``route_layer.c`` for
      concatenations, which copy);
    - a convolution has ``weights`` and ``biases``, and with ``batch_normalize`` ``scales``,
      ``rolling_mean`` and ``rolling_variance``; batch norm and activation work in place in its
      output, as an activation does in that of a connected, batch norm or shortcut layer;
    - one ``workspace`` for im2col, the largest that any convolution asks for: by
      ``get_workspace_size`` ``out_h * out_w * size * size * (c / groups)`` floats, for 1x1 kernels
      as well (``parse_network_cfg`` in ``parser.c`` keeps the maximum);
    - the network's input (``net.input``).

    Counted is what a prediction needs. The first Darknet also allocates what only training uses,
    even to predict (``delta``, ``weight_updates``, ``mean``, ``variance``, ``x``, ``x_norm``, a
    maximum's ``indexes``); its successor does not, and no prediction touches it but ``indexes``.
    An operator that Darknet has no layer for counts as a layer with its constants and an output.
    """
    graph = model.graph
    total = sum(_size(v) for v in graph.inputs if not v.is_initializer())
    workspace = 0
    counted: set[ir.Value] = set()
    hosts: set[ir.Value] = set()
    """Results that a batch norm or an activation may overwrite."""
    outputs = set(graph.outputs)
    for node in graph:
        source = node.inputs[0] if node.inputs else None
        result = node.outputs[0]
        alone = source is not None and len(source.uses()) == 1 and source not in outputs
        in_place = alone and source in hosts
        if node.op_type in _NO_MEMORY:
            continue
        if node.op_type in _ACTIVATIONS and in_place:
            continue
        if node.op_type == "BatchNormalization":
            follows = in_place and _producer(source) in {"Conv", *_CONNECTED}
            # The layer's biases serve as the batch norm's.
            total += (3 if follows else 4) * _FLOAT_SIZE * _channel_count(result)
            if not follows:
                total += _size(result)
        elif node.op_type == "Conv":
            weights = node.inputs[1]
            assert weights is not None
            total += _size(weights) + _FLOAT_SIZE * _channel_count(result) + _size(result)
            workspace = max(workspace, _im2col_size(result, weights))
        elif node.op_type in _CONNECTED and _constant(node.inputs[1]):
            weights = node.inputs[1]
            assert weights is not None
            total += _size(weights) + _size(result) + _FLOAT_SIZE * _dims(result)[-1]
        else:
            for value in node.inputs:
                if _constant(value) and value not in counted:
                    assert value is not None
                    counted.add(value)
                    total += _size(value)
            total += sum(_size(v) for v in node.outputs)
        if node.op_type in {"BatchNormalization", "Conv", "Add", *_CONNECTED}:
            hosts.add(result)
    return total + workspace


def _producer(value: ir.Value | None) -> str:
    node = None if value is None else value.producer()
    return "" if node is None else node.op_type


def _constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def _im2col_size(result: ir.Value, weights: ir.Value) -> int:
    """One image's patches, a row for each tap: images and groups take turns."""
    _, channels, *kernel = _dims(weights)
    pixels = _dims(result)[2:]
    return _FLOAT_SIZE * math.prod(pixels) * math.prod(kernel) * channels


def _channel_count(value: ir.Value) -> int:
    return _dims(value)[1]


def _dims(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None
    return tuple(value.shape.numpy())


def _size(value: ir.Value) -> int:
    """Bytes of a value of the imported graph, whose shapes and types are all known."""
    if value.dtype is None or value.shape is None:
        return 0
    return math.ceil(math.prod(_dims(value)) * value.dtype.itemsize)
