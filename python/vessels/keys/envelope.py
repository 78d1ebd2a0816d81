"""Envelopes: how the key store is encrypted at rest.

The file is in the age format (https://age-encryption.org/v1), made by ``pyrage``, which binds the
Rust implementation. It opens with a passphrase (scrypt) or with an identity file (X25519), here or
with any program that reads age files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pyrage

from vessels.errors import KeyFileError
from vessels.secret_files import create_secret, read_secret

MAX_PASSPHRASE_SIZE = 4096
MAX_IDENTITY_SIZE = 1 << 16

_BEGINNING = b"age-encryption.org/v1\n"
_PASSPHRASE_STANZA = b"-> scrypt "

_TOO_MUCH_WORK = "Excessive work"
_TRIES = 10
"""How much work is too much is measured each time in some milliseconds, which a busy machine may
make out to be many."""


class Envelope(Protocol):
    """Something that encrypts to itself."""

    def closed(self, plain: bytes) -> bytes:
        """``plain`` as an age file."""
        ...

    def opened(self, sealed: bytes) -> bytes:
        """What is in the age file ``sealed``. Raises :class:`ValueError` where it does not open."""
        ...


@dataclass(frozen=True)
class Passphrase:
    """An envelope that a passphrase opens; it takes about a second, by design."""

    text: str = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> Passphrase:
        """The first line of the file at ``path``. Raises :class:`KeyFileError`."""
        text = read_secret(path, "passphrase file", MAX_PASSPHRASE_SIZE)
        line = text.split("\n", 1)[0].removesuffix("\r")
        if not line:
            raise KeyFileError(f"the passphrase file {path} begins with an empty line.")
        return cls(line)

    def closed(self, plain: bytes) -> bytes:
        """See :class:`Envelope`."""
        sealed: bytes = pyrage.passphrase.encrypt(plain, self.text)
        return sealed

    def opened(self, sealed: bytes) -> bytes:
        """See :class:`Envelope`."""
        if not needs_passphrase(sealed):
            raise ValueError("it opens with an identity file, not with a passphrase")
        for _ in range(_TRIES):
            try:
                plain: bytes = pyrage.passphrase.decrypt(sealed, self.text)
            except pyrage.DecryptError as error:
                if _TOO_MUCH_WORK not in str(error):
                    raise ValueError("the passphrase is wrong, or the file is altered") from None
            else:
                return plain
        raise ValueError(
            "its passphrase takes too much work for this machine, or the file is altered"
        )


@dataclass(frozen=True)
class Identity:
    """An envelope that the secret key in an identity file opens."""

    secret: pyrage.x25519.Identity = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> Identity:
        """The one identity in the file at ``path``; ``#`` begins a comment.

        Raises :class:`KeyFileError`.
        """
        text = read_secret(path, "identity file", MAX_IDENTITY_SIZE)
        lines = [line.strip() for line in text.splitlines()]
        found = [line for line in lines if line and not line.startswith("#")]
        try:
            [line] = found
            return cls(pyrage.x25519.Identity.from_str(line))
        except (ValueError, pyrage.IdentityError):
            raise KeyFileError(
                f"{path} is no identity file: it must hold one line AGE-SECRET-KEY-1…"
            ) from None

    @classmethod
    def create(cls, path: Path) -> Identity:
        """A new identity, written to ``path`` (mode 0600); a file there is never overwritten.

        Raises :class:`KeyFileError` where there is one, and :class:`OutputError`.
        """
        secret = pyrage.x25519.Identity.generate()
        text = f"# Opens a key store of Vessels. public key: {secret.to_public()}\n{secret}\n"
        create_secret(path, text, "identity file")
        return cls(secret)

    def closed(self, plain: bytes) -> bytes:
        """See :class:`Envelope`."""
        sealed: bytes = pyrage.encrypt(plain, [self.secret.to_public()])
        return sealed

    def opened(self, sealed: bytes) -> bytes:
        """See :class:`Envelope`."""
        if needs_passphrase(sealed):
            raise ValueError("it opens with a passphrase, not with an identity file")
        try:
            plain: bytes = pyrage.decrypt(sealed, [self.secret])
        except pyrage.DecryptError:
            raise ValueError("the identity is another, or the file is altered") from None
        return plain


def needs_passphrase(sealed: bytes) -> bool:
    """Whether the age file ``sealed`` opens with a passphrase."""
    return sealed.startswith(_BEGINNING + _PASSPHRASE_STANZA)
