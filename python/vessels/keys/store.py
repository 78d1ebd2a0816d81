"""The key store: one encrypted file with the keys of sealed models.

A key stands under the digest of each build that it opens. What is revoked stays listed, so that
it is refused as revoked and not as unknown. Every change reads the file, alters it and writes it
whole, under a lock, so that two commands at once do not lose one's change.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vessels.attestation.evidence import DIGEST_SIZE, model_digest
from vessels.attestation.folders import state_folder
from vessels.errors import KeyFileError, OutputError, UsageError
from vessels.files import write_whole
from vessels.keys.envelope import Envelope
from vessels.seal import KEY_SIZE, load_key, open_sealed

VERSION = 1
MAX_SIZE = 1 << 24
MAX_NAME_SIZE = 200


@dataclass(frozen=True)
class ModelKey:
    """A model key as the store has it: for one build, the one with ``digest``.

    ``name`` is for people; several builds may share one. A key that is ``revoked`` is never
    released. Times are in UTC, to the second.
    """

    name: str
    digest: bytes
    key: bytes = field(repr=False)
    added: datetime
    revoked: datetime | None = None

    def as_json(self) -> dict[str, Any]:
        """All but the key, for people."""
        return {
            "name": self.name,
            "digest": self.digest.hex(),
            "added": _text(self.added),
            "revoked": None if self.revoked is None else _text(self.revoked),
        }


def default_path() -> Path:
    """Where a user's store lies unless told otherwise."""
    return state_folder() / "keys.age"


@dataclass(frozen=True)
class KeyStore:
    """The store in the file at ``path``, which ``envelope`` opens."""

    path: Path
    envelope: Envelope

    @classmethod
    def create(cls, path: Path, envelope: Envelope) -> KeyStore:
        """A new, empty store. Raises :class:`KeyFileError` where there is a file already."""
        store = cls(path, envelope)
        with store._locked():
            if path.exists():
                raise KeyFileError(f"{path} exists; a key store is never overwritten.")
            store._write([])
        return store

    def read(self) -> list[ModelKey]:
        """All keys. Raises :class:`KeyFileError`."""
        return self.read_with_stamp()[0]

    def read_with_stamp(self) -> tuple[list[ModelKey], Stamp]:
        """All keys, and the :class:`Stamp` of the file they were read from."""
        try:
            with self.path.open("rb") as file:
                stamp = Stamp.of(os.fstat(file.fileno()))
                sealed = file.read(MAX_SIZE + 1)
        except FileNotFoundError:
            raise KeyFileError(
                f"there is no key store {self.path}; `vessels keys init` makes one."
            ) from None
        except OSError as error:
            raise KeyFileError(f"cannot read key store {self.path}: {error.strerror}.") from error
        if len(sealed) > MAX_SIZE:
            raise KeyFileError(f"{self.path} is too large to be a key store.")
        try:
            plain = self.envelope.opened(sealed)
        except ValueError as error:
            raise KeyFileError(f"cannot open key store {self.path}: {error}.") from error
        return _decoded(plain, self.path), stamp

    def add(self, model: Path, key_file: Path, name: str | None = None) -> ModelKey:
        """Keep the key in ``key_file`` for the sealed ``model``, which it must open.

        The whole model is authenticated first. Raises :class:`KeyFileError` when its build is
        listed already, or the key is another model's.
        """
        key = load_key(key_file)
        open_sealed(model, key)
        added = ModelKey(_name(name or model.stem), model_digest(model), key, now())
        with self._changed() as keys:
            for other in keys:
                if other.digest == added.digest:
                    why = "" if other.revoked is None else ", and revoked"
                    raise KeyFileError(
                        f"this build of {model} is in the store already, as {other.name!r}{why}."
                    )
            keys.append(added)
        return added

    def revoke(self, which: str) -> list[ModelKey]:
        """Refuse the keys that ``which`` names from now on; those that were not refused before."""
        return self._alter(which, lambda k: k if k.revoked else replace(k, revoked=now()))

    def restore(self, which: str) -> list[ModelKey]:
        """Take back the revocation of the keys that ``which`` names; those that were revoked."""
        return self._alter(which, lambda k: replace(k, revoked=None))

    def remove(self, which: str) -> list[ModelKey]:
        """Forget the keys that ``which`` names: their models are then unknown."""
        with self._changed() as keys:
            removed = chosen(keys, which)
            keys[:] = [k for k in keys if k not in removed]
        return removed

    def _alter(self, which: str, change: Callable[[ModelKey], ModelKey]) -> list[ModelKey]:
        with self._changed() as keys:
            wanted = chosen(keys, which)
            altered = [change(k) if k in wanted else k for k in keys]
            changed = [new for old, new in zip(keys, altered, strict=True) if new != old]
            keys[:] = altered
        return changed

    @contextlib.contextmanager
    def _changed(self) -> Iterator[list[ModelKey]]:
        """The keys, to be altered in place; they are written where that succeeds."""
        with self._locked():
            keys = self.read()
            before = list(keys)
            yield keys
            if keys != before:
                self._write(keys)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among those who change the store."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(
                self.path.with_name(f".{self.path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600
            )
        except OSError as error:
            raise OutputError(f"cannot lock key store {self.path}: {error.strerror}.") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _write(self, keys: Sequence[ModelKey]) -> None:
        sealed = self.envelope.closed(_encoded(keys))
        write_whole(self.path, lambda path: _write_bytes(path, sealed), private=True)


