"""Writes ``tests/vectors/evidence.json``, the vectors of ``docs/attestation.md``.

``python -m tests.make_evidence_vectors`` writes it anew. ``report_data`` has claims with the
report data they have; ``encoded`` has evidence with the rule by which it is refused, or none.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2

from tests.attestation import CLAIMS
from vessels.attestation import Claims, Evidence, Kind

FILE = Path(__file__).parent / "vectors" / "evidence.json"

_GOOD: list[Any] = [
    1, "dcap", b"quote", CLAIMS.suite, CLAIMS.public_key, CLAIMS.model_digest, CLAIMS.nonce, ""
]  # fmt: skip


def _with(index: int, value: Any) -> bytes:
    fields = list(_GOOD)
    fields[index] = value
    return cbor2.dumps(fields, canonical=True)


def vectors() -> dict[str, list[dict[str, str]]]:
    """All vectors, as the file has them."""
    good = Evidence(Kind.DCAP, b"quote", CLAIMS).encoded()
    claims = {
        "x25519": CLAIMS,
        "other-suite": replace(CLAIMS, suite=bytes.fromhex("002000010003")),
        "longer-key": replace(CLAIMS, public_key=bytes(1216)),
        "zeros": Claims(bytes(6), bytes(32), bytes(32), bytes(32)),
    }
    encoded = {
        "good": ("", good),
        "with-collateral": ("", Evidence(Kind.DCAP, b"quote", CLAIMS, "{}").encoded()),
        "sev-snp": ("", Evidence(Kind.SEV_SNP, b"report", CLAIMS).encoded()),
        "empty": ("E1", b""),
        "truncated": ("E1", good[:-1]),
        "trailing-byte": ("E1", good + b"\0"),
        "not-canonical": ("E1", good.replace(b"\x45quote", b"\x58\x05quote")),
        "not-an-array": ("E1", cbor2.dumps({"version": 1})),
        "field-missing": ("E1", cbor2.dumps(_GOOD[:-1])),
        "field-more": ("E1", cbor2.dumps([*_GOOD, b""])),
        "field-of-another-type": ("E1", _with(2, "quote")),
        "version": ("E2", _with(0, 2)),
        "version-true": ("E2", _with(0, True)),
        "kind": ("E3", _with(1, "nitro")),
        "quote-empty": ("E4", _with(2, b"")),
        "suite-short": ("E4", _with(3, CLAIMS.suite[:-1])),
        "key-empty": ("E4", _with(4, b"")),
        "key-long": ("E4", _with(4, bytes(4097))),
        "digest-short": ("E4", _with(5, CLAIMS.model_digest[:-1])),
        "nonce-long": ("E4", _with(6, CLAIMS.nonce + b"\0")),
    }
    return {
        "report_data": [
            {
                "name": name, "suite": c.suite.hex(), "public_key": c.public_key.hex(),
                "model_digest": c.model_digest.hex(), "nonce": c.nonce.hex(),
                "report_data": c.report_data().hex(),
            }
            for name, c in claims.items()
        ],
        "encoded": [
            {"name": name, "rule": rule, "evidence": data.hex()}
            for name, (rule, data) in encoded.items()
        ],
    }  # fmt: skip


if __name__ == "__main__":
    FILE.write_text(json.dumps(vectors(), indent=2) + "\n")
