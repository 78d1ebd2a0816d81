"""What a host is told to serve: ``serve.toml``, and what the command line says instead.

``docs/serving.md`` lists the keys. A file is read as a whole or refused: for a key that is not
known, or a value of the wrong form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vessels.errors import UsageError
from vessels.predict_headers import MAX_DEADLINE_MS
from vessels.toml_table import TomlTable

NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
"""Names of models, which are parts of URLs."""


@dataclass(frozen=True)
class ModelSettings:
    """One model as it is to be served.

    ``weight`` is its share of a busy machine in relation to others'. ``queue`` bounds the requests
    that wait for it. ``deadline`` is what a request has that states none, in seconds. ``threads``
    and ``slots`` are the most that an environment of it has.
    """

    name: str
    path: Path
    weight: float = 1.0
    queue: int | None = None
    deadline: float | None = None
    threads: int | None = None
    slots: int | None = None


@dataclass(frozen=True)
class Settings:
    """A whole file: ``epc`` as ``--epc`` takes it, and the models."""

    epc: str | None = None
    models: tuple[ModelSettings, ...] = ()

    @classmethod
    def load(cls, path: Path) -> Settings:
        """What the file at ``path`` says; its paths are relative to its folder.

        Raises :class:`UsageError`.
        """
        top = TomlTable.load(path, "configuration", UsageError)
        epc = top.text("epc")
        tables = top.tables("models")
        models = tuple(_model(name, table, path.parent) for name, table in tables.items())
        top.refuse_unknown()
        return cls(epc, models)


def checked_name(name: str, path: str) -> str:
    """``name``, if it may be a model's in a URL. Raises :class:`UsageError`."""
    if not re.fullmatch(NAME, name):
        raise UsageError(
            f"{name!r} is no name for a model in a URL; give it one: NAME={path}, of letters, "
            "digits, '.', '_' and '-'."
        )
    return name


def named(texts: Iterable[str]) -> tuple[ModelSettings, ...]:
    """``[NAME=]MODEL.vessel`` each; the file's name is the model's. Raises :class:`UsageError`."""
    found = []
    for text in texts:
        name, equals, path = text.partition("=")
        # A path may hold `=` itself.
        if not equals or not re.fullmatch(NAME, name):
            name, path = Path(text).stem, text
        if Path(path).is_dir():
            raise UsageError(
                f"{path} is a folder; name the sealed models in it. `vessels serve` takes them all "
                f"with --models {path}."
            )
        found.append(ModelSettings(checked_name(name, path), Path(path)))
    return tuple(found)


def in_folder(folder: Path) -> tuple[ModelSettings, ...]:
    """All sealed models in ``folder``, by name, but those that are being written.

    Raises :class:`UsageError`.
    """
    try:
        names = (p for p in folder.iterdir() if p.suffix == ".vessel")
        paths = sorted(p for p in names if not p.name.startswith("."))
    except OSError as error:
        raise UsageError(f"cannot read folder {folder}: {error.strerror}.") from error
    if not paths:
        raise UsageError(f"there is no *.vessel in {folder}.")
    return tuple(ModelSettings(checked_name(p.stem, str(p)), p) for p in paths)


def merged(*groups: Iterable[ModelSettings]) -> dict[str, ModelSettings]:
    """All models by name. Raises :class:`UsageError` for two of one name, and when there is none.

    The same file under one name is one model, as the group that comes first has it.
    """
    models: dict[str, ModelSettings] = {}
    for model in (m for group in groups for m in group):
        known = models.setdefault(model.name, model)
        if known is not model and not _is_same(known.path, model.path):
            raise UsageError(
                f"two models are called {model.name!r}: {known.path} and {model.path}; give one "
                f"another name: NAME={model.path}."
            )
    if not models:
        raise UsageError("there is no model to serve: name MODEL.vessel, --models or --config.")
    return models


def _is_same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.samefile(other)


def _model(name: str, table: TomlTable, folder: Path) -> ModelSettings:
    path = table.text("path")
    if path is None:
        table.refuse("path", "it is missing")
    deadline = table.whole("deadline_ms", 1, MAX_DEADLINE_MS)
    weight = table.number("weight", 1e-3, 1e3)
    return ModelSettings(
        name=checked_name(name, path),
        path=folder / path,
        weight=1.0 if weight is None else weight,
        queue=table.whole("queue", 1, 1 << 20),
        deadline=None if deadline is None else deadline / 1000,
        threads=table.whole("threads", 1, 1 << 10),
        slots=table.whole("slots", 1, 64),
    )
