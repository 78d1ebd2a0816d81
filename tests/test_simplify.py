"""Simplify: fewer nodes, the same results as ONNX Runtime gives for the original."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from tests.test_import import make, random, run
from vessels.importer import load
from vessels.simplify import simplify

Node = onnx.NodeProto
N = helper.make_node


def check(
    nodes: Sequence[Node],
    x: np.ndarray[Any, Any],
    constants: dict[str, Any] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> Counter[str]:
    """Simplify a model of input ``x``, compare, and count the operators left."""
    model = make(nodes, [("x", x.shape)], outputs, constants, opset)
    return check_model(model, {"x": x})


def check_model(
    model: onnx.ModelProto | Path, feeds: dict[str, Any], tolerance: float = 1e-5
) -> Counter[str]:
    """As :func:`check` for a whole model; ``tolerance`` is relative to the largest output."""
    simple = simplify(load(model, {name: a.shape for name, a in feeds.items()}))
    original = onnx.load(model) if isinstance(model, Path) else model
    assert [v.name for v in simple.graph.outputs] == [v.name for v in original.graph.output]
    for got, wanted in zip(run(ir.to_proto(simple), feeds), run(original, feeds), strict=True):
        assert got.shape == wanted.shape and got.dtype == wanted.dtype
        np.testing.assert_allclose(
            got, wanted, rtol=0, atol=tolerance * max(abs(wanted).max(), 1e-2)
        )
    return Counter(node.op_type for node in simple.graph)


def batch_norm(channels: int) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    scale, bias, mean = rng.standard_normal((3, channels)).astype(np.float32)
    variance = rng.uniform(0.5, 2, channels).astype(np.float32)
    return {"scale": scale, "bias": bias, "mean": mean, "var": variance}


def bn(source: str, target: str) -> Node:
    return N("BatchNormalization", [source, "scale", "bias", "mean", "var"], [target])


@pytest.mark.parametrize("opset", [7, 9, 13, 15])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_batch_norm_and_constants_fold_into_convolutions(op: str, groups: int, opset: int) -> None:
    shape = (6, 4 // groups, 3, 3) if op == "Conv" else (4, 6 // groups, 3, 3)
    nodes = [
        N(op, ["x", "w"], ["a"], pads=[1, 1, 1, 1], group=groups),
        bn("a", "b"),
        N("Mul", ["channel", "b"], ["c"]),
        N("Sub", ["c", "channel"], ["d"]),
        N("Div", ["d", "scalar"], ["y"]),
    ]
    constants = batch_norm(6) | {"w": random(*shape), "channel": random(6, 1, 1)}
    constants["scalar"] = np.float32(1.7)
    assert check(nodes, random(2, 4, 5, 5), constants, opset=opset) == {op: 1}


def test_folding_stops_where_a_value_is_read_twice_or_varies_within_a_channel() -> None:
    nodes = [
        N("Conv", ["x", "w"], ["a"]),
        bn("a", "b"),
        N("Add", ["a", "b"], ["c"]),
        N("Mul", ["c", "row"], ["y"]),
    ]
    constants = batch_norm(6) | {"w": random(6, 4, 1, 1), "row": random(5)}
    assert check(nodes, random(1, 4, 5, 5), constants) == {"Conv": 1, "Mul": 2, "Add": 2}


def test_a_folded_value_that_is_an_output_stays() -> None:
    nodes = [N("Conv", ["x", "w"], ["a"]), N("Mul", ["a", "s"], ["y"])]
    constants = {"w": random(6, 4, 1, 1), "s": np.float32(2)}
    ops = check(nodes, random(1, 4, 5, 5), constants, outputs=["a", "y"])
    assert ops == {"Conv": 1, "Mul": 1}


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_and_matmul(transposed: int) -> None:
    nodes = [
        N("Mul", ["x", "k"], ["scaled"]),
        N("Add", ["scaled", "k"], ["shifted"]),
        N("Gemm", ["shifted", "w", "c"], ["a"], transB=transposed),
        N("Mul", ["a", "s"], ["b"]),
        N("MatMul", ["b", "v"], ["d"]),
        N("Add", ["s", "d"], ["y"]),
    ]
    constants = {"w": random(*((5, 4) if transposed else (4, 5))), "c": random(5), "s": random(5)}
    constants |= {"v": random(5, 5), "k": random(4)}
    assert check(nodes, random(3, 4), constants) == {"Gemm": 2}


def test_gemm_factors_are_kept() -> None:
    nodes = [N("Gemm", ["x", "w", "c"], ["a"], alpha=0.5, beta=2.0), N("Add", ["a", "c"], ["y"])]
    assert check(nodes, random(3, 4), {"w": random(4, 5), "c": random(5)}) == {"Gemm": 1}


def test_batch_norm_alone_is_mul_and_add_and_takes_up_what_follows() -> None:
    nodes = [
        N("Relu", ["x"], ["a"]),
        bn("a", "b"),
        N("Mul", ["b", "s"], ["c"]),
        N("Add", ["c", "s"], ["d"]),
        N("Relu", ["d"], ["y"]),
    ]
    constants = batch_norm(4) | {"s": random(4, 1, 1)}
    assert check(nodes, random(2, 4, 3, 3), constants) == {"Relu": 2, "Mul": 1, "Add": 1}


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1]])
def test_scale_and_shift_before_a_convolution(pads: list[int]) -> None:
    nodes = [
        N("Mul", ["x", "s"], ["a"]),
        N("Add", ["a", "t"], ["b"]),
        N("Conv", ["b", "w"], ["y"], pads=pads, group=2),
    ]
    constants = {"s": random(4, 1, 1), "t": random(4, 1, 1) + 1, "w": random(6, 2, 3, 3)}
    left = {"Mul": 1, "Add": 1, "Conv": 1} if any(pads) else {"Conv": 1}
    assert check(nodes, random(1, 4, 5, 5), constants) == left


def test_no_ops_go() -> None:
    nodes = [
        N("Identity", ["x"], ["a"]),
        N("Dropout", ["a"], ["b"]),
        N("Cast", ["b"], ["c"], to=onnx.TensorProto.FLOAT),
        N("Reshape", ["c", "shape"], ["d"]),
        N("Concat", ["d"], ["e"], axis=0),
        N("Slice", ["e", "zero", "large", "zero"], ["f"]),
        N("Pad", ["f", "pads"], ["g"]),
        N("Mul", ["g", "one"], ["h"]),
        N("Sum", ["h"], ["i"]),
        N("Sum", ["i", "x"], ["y"]),
    ]
    constants = {"shape": np.array([0, -1]), "zero": np.array([0]), "large": np.array([1 << 40])}
    constants |= {"pads": np.zeros(4, np.int64), "one": np.array(1, np.float32)}
    assert check(nodes, random(3, 4), constants) == {"Add": 1}


def test_look_alikes_of_no_ops_stay() -> None:
    nodes = [
        N("Slice", ["x", "last", "first", "zero", "back"], ["a"]),
        N("Transpose", ["a"], ["b"]),
        N("Pad", ["b", "pads"], ["y"]),
    ]
    constants = {"last": np.array([-1]), "first": np.array([-100]), "zero": np.array([0])}
    constants |= {"back": np.array([-1]), "pads": np.array([1, 0, -1, 0])}
    ops = check(nodes, random(3, 3), constants)
    assert ops == {"Slice": 1, "Transpose": 1, "Pad": 1}


def test_an_input_that_is_an_output_keeps_both_names() -> None:
    nodes = [N("Identity", ["x"], ["y"]), N("Relu", ["x"], ["a"]), N("Identity", ["a"], ["z"])]
    nodes.append(N("Dropout", ["a"], ["w"]))
    ops = check(nodes, random(3), outputs=["y", "z", "w"])
    assert ops["Relu"] == 1


def test_an_output_that_is_read_through_an_identity_keeps_its_name() -> None:
    nodes = [N("Relu", ["x"], ["y"]), N("Identity", ["y"], ["a"]), N("Sqrt", ["a"], ["z"])]
    assert check(nodes, random(3), outputs=["y", "z"]) == {"Relu": 1, "Sqrt": 1}


def test_views_are_merged() -> None:
    nodes = [
        N("Transpose", ["x"], ["a"], perm=[0, 2, 3, 1]),
        N("Transpose", ["a"], ["b"], perm=[0, 3, 1, 2]),
        N("Transpose", ["b"], ["c"], perm=[1, 0, 2, 3]),
        N("Transpose", ["c"], ["d"], perm=[3, 2, 1, 0]),
        N("Flatten", ["d"], ["e"]),
        N("Unsqueeze", ["e", "axis"], ["f"]),
        N("Reshape", ["f", "shape"], ["y"]),
    ]
    constants = {"axis": np.array([0]), "shape": np.array([6, 20])}
    assert check(nodes, random(2, 3, 4, 5), constants) == {"Transpose": 1, "Reshape": 1}


@pytest.mark.parametrize(
    ("op", "folds"), [("Conv", True), ("AveragePool", True), ("MaxPool", False)]
)
def test_padding_folds_where_exact(op: str, folds: bool) -> None:
    attributes: dict[str, Any] = {} if op == "Conv" else {"kernel_shape": [2, 3]}
    weights = ["w"] if op == "Conv" else []
    nodes = [N("Pad", ["x", "pads"], ["a"]), N(op, ["a", *weights], ["y"], **attributes)]
    constants = {"pads": np.array([0, 0, 1, 2, 0, 0, 1, 0]), "w": random(6, 4, 2, 3)}
    ops = check(nodes, random(1, 4, 5, 5) - 5, constants)
    assert ops == ({op: 1} if folds else {"Pad": 1, op: 1})


def test_hard_swish_in_full() -> None:
    nodes = [
        N("Add", ["x", "three"], ["a"]),
        N("Clip", ["a", "zero", "six"], ["b"]),
        N("Mul", ["x", "b"], ["c"]),
        N("Div", ["c", "six"], ["y"]),
    ]
    constants = {"zero": np.float32(0), "three": np.float32(3), "six": np.float32(6)}
    ops = check(nodes, 5 * random(4, 25), constants)
    assert ops == {"HardSigmoid": 1, "Mul": 1}


def test_expand_before_elementwise_goes() -> None:
    nodes = [N("Expand", ["x", "shape"], ["a"]), N("Mul", ["a", "c"], ["y"])]
    constants = {"shape": np.array([3, 4]), "c": random(3, 4)}
    assert check(nodes, random(1, 4), constants) == {"Mul": 1}
    constants["c"] = random(1, 4)  # now it is the Expand that makes the result larger
    assert check(nodes, random(1, 4), constants) == {"Expand": 1, "Mul": 1}


def test_division_by_zero_is_left_alone() -> None:
    nodes = [N("Div", ["x", "zero"], ["a"]), N("Sub", ["a", "zero"], ["y"])]
    assert check(nodes, np.ones(3, np.float32), {"zero": np.zeros(3, np.float32)}) == {"Div": 1}


REAL = [
    ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx", "x", (1, 3, 160, 224)),
    ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx", "x", (2, 3, 48, 160)),
    ("rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", "x", (1, 3, 48, 192)),
]


@pytest.mark.parametrize(("package", "file", "name", "shape"), REAL)
def test_real_models(package: str, file: str, name: str, shape: tuple[int, ...]) -> None:
    pytest.importorskip(package)
    path = Path(str(resources.files(package) / file))
    ops = check_model(path, {name: random(*shape)})
    assert not ops.keys() & {"BatchNormalization", "Clip", "Shape", "Gather", "Identity"}
