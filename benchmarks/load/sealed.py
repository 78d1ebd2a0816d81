"""What is sent: requests sealed beforehand, to an enclave that was verified, and right answers.

A sealed request may be sent any number of times; each time the enclave computes it anew and seals
its answer under a fresh nonce. So a generator seals once and sends often, which is cheap enough to
share a machine with the server it loads.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vessels import Client
from vessels.errors import VesselsError
from vessels.ports import Port
from vessels.predict_headers import identity_of
from vessels.sealed_messages import RequestSealer, ResponseOpener

Array = np.ndarray[Any, Any]
Tensors = dict[str, Array]

TOLERANCE = 1e-3
"""Most that an answer may be off, in parts of its largest value; batches and threads add in other
orders."""


@dataclass(frozen=True)
class Question:
    """Inputs of a model, and the right answer to them."""

    inputs: Tensors
    answer: Tensors

    def is_right(self, outputs: Mapping[str, Array]) -> bool:
        """Whether ``outputs`` are the right answer, but for the order of additions."""
        return list(outputs) == list(self.answer) and all(
            close(outputs[name], right) for name, right in self.answer.items()
        )


@dataclass(frozen=True)
class SealedQuestion:
    """A question as one enclave alone can read it; ``environment`` says which, to the host."""

    question: Question
    body: bytes
    environment: str
    opener: ResponseOpener[Tensors]

    def is_right(self, answer: bytes) -> bool:
        """Whether a sealed ``answer`` is the enclave's own, and right."""
        try:
            return self.question.is_right(self.opener.open(answer))
        except VesselsError:
            return False


class Tenant:
    """A client of one model, with questions sealed to the enclave that it verified last."""

    def __init__(self, client: Client, model: str, questions: Sequence[Question]) -> None:
        self.model = model
        self._client = client
        self._questions = questions
        self._next = 0
        self.attest()

    def attest(self) -> None:
        """Verify the model's enclave anew and seal all questions to it."""
        claims = self._client.attest(self.model).verified.claims
        sealer = RequestSealer(claims.public_key, claims.model_digest)
        self.environment = identity_of(claims.public_key)
        self._sealed = [
            SealedQuestion(question, body, self.environment, opener)
            for question in self._questions
            for body, opener in (sealer.seal_predict(question.inputs),)
        ]

    def next(self) -> SealedQuestion:
        """The questions in turn."""
        self._next += 1
        return self._sealed[self._next % len(self._sealed)]


def questions(
    client: Client, model: str, count: int, *, onnx: Path | None = None
) -> list[Question]:
    """``count`` questions of made-up inputs, or fewer, all of which have other answers.

    So an answer that was given to another question does not go unnoticed. Their answers are ONNX
    Runtime's where the model's ``onnx`` file is given, else what the enclave answers before there
    is any load.
    """
    ports = client.describe(model).inputs
    inputs = [made_up(ports, zlib.crc32(model.encode()) + i) for i in range(count)]
    if onnx is None:
        answers = [client.predict(model, given) for given in inputs]
    else:
        answers = _by_onnxruntime(onnx, inputs)
    found: list[Question] = []
    for question in map(Question, inputs, answers):
        if not any(other.is_right(question.answer) for other in found):
            found.append(question)
    return found


def made_up(ports: Sequence[Port], seed: int) -> Tensors:
    """Inputs that any model takes: normal numbers, or zeros and ones where it wants integers."""
    random = np.random.default_rng(seed)
    return {
        p.name: random.standard_normal(p.shape).astype(p.dtype)
        if p.dtype.kind == "f"
        else random.integers(0, 2, p.shape).astype(p.dtype)
        for p in ports
    }


def close(found: Array, right: Array) -> bool:
    """Whether two arrays differ by no more than :data:`TOLERANCE` of the largest value."""
    if found.shape != right.shape or found.dtype != right.dtype:
        return False
    if found.dtype.kind != "f":
        return bool((found == right).all())
    scale = float(np.abs(right).max(initial=0.0))
    return bool(np.allclose(found, right, rtol=0.0, atol=TOLERANCE * scale))


def _by_onnxruntime(onnx: Path, inputs: Sequence[Tensors]) -> list[Tensors]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return [dict(zip(names, session.run(names, given), strict=True)) for given in inputs]
