"""Where an enclave's model key comes from: the owner's key service, or a file on this host."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vessels.attestation import Evidence, new_nonce
from vessels.errors import KeyFileError
from vessels.keys.client import fetch_key, service_url
from vessels.seal import load_key, opens
from vessels.sealed_messages import seal_key

Prove = Callable[[bytes], Evidence]
"""Evidence of the enclave that wants the key, for a nonce."""

KEY_NOTICE = (
    "--insecure-key: the model keys lie in plain on this host, which can read the models. "
    "Use a key service (--keys) on the model owner's machine."
)


class KeySource(Protocol):
    """Gives model keys, each wrapped for one enclave."""

    def get(self, model_digest: bytes, path: Path, prove: Prove) -> bytes:
        """The wrapped key of the model at ``path``. Blocks; raises a ``VesselsError``."""
        ...


@dataclass(frozen=True)
class KeyService:
    """The model owner's key service, which verifies the enclave before it gives a key."""

    url: str

    @classmethod
    def at(cls, url: str) -> KeyService:
        """The service at ``url``. Raises :class:`UsageError`."""
        return cls(service_url(url))

    def get(self, model_digest: bytes, path: Path, prove: Prove) -> bytes:
        # The caller tries again itself, for as long as the enclave runs.
        return fetch_key(self.url, prove, model_digest, patience=0)


@dataclass(frozen=True)
class InsecureKeyFiles:
    """Keys that lie on this host. For development: such a host can read the models."""

    keys: tuple[bytes, ...]

    @classmethod
    def load(cls, paths: Iterable[Path]) -> InsecureKeyFiles:
        """The keys in ``paths``. Raises :class:`KeyFileError`."""
        return cls(tuple(load_key(p) for p in paths))

    def key_of(self, path: Path) -> bytes:
        """The key that opens the sealed model at ``path``. Raises :class:`KeyFileError`."""
        for key in self.keys:
            if opens(path, key):
                return key
        raise KeyFileError(f"none of the given keys is that of {path}.")

    def get(self, model_digest: bytes, path: Path, prove: Prove) -> bytes:
        key = self.key_of(path)
        claims = prove(new_nonce()).claims
        return seal_key(claims.public_key, claims.model_digest, key)
