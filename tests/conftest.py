"""What tests share: the enclave binary that cargo built, a user's state, a small sealed model."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, settings
from onnx import helper, numpy_helper

ROOT = Path(__file__).parent.parent
BUILT = ROOT / "target" / "release" / "vessels-enclave"

# The binary of this tree rather than an installed one.
if BUILT.is_file():
    os.environ.setdefault("VESSELS_ENCLAVE", str(BUILT))

# The same examples every time, and no limit that a busy machine could break. Others are looked for
# with `--hypothesis-profile=default`.
settings.register_profile(
    "vessels", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("vessels")

# A shell that runs the tests in the background has them, and all they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """What a command makes of the log ends with its test: its standard error is closed then."""
    names = (None, "vessels", "vessels.serve", "uvicorn")
    before = [(log, *_log_state(log)) for log in map(logging.getLogger, names)]
    yield
    for log, handlers, level, propagate in before:
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)


def _log_state(log: logging.Logger) -> tuple[list[logging.Handler], int, bool]:
    return list(log.handlers), log.level, log.propagate


def small_model() -> onnx.ModelProto:
    """Two convolutions and a classifier: ``image`` 1x3x16x16 to ``scores`` 1x5."""
    rng = np.random.default_rng(7)

    def constant(name: str, *shape: int) -> onnx.TensorProto:
        values = rng.standard_normal(shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array(values.astype(np.float32), name)

    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], "first", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
            helper.make_node(
                "Conv", ["r1", "w2", "b2"], ["c2"], "second", pads=[1, 1, 1, 1], strides=[2, 2]
            ),
            helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
            helper.make_node("GlobalAveragePool", ["r2"], ["p"], "pool"),
            helper.make_node("Flatten", ["p"], ["f"], "flatten"),
            helper.make_node("Gemm", ["f", "w3", "b3"], ["g"], "classify", transB=1),
            helper.make_node("Softmax", ["g"], ["scores"], "softmax"),
        ],
        "small",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, [1, 5])],
        [
            constant("w1", 24, 3, 3, 3), constant("b1", 24),
            constant("w2", 40, 24, 3, 3), constant("b2", 40),
            constant("w3", 5, 40), constant("b3", 5),
        ],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A user's own state, with the simulation's root, for this process and all it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@dataclass(frozen=True)
class Sealed:
    """A sealed small model, its key, its ONNX file and an input file."""

    onnx: Path
    vessel: Path
    key: Path
    image: Path


@pytest.fixture(scope="session")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    """The small model, built with two threads and everything streamed."""
    import vessels

    folder = tmp_path_factory.mktemp("small")
    files = Sealed(folder / "m.onnx", folder / "m.vessel", folder / "m.key", folder / "image.npy")
    onnx.save(small_model(), files.onnx)
    vessels.build(files.onnx, files.vessel, key=files.key)
    rng = np.random.default_rng(1)
    np.save(files.image, rng.standard_normal((1, 3, 16, 16)).astype(np.float32))
    return files
