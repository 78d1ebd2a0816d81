"""Messages to and from an enclave: the vectors of ``docs/messages.md``, and what a host may do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyhpke import AEADId, CipherSuite, KDFId, KEMId, KEMKey

from tests import make_message_vectors as made
from vessels.enclave import EnclaveClaims, EnclaveProcess
from vessels.errors import EnclaveError, KeyFileError, RequestError, UsageError
from vessels.ports import Port
from vessels.seal import read_header
from vessels.sealed_messages import (
    RequestSealer,
    ResponseOpener,
    request_size,
    response_size,
    seal_key,
)

VECTORS: dict[str, Any] = json.loads(made.FILE.read_text())
INPUT = np.frombuffer(made.INPUT, "<f4").reshape(1, 8)
DIGEST = bytes.fromhex(VECTORS["model_digest"])
KEY = bytes.fromhex(VECTORS["model_key"])
NONCE = bytes(32)

_CIPHERS = CipherSuite.new(KEMId.DHKEM_X25519_HKDF_SHA256, KDFId.HKDF_SHA256, AEADId.AES256_GCM)


def of(name: str, kind: str = "requests") -> dict[str, str]:
    vector: dict[str, str] = VECTORS[kind][name]
    return vector


class Sender:
    """Seals any content to an enclave, as no client does."""

    def __init__(self, claims: EnclaveClaims) -> None:
        self.claims = claims

    def seal(self, content: bytes) -> tuple[bytes, ResponseOpener[Any]]:
        key = KEMKey.from_pyca_cryptography_key(
            X25519PublicKey.from_public_bytes(self.claims.public_key)
        )
        info = b"vessels request v1" + self.claims.model_digest
        enc, context = _CIPHERS.create_sender_context(key, info)
        secret = context.export(b"vessels response v1", 32)
        return enc + context.seal(content), ResponseOpener(enc, secret, 1)


@pytest.fixture(scope="module")
def process() -> Iterator[EnclaveProcess]:
    """An enclave of the vectors' model that has its key."""
    with EnclaveProcess(made.MODEL) as running:
        claims = running.claims(NONCE)
        running.give_key(seal_key(claims.public_key, claims.model_digest, KEY))
        yield running


@pytest.fixture(scope="module")
def claims(process: EnclaveProcess) -> EnclaveClaims:
    return process.claims(NONCE)


@pytest.fixture
def sealer(claims: EnclaveClaims) -> RequestSealer:
    return RequestSealer(claims.public_key, claims.model_digest)


def opener(vector: dict[str, str]) -> ResponseOpener[Any]:
    enc = bytes.fromhex(of("predict")["sealed"])[:32]
    kind = {"predict": 1, "describe": 2}[vector["asked"]]
    return ResponseOpener(enc, bytes.fromhex(VECTORS["response_secret"]), kind)


def test_vectors_are_what_their_maker_makes() -> None:
    assert made.vectors() == VECTORS


def test_sealing_gives_the_vectors() -> None:
    public, ephemeral = bytes.fromhex(VECTORS["public_key"]), made.pair(made.EPHEMERAL)
    sealed = seal_key(public, DIGEST, KEY, ephemeral=ephemeral)
    assert sealed.hex() == VECTORS["sealed_model_key"]
    sealer = RequestSealer(public, DIGEST)
    request, _ = sealer.seal_predict({"in": INPUT}, ephemeral=ephemeral)
    assert request.hex() == of("predict")["sealed"]
    request, _ = sealer.seal_describe(ephemeral=ephemeral)
    assert request.hex() == of("describe")["sealed"]


def test_good_responses_open() -> None:
    vector = of("outputs", "responses")
    outputs = opener(vector).open(bytes.fromhex(vector["sealed"]))
    assert list(outputs) == ["out"]
    np.testing.assert_array_equal(outputs["out"], np.frombuffer(made.OUTPUT, "<f4").reshape(1, 8))
    outputs["out"][...] = 0
    vector = of("description", "responses")
    described = opener(vector).open(bytes.fromhex(vector["sealed"]))
    assert described == (
        (Port("in", np.dtype(np.float32), (1, 8)),), (Port("out", np.dtype(np.float32), (1, 8)),)
    )  # fmt: skip
    vector = of("error", "responses")
    with pytest.raises(RequestError, match=r"\(request\): a reason"):
        opener(vector).open(bytes.fromhex(vector["sealed"]))


@pytest.mark.parametrize("name", [n for n, v in VECTORS["responses"].items() if v["rule"]])
def test_other_responses_are_refused_by_the_rule(name: str) -> None:
    vector = of(name, "responses")
    with pytest.raises(EnclaveError, match=rf"^{vector['rule']}\b"):
        opener(vector).open(bytes.fromhex(vector["sealed"]))


@pytest.mark.parametrize("name", list(VECTORS["requests"]))
def test_the_enclave_answers_requests_by_the_rule(
    process: EnclaveProcess, claims: EnclaveClaims, name: str
) -> None:
    vector = of(name)
    request, answer = Sender(claims).seal(bytes.fromhex(vector["content"]))
    sealed = process.exchange(request)
    if not vector["rule"]:
        kind = {"predict": 1, "describe": 2}[name]
        opened = ResponseOpener[Any](answer._enc, answer._secret, kind).open(sealed)
        assert opened
        return
    with pytest.raises(RequestError, match=rf"\(request\): {vector['rule']}\b"):
        answer.open(sealed)


