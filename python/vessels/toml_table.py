"""TOML files of people's, read strictly: what is not known or has the wrong form is refused.

A refusal says the file, the key with its table, and what is accepted there.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from vessels.errors import UsageError

MAX_SIZE: Final = 1 << 20


class TomlTable:
    """A table whose keys are taken one by one; what is left at the end is not known.

    Every method that takes a key gives ``None``, or nothing, where it is not there, and raises
    ``error`` where its value has the wrong form.
    """

    def __init__(
        self, values: Mapping[str, Any], source: str, error: type[UsageError], path: str = ""
    ) -> None:
        self._left = dict(values)
        self._source = source
        self._error = error
        self._path = path
        self._known: list[str] = []
        self._tables: list[TomlTable] = []

    @classmethod
    def load(cls, path: Path, what: str, error: type[UsageError]) -> TomlTable:
        """The file at ``path``, which is a ``what``. Raises ``error``."""
        try:
            with path.open("rb") as file:
                content = file.read(MAX_SIZE + 1)
        except OSError as failure:
            raise error(f"cannot read {what} {path}: {failure.strerror}.") from failure
        if len(content) > MAX_SIZE:
            raise error(f"{path} is too large for a {what}: it has more than {MAX_SIZE} bytes.")
        try:
            text = content.decode()
        except UnicodeDecodeError as failure:
            raise error(f"{path}: it is no TOML: it is not UTF-8.") from failure
        return cls.parse(text, str(path), error)

    @classmethod
    def parse(cls, text: str, source: str, error: type[UsageError]) -> TomlTable:
        """The file with ``text``, called ``source``. Raises ``error``."""
        try:
            return cls(tomllib.loads(text), source, error)
        # A number may have too many digits for Python, and a list too many lists in it.
        except (ValueError, RecursionError) as failure:
            raise error(f"{source}: it is no TOML: {failure}.") from failure

    def refuse(self, key: str, why: str) -> NoReturn:
        """Raise the error that says ``why`` the value of ``key`` is not accepted."""
        raise self._error(f"{self._source}: {self._path}{key}: {why}.")

    def refuse_unknown(self) -> None:
        """Refuse what nobody took, here and in the tables that were taken."""
        for key in self._left:
            known = ", ".join(self._known)
            self.refuse(key, f"this key is not known; the keys here are {known}")
        for table in self._tables:
            table.refuse_unknown()

    def names(self) -> list[str]:
        """The keys that are not taken yet."""
        return list(self._left)

    def text(self, key: str) -> str | None:
        """A text, which is not empty."""
        value: str | None = self._take(key, "it must be a text that is not empty", str)
        return value

    def whole(self, key: str, least: int, most: int) -> int | None:
        """A whole number from ``least`` to ``most``."""
        form = f"it must be a whole number from {least} to {most}"
        value: int | None = self._take(key, form, int)
        if value is not None and not least <= value <= most:
            self.refuse(key, form)
        return value

    def number(self, key: str, least: float, most: float) -> float | None:
        """A number from ``least`` to ``most``."""
        form = f"it must be a number from {least:g} to {most:g}"
        value: float | None = self._take(key, form, int, float)
        # Written so that it refuses what is no number, too.
        if value is not None and not least <= value <= most:
            self.refuse(key, form)
        return None if value is None else float(value)

    def texts(self, key: str) -> frozenset[str] | None:
        """A list of texts; it may be empty."""
        form = "it must be a list of texts"
        values = self._take(key, form, list)
        if values is None:
            return None
        if any(type(v) is not str for v in values):
            self.refuse(key, form)
        return frozenset(values)

    def table(self, key: str) -> TomlTable | None:
        """A table; its unknown keys are this one's too."""
        values = self._take(key, f"it must be a table, as in [{self._path}{key}]", dict)
        return None if values is None else self._nested(values, key)

    def tables(self, key: str) -> dict[str, TomlTable]:
        """A table of nothing but tables, by name."""
        form = f"it must hold tables, as in [{self._path}{key}.NAME]"
        values = self._take(key, form, dict) or {}
        if any(type(v) is not dict for v in values.values()):
            self.refuse(key, form)
        return {name: self._nested(v, f"{key}.{name}") for name, v in values.items()}

    def _take(self, key: str, form: str, *kinds: type) -> Any:
        self._known.append(key)
        value = self._left.pop(key, None)
        # By its exact type: a boolean is a Python integer too.
        if value is not None and (type(value) not in kinds or value == ""):
            self.refuse(key, form)
        return value

    def _nested(self, values: Mapping[str, Any], key: str) -> TomlTable:
        table = TomlTable(values, self._source, self._error, f"{self._path}{key}.")
        self._tables.append(table)
        return table
