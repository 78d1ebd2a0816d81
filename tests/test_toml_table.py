"""Strict tables of TOML files: every refusal says the file, the key and what is accepted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vessels.errors import PolicyError, UsageError
from vessels.toml_table import MAX_SIZE, TomlTable

TEXT = """
name = "n"
count = 3
share = 2
none = []

[inner]
words = ["a", "b"]

[many.one]
x = 1
[many."two words"]
"""


def parsed(text: str) -> TomlTable:
    return TomlTable.parse(text, "f.toml", PolicyError)


def test_values_are_taken_once_and_by_type() -> None:
    table = parsed(TEXT)
    assert (table.text("name"), table.text("name")) == ("n", None)
    assert (table.whole("count", 3, 3), table.whole("other", 0, 1)) == (3, None)
    share = table.number("share", 0.5, 2)
    assert (share, type(share)) == (2.0, float)
    assert (table.texts("none"), table.texts("other")) == (frozenset(), None)
    inner = table.table("inner")
    assert inner is not None and inner.texts("words") == frozenset("ab")
    assert table.table("other") is None and table.tables("other") == {}
    assert table.names() == ["many"]
    many = table.tables("many")
    assert list(many) == ["one", "two words"]
    assert many["one"].whole("x", 0, 9) == 1
    table.refuse_unknown()


@pytest.mark.parametrize(
    ("value", "take", "form"),
    [
        ("1", lambda t: t.text("k"), "it must be a text that is not empty"),
        ("''", lambda t: t.text("k"), "it must be a text that is not empty"),
        ("true", lambda t: t.whole("k", 0, 9), "it must be a whole number from 0 to 9"),
        ("1.0", lambda t: t.whole("k", 0, 9), "it must be a whole number from 0 to 9"),
        ("10", lambda t: t.whole("k", 0, 9), "it must be a whole number from 0 to 9"),
        ("false", lambda t: t.number("k", 0.5, 9), "it must be a number from 0.5 to 9"),
        ("nan", lambda t: t.number("k", 0.5, 9), "it must be a number from 0.5 to 9"),
        ("inf", lambda t: t.number("k", 0.5, 9), "it must be a number from 0.5 to 9"),
        ("'a'", lambda t: t.texts("k"), "it must be a list of texts"),
        ("['a', 1]", lambda t: t.texts("k"), "it must be a list of texts"),
        ("[]", lambda t: t.table("k"), "it must be a table, as in [in.k]"),
        ("1", lambda t: t.tables("k"), "it must hold tables, as in [in.k.NAME]"),
        ("{a = 1}", lambda t: t.tables("k"), "it must hold tables, as in [in.k.NAME]"),
    ],
)
def test_wrong_forms(value: str, take: Callable[[TomlTable], object], form: str) -> None:
    table = parsed(f"[in]\nk = {value}").table("in")
    assert table is not None
    with pytest.raises(PolicyError) as refused:
        take(table)
    assert str(refused.value) == f"f.toml: in.k: {form}."


def test_what_is_left_is_refused_at_every_depth() -> None:
    table = parsed("[many.one]\nx = 1\ny = 2")
    table.text("name")
    one = table.tables("many")["one"]
    one.whole("x", 0, 9)
    one.text("z")
    with pytest.raises(PolicyError) as refused:
        table.refuse_unknown()
    message = "f.toml: many.one.y: this key is not known; the keys here are x, z."
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read list .*: No such file"),
        (b"#" * (MAX_SIZE + 1), "too large for a list: it has more than 1048576 bytes"),
        (b"\xff", "it is no TOML: it is not UTF-8"),
        (b"a =", "it is no TOML: Invalid value"),
        (b"a = " + b"[" * 100_000, "it is no TOML: "),
        (b"a = " + b"9" * 100_000, "it is no TOML: "),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "f.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=words) as refused:
        TomlTable.load(path, "list", UsageError)
    assert str(path) in str(refused.value)