def test_every_rule_has_vectors() -> None:
    text = (Path(__file__).parents[1] / "docs" / "messages.md").read_text()
    rows = [row.split("|") for row in text.splitlines() if re.match(r"\| M\d+ \|", row)]
    named = {name: row[1].strip() for row in rows for name in re.findall(r"`([a-z-]+)`", row[3])}
    all_vectors = {**VECTORS["requests"], **VECTORS["responses"]}
    assert named == {name: v["rule"] for name, v in all_vectors.items() if v["rule"]}


def test_a_prediction(process: EnclaveProcess, sealer: RequestSealer) -> None:
    request, answer = sealer.seal_predict({"in": INPUT})
    sealed = process.exchange(request)
    header = read_header(made.MODEL)
    assert len(request) + 4096 == request_size(header.inputs)
    assert len(sealed) == response_size(header.outputs)
    outputs = answer.open(sealed)
    assert np.isfinite(outputs["out"]).all()
    # The memory of an earlier, larger request makes no difference to a later one.
    with pytest.raises(RequestError, match="M9"):
        wrong, other = sealer.seal_predict({"in": np.ones((1, 99), np.float32)})
        other.open(process.exchange(wrong))
    again, other = sealer.seal_predict({"in": INPUT})
    np.testing.assert_array_equal(other.open(process.exchange(again))["out"], outputs["out"])


def test_a_request_sent_again_is_answered_for_its_sender_alone(
    process: EnclaveProcess, sealer: RequestSealer
) -> None:
    request, answer = sealer.seal_predict({"in": INPUT})
    other_request, other_answer = sealer.seal_predict({"in": INPUT})
    first, second, third = (process.exchange(r) for r in (request, request, other_request))
    assert first != second
    np.testing.assert_array_equal(answer.open(first)["out"], answer.open(second)["out"])
    for opens, sealed in ((answer, third), (other_answer, first)):
        with pytest.raises(EnclaveError, match="M11"):
            opens.open(sealed)


def test_what_does_not_open_is_refused_before_it_is_believed(
    process: EnclaveProcess, claims: EnclaveClaims, sealer: RequestSealer
) -> None:
    request, _ = sealer.seal_predict({"in": INPUT})
    elsewhere = RequestSealer(bytes.fromhex(VECTORS["public_key"]), claims.model_digest)
    another = RequestSealer(claims.public_key, bytes(32))
    for sealed in (
        made.flipped(request, 0), made.flipped(request, 31), made.flipped(request, 32),
        made.flipped(request, -1), request[:-1], request + b"\0", request[32:] + request[:32],
        elsewhere.seal_predict({"in": INPUT})[0], another.seal_predict({"in": INPUT})[0],
    ):  # fmt: skip
        with pytest.raises(RequestError, match="does not open"):
            process.exchange(sealed)
    for size in (0, 47, request_size(read_header(made.MODEL).inputs) + 1):
        with pytest.raises(RequestError, match=f"of {size} bytes"):
            process.exchange(bytes(size))
    with pytest.raises(RequestError, match="has its key already"):
        process.give_key(seal_key(claims.public_key, claims.model_digest, KEY))
    assert process.claims(NONCE) == claims


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_content_breaks_the_enclave(
    process: EnclaveProcess, claims: EnclaveClaims, data: st.DataObject
) -> None:
    good = bytearray.fromhex(of("predict")["content"])
    for _ in range(data.draw(st.integers(0, 3))):
        good[data.draw(st.integers(0, 63))] = data.draw(st.integers(0, 255))
    size = data.draw(st.integers(0, 4000))
    content = data.draw(
        st.sampled_from([bytes(good), bytes(good[:size]), bytes(good) + bytes(size)])
    )
    request, answer = Sender(claims).seal(content)
    sealed = process.exchange(request)
    try:
        assert answer.open(sealed)["out"].shape == (1, 8)
    except RequestError as error:
        assert re.search(r"\(request\): M\d", str(error))


def test_a_key_that_does_not_open_ends_the_enclave() -> None:
    for sealed in (bytes(80), bytes(79), b""):
        with EnclaveProcess(made.MODEL) as process:
            with pytest.raises(KeyFileError, match="sealed key"):
                process.give_key(sealed)
            with pytest.raises(EnclaveError, match="ended"):
                process.claims(NONCE)
    with EnclaveProcess(made.MODEL) as process:
        claims = process.claims(NONCE)
        with pytest.raises(KeyFileError):
            process.give_key(seal_key(claims.public_key, bytes(32), KEY))


def test_before_the_key_there_is_evidence_alone() -> None:
    with EnclaveProcess(made.MODEL) as process:
        claims = process.claims(NONCE)
        assert claims.tee == "simulation" and claims.quote is None
        assert claims.model_digest == DIGEST
        request, answer = RequestSealer(claims.public_key, DIGEST).seal_describe()
        with pytest.raises(RequestError, match="before the model's key"):
            process.exchange(request)
        for size in (15, 65):
            with pytest.raises(RequestError, match="nonce"):
                process.claims(bytes(size))
        ready = process.give_key(seal_key(claims.public_key, DIGEST, KEY))
        assert ready.thread_count == 1
        assert answer.open(process.exchange(request))[0][0].name == "in"
    with EnclaveProcess(made.MODEL) as process:
        assert process.claims(NONCE).public_key != claims.public_key


def test_arguments_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="32 bytes"):
        seal_key(bytes.fromhex(VECTORS["public_key"]), DIGEST, b"short")
    with pytest.raises(EnclaveError, match="public key"):
        seal_key(b"short", DIGEST, KEY)
    sealer = RequestSealer(bytes.fromhex(VECTORS["public_key"]), DIGEST)
    with pytest.raises(RequestError, match="float64"):
        sealer.seal_predict({"in": np.zeros((1, 8))})
