"""Sealed files of hostile owners, well encrypted: Python and the enclave refuse the same ones.

What is altered are figures of header and program that slots, rungs and pools are made from.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vessels
from tests.make_vectors import FOLDER, KEY, Parts
from vessels.check import check
from vessels.errors import PlanError, SealedError
from vessels.header import MAX_RUNGS
from vessels.seal import open_sealed

GOOD = Parts.of((FOLDER / "good.vessel").read_bytes())

FIGURES: list[tuple[str, tuple[int, ...]]] = [
    ("header", (2,)), ("header", (4,)), ("header", (5,)),
    *[("header", (3, rung, field)) for rung in range(2) for field in range(3)],
    *[("header", (port, 0, 2, dimension)) for port in (6, 7) for dimension in range(2)],
    ("header", (6, 0, 1)),
    *[("program", (0, field)) for field in range(4)],
    *[("program", (3, index, field)) for index in range(2) for field in range(2)],
    *[("program", (5, place)) for place in range(2)],
    ("program", (1, 0, 0)), ("program", (2, 0, 0)),
]  # fmt: skip
"""Where in header or program a figure lies."""

OTHERS = [0, 1, 2, 3, 64, 128, 192, 255, 257, 576, 1152, 1 << 41, (1 << 63) - 64, (1 << 64) - 64]
"""Nothing that could be mapped and would take long."""


def value_at(fields: Any, place: tuple[int, ...]) -> Any:
    for index in place:
        fields = fields[index]
    return fields


@st.composite
def files(draw: st.DrawFn) -> bytes:
    header, program = copy.deepcopy(GOOD.header), copy.deepcopy(GOOD.program)
    for part, place in draw(st.lists(st.sampled_from(FIGURES), max_size=3)):
        fields = header if part == "header" else program
        *outer, last = place
        old = value_at(fields, place) or 0
        near = [n for n in (old - 64, old + 64, old - 1, old + 1) if n >= 0]
        value_at(fields, tuple(outer))[last] = draw(st.sampled_from([*near, *OTHERS]))
    if draw(st.booleans()):
        # As one who wants it to be believed: what the header says follows from the program.
        header[2], header[5] = sum(program[0][:2]), program[0][3]
        header[3] = ladder(program, draw(st.sets(st.integers(0, 2), min_size=1)))
        header[4] = draw(st.integers(0, len(header[3])))
    if draw(st.integers(0, 9)) == 0:
        header[3] = header[3] * draw(st.sampled_from([0, 2, MAX_RUNGS]))
    return replace(GOOD, header=header, program=program).padded().file()


def ladder(program: list[Any], counts: set[int]) -> list[list[int]]:
    """The right rungs that keep so many of the optional chunks."""
    sizes = [program[3][i][0] if i < len(program[3]) else 0 for i in program[5]]
    rungs = []
    for count in sorted(counts):
        kept, streamed = sizes[:count], sizes[count:]
        rungs.append([len(kept), program[0][2] + sum(kept), max(streamed, default=0)])
    return rungs


def python_refuses(path: Path) -> str | None:
    try:
        check(open_sealed(path, KEY))
    except (SealedError, PlanError) as error:
        return str(error)
    return None


def enclave_refuses(path: Path) -> str | None:
    try:
        with vessels.Enclave(path, key=KEY, threads=1):
            return None
    except SealedError as error:
        return str(error)


@settings(max_examples=120)
@given(files())
def test_both_refuse_the_same_files(file: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.vessel"
        path.write_bytes(file)
        ours, theirs = python_refuses(path), enclave_refuses(path)
    assert (ours is None) == (theirs is None), f"{ours} / {theirs}"


@pytest.mark.parametrize("counts", [{0}, {1}, {2}, {0, 1}, {1, 2}, {0, 1, 2}])
def test_right_ladders_are_taken(counts: set[int], tmp_path: Path) -> None:
    header = copy.deepcopy(GOOD.header)
    header[3] = ladder(GOOD.program, counts)
    path = tmp_path / "m.vessel"
    path.write_bytes(replace(GOOD, header=header).padded().file())
    assert python_refuses(path) is None and enclave_refuses(path) is None


@pytest.mark.parametrize("ports", [1, 2])
def test_ports_are_aligned(ports: int, tmp_path: Path) -> None:
    program = copy.deepcopy(GOOD.program)
    program[ports][0][0] += 2
    path = tmp_path / "m.vessel"
    path.write_bytes(replace(GOOD, program=program).padded().file())
    assert "V5" in (python_refuses(path) or "")
    assert "misaligned" in (enclave_refuses(path) or "")
