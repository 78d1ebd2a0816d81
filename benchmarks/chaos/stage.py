"""What is served, and what is asked: small sealed models, and questions with right answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import vessels
from benchmarks import zoo
from benchmarks.load.sealed import Question, Tensors
from benchmarks.machine import magika_model
from benchmarks.trust import client_policy
from vessels.attestation import Policy
from vessels.bench import onnxruntime_session
from vessels.errors import UsageError
from vessels.ports import Port
from vessels.schedule.model import Machine
from vessels.seal import read_header
from vessels.serve.backends import Simulation
from vessels.serve.config import ModelSettings
from vessels.serve.limits import Limits
from vessels.serve.model import ServedModel

MODELS = ("squeezenet:64", "squeezenet:64", "mobilenet_v2:96", "squeezenet:128", "magika")
"""Two of one shape, which differ in nothing but their parameters, and others."""

QUESTION_COUNT = 48
"""Of each model, and so the most clients that can ask at once."""

_MOST_ATTEMPTS = 10

_POLICY = "policy.toml"
_MAGIKA = "magika"
_MAGIKA_SHAPE = (1, 2048)
_TOKEN_COUNT = 257


@dataclass(frozen=True)
class Model:
    """A sealed model; ``size`` is the least trusted memory that it can be served in."""

    name: str
    size: int
    questions: list[Question]


@dataclass(frozen=True)
class Stage:
    """Sealed models and their keys in ``folder``, and the policy for all of them."""

    folder: Path
    models: list[Model]
    policy: Policy

    @property
    def sealed(self) -> Path:
        """The folder of sealed models; it is in the command line of every enclave."""
        return self.folder / "sealed"

    @property
    def policy_file(self) -> Path:
        return self.folder / _POLICY

    def key(self, name: str) -> Path:
        """The key file of a model."""
        return self.folder / f"{name}.key"


def build(folder: Path, texts: Sequence[str], *, seed: int) -> Stage:
    """Build and seal the models that ``texts`` name: NETWORK:PIXELS of the zoo, or ``magika``.

    Raises :class:`UsageError` for another text, and where most questions have one answer.
    """
    sealed = folder / "sealed"
    sealed.mkdir()
    backend = Simulation()
    # In an EPC where all that a model may take is to be had.
    machine = Machine(len(os.sched_getaffinity(0)), 1 << 40)
    models = []
    for number, text in enumerate(texts):
        name = f"{text.replace(':', '-')}-{number}"
        path = sealed / f"{name}.vessel"
        file = _onnx(folder / f"{name}.onnx", text, seed + number)
        shapes = {"bytes": list(_MAGIKA_SHAPE)} if text == _MAGIKA else None
        vessels.build(file, path, key=folder / f"{name}.key", shapes=shapes)
        settings = ModelSettings(name, path)
        spec = ServedModel(settings, backend=backend, limits=Limits(), machine=machine).spec
        size = min(s.size for s in spec.shapes)
        ports = Port.of(read_header(path).inputs)
        models.append(Model(name, size, _questions(file, ports, seed + number)))
    policy = client_policy({m.name: sealed / f"{m.name}.vessel" for m in models})
    (folder / _POLICY).write_text(policy, encoding="utf-8")
    return Stage(folder, models, Policy.parse(policy, _POLICY))


def _onnx(file: Path, text: str, seed: int) -> Path:
    if text == _MAGIKA:
        return magika_model()
    network, _, pixels = text.partition(":")
    if network not in zoo.NAMES or not pixels.isdecimal():
        raise UsageError(f"model {text!r}: write NETWORK:PIXELS of the zoo, or {_MAGIKA}.")
    onnx.save(zoo.build(network, seed, int(pixels)), file)
    return file


def _questions(file: Path, ports: Sequence[Port], seed: int) -> list[Question]:
    """Questions that all have answers of their own, by ONNX Runtime."""
    random = np.random.default_rng(seed)
    session: Any = onnxruntime_session(file, 1)
    names = [o.name for o in session.get_outputs()]
    found: list[Question] = []
    for _ in range(_MOST_ATTEMPTS * QUESTION_COUNT):
        inputs = {p.name: _made_up(p, random) for p in ports}
        answer: Tensors = dict(zip(names, session.run(names, inputs), strict=True))
        question = Question(inputs, answer)
        # Who cannot be told from another might be given the other's answer.
        if not any(q.is_right(answer) or question.is_right(q.answer) for q in found):
            found.append(question)
        if len(found) == QUESTION_COUNT:
            return found
    raise UsageError(f"{file.stem} answers most questions alike; a mistake would be missed.")


def _made_up(port: Port, random: np.random.Generator) -> np.ndarray[Any, Any]:
    if port.dtype.kind == "f":
        return random.standard_normal(port.shape).astype(port.dtype)
    # Text of few letters, other ones each time, so that a classifier of files is of many minds.
    letters = random.integers(0, _TOKEN_COUNT, random.integers(2, 64))
    return random.choice(letters, port.shape).astype(port.dtype)