@dataclass(frozen=True)
class Stamp:
    """What tells one version of a file from another without reading it."""

    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """The stamp of a file with ``status``."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def chosen(keys: Sequence[ModelKey], which: str) -> list[ModelKey]:
    """The keys of that name, or the one of that digest. Raises :class:`UsageError` for none."""
    found = [k for k in keys if k.name == which or k.digest.hex() == which]
    if not found:
        raise UsageError(f"no key in the store has the name or digest {which!r}.")
    return found


def _encoded(keys: Sequence[ModelKey]) -> bytes:
    listed = [{**k.as_json(), "key": k.key.hex()} for k in keys]
    return json.dumps({"version": VERSION, "keys": listed}, indent=1).encode()


def _decoded(plain: bytes, path: Path) -> list[ModelKey]:
    try:
        top = json.loads(plain)
        if set(top) != {"version", "keys"}:
            raise ValueError("fields")
        if type(top["version"]) is not int or top["version"] != VERSION:
            raise KeyFileError(
                f"key store {path} has version {top['version']!r:.20}; "
                f"this build reads {VERSION} only."
            )
        keys = [_key(fields) for fields in top["keys"]]
    except KeyFileError:
        raise
    except Exception:  # Whatever a decoder may raise; and no part of the text may be shown.
        raise KeyFileError(f"key store {path} is malformed.") from None
    if len({k.digest for k in keys}) != len(keys):
        raise KeyFileError(f"key store {path} lists one build twice.")
    return keys


def _key(fields: dict[str, Any]) -> ModelKey:
    if set(fields) != {"name", "digest", "key", "added", "revoked"}:
        raise ValueError("fields")
    revoked = fields["revoked"]
    found = ModelKey(
        name=_name(fields["name"]),
        digest=bytes.fromhex(fields["digest"]),
        key=bytes.fromhex(fields["key"]),
        added=_time(fields["added"]),
        revoked=None if revoked is None else _time(revoked),
    )
    if len(found.digest) != DIGEST_SIZE or len(found.key) != KEY_SIZE:
        raise ValueError("sizes")
    return found


def _name(text: str) -> str:
    if not text or len(text) > MAX_NAME_SIZE or not text.isprintable():
        raise UsageError(f"a name has 1 to {MAX_NAME_SIZE} printable characters.")
    return text


def now() -> datetime:
    """This machine's time, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("a time without a zone")
    return time.astimezone(UTC)


def _text(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
