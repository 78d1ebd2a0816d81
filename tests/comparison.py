"""Running one model in Vessels and in ONNX Runtime, and comparing what they say."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

import vessels

Array = np.ndarray[Any, Any]
Shapes = Mapping[str, Sequence[int]]


def run_onnxruntime(model: onnx.ModelProto | Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """ONNX Runtime's outputs by name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def run_vessels(
    model: onnx.ModelProto | Path,
    inputs: Mapping[str, Array],
    folder: Path,
    *,
    shapes: Shapes | None = None,
    threads: int = 2,
) -> dict[str, Array]:
    """Outputs by name of an enclave process with ``model``, built and sealed into ``folder``."""
    sealed = folder / "model.vessel"
    key = secrets.token_bytes(32)
    vessels.build(model, sealed, key=key, shapes=shapes, threads=threads)
    try:
        with vessels.Enclave(sealed, key=key, threads=threads) as enclave:
            return enclave.run(inputs)
    finally:
        # Pytest keeps the folders of its last runs: half a gigabyte each is too much.
        sealed.unlink()


def assert_close(ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> None:
    """Equal to within 1e-4 of each output's largest magnitude; integers exactly."""
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        actual = ours[name]
        assert actual.dtype == expected.dtype, name
        assert actual.shape == expected.shape, name
        if np.issubdtype(expected.dtype, np.floating):
            assert np.isfinite(expected).all(), f"{name}: this input proves nothing"
            worst = float(np.abs(actual - expected).max())
            largest = float(np.abs(expected).max())
            assert worst <= 1e-4 * largest + 1e-5, f"{name}: off by {worst:.3g} of {largest:.3g}"
        else:
            np.testing.assert_array_equal(actual, expected, err_msg=name)


def assert_same_class(ours: Array, theirs: Array) -> None:
    """Equal argmax over the last axis."""
    np.testing.assert_array_equal(ours.argmax(axis=-1), theirs.argmax(axis=-1))
