"""The sealed format's vectors: Python and the enclave refuse what ``docs/format.md`` says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import vessels
from tests import make_vectors
from vessels.errors import KeyFileError, SealedError
from vessels.seal import open_sealed

VECTORS: dict[str, dict[str, str]] = json.loads((make_vectors.FOLDER / "vectors.json").read_text())
INPUTS = {"in": np.ones((1, 8), np.float32)}
BROKEN = [name for name, vector in VECTORS.items() if vector["rule"]]


def _vector(name: str) -> tuple[Path, bytes]:
    return make_vectors.FOLDER / f"{name}.vessel", bytes.fromhex(VECTORS[name]["key"])


def test_good_file_runs() -> None:
    path, key = _vector("good")
    open_sealed(path, key)
    with vessels.Enclave(path, key=key) as enclave:
        [output] = enclave.run(INPUTS).values()
    assert np.isfinite(output).all() and output.any()


@pytest.mark.parametrize("name", BROKEN)
def test_python_refuses_by_the_rule(name: str) -> None:
    path, key = _vector(name)
    with pytest.raises((SealedError, KeyFileError), match=rf"^{VECTORS[name]['rule']}\b"):
        open_sealed(path, key)


@pytest.mark.parametrize("name", BROKEN)
def test_enclave_refuses(name: str) -> None:
    path, key = _vector(name)
    # A chunk that streams is authenticated when it is used: before any output.
    with (
        pytest.raises((SealedError, KeyFileError)),
        vessels.Enclave(path, key=key) as enclave,
    ):
        enclave.run(INPUTS)


def test_every_file_rule_has_a_vector() -> None:
    text = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
    named = {
        name
        for line in text.splitlines()
        if re.match(r"\| S\d+ \|", line)
        for name in re.findall(r"`([a-z-]+)`", line.split("|")[3])
    }
    assert named == set(BROKEN)
