"""The vectors of key release are what the implementation does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from pyhpke import OpenError

from tests.make_key_vectors import FILE, vectors
from tests.test_keys_release import opened
from vessels.keys.messages import Auth, Challenge, Code, ErrorAnswer, Refusal, session_of

VECTORS: dict[str, list[dict[str, Any]]] = json.loads(FILE.read_text())


def each(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vector", VECTORS[kind], ids=lambda v: v["name"])


def code_of(parse: Any, text: Any) -> str:
    try:
        parse(text)
    except Refusal as refusal:
        return refusal.code.text
    return ""


def test_the_file_is_what_is_made() -> None:
    assert vectors() == VECTORS


@each("auth")
def test_auth(vector: dict[str, Any]) -> None:
    assert code_of(Auth.decode, vector["text"].encode()) == vector["code"]


@each("challenge")
def test_challenge(vector: dict[str, Any]) -> None:
    assert code_of(Challenge.decode, vector["text"].encode()) == vector["code"]


@each("session")
def test_session(vector: dict[str, Any]) -> None:
    assert code_of(session_of, vector["text"] or None) == vector["code"]


@each("error")
def test_error(vector: dict[str, Any]) -> None:
    answer = ErrorAnswer.decode(vector["body"].encode())
    assert answer == ErrorAnswer(vector["name"], "why")
    [code] = [c for c in Code if c.text == vector["name"]]
    assert (code.status, code.passing) == (vector["status"], vector["again"])


@each("sealed_key")
def test_sealed_key(vector: dict[str, Any]) -> None:
    private_key = X25519PrivateKey.from_private_bytes(bytes.fromhex(vector["private_key"]))
    sealed, digest = (bytes.fromhex(vector[k]) for k in ("sealed", "model_digest"))
    if vector["key"] is not None:
        assert opened(sealed, private_key, digest).hex() == vector["key"]
        return
    with pytest.raises((OpenError, ValueError)):
        opened(sealed, private_key, digest)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_refusal(body: bytes) -> None:
    for parse in (Auth.decode, Challenge.decode):
        assert code_of(parse, body) in ("", "malformed", "version")
    ErrorAnswer.decode(body)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["version", "model_digest", "session", "nonce", "expires_in", "error"]),
        _JSON,
    )
)
def test_any_json_is_a_message_or_a_refusal(fields: dict[str, Any]) -> None:
    body = json.dumps(fields).encode()
    for parse in (Auth.decode, Challenge.decode):
        assert code_of(parse, body) in ("", "malformed", "version", "size")
    ErrorAnswer.decode(body)


@given(st.binary(min_size=32, max_size=32))
def test_messages_come_back(digest: bytes) -> None:
    assert Auth.decode(Auth(digest).encoded()) == Auth(digest)
    challenge = Challenge(digest, digest[::-1], 1)
    assert Challenge.decode(challenge.encoded()) == challenge
