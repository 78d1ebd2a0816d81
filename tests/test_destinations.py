"""Files that commands cannot write: one exit code, the path and the cause, and nothing left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.conftest import Sealed
from vessels.cli import app
from vessels.errors import OutputError
from vessels.keys.envelope import Identity
from vessels.keys.store import KeyStore

Command = Callable[[Sealed, Path, Path], list[object]]
"""Its arguments, given a folder with a key store and the file to write, without its suffix."""

COMMANDS: dict[str, Command] = {
    "build": lambda s, _, to: ["build", s.onnx, "-o", f"{to}.vessel", "--key", s.key],
    "build a key": lambda s, k, to: [
        "build", s.onnx, "-o", k.parent / "m.vessel", "--key", f"{to}.key",
    ],
    "run": lambda s, _, to: [
        "run", s.vessel, "--key", s.key, "--input", f"image={s.image}", "-o", f"{to}.npz",
    ],
    "plot": lambda s, _, to: ["plot", s.vessel, "--key", s.key, "-o", f"{to}.svg"],
    "study": lambda s, _, to: ["study", s.onnx, "--analysis-only", "-o", f"{to}.html"],
    "policy new": lambda s, _, to: ["policy", "new", s.vessel, "-o", f"{to}.toml"],
    "kubernetes": lambda s, _, to: [
        "kubernetes", s.vessel, "--keys", "http://k", "-o", f"{to}.yaml",
    ],
    "keys new": lambda s, _, to: ["keys", "new", f"{to}.key"],
    "keys init, an identity": lambda s, k, to: [
        "keys", "init", "--store", k / "new.age", "--identity", f"{to}.identity",
    ],
    "keys init, a store": lambda s, k, to: [
        "keys", "init", "--store", f"{to}.age", "--identity", k / "owner",
    ],
    "keys export": lambda s, k, to: [
        "keys", "export", "m", "--store", k / "keys.age", "--identity", k / "owner",
        "-o", f"{to}.key",
    ],
}  # fmt: skip

MAKES_FOLDERS = "keys init, a store"
READ_IF_THERE = ("build a key", "keys init, an identity")


@pytest.fixture
def kept(sealed: Sealed, tmp_path: Path) -> Path:
    """A folder with a key store and its identity, beside which there is nothing else."""
    folder = tmp_path / "kept"
    folder.mkdir()
    KeyStore.create(folder / "keys.age", Identity.create(folder / "owner")).add(
        sealed.vessel, sealed.key, "m"
    )
    return folder


def refused(arguments: list[object], path: str, cause: str) -> None:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert isinstance(done.exception, OutputError), (done.exception, done.output)
    assert done.exception.exit_code == 8
    assert path in str(done.exception) and cause in str(done.exception)


@pytest.mark.parametrize("name", COMMANDS)
def test_places_where_no_file_can_be(sealed: Sealed, kept: Path, tmp_path: Path, name: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    make = COMMANDS[name]
    # Not even root makes files in this file system.
    places = [(Path("/proc/new"), ""), (Path("x" * 300), "too long"), (kept / "owner/new", "")]
    if name != MAKES_FOLDERS:
        places.append((tmp_path / "none" / "new", ""))
    for place, cause in places:
        refused(make(sealed, kept, place), str(place), cause)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_there_and_no_file(sealed: Sealed, kept: Path, tmp_path: Path, name: str) -> None:
    arguments = COMMANDS[name](sealed, kept, tmp_path / "new")
    [target] = [Path(str(a)) for a in arguments if str(a).startswith(str(tmp_path / "new"))]
    target.symlink_to(target)
    refused(arguments, str(target), "Too many levels of symbolic links")
    assert target.is_symlink()
    target.unlink()
    if name not in READ_IF_THERE:
        target.mkdir()
        refused(arguments, str(target), "it is a folder; name a file")
        target.rmdir()
    assert list(tmp_path.iterdir()) == [kept]


def test_an_enclave_folder(sealed: Sealed, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("before")
    for place, cause in (
        (file, "File exists"), (file / "new", "Not a directory"), (Path("/proc/new"), ""),
        (tmp_path / "no" / "new", "No such file"),
    ):  # fmt: skip
        refused(["gramine", sealed.vessel, "-o", place], str(place), cause)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["before"]
