"""Lowering against ONNX Runtime: programs run by the plain interpreter of ``reference.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import reference
from vessels.errors import UnsupportedError
from vessels.importer import load
from vessels.lower import lower
from vessels.plan import make_plan
from vessels.program import (
    Activation,
    ActivationKind,
    Conv,
    Copy,
    Depthwise,
    LoweredProgram,
    Map,
    View,
)
from vessels.simplify import simplify

Array = np.ndarray[Any, Any]
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


def randoms(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node; names separated by spaces, ``_`` for an input left out."""
    names = ["" if n == "_" else n for n in inputs.split()]
    return helper.make_node(op, names, outputs.split(), name=f"{op}_{outputs}", **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Array],
    outputs: str,
    constants: dict[str, Array] | None = None,
    opset: int = 20,
) -> onnx.ModelProto:
    """A model of ``nodes``, its outputs typed by shape inference."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in inputs.items()
        ],
        [helper.make_empty_tensor_value_info(n) for n in outputs.split()],
        [numpy_helper.from_array(v, k) for k, v in (constants or {}).items()],
    )
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10 if opset < 26 else 11
    )
    return onnx.shape_inference.infer_shapes(made, strict_mode=True, data_prop=True)


def expected(proto: onnx.ModelProto, inputs: dict[str, Array]) -> dict[str, Array]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def assert_equal(found: dict[str, Array], wanted: dict[str, Array]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        scale = np.abs(value[np.isfinite(value)]).max(initial=1e-6)
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=2e-5 * float(scale))


def check(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Array],
    outputs: str = "y",
    constants: dict[str, Array] | None = None,
    opset: int = 20,
) -> LoweredProgram:
    """Lowers as it is and simplified; both must agree with ONNX Runtime, and can be planned."""
    proto = model(nodes, inputs, outputs, constants, opset)
    wanted = expected(proto, inputs)
    simplified = lower(simplify(load(proto)))
    assert_equal(reference.run(simplified, inputs), wanted)
    program = lower(load(proto))
    assert_equal(reference.run(program, inputs), wanted)
    assert_written_once(program)
    make_plan(simplified)
    make_plan(program)
    return program


def assert_written_once(program: LoweredProgram) -> None:
    """Every byte of a buffer is written at most once, and before it is read."""
    written: dict[int, Array] = {}

    def touched(view: View) -> Array:
        flags = written.setdefault(id(view.buffer), np.zeros(view.buffer.size, np.uint8))
        size = view.dtype.size
        return np.ndarray(
            (*view.shape, size),
            np.uint8,
            flags.data,
            view.offset,
            (*(s * size for s in view.strides), 1),
        )

    for port in program.inputs:
        touched(port.view)[...] = 1
    for instruction in program.instructions:
        for view in instruction.reads:
            assert view.buffer.kind == "constant" or touched(view).all(), "read before write"
        for view in instruction.writes:
            assert not touched(view).any(), "written twice"
            touched(view)[...] = 1
    for port in program.outputs:
        assert touched(port.view).all()


def count(program: LoweredProgram, kind: type) -> int:
    return sum(isinstance(i, kind) for i in program.instructions)


@pytest.mark.parametrize(
    ("shape", "weights", "attributes"),
    [
        ((1, 3, 9, 11), (8, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
        ((2, 3, 12, 10), (5, 3, 5, 7), {"strides": [2, 3], "pads": [0, 2, 1, 3]}),
        ((1, 1, 8, 8), (4, 1, 3, 3), {}),
        ((1, 1, 1, 1), (4, 1, 1, 1), {}),
        ((1, 16, 7, 9), (6, 16, 3, 2), {"dilations": [2, 3], "pads": [2, 3, 2, 0]}),
        ((1, 16, 7, 9), (8, 8, 3, 3), {"group": 2, "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
        ((1, 12, 7, 9), (12, 1, 3, 3), {"group": 12, "auto_pad": "SAME_UPPER"}),
        ((1, 4, 7, 9), (12, 1, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
        ((2, 10, 33), (7, 10, 5), {"strides": [2], "pads": [3, 1]}),
        ((1, 3, 33), (7, 3, 5), {"pads": [2, 2]}),
        ((1, 3, 9, 9), (4, 3, 3, 3), {"dilations": [1, 2]}),
        # Windows that lie wholly in the padding.
        ((1, 9, 3, 4), (5, 9, 1, 1), {"pads": [1, 2, 0, 1]}),
        ((1, 9, 5, 5), (5, 9, 1, 1), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ((2, 3, 4, 3), (5, 3, 3, 2), {"pads": [4, 3, 3, 5], "strides": [2, 1]}),
        ((1, 6, 4, 3), (6, 1, 2, 3), {"pads": [2, 1, 5, 4], "group": 6}),
    ],
)
def test_conv(shape: tuple[int, ...], weights: tuple[int, ...], attributes: dict[str, Any]) -> None:
    constants = {"w": randoms(*weights, seed=1), "b": randoms(weights[0], seed=2)}
    relu = node("Relu", "c", "y")
    check([node("Conv", "x w b", "c", **attributes), relu], {"x": randoms(*shape)}, "y", constants)
    check([node("Conv", "x w", "y", **attributes)], {"x": randoms(*shape)}, "y", constants)


@pytest.mark.parametrize(
    ("shape", "weights", "attributes"),
    [
        ((1, 6, 5, 4), (6, 4, 2, 2), {"strides": [2, 2]}),
        ((1, 3, 5, 4), (3, 4, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ((2, 3, 5, 4), (3, 4, 3, 3), {"strides": [3, 2], "pads": [0, 1, 1, 0]}),
        ((1, 3, 5, 4), (3, 4, 2, 1), {"strides": [3, 2], "output_padding": [1, 1]}),
        ((1, 3, 5, 4), (3, 4, 3, 3), {"strides": [2, 2], "dilations": [3, 2]}),
        ((1, 4, 5, 4), (4, 2, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1], "group": 2}),
        ((1, 3, 9), (3, 4, 4), {"strides": [2], "pads": [1, 1]}),
        # Phases whose last windows lie wholly beyond the input.
        ((1, 2, 3, 3), (2, 2, 3, 3), {"strides": [3, 2], "output_padding": [2, 1]}),
        ((1, 2, 3, 3), (2, 2, 1, 2), {"strides": [3, 3], "output_padding": [2, 2]}),
        ((1, 2, 2, 3), (2, 3, 2, 1), {"strides": [1, 2], "dilations": [4, 1]}),
    ],
)
def test_conv_transpose(
    shape: tuple[int, ...], weights: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    outs = weights[1] * attributes.get("group", 1)
    constants = {"w": randoms(*weights, seed=1), "b": randoms(outs, seed=2)}
    check(
        [node("ConvTranspose", "x w b", "y", **attributes)], {"x": randoms(*shape)}, "y", constants
    )


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        ((1, 5, 9, 8), {"kernel_shape": [3, 2], "strides": [2, 2]}),
        ((2, 5, 9, 8), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 3]}),
        ((1, 5, 9, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        ((1, 5, 10, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 0, 1]}),
        ((1, 5, 9, 8), {"kernel_shape": [2, 3], "auto_pad": "SAME_UPPER", "strides": [2, 1]}),
        ((1, 5, 12), {"kernel_shape": [4], "strides": [3]}),
        ((1, 5, 9, 8), {"kernel_shape": [3, 3], "dilations": [2, 2]}),
    ],
)
def test_pool(op: str, shape: tuple[int, ...], attributes: dict[str, Any]) -> None:
    check([node(op, "x", "y", **attributes)], {"x": randoms(*shape)})
    if op == "AveragePool":
        attributes = {**attributes, "count_include_pad": 1}
        check([node(op, "x", "y", **attributes)], {"x": randoms(*shape)})


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([node("MaxPool", "x", "y", kernel_shape=[2], dilations=[2], auto_pad="SAME_UPPER")],
         "auto_pad with dilations"),
        ([node("AveragePool", "x", "y", kernel_shape=[2], dilations=[8], pads=[4, 6])],
         "wholly in the padding"),
        ([node("Resize", "x _ s", "y", mode="linear",
               coordinate_transformation_mode="align_corners")], "no whole size"),
    ],
)  # fmt: skip
def test_what_runtimes_disagree_about_is_refused(nodes: list[onnx.NodeProto], reason: str) -> None:
    proto = model(nodes, {"x": randoms(1, 2, 7)}, "y", {"s": np.array([1, 1, 0.6], np.float32)})
    with pytest.raises(UnsupportedError, match=reason):
        lower(load(proto))


def test_lrn_and_global_pools() -> None:
    x = {"x": randoms(2, 7, 5, 3)}
    check([node("LRN", "x", "y", size=3, alpha=0.3, beta=0.6, bias=1.5)], x)
    check([node("LRN", "x", "y", size=5)], x)
    check([node("GlobalAveragePool", "x", "y")], x)
    check([node("GlobalMaxPool", "x", "y")], x)


@pytest.mark.parametrize(
    ("activation", "kind"),
    [
        ([node("Relu", "c", "y")], ActivationKind.CLAMP),
        ([node("Clip", "c low high", "y")], ActivationKind.CLAMP),
        ([node("LeakyRelu", "c", "y", alpha=0.2)], ActivationKind.LEAKY),
        ([node("HardSwish", "c", "y")], ActivationKind.HARD_SWISH),
        (
            [node("HardSigmoid", "c", "h", alpha=1 / 6, beta=0.5), node("Mul", "h c", "y")],
            ActivationKind.HARD_SWISH,
        ),
        (
            [
                node("Add", "c three", "s"),
                node("Clip", "s low six", "t"),
                node("Mul", "c t", "u"),
                node("Div", "u six", "y"),
            ],
            ActivationKind.HARD_SWISH,
        ),
    ],
)
@pytest.mark.parametrize("group", [1, 8])
def test_activation_fuses(
    activation: list[onnx.NodeProto], kind: ActivationKind, group: int
) -> None:
    constants = {
        "w": randoms(8, 8 // group, 3, 3),
        **{
            k: np.array(v, np.float32)
            for k, v in {"low": 0, "high": 0.7, "three": 3, "six": 6}.items()
        },
    }
    conv = node("Conv", "x w", "c", group=group)
    program = check([conv, *activation], {"x": randoms(1, 8, 6, 6)}, "y", constants)
    convs = [i for i in program.instructions if isinstance(i, Conv | Depthwise)]
    assert [c.activation.kind for c in convs] == [kind]
    assert count(program, Map) == 0


def test_residuals_fuse() -> None:
    constants = {"w": randoms(8, 8, 3, 3), "v": randoms(8, 8, 1, 1, seed=3)}
    pads = {"pads": [1, 1, 1, 1]}
    x = {"x": randoms(1, 8, 6, 6)}
    first, second = node("Conv", "x w", "a", **pads), node("Conv", "a w", "b", **pads)
    program = check([first, second, node("Add", "b a", "s"), node("Relu", "s", "y")], x, "y",
                    constants)  # fmt: skip
    last = [i for i in program.instructions if isinstance(i, Conv)][-1]
    assert last.residual is not None and not last.residual_after
    assert last.activation == Activation(ActivationKind.CLAMP, 0.0, float("inf"))
    assert count(program, Map) == 0
    program = check([first, node("Conv", "a v", "b"), node("LeakyRelu", "b", "r"),
                     node("Add", "a r", "y")], x, "y", constants)  # fmt: skip
    last = [i for i in program.instructions if isinstance(i, Conv)][-1]
    assert last.residual is not None and last.residual_after
    # The convolution's own result beside the sum must not be mistaken for a residual.
    check([first, node("Add", "a x", "s"), node("Mul", "s a", "y")], x, "y", constants)
    check([first, node("Add", "a a", "y")], x, "y", constants)
    # Both sides are convolutions; a broadcast side.
    check([first, node("Conv", "x v", "b"), node("Add", "a b", "y")], x, "y", constants)
    check([first, node("GlobalAveragePool", "x", "b"), node("Add", "a b", "y")], x, "y",
          constants)  # fmt: skip


def test_growing_concats_share_one_buffer() -> None:
    """As DenseNet is exported: each concatenation lists all earlier features."""
    nodes, features = [], ["x0"]
    constants = {"w0": randoms(8, 8, 1, 1)}
    nodes.append(node("Conv", "x w0", "x0"))
    for i in range(1, 4):
        joined = features[0]
        if len(features) > 1:
            joined = f"c{i}"
            nodes.append(node("Concat", " ".join(features), joined, axis=1))
        constants[f"w{i}"] = randoms(4, 8 + 4 * (i - 1), 3, 3, seed=i)
        nodes.append(node("Conv", f"{joined} w{i}", f"x{i}", pads=[1, 1, 1, 1]))
        features.append(f"x{i}")
    nodes.append(node("Concat", " ".join(features), "c", axis=1))
    nodes.append(node("MaxPool", "c", "y", kernel_shape=[2, 2]))
    program = check(nodes, {"x": randoms(2, 8, 6, 6)}, "y", constants)
    # One copy makes the input channels-last, one the output channels-first.
    assert count(program, Copy) == 2


def test_concat_variants() -> None:
    x = {"x": randoms(1, 8, 4, 4)}
    constants = {"w": randoms(8, 8, 1, 1), "k": randoms(1, 2, 4, 4)}
    conv = node("Conv", "x w", "a")
    for axis in range(4):
        check([conv, node("Relu", "x", "r"), node("Concat", "r a x", "y", axis=axis)], x, "y",
              constants)  # fmt: skip
    check([conv, node("Concat", "a a", "y", axis=1)], x, "y", constants)
    check([conv, node("Concat", "k a", "b", axis=1), node("Concat", "a b", "y", axis=1),
           node("Sigmoid", "b", "z")], x, "y z", constants)  # fmt: skip
    check([conv, node("Concat", "a x", "y", axis=1), node("Reshape", "a s", "z")], x, "y z",
          {**constants, "s": np.array([4, -1])})  # fmt: skip


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_an_index_for_every_element(dtype: type) -> None:
    rng = np.random.default_rng(3)
    x = randoms(3, 4, 5)
    for axis in (0, 1, -1):
        picks = rng.integers(-x.shape[axis], x.shape[axis], (2, 3, 5) if axis else (7, 3, 5))
        feeds = {"x": x, "i": picks.astype(dtype)}
        nodes = [
            node("GatherElements", "x i", "a", axis=axis),
            node("Transpose", "x", "t"),
            node("GatherElements", "t j", "b", axis=axis),
            node("Neg", "a", "y"),
            node("Neg", "b", "z"),
        ]
        feeds["j"] = rng.integers(-3, 3, (2, 4, 3)).astype(dtype)
        check(nodes, feeds, "y z")
    program = lower(load(model(nodes, feeds, "y z")))
    with pytest.raises(IndexError):
        reference.run(program, {**feeds, "i": np.full_like(feeds["i"], 5)})


@pytest.mark.parametrize(
    ("shape", "indices", "batch"),
    [((4, 5), (3, 2), 0), ((4, 5, 6), (2, 3, 1), 0), ((2, 4, 5), (2, 3, 1), 1), ((4, 5), (1, 2), 0),
     ((2, 3, 4, 5), (2, 3, 7, 2), 2)],
)  # fmt: skip
def test_an_index_for_every_tuple(
    shape: tuple[int, ...], indices: tuple[int, ...], batch: int
) -> None:
    rng = np.random.default_rng(4)
    sizes = shape[batch : batch + indices[-1]]
    picks = np.stack([rng.integers(-d, d, indices[:-1]) for d in sizes], axis=-1)
    feeds = {"x": randoms(*shape), "i": picks}
    program = check([node("GatherND", "x i", "y", batch_dims=batch)], feeds)
    with pytest.raises(IndexError):
        reference.run(program, {**feeds, "i": np.full_like(picks, -9)})


def test_products() -> None:
    constants = {"w": randoms(6, 5), "b": randoms(5), "t": randoms(5, 6), "m": randoms(4, 5)}
    x = {"x": randoms(4, 6)}
    check([node("MatMul", "x w", "y")], x, "y", constants)
    check([node("Gemm", "x w b", "y", alpha=0.5, beta=2.0)], x, "y", constants)
    check([node("Gemm", "x t m", "y", transB=1)], x, "y", constants)
    check([node("Gemm", "x w", "y", transA=1)], {"x": randoms(6, 4)}, "y", constants)
    check([node("MatMul", "x w", "y")], {"x": randoms(2, 3, 4, 6)}, "y", constants)
    check([node("MatMul", "x w", "y")], {"x": randoms(6)}, "y", constants)
    check([node("MatMul", "t x", "y")], {"x": randoms(2, 6, 3)}, "y", constants)
    two = {"x": randoms(2, 3, 4, 6), "z": randoms(3, 6, 5, seed=1)}
    check([node("MatMul", "x z", "y")], two)
    check([node("Transpose", "x", "t", perm=[0, 1, 3, 2]), node("MatMul", "x t", "y")],
          {"x": randoms(2, 3, 4, 6)})  # fmt: skip


def test_softmax_and_normalizations() -> None:
    x = {"x": randoms(2, 3, 4, 5)}
    for op in ("Softmax", "LogSoftmax"):
        for axis in (0, 1, -1):
            check([node(op, "x", "y", axis=axis)], x)
            check([node(op, "x", "y", axis=axis)], x, opset=11)
    constants = {"s": randoms(5), "b": randoms(5, seed=1), "c": randoms(3), "d": randoms(3, seed=2)}
    check([node("LayerNormalization", "x s b", "y")], x, "y", constants, opset=17)
    check([node("InstanceNormalization", "x c d", "y")], x, "y", constants)
    check([node("LpNormalization", "x", "y", axis=1, p=1)], x)
    variance = {"v": np.abs(randoms(3)) + 0.1}
    check([node("BatchNormalization", "x c d c v", "y")], x, "y", {**constants, **variance})


@pytest.mark.parametrize(
    "op",
    [
        "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
        "ReduceSumSquare", "ReduceLogSumExp",
    ],
)  # fmt: skip
def test_reductions(op: str) -> None:
    x = {"x": randoms(2, 3, 4, 5)}
    check([node(op, "x a", "y", keepdims=0)], x, "y", {"a": np.array([1, -1])})
    check([node(op, "x", "y")], x)
    if op != "ReduceSum":
        check([node(op, "x", "y", axes=[2, 3])], x, opset=11)


def test_movement() -> None:
    x = {"x": randoms(2, 8, 6, 4)}
    integers = {
        "s": np.array([5, 0]), "e": np.array([-100, 4]), "a": np.array([2, 3]),
        "p": np.array([-2, 2]), "i": np.array([3, 0, 0, 5]), "j": np.array([5, 3, 1]),
        "k": np.array([1, 2, 1, 3]), "pads": np.array([0, 1, 2, -1, 0, 0, 3, 1]),
        "r": np.array([0, 0, 2, 1, 0, 0, 1, 2]), "q": np.array([4, -1]),
    }  # fmt: skip
    for nodes in (
        [node("Slice", "x s e a p", "y")],
        [node("Gather", "x i", "y", axis=2)],
        [node("Gather", "x j", "y", axis=2)],
        [node("Tile", "x k", "y")],
        [node("Pad", "x pads", "y")],
        [node("Pad", "x r", "y", mode="reflect")],
        [node("Pad", "x r", "y", mode="edge")],
        [node("DepthToSpace", "x", "y", blocksize=2)],
        [node("DepthToSpace", "x", "y", blocksize=2, mode="CRD")],
        [node("SpaceToDepth", "x", "y", blocksize=2)],
        [node("Transpose", "x", "t", perm=[3, 1, 0, 2]), node("Reshape", "t q", "y")],
        [node("Transpose", "x", "t", perm=[0, 2, 3, 1]), node("Relu", "t", "y")],
        [node("Identity", "x", "y")],
    ):
        check(nodes, x, "y", integers)
    check([node("Split", "x", "y z", axis=1, num_outputs=2)], x, "y z")


@pytest.mark.parametrize("transform", ["half_pixel", "asymmetric", "align_corners"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [(2.0, 2.0), (1.5, 0.5), (3.0, 1.0)])
def test_resize(transform: str, mode: str, scales: tuple[float, float]) -> None:
    constants = {"s": np.array([1, 1, *scales], np.float32)}
    check(
        [node("Resize", "x _ s", "y", mode=mode, coordinate_transformation_mode=transform)],
        {"x": randoms(1, 3, 6, 4)},
        "y",
        constants,
    )


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Elu", {"alpha": 0.7}), ("Selu", {}), ("Celu", {"alpha": 0.8}), ("Softsign", {}),
        ("Gelu", {}), ("Gelu", {"approximate": "tanh"}), ("Mish", {}), ("HardSigmoid", {}),
        ("ThresholdedRelu", {"alpha": 0.3}), ("Sign", {}), ("Round", {}), ("Erf", {}),
        ("Softplus", {}), ("Tanh", {}), ("Neg", {}), ("IsNaN", {}),
    ],
)  # fmt: skip
def test_elementwise(op: str, attributes: dict[str, Any]) -> None:
    check([node(op, "x", "y", **attributes)], {"x": randoms(3, 4, 5) * 2})


def test_chains_fuse_into_one_map() -> None:
    x = {"x": randoms(2, 3, 4), "z": randoms(3, 1, seed=1)}
    program = check(
        [
            node("Sigmoid", "x", "a"),
            node("Mul", "x a", "b"),
            node("Add", "b z", "c"),
            node("Greater", "c x", "d"),
            node("Where", "d c z", "y"),
        ],
        x,
    )
    assert count(program, Map) == len(program.instructions) == 1


def test_narrow_integers_wrap_between_operators() -> None:
    x = {"x": np.arange(0, 250, 10, dtype=np.uint8), "z": np.full(25, 100, np.uint8)}
    check([node("Add", "x z", "a"), node("Div", "a z", "b"), node("Cast", "b", "y", to=1)], x)
    f = {"x": np.array([-2.7, 3.9, 200.2, 1e3], np.float32)}
    check([node("Cast", "x", "a", to=TensorProto.INT32), node("Cast", "a", "y", to=1)], f)
    check([node("Cast", "x", "y", to=TensorProto.BOOL)], f)


def test_outputs_that_nobody_computes() -> None:
    x = {"x": randoms(2, 3)}
    check([node("Relu", "x", "y"), node("Identity", "k", "z")], x, "y z", {"k": randoms(2)})
    check([node("Relu", "x", "y"), node("Neg", "y", "z")], x, "y z")


def test_all_problems_in_one_error() -> None:
    proto = model(
        [
            node("Conv", "x w", "a"),
            node("Relu", "a", "b"),
            node("Det", "q", "c"),
            node("MaxPool", "b", "d e", kernel_shape=[2, 2]),
        ],
        {"x": randoms(1, 8, 6, 6), "w": randoms(8, 8, 3, 3), "q": randoms(2, 2)},
        "c d e",
    )
    with pytest.raises(UnsupportedError) as caught:
        lower(ir.from_proto(proto))
    message = str(caught.value)
    for part in ("Conv_a", "weights are not constant", "Det_c", "MaxPool_d e", "output 1"):
        assert part in message
    assert "Relu" not in message


@pytest.mark.parametrize("path", sorted(LIGHT.glob("*.onnx")), ids=lambda p: p.stem)
def test_light_models(path: Path) -> None:
    proto = onnx.load(path)
    if path.stem in ("light_zfnet512", "light_inception_v1", "light_bvlc_alexnet"):
        pytest.skip("their normalization takes the plain interpreter long; the enclave runs them")
    program = lower(simplify(load(proto)))
    shapes = {p.name: p.view.shape for p in program.inputs}
    inputs = {n: randoms(*s) for n, s in shapes.items()}
    assert_equal(reference.run(program, inputs), expected(proto, inputs))
