"""Where a key service finds keys: in a store, or in key files that are named at start."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from vessels.attestation import Policy
from vessels.errors import KeyFileError, UsageError
from vessels.keys.store import KeyStore, ModelKey, Stamp, now
from vessels.seal import load_key


class KeySource(Protocol):
    """Finds the key of a build."""

    def all(self) -> list[ModelKey]:
        """All keys. Raises :class:`KeyFileError` where they cannot be read now."""
        ...

    def find(self, digest: bytes) -> ModelKey | None:
        """The key of the build with ``digest``. Raises :class:`KeyFileError`."""
        ...


class StoredKeys:
    """The keys of a store that may change while they are served.

    Every question looks whether the file is another, so a revocation holds at once. A store that
    cannot be read any more gives no key at all.
    """

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        keys, stamp = store.read_with_stamp()
        self._stamp: Stamp | None = stamp
        self._keys = {k.digest: k for k in keys}
        self._refusal: KeyFileError | None = None

    def all(self) -> list[ModelKey]:
        """All keys of the store as it is now. Raises :class:`KeyFileError`."""
        with self._lock:
            self._refresh()
            return list(self._keys.values())

    def find(self, digest: bytes) -> ModelKey | None:
        """The key of the build with ``digest``. Raises :class:`KeyFileError`."""
        with self._lock:
            self._refresh()
            return self._keys.get(digest)

    def _refresh(self) -> None:
        try:
            stamp = Stamp.of(self._store.path.stat())
        except OSError as error:
            self._stamp = None
            raise KeyFileError(
                f"cannot read key store {self._store.path}: {error.strerror}."
            ) from error
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                keys, self._stamp = self._store.read_with_stamp()
                self._keys = {k.digest: k for k in keys}
                self._refusal = None
            except KeyFileError as error:
                self._refusal = error
        if self._refusal is not None:
            raise KeyFileError(str(self._refusal))


class FileKeys:
    """Keys in key files, each for the builds that a policy lists under one name."""

    def __init__(self, files: Mapping[str, Path], policy: Policy) -> None:
        """``files`` are by the policy's names. Raises :class:`UsageError`, `KeyFileError`."""
        self._keys: dict[bytes, ModelKey] = {}
        for name, path in files.items():
            if name not in policy.models:
                raise UsageError(
                    f"{policy.source} accepts no model {name!r}, but "
                    f"{', '.join(map(repr, policy.models))}; write --key NAME={path}."
                )
            key = load_key(path)
            for digest in policy.models[name]:
                self._keys[digest] = ModelKey(name, digest, key, now())

    def all(self) -> list[ModelKey]:
        """See :class:`KeySource`."""
        return list(self._keys.values())

    def find(self, digest: bytes) -> ModelKey | None:
        """See :class:`KeySource`."""
        return self._keys.get(digest)


def parse_key_files(texts: Sequence[str]) -> dict[str, Path]:
    """``[NAME=]MODEL.key`` each, to files by name, the file's own unless given."""
    files: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = Path(text).stem, text
        if not name or not path:
            raise UsageError(f"{text!r} is no key file; write [NAME=]MODEL.key.")
        if name in files:
            raise UsageError(f"two key files are for {name!r}.")
        files[name] = Path(path)
    return files
