"""Writes ``tests/vectors/messages.json``, the vectors of ``docs/messages.md``.

``python -m tests.make_message_vectors`` writes it anew. All are of the model ``good.vessel`` and of
fixed private keys, which no real enclave or client may have. Contents are written out here by the
specification, not by the code that is tested.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from pyhpke import AEADId, CipherSuite, KDFId, KEMId, KEMKey, KEMKeyPair

from tests import make_vectors
from vessels.attestation import model_digest

FILE = Path(__file__).parent / "vectors" / "messages.json"
MODEL = make_vectors.FOLDER / "good.vessel"
RECEIVER = X25519PrivateKey.from_private_bytes(bytes(range(32)))
EPHEMERAL = X25519PrivateKey.from_private_bytes(bytes(range(32, 64)))
NONCE = bytes(range(64, 96))

INPUTS = [["in", 0, [1, 8]]]
OUTPUTS = [["out", 0, [1, 8]]]
INPUT = np.arange(8, dtype="<f4").tobytes()
OUTPUT = np.array([0.5, -1, 2, np.inf, 0, 1, 2, 3], "<f4").tobytes()

_CIPHERS = CipherSuite.new(KEMId.DHKEM_X25519_HKDF_SHA256, KDFId.HKDF_SHA256, AEADId.AES256_GCM)


def pair(key: X25519PrivateKey) -> KEMKeyPair:
    """A key and its public key."""
    made = KEMKey.from_pyca_cryptography_key
    return KEMKeyPair(made(key), made(key.public_key()))


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 64)


def content(kind: int, header: Any, *tensors: bytes, version: int = 1, reserved: int = 0) -> bytes:
    """A message's content; ``header`` is encoded unless it is bytes."""
    encoded = header if isinstance(header, bytes) else cbor2.dumps(header, canonical=True)
    front = struct.pack("<BBHI", version, kind, reserved, len(encoded)) + encoded
    return b"".join(padded(part) for part in (front, *tensors))


def flipped(data: bytes, at: int) -> bytes:
    """With one bit of the byte ``at`` changed."""
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def requests() -> dict[str, tuple[str, bytes]]:
    """Rule and content of requests by name; no rule: it is right."""
    good = content(1, INPUTS, INPUT)
    describe = content(2, [])
    return {
        "predict": ("", good),
        "describe": ("", describe),
        "empty": ("M3", b""),
        "head-cut": ("M3", good[:7]),
        "header-cut": ("M3", struct.pack("<BBHI", 1, 1, 0, 100) + bytes(56)),
        "tensor-cut": ("M3", good[:-64]),
        "trailing": ("M3", good + bytes(64)),
        "describe-trailing": ("M3", describe + bytes(64)),
        "request-version": ("M4", content(1, INPUTS, INPUT, version=2)),
        "request-kind": ("M5", content(3, INPUTS, INPUT)),
        "request-reserved": ("M6", content(1, INPUTS, INPUT, reserved=256)),
        "header-not-cbor": ("M7", content(1, b"\xff", INPUT)),
        "header-no-list": ("M7", content(1, {"in": 0}, INPUT)),
        "header-not-canonical": (
            "M7", content(1, b"\x9f" + cbor2.dumps(INPUTS, canonical=True)[1:] + b"\xff", INPUT)
        ),
        "describe-header": ("M7", content(2, [0])),
        "header-padding": ("M8", flipped(good, 63)),
        "tensor-padding": ("M8", flipped(good, -1)),
        "describe-padding": ("M8", flipped(describe, -1)),
        "name": ("M9", content(1, [["im", 0, [1, 8]]], INPUT)),
        "dtype": ("M9", content(1, [["in", 1, [1, 8]]], INPUT)),
        "shape": ("M9", content(1, [["in", 0, [8, 1]]], INPUT)),
        "input-more": ("M9", content(1, [*INPUTS, *INPUTS], INPUT, INPUT)),
        "input-missing": ("M9", content(1, [])),
    }  # fmt: skip


