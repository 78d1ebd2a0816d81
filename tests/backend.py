"""Vessels as an ONNX backend, for ONNX's own test suite.

Every prepared model is compiled, sealed to a temporary folder and run in an enclave process of
its own, through the public Python API.
"""

from __future__ import annotations

import secrets
import tempfile
import unittest
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.base import Backend, BackendRep

import vessels
from vessels.errors import ModelError

Array = np.ndarray[Any, Any]

REFUSED = "refused: "
"""What the reason of a skipped test starts with when Vessels refused its model."""


class VesselsRep(BackendRep):
    """A sealed model and its key."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vessels-")
        self._sealed = Path(self._folder.name) / "model.vessel"
        self._key = secrets.token_bytes(32)
        self._inputs = _input_names(model)
        self._outputs = [o.name for o in model.graph.output]
        vessels.build(model, self._sealed, key=self._key, threads=2)

    def run(self, inputs: Sequence[Array], **kwargs: Any) -> tuple[Array, ...]:
        """Outputs in the model's order for ``inputs`` in the model's order."""
        with vessels.Enclave(self._sealed, key=self._key) as enclave:
            outputs = enclave.run(dict(zip(self._inputs, inputs, strict=False)))
        return tuple(outputs[name] for name in self._outputs)


class LateRep(BackendRep):
    """A model that is only static once some of its inputs are known.

    ONNX's tests pass as inputs what models hold as constants: the shape of a ``Reshape``, the
    axes of a ``ReduceSum``. All inputs but the first become initializers here.
    """

    used: int = 0
    """Models that ran in this way."""

    def __init__(self, model: onnx.ModelProto, refusal: str) -> None:
        self._model = model
        self._refusal = refusal

    def run(self, inputs: Sequence[Array], **kwargs: Any) -> tuple[Array, ...]:
        """As :meth:`VesselsRep.run`; skips the test when the model is refused even so."""
        bound = onnx.ModelProto()
        bound.CopyFrom(self._model)
        names = _input_names(bound)
        if len(inputs) < 2 or not all(isinstance(a, np.ndarray) for a in inputs):
            raise unittest.SkipTest(REFUSED + self._refusal)
        for name, array in list(zip(names, inputs, strict=False))[1:]:
            bound.graph.initializer.append(numpy_helper.from_array(array, name))
            port = next(p for p in bound.graph.input if p.name == name)
            bound.graph.input.remove(port)
        try:
            rep = VesselsRep(bound)
        except ModelError as error:
            raise unittest.SkipTest(REFUSED + str(error)) from error
        LateRep.used += 1
        return rep.run(inputs[:1])


class VesselsBackend(Backend):
    """ONNX's backend interface over :func:`vessels.build` and :class:`vessels.Enclave`."""

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Every model may be tried: one that is not supported is refused with a reason."""
        return cls.supports_device(device)

    @classmethod
    def prepare(
        cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any
    ) -> VesselsRep | LateRep:
        """Compiles and seals ``model``; a refusal waits until the inputs are known."""
        try:
            return VesselsRep(model)
        except ModelError as error:
            return LateRep(model, str(error))

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Only the CPU."""
        return device == "CPU"


def _input_names(model: onnx.ModelProto) -> list[str]:
    """Names of the inputs that no initializer fills."""
    constants = {i.name for i in model.graph.initializer}
    return [p.name for p in model.graph.input if p.name not in constants]
