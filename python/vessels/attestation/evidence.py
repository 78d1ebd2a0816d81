"""Evidence: what an enclave sends to be believed, and the claims its quote binds.

``docs/attestation.md`` specifies both encodings and numbers the rules by which evidence is
refused; a message about a malformed one begins with the number of the rule.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import cbor2

from vessels.errors import AttestationError, SealedError
from vessels.header import TAG_SIZE
from vessels.seal import MAGIC, PREFIX, read_header

VERSION = 1
NONCE_SIZE = 32
DIGEST_SIZE = 32
SUITE_SIZE = 6
MAX_KEY_SIZE = 4096
MAX_SIZE = 1 << 20

_DOMAIN = b"vessels evidence v1"


class Kind(StrEnum):
    """What sort of proof an enclave sends."""

    DCAP = "dcap"
    """An Intel DCAP quote, of SGX or TDX; a simulation's, too."""
    SEV_SNP = "sev-snp"
    """An AMD SEV-SNP attestation report."""


@dataclass(frozen=True)
class Claims:
    """What an enclave says of itself; true only if its report data is :meth:`report_data`.

    ``suite`` is the identifiers of KEM, KDF and AEAD (RFC 9180), 2 bytes each, big-endian;
    ``public_key`` is the enclave's, as that KEM serializes it; ``model_digest`` is
    :func:`model_digest` of the model it opened; ``nonce`` is the verifier's.
    """

    suite: bytes
    public_key: bytes
    model_digest: bytes
    nonce: bytes

    def report_data(self) -> bytes:
        """The 64 bytes that a quote of these claims carries."""
        hashed = hashlib.sha512()
        for field in (_DOMAIN, self.suite, self.public_key, self.model_digest, self.nonce):
            hashed.update(struct.pack("<I", len(field)) + field)
        return hashed.digest()


@dataclass(frozen=True)
class Evidence:
    """A proof with the claims it is to prove; nothing of it is believed yet.

    ``collateral`` is what a simulation's root signs for its platform, as JSON, since nobody else
    could be asked for it. It is empty where the proof is of real hardware.
    """

    kind: Kind
    quote: bytes
    claims: Claims
    collateral: str = ""

    def encoded(self) -> bytes:
        """The evidence's CBOR."""
        c = self.claims
        return cbor2.dumps(
            [
                VERSION, str(self.kind), self.quote, c.suite, c.public_key, c.model_digest,
                c.nonce, self.collateral,
            ],
            canonical=True,
        )  # fmt: skip

    @classmethod
    def decode(cls, encoded: bytes) -> Evidence:
        """The evidence in ``encoded``. Raises :class:`AttestationError` with the rule it breaks."""
        if len(encoded) > MAX_SIZE:
            raise AttestationError(f"E1 evidence of {len(encoded)} bytes is absurd.")
        try:
            decoded = cbor2.loads(encoded)
        except Exception as error:  # Whatever a decoder may raise: the bytes are anybody's.
            raise AttestationError("E1 the evidence is malformed.") from error
        if type(decoded) is not list or not decoded:
            raise AttestationError("E1 the evidence is malformed.")
        version, *fields = decoded
        if type(version) is not int or version != VERSION:
            raise AttestationError(
                f"E2 the evidence has version {version!r:.20}; this build reads {VERSION} only."
            )
        if [type(f) for f in fields] != [str, bytes, bytes, bytes, bytes, bytes, str]:
            raise AttestationError("E1 the evidence is malformed.")
        kind, quote, suite, public_key, digest, nonce, collateral = fields
        if kind not in list(Kind):
            raise AttestationError(f"E3 evidence of kind {kind!r:.40} is not known.")
        for name, value, least, most in (
            ("quote", quote, 1, MAX_SIZE),
            ("suite", suite, SUITE_SIZE, SUITE_SIZE),
            ("public key", public_key, 1, MAX_KEY_SIZE),
            ("model digest", digest, DIGEST_SIZE, DIGEST_SIZE),
            ("nonce", nonce, NONCE_SIZE, NONCE_SIZE),
        ):
            if not least <= len(value) <= most:
                due = f"{least}" if least == most else f"{least} to {most}"
                raise AttestationError(f"E4 a {name} has {due} bytes, not {len(value)}.")
        evidence = cls(Kind(kind), quote, Claims(suite, public_key, digest, nonce), collateral)
        if evidence.encoded() != encoded:
            raise AttestationError("E1 the evidence is not in canonical form.")
        return evidence


def new_nonce() -> bytes:
    """A verifier's nonce: random, for one question only."""
    return os.urandom(NONCE_SIZE)


def model_digest(path: Path) -> bytes:
    """What a sealed model is known by: SHA-256 of all of the file before its first chunk.

    These bytes hold the program, which lists the tag of every chunk, and the program's own tag:
    no other byte of the file can change without a refusal by the enclave. Raises
    :class:`~vessels.errors.SealedError` when the file is no sealed model.
    """
    read_header(path)
    try:
        with path.open("rb") as file:
            prefix = file.read(PREFIX.size)
            _, header_size, program_size = PREFIX.unpack(prefix)
            rest = header_size + program_size + TAG_SIZE
            body = file.read(rest)
    except (OSError, struct.error) as error:
        raise SealedError(f"cannot read sealed model {path}: {error}.") from error
    if not prefix.startswith(MAGIC) or len(body) != rest:
        raise SealedError(f"S1 {path} is truncated: its program is cut off.")
    return hashlib.sha256(prefix + body).digest()