def responses() -> dict[str, tuple[str, str, bytes]]:
    """Rule, what was asked for, and content of responses by name."""
    good = content(1, OUTPUTS, OUTPUT)
    description = content(2, [INPUTS, OUTPUTS])
    error = content(3, ["request", "a reason"])
    return {
        "outputs": ("", "predict", good),
        "description": ("", "describe", description),
        "error": ("", "predict", error),
        "response-empty": ("M3", "predict", b""),
        "response-cut": ("M3", "predict", good[:-64]),
        "response-trailing": ("M3", "predict", good + bytes(64)),
        "response-version": ("M4", "predict", content(1, OUTPUTS, OUTPUT, version=0)),
        "response-kind": ("M5", "predict", content(9, OUTPUTS, OUTPUT)),
        "response-reserved": ("M6", "predict", content(1, OUTPUTS, OUTPUT, reserved=1)),
        "response-not-canonical": (
            "M7", "predict",
            content(1, b"\x9f" + cbor2.dumps(OUTPUTS, canonical=True)[1:] + b"\xff", OUTPUT),
        ),
        "response-dtype": ("M7", "predict", content(1, [["out", 99, [1, 8]]], OUTPUT)),
        "response-same-names": ("M7", "predict", content(1, OUTPUTS * 2, OUTPUT, OUTPUT)),
        "response-error-form": ("M7", "predict", content(3, ["request"])),
        "response-padding": ("M8", "predict", flipped(good, -1)),
        "response-header-padding": ("M8", "predict", flipped(good, 63)),
        "another-answer": ("M12", "predict", description),
        "another-answer-too": ("M12", "describe", good),
    }  # fmt: skip


def answer(secret: bytes, enc: bytes, plain: bytes) -> bytes:
    """A sealed response with the fixed nonce."""
    extract = HMAC(enc + NONCE, SHA256())
    extract.update(secret)
    prk = extract.finalize()
    key, iv = (HKDFExpand(SHA256(), size, label).derive(prk) for size, label in
               ((32, b"key"), (12, b"nonce")))  # fmt: skip
    return NONCE + AESGCM(key).encrypt(iv, plain, None)


def vectors() -> dict[str, Any]:
    """All vectors, as the file has them."""
    digest = model_digest(MODEL)
    receiver, ephemeral = pair(RECEIVER), pair(EPHEMERAL)

    def sender(info: bytes) -> tuple[bytes, Any]:
        return _CIPHERS.create_sender_context(receiver.public_key, info, eks=ephemeral)

    enc, context = sender(b"vessels key v1")
    sealed_key = enc + context.seal(make_vectors.KEY, digest)
    sealed = {}
    for name, (rule, plain) in requests().items():
        enc, context = sender(b"vessels request v1" + digest)
        secret = context.export(b"vessels response v1", 32)
        sealed[name] = {"rule": rule, "content": plain.hex(),
                        "sealed": (enc + context.seal(plain)).hex()}  # fmt: skip
    answers = {
        name: {
            "rule": rule, "asked": asked, "content": plain.hex(),
            "sealed": answer(secret, enc, plain).hex(),
        }
        for name, (rule, asked, plain) in responses().items()
    }  # fmt: skip
    good = bytes.fromhex(answers["outputs"]["sealed"])
    for name, altered in {
        "response-bit": flipped(good, 40),
        "response-nonce-bit": flipped(good, 0),
        "response-tag-bit": flipped(good, -1),
        "response-short": good[:47],
        "another-exchange": answer(bytes(32), enc, responses()["outputs"][2]),
    }.items():
        answers[name] = {"rule": "M11", "asked": "predict", "sealed": altered.hex()}
    return {
        "private_key": RECEIVER.private_bytes_raw().hex(),
        "public_key": RECEIVER.public_key().public_bytes_raw().hex(),
        "ephemeral_private_key": EPHEMERAL.private_bytes_raw().hex(),
        "model_digest": digest.hex(),
        "model_key": make_vectors.KEY.hex(),
        "sealed_model_key": sealed_key.hex(),
        "response_secret": secret.hex(),
        "requests": sealed,
        "responses": answers,
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(vectors(), indent=2) + "\n")
