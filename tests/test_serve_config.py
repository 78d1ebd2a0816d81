"""``serve.toml``: what it may say, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from vessels.errors import UsageError
from vessels.serve.config import ModelSettings, Settings, in_folder, merged, named

WHOLE = """
epc = "93MiB"

[models.resnet50]
path = "sealed/resnet50.vessel"
weight = 2
queue = 64
deadline_ms = 500
threads = 2
slots = 4

[models.small]
path = "/srv/small.vessel"
"""


def test_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(WHOLE)
    found = Settings.load(path)
    assert found.epc == "93MiB"
    assert found.models == (
        ModelSettings(
            "resnet50", tmp_path / "sealed/resnet50.vessel", weight=2.0, queue=64, deadline=0.5,
            threads=2, slots=4,
        ),
        ModelSettings("small", Path("/srv/small.vessel")),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epc =", "no TOML"),
        ("epc = 93", "epc: it must be a text"),
        ("speed = 1", "speed: this key is not known; the keys here are epc, models"),
        ("models = 1", r"models: it must hold tables, as in \[models\.NAME\]"),
        ("models.m = 1", "models: it must hold tables"),
        ("[models.m]", r"models\.m\.path: it is missing"),
        ("[models.m]\npath = 1", "path: it must be a text"),
        ("[models.m]\npath = 'x'\ncolour = 1", r"models\.m\.colour: this key is not kn"),
        ("[models.m]\npath = 'x'\nweight = 0", "weight: it must be a number"),
        ("[models.m]\npath = 'x'\nweight = nan", "weight: it must be a number"),
        ("[models.m]\npath = 'x'\nweight = true", "weight: it must be a number"),
        ("[models.m]\npath = 'x'\nqueue = 0", "queue: it must be a whole number"),
        ("[models.m]\npath = 'x'\nqueue = 1.0", "queue: it must be a whole number"),
        ("[models.m]\npath = 'x'\ndeadline_ms = 3600001", "deadline_ms: it must be a whole"),
        ("[models.m]\npath = 'x'\nslots = 65", "slots: it must be a whole number"),
        ("[models.m]\npath = 'x'\nthreads = 0", "threads: it must be a whole number"),
        ("[models.'a b']\npath = 'x'", "'a b' is no name"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        Settings.load(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        Settings.load(tmp_path / "none.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="no TOML"):
        Settings.load(binary)
    binary.write_bytes(b"#" * (1 << 21))
    with pytest.raises(UsageError, match="too large"):
        Settings.load(binary)


def test_a_folder(tmp_path: Path) -> None:
    for name in ("b.vessel", "a.vessel", "a.key"):
        (tmp_path / name).write_bytes(b"")
    # A build that is under way, or was killed.
    (tmp_path / ".b.tmp1.vessel").write_bytes(b"")
    assert [m.name for m in in_folder(tmp_path)] == ["a", "b"]
    with pytest.raises(UsageError, match=r"is a folder; .* --models"):
        named([str(tmp_path)])
    with pytest.raises(UsageError, match="cannot read folder"):
        in_folder(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no \*\.vessel"):
        in_folder(tmp_path / "empty")


def test_models_from_everywhere_are_one_list(tmp_path: Path) -> None:
    path = tmp_path / "m.vessel"
    path.write_bytes(b"")
    heavy = ModelSettings("m", path, weight=3.0)
    # The same file again is no other model.
    assert merged([heavy], named([str(path)]), in_folder(tmp_path)) == {"m": heavy}
    with pytest.raises(UsageError, match="two models are called 'm'"):
        merged([heavy], named(["m=other.vessel"]))
    with pytest.raises(UsageError, match="no model to serve"):
        merged([], [])
