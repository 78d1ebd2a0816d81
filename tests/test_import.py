"""Import: static shapes, folded constants, inlined bodies, and clear refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from vessels.errors import ModelError, UnsupportedError, UsageError
from vessels.importer import load

NATIVE = frozenset(
    ("Add", "Cast", "Concat", "Conv", "Div", "Dropout", "Exp", "Expand", "Identity", "MatMul",
     "Mul", "Pow", "ReduceMean", "Relu", "Reshape", "Sigmoid", "Slice", "Softmax", "Sqrt", "Sub",
     "Tanh", "Transpose")
)  # fmt: skip

FLOAT = TensorProto.FLOAT


def make(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[str, Sequence[int | str | None]]],
    outputs: Sequence[str],
    constants: dict[str, Any] | None = None,
    opset: int = 17,
    domain: str = "local",
) -> onnx.ModelProto:
    """A float32 model that may use operators of ``domain`` too."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, FLOAT, s) for n, s in inputs],
        [helper.make_tensor_value_info(n, FLOAT, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(domain, 1)]
    model = helper.make_model(graph, ir_version=8, opset_imports=opsets)
    if opset <= onnx.defs.onnx_opset_version():
        model = onnx.shape_inference.infer_shapes(model)
    for output in model.graph.output:
        if not output.type.tensor_type.HasField("shape"):  # the checker wants one
            output.type.tensor_type.shape.dim.add()
    return model


def run(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    """ONNX Runtime's results."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return list(session.run(None, feeds))


def check_same(
    model: onnx.ModelProto, native: frozenset[str] = NATIVE, **feeds: Any
) -> Counter[str]:
    """Load, compare with the original in ONNX Runtime, and count the operators left."""
    shapes = {name: a.shape for name, a in feeds.items()}
    flat = load(model, shapes, native)
    for got, wanted in zip(run(ir.to_proto(flat), feeds), run(model, feeds), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    for node in flat.graph:
        for value in node.outputs:
            assert value.dtype is not None
            assert value.shape is not None and value.shape.is_static()
    return Counter(node.op_type for node in flat.graph)


def random(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_shape_arithmetic_is_folded() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["batch"]),
        helper.make_node("Unsqueeze", ["batch", "axis"], ["b"]),
        helper.make_node("Concat", ["b", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]
    constants = {"zero": np.int64(0), "axis": np.array([0]), "rest": np.array([-1])}
    model = make(nodes, [("x", ["n", 3, "h"])], ["y"], constants)
    assert check_same(model, x=random(2, 3, 5)) == {"Reshape": 1}


def test_constant_if_takes_its_branch_and_captures_outer_values() -> None:
    def branch(op: str) -> onnx.GraphProto:
        node = helper.make_node(op, ["x"], ["inner"])
        return helper.make_graph(
            [node], op, [], [helper.make_tensor_value_info("inner", FLOAT, [2, 3])]
        )

    def choose(target: str, yes: str, no: str) -> onnx.NodeProto:
        return helper.make_node(
            "If", ["large"], [target], then_branch=branch(yes), else_branch=branch(no)
        )

    nodes = [
        helper.make_node("Size", ["x"], ["n"]),
        helper.make_node("Greater", ["n", "four"], ["large"]),
        choose("a", "Exp", "Tanh"),
        choose("b", "Relu", "Tanh"),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]  # fmt: skip
    model = make(nodes, [("x", [2, 3])], ["y"], {"four": np.int64(4)})
    assert check_same(model, x=random(2, 3)) == {"Exp": 1, "Relu": 1, "Add": 1}


def test_local_function_and_schema_bodies_are_inlined() -> None:
    function = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Twice", ["x"], ["t"], domain="local"),
        helper.make_node("LayerNormalization", ["t", "g"], ["n"], axis=-1),
        helper.make_node("HardSwish", ["n"], ["y"]),
    ]
    model = make(nodes, [("x", [2, 8])], ["y"], {"g": random(8)})
    model.functions.append(function)
    ops = check_same(model, NATIVE | {"HardSigmoid", "Reciprocal"}, x=random(2, 8))
    assert not ops.keys() & {"Twice", "LayerNormalization", "HardSwish"}


def test_initializers_that_are_inputs_are_constants() -> None:
    node = helper.make_node("Add", ["x", "c"], ["y"])
    model = make([node], [("x", [2]), ("c", [2])], ["y"], {"c": random(2)})
    flat = load(model, native=NATIVE)
    assert [v.name for v in flat.graph.inputs] == ["x"]
    with pytest.raises(UsageError, match="no input 'c'"):
        load(model, {"c": (2,)}, NATIVE)


def test_fills_cost_no_memory_and_large_results_stay() -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("MatMul", ["x", "zeros"], ["y"]),
    ]
    flat = load(
        make(nodes, [("x", [1, 8192])], ["y"], {"shape": np.array([8192, 8192])}), {}, NATIVE
    )
    (value,) = flat.graph.initializers.values()
    assert value.const_value is not None
    assert value.const_value.numpy().strides == (0, 0)


def test_dead_nodes_unused_outputs_and_outputs_that_are_constant() -> None:
    nodes = [
        helper.make_node("Dropout", ["x"], ["d", "mask"]),
        helper.make_node("NonZero", ["x"], ["unused"]),
        helper.make_node("Add", ["c", "c"], ["twice"]),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    model = make(nodes, [("x", [3])], ["y", "twice"], {"c": random(2)}, opset=9)
    assert check_same(model, x=random(3)) == {"Dropout": 1, "Relu": 1}


RELU = helper.make_node("Relu", ["x"], ["y"])


def test_open_batch_is_one() -> None:
    flat = load(make([RELU], [("x", ["batch", 3, 4])], ["y"]), native=NATIVE)
    assert flat.graph.outputs[0].shape == (1, 3, 4)


@pytest.mark.parametrize(
    ("shape", "given", "error", "message"),
    [
        (["n", 3, "h"], {}, ModelError, r"'x' \[n, 3, h\].*--shape x=1,3,320"),
        ([None, 3, -1], {}, ModelError, r"'x' \[\?, 3, \?\]"),
        (["n", 3], {"z": (1, 3)}, UsageError, r"no input 'z'.*'x' \[n, 3\]"),
        (["n", 3], {"x": (1, 3, 1)}, UsageError, "has 3 dimensions, but the input has 2"),
        (["n", 3], {"x": (1, 4)}, UsageError, "fixes dimension 1 to 3"),
        (["n", "n"], {"x": (1, 2)}, UsageError, "'n', which is 1"),
        (["n", 3], {"x": (0, 3)}, UsageError, "at least 1"),
    ],
)
def test_shapes_that_do_not_fit(
    shape: list[int | str | None], given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load(make([RELU], [("x", shape)], ["y"]), given, NATIVE)


def test_all_that_is_unsupported_is_listed_at_once() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["i"], name="first"),
        helper.make_node("Strange", ["x"], ["s"], name="second", domain="com.example"),
        helper.make_node("Erf", ["x"], ["e"], name="third"),
        helper.make_node("Cast", ["i"], ["c"], to=FLOAT),
    ]
    model = make(nodes, [("x", [3])], ["c", "s", "e"], domain="com.example")
    with pytest.raises(UnsupportedError) as caught:
        load(model, native=NATIVE)
    for text in ("NonZero 'first'", "Strange 'second'", "com.example", "Erf 'third'"):
        assert text in str(caught.value)


@pytest.mark.parametrize("opset", [6, onnx.defs.onnx_opset_version() + 1])
def test_opset_out_of_range(opset: int) -> None:
    with pytest.raises(UnsupportedError, match=f"opset {opset}; supported are 7 to"):
        load(make([RELU], [("x", [3])], ["y"], opset=opset), native=NATIVE)


def test_files_that_are_no_model(tmp_path: Path) -> None:
    good = make([RELU], [("x", [3])], ["y"]).SerializeToString()
    path = tmp_path / "model.onnx"
    for data in (b"", b"not a model at all", good[: len(good) // 2], b"\x93NUMPY\x01\x00"):
        path.write_bytes(data)
        with pytest.raises(ModelError, match=r"model\.onnx"):
            load(path, native=NATIVE)
    with pytest.raises(ModelError, match="does not exist"):
        load(tmp_path / "absent.onnx", native=NATIVE)


def test_a_graph_that_the_checker_refuses(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    cyclic = make([helper.make_node("Add", ["x", "y"], ["y"])], [("x", [3])], ["y"])
    path.write_bytes(cyclic.SerializeToString())
    with pytest.raises(ModelError, match="not a valid ONNX model"):
        load(path, native=NATIVE)


def test_shapes_inside_that_do_not_fit_name_the_node() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="head")
    with pytest.raises(ModelError, match="MatMul node 'head' does not fit"):
        load(make([node], [("x", [2, 3])], ["y"], {"w": random(4, 5)}), native=NATIVE)


def test_external_data(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    weights = random(16, 16)
    model = make([node], [("x", [1, 16])], ["y"], {"w": weights})
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    flat = load(path, native=NATIVE)
    value = flat.graph.initializers["w"].const_value
    assert value is not None
    np.testing.assert_array_equal(value.numpy(), weights)
    (tmp_path / "w.bin").rename(tmp_path / "elsewhere.bin")
    with pytest.raises(ModelError, match=r"'w' in 'w\.bin', which is not there"):
        load(path, native=NATIVE)
    outside = onnx.load(path, load_external_data=False)
    outside.graph.initializer[0].external_data[0].value = "../w.bin"
    path.write_bytes(outside.SerializeToString())
    with pytest.raises(ModelError, match="outside its own folder"):
        load(path, native=NATIVE)
