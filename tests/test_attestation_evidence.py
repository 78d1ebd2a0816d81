"""Evidence and its report data: the vectors of ``docs/attestation.md``, and what holds for all."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import make_evidence_vectors, make_vectors
from tests.conftest import ROOT, Sealed
from vessels.attestation import Claims, Evidence, Kind, model_digest, new_nonce
from vessels.attestation.evidence import MAX_SIZE
from vessels.errors import AttestationError, SealedError

VECTORS: dict[str, list[dict[str, str]]] = json.loads(make_evidence_vectors.FILE.read_text())
REFUSED = [v for v in VECTORS["encoded"] if v["rule"]]

CLAIMS = st.builds(
    Claims,
    st.binary(min_size=6, max_size=6),
    st.binary(min_size=1, max_size=200),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
)
EVIDENCE = st.builds(
    Evidence, st.sampled_from(Kind), st.binary(min_size=1, max_size=500), CLAIMS, st.text()
)


@pytest.mark.parametrize("vector", VECTORS["report_data"], ids=lambda v: v["name"])
def test_report_data_by_the_specification(vector: dict[str, str]) -> None:
    fields = [
        b"vessels evidence v1",
        *(bytes.fromhex(vector[k]) for k in ("suite", "public_key", "model_digest", "nonce")),
    ]
    hashed = hashlib.sha512(b"".join(struct.pack("<I", len(f)) + f for f in fields)).hexdigest()
    assert hashed == vector["report_data"]
    assert Claims(*fields[1:]).report_data().hex() == hashed


def test_the_vectors_are_what_this_build_makes() -> None:
    assert make_evidence_vectors.vectors() == VECTORS


@pytest.mark.parametrize("vector", REFUSED, ids=lambda v: v["name"])
def test_malformed_evidence_is_refused_by_its_rule(vector: dict[str, str]) -> None:
    with pytest.raises(AttestationError, match=rf"^{vector['rule']}\b"):
        Evidence.decode(bytes.fromhex(vector["evidence"]))


def test_every_rule_has_a_vector() -> None:
    text = (ROOT / "docs" / "attestation.md").read_text()
    named = {
        name
        for line in text.splitlines()
        if re.match(r"\| E\d+ \|", line)
        for name in re.findall(r"`([a-z-]+)`", line.split("|")[3])
    }
    assert named == {v["name"] for v in REFUSED}


@pytest.mark.parametrize(
    "vector", [v for v in VECTORS["encoded"] if not v["rule"]], ids=lambda v: v["name"]
)
def test_accepted_evidence_is_encoded_to_the_same_bytes(vector: dict[str, str]) -> None:
    encoded = bytes.fromhex(vector["evidence"])
    assert Evidence.decode(encoded).encoded() == encoded


@settings(max_examples=60)
@given(EVIDENCE)
def test_all_evidence_survives(evidence: Evidence) -> None:
    assert Evidence.decode(evidence.encoded()) == evidence


@settings(max_examples=60)
@given(st.binary(max_size=300) | EVIDENCE.map(Evidence.encoded), st.data())
def test_any_bytes_are_refused_or_canonical(encoded: bytes, data: st.DataObject) -> None:
    if encoded:
        at = data.draw(st.integers(0, len(encoded) - 1))
        bit = data.draw(st.integers(0, 7))
        encoded = encoded[:at] + bytes([encoded[at] ^ 1 << bit]) + encoded[at + 1 :]
    try:
        evidence = Evidence.decode(encoded)
    except AttestationError:
        return
    assert evidence.encoded() == encoded


def test_absurd_sizes_are_refused_unread() -> None:
    with pytest.raises(AttestationError, match=r"^E1 evidence of \d+ bytes is absurd"):
        Evidence.decode(bytes(MAX_SIZE + 1))


@settings(max_examples=60)
@given(CLAIMS, CLAIMS)
def test_other_claims_have_other_report_data(one: Claims, other: Claims) -> None:
    assert (one == other) == (one.report_data() == other.report_data())
    assert len(one.report_data()) == 64


def test_a_byte_moved_between_fields_changes_the_report_data() -> None:
    one = Claims(b"s" * 6, b"k" * 32, b"d" * 32, b"n" * 32)
    moved = Claims(b"s" * 6, b"k" * 32 + b"d", b"d" * 31, b"n" * 32)
    assert one.report_data() != moved.report_data()


def test_nonces_are_fresh() -> None:
    assert len({new_nonce() for _ in range(100)}) == 100
    assert len(new_nonce()) == 32


def test_the_digest_is_of_all_before_the_chunks(sealed: Sealed, tmp_path: Path) -> None:
    whole = sealed.vessel.read_bytes()
    header_size, program_size = struct.unpack_from("<II", whole, 8)
    end = 16 + header_size + program_size + 16
    digest = model_digest(sealed.vessel)
    assert digest == hashlib.sha256(whole[:end]).digest()
    copy = tmp_path / "copy.vessel"
    shutil.copy(sealed.vessel, copy)
    assert model_digest(copy) == digest
    # Every chunk's tag is in the program, so a changed chunk is the enclave's to refuse.
    for index in (16, 16 + header_size, end - 1):
        changed = bytearray(whole)
        changed[index + (4 if index == 16 else 0)] ^= 1
        copy.write_bytes(changed)
        assert model_digest(copy) != digest


@pytest.mark.parametrize("name", ["empty", "magic", "version", "truncated-program"])
def test_what_is_no_sealed_model_has_no_digest(name: str) -> None:
    with pytest.raises(SealedError):
        model_digest(make_vectors.FOLDER / f"{name}.vessel")
