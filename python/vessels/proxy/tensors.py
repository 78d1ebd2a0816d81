"""Tensors as the Open Inference Protocol writes them: datatype, shape, and JSON or raw bytes.

All of it comes from local programs, which are trusted but make mistakes: what does not fit is
refused with a :class:`~vessels.errors.RequestError` that names the tensor, never cut or rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vessels.enclave import Array
from vessels.errors import RequestError
from vessels.program.views import DType

_NAMES = {
    DType.F32: "FP32",
    DType.I32: "INT32",
    DType.I64: "INT64",
    DType.U8: "UINT8",
    DType.BOOL: "BOOL",
    DType.I8: "INT8",
}
_DTYPES = {name: dtype.numpy for dtype, name in _NAMES.items()}

_ELEMENTS: dict[str, set[type]] = {"f": {int, float}, "i": {int}, "u": {int}, "b": {bool}}
"""The types of JSON that the elements of each kind of tensor may have."""


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's name of an element type, as in ``FP32``."""
    return _NAMES[DType.of(dtype)]


def from_raw(name: str, datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> Array:
    """The tensor whose elements are ``raw``: little-endian, in C order, without gaps."""
    dtype = _dtype(name, datatype)
    size = _count(name, shape) * dtype.itemsize
    if len(raw) != size:
        raise RequestError(
            f"tensor {name!r}: {len(raw)} bytes of data where its shape takes {size}."
        )
    if dtype == np.bool_ and np.any(np.frombuffer(raw, np.uint8) > 1):
        raise RequestError(f"tensor {name!r}: a BOOL is a byte of 0 or 1.")
    return np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(shape)


def from_list(name: str, datatype: str, shape: Sequence[int], data: Sequence[Any]) -> Array:
    """The tensor whose elements are ``data``: a flat list, or nested ones of its shape."""
    dtype = _dtype(name, datatype)
    count = _count(name, shape)
    # As objects at first: a list of texts would else become an array of the longest one's width.
    found = np.array(data, dtype=object)
    if not set(map(type, found.reshape(-1))) <= _ELEMENTS[dtype.kind]:
        raise RequestError(f"tensor {name!r}: its data are ragged or no {datatype}.")
    if found.size != count or (found.ndim != 1 and found.shape != tuple(shape)):
        raise RequestError(
            f"tensor {name!r}: data of shape {list(found.shape)} where it says {list(shape)}."
        )
    if not _fits(found, dtype):
        raise RequestError(f"tensor {name!r}: its data hold values beyond {datatype}.")
    return found.astype(dtype).reshape(shape)


def to_raw(array: Array) -> bytes:
    """The elements of ``array``: little-endian, in C order, without gaps."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def to_list(name: str, array: Array) -> list[Any]:
    """The elements of ``array`` as a flat list for JSON, which has no NaN and no infinity."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RequestError(
            f"output {name!r} has values that JSON cannot hold (NaN or infinity); "
            "ask for it as binary data."
        )
    values: list[Any] = array.reshape(-1).tolist()
    return values


def _dtype(name: str, datatype: str) -> np.dtype[Any]:
    if (dtype := _DTYPES.get(datatype)) is None:
        raise RequestError(
            f"tensor {name!r}: datatype {datatype!r:.40} is none of {', '.join(_DTYPES)}."
        )
    return dtype


def _fits(values: Array, dtype: np.dtype[Any]) -> bool:
    """Whether ``dtype`` can hold all of ``values``, which are objects of the right types."""
    if dtype.kind == "b" or values.size == 0:
        return True
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        return bool(bounds.min <= values.min() and values.max() <= bounds.max)
    try:
        wide = values.astype(np.float64)
    except OverflowError:
        return False
    with np.errstate(over="ignore"):
        return np.array_equal(np.isfinite(wide), np.isfinite(wide.astype(dtype)))


def _count(name: str, shape: Sequence[int]) -> int:
    if any(d < 0 for d in shape) or len(shape) > 32:
        raise RequestError(f"tensor {name!r}: {list(shape)!r:.80} is no shape.")
    return math.prod(shape)
