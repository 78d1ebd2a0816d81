"""The proxy's messages and tensors: the protocol's own, and nothing taken for what it is not."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.grpc import service_pb2

from vessels.errors import RequestError
from vessels.program.views import DType
from vessels.proxy.messages import METHODS, PACKAGE, SERVICE, message
from vessels.proxy.rest import _Inference
from vessels.proxy.tensors import datatype_of, from_list, from_raw, to_list, to_raw

DATATYPES = {datatype_of(d.numpy): d.numpy for d in DType}


def shape_of(descriptor: Descriptor | None) -> dict[str, Any]:
    """Names, numbers and types of all fields, and of those of the messages they hold."""
    assert descriptor is not None
    return {
        f.name: (
            f.number,
            f.type,
            f.is_repeated,
            f.containing_oneof.name if f.containing_oneof else None,
            shape_of(f.message_type) if f.type == FieldDescriptor.TYPE_MESSAGE else None,
        )
        for f in descriptor.fields
    }


@pytest.mark.parametrize("name", [f"{m}{end}" for m in METHODS for end in ("Request", "Response")])
def test_messages_are_those_of_another_library(name: str) -> None:
    ours = shape_of(message(name).DESCRIPTOR)
    theirs = shape_of(service_pb2.DESCRIPTOR.message_types_by_name[name])
    if name == "ModelMetadataResponse":
        # The protocol's newest field, which that library does not know yet.
        assert ours.pop("properties")[0] == 6
    assert ours == theirs


def test_the_service_is_that_of_another_library() -> None:
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert service.full_name == SERVICE
    for method in METHODS:
        theirs = service.methods_by_name[method]
        assert theirs.input_type.full_name == f"{PACKAGE}.{method}Request"
        assert theirs.output_type.full_name == f"{PACKAGE}.{method}Response"


arrays = st.sampled_from(sorted(DATATYPES)).flatmap(
    lambda name: hnp.arrays(
        DATATYPES[name],
        hnp.array_shapes(min_dims=0, min_side=0),
        elements={"allow_nan": False} if name == "FP32" else None,
    )
)


@given(arrays)
def test_raw_data_come_back(array: Any) -> None:
    datatype = datatype_of(array.dtype)
    found = from_raw("t", datatype, array.shape, to_raw(array))
    assert found.dtype == array.dtype and found.shape == array.shape
    assert np.array_equal(found, array)


@given(arrays)
def test_lists_come_back(array: Any) -> None:
    datatype = datatype_of(array.dtype)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        with pytest.raises(RequestError, match="JSON cannot hold"):
            to_list("t", array)
        return
    flat = to_list("t", array)
    for data in (flat, array.tolist()) if array.ndim else (flat,):
        found = from_list("t", datatype, array.shape, data)
        assert found.dtype == array.dtype and found.shape == array.shape
        assert np.array_equal(found, array)


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP32", [2], ["8153", "2"]),
        ("FP32", [2], [1.0, "8153"]),
        ("FP32", [2], [1.0, None]),
        ("FP32", [2], [True, False]),
        ("FP32", [1], [8.153e39]),
        ("FP32", [2], [[1.0], [2.0, 3.0]]),
        ("FP32", [2], [{"8153": 1}, 2]),
        ("FP32", [3], [1.0, 2.0]),
        ("FP32", [2, 2], [[1.0, 2.0, 3.0, 4.0]]),
        ("FP32", [4], [[1.0, 2.0], [3.0, 4.0]]),
        ("FP32", [-1], [1.0]),
        ("FP32", [-1, -1], [1.0]),
        ("FP32", [1] * 40, [1.0]),
        ("INT32", [1], [8153.0]),
        ("INT32", [1], [2**31]),
        ("INT64", [1], [2**63]),
        ("INT64", [1], [2**70]),
        ("INT64", [2], [2**63, -1]),
        ("INT8", [1], [8153]),
        ("UINT8", [1], [-1]),
        ("UINT8", [1], [8153]),
        ("BOOL", [1], [1]),
        ("BOOL", [1], ["8153"]),
        ("FP64", [1], [1.0]),
        ("BYTES", [1], ["8153"]),
        ("", [1], [1.0]),
    ],
)
def test_lists_that_are_refused(datatype: str, shape: list[int], data: list[Any]) -> None:
    with pytest.raises(RequestError, match=r"^tensor 'secret'") as caught:
        from_list("secret", datatype, shape, data)
    # A message may be logged: it holds none of the data.
    assert "8153" not in str(caught.value)


@pytest.mark.parametrize(
    ("datatype", "shape", "size"),
    [("FP32", [2], 7), ("FP32", [2], 9), ("FP32", [2], 0), ("INT8", [1 << 62, 1 << 62], 8)],
)
def test_raw_data_of_another_size(datatype: str, shape: list[int], size: int) -> None:
    with pytest.raises(RequestError, match=r"^tensor 't': .* bytes of data where"):
        from_raw("t", datatype, shape, bytes(size))


def test_raw_booleans_are_zero_or_one() -> None:
    assert from_raw("t", "BOOL", [2], b"\0\1").tolist() == [False, True]
    with pytest.raises(RequestError, match="a byte of 0 or 1"):
        from_raw("t", "BOOL", [2], b"\0\2")


def test_a_list_of_texts_takes_no_more_memory_than_it_has() -> None:
    with pytest.raises(RequestError, match="ragged or no FP32"):
        from_list("t", "FP32", [100001], ["a" * 10_000_000] + ["b"] * 100_000)


def test_integers_of_any_size_are_numbers() -> None:
    assert from_list("t", "FP32", [2], [10**20, -1]).tolist() == [np.float32(1e20), -1.0]
    for large in (10**39, 10**400):
        with pytest.raises(RequestError, match="beyond FP32"):
            from_list("t", "FP32", [1], [large])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@given(st.sampled_from(sorted(DATATYPES)), st.lists(st.integers(), max_size=3), json_values)
def test_any_list_is_a_tensor_or_refused(datatype: str, shape: list[int], data: Any) -> None:
    data = data if isinstance(data, list) else [data]
    try:
        found = from_list("t", datatype, shape, data)
    except RequestError:
        return
    assert (found.dtype, list(found.shape)) == (DATATYPES[datatype], shape)


keys = st.sampled_from(
    ["id", "inputs", "outputs", "parameters", "name", "shape", "datatype", "data",
     "binary_data_size", "binary_data", "binary_data_output"]
)  # fmt: skip
requests = st.recursive(
    json_values | st.sampled_from(["FP32", "BOOL", [2], 8]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=20,
)


@given(st.dictionaries(keys, requests), st.binary(max_size=16), st.none() | st.text("0123-x "))
def test_any_body_is_a_request_or_refused(
    header: dict[str, Any], tail: bytes, length: str | None
) -> None:
    body = json.dumps(header).encode()
    for size in (length, str(len(body)), None):
        with contextlib.suppress(RequestError):
            _Inference.of(body + tail, size)
