"""A server of one simulated enclave in a test's own process, written from the specification alone.

It speaks the messages of ``docs/messages.md`` with ``pyhpke`` and the simulation's evidence, shares
no code with the client's sealing, and can misbehave as a host might.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import urllib.parse
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import cbor2
import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from pyhpke import AEADId, CipherSuite, KDFId, KEMId, KEMKey

from tests.attestation import ENCLAVE, policy
from tests.http_running import LocalServer, QuietHandler
from vessels.attestation import Claims, Policy
from vessels.attestation.simulation import Platform, SimulationRoot

SUITE = bytes.fromhex("002000010002")
DTYPES = [np.float32, np.int32, np.int64, np.uint8, np.bool_, np.int8]
"""By their codes."""

Array = np.ndarray[Any, Any]
Ports = list[tuple[str, type, tuple[int, ...]]]

INPUTS: Ports = [
    ("image", np.float32, (1, 3, 4)), ("ids", np.int64, (5,)), ("small", np.int8, (3,)),
    ("bytes", np.uint8, (2, 2)), ("flags", np.bool_, (4,)), ("counts", np.int32, (2,)),
]  # fmt: skip
OUTPUTS: Ports = [
    ("sum", np.float32, (1, 3)), ("ids2", np.int64, (5,)), ("small2", np.int8, (3,)),
    ("bytes2", np.uint8, (2, 2)), ("flags2", np.bool_, (4,)), ("counts2", np.int32, (2,)),
    ("scalar", np.float32, ()),
]  # fmt: skip

_CIPHERS = CipherSuite.new(KEMId.DHKEM_X25519_HKDF_SHA256, KDFId.HKDF_SHA256, AEADId.AES256_GCM)
_FRAME = struct.Struct("<BBHI")


def example_inputs() -> dict[str, Array]:
    """Inputs of the double's model, with the values that conversions get wrong."""
    rng = np.random.default_rng(3)
    return {
        "image": rng.standard_normal((1, 3, 4)).astype(np.float32),
        "ids": np.array([0, -1, 2**53 + 1, 2**63 - 1, -(2**63)], np.int64),
        "small": np.array([-128, 0, 127], np.int8),
        "bytes": np.array([[0, 255], [1, 2]], np.uint8),
        "flags": np.array([True, False, False, True]),
        "counts": np.array([2**31 - 1, -(2**31)], np.int32),
    }


def compute(inputs: dict[str, Array]) -> dict[str, Array]:
    """What the double's model computes."""
    return {
        "sum": inputs["image"].sum(axis=2, dtype=np.float32),
        "ids2": inputs["ids"][::-1].copy(),
        "small2": inputs["small"][::-1].copy(),
        "bytes2": inputs["bytes"].T.copy(),
        "flags2": ~inputs["flags"],
        "counts2": inputs["counts"][::-1].copy(),
        "scalar": inputs["image"].max(),
    }


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 64)


def encode(kind: int, header: Any, tensors: list[Array]) -> bytes:
    encoded = cbor2.dumps(header, canonical=True)
    head = padded(_FRAME.pack(1, kind, 0, len(encoded)) + encoded)
    return head + b"".join(padded(np.ascontiguousarray(t).tobytes()) for t in tensors)


def describe(ports: Ports) -> list[Any]:
    return [[name, DTYPES.index(dtype), list(shape)] for name, dtype, shape in ports]


class Enclave:
    """A key pair and the model behind it."""

    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        self._key = X25519PrivateKey.generate()
        self.public_key = self._key.public_key().public_bytes_raw()
        self.requests = 0
        self.model: Callable[[dict[str, Array]], dict[str, Array]] = compute

    def exchange(self, message: bytes) -> bytes | None:
        """The sealed answer to a sealed request; None where it does not open."""
        enc, sealed = message[:32], message[32:]
        try:
            context = _CIPHERS.create_recipient_context(
                enc, KEMKey.from_pyca_cryptography_key(self._key),
                b"vessels request v1" + self.digest,
            )  # fmt: skip
            plain = context.open(sealed)
        except Exception:
            return None
        self.requests += 1
        nonce = os.urandom(32)
        extract = HMAC(enc + nonce, hashes.SHA256())
        extract.update(context.export(b"vessels response v1", 32))
        pseudo_random = extract.finalize()
        key, iv = (
            HKDFExpand(hashes.SHA256(), size, label).derive(pseudo_random)
            for label, size in ((b"key", 32), (b"nonce", 12))
        )
        return nonce + AESGCM(key).encrypt(iv, self._answer(plain), b"")

    def _answer(self, plain: bytes) -> bytes:
        version, kind, reserved, size = _FRAME.unpack_from(plain)
        assert (version, reserved) == (1, 0)
        header = cbor2.loads(plain[_FRAME.size : _FRAME.size + size])
        if kind == 2:
            assert header == []
            return encode(2, [describe(INPUTS), describe(OUTPUTS)], [])
        assert kind == 1 and header == describe(INPUTS)
        offset = len(padded(plain[: _FRAME.size + size]))
        inputs: dict[str, Array] = {}
        for name, dtype, shape in INPUTS:
            count = int(np.prod(shape))
            inputs[name] = np.frombuffer(plain, dtype, count, offset).reshape(shape)
            offset += len(padded(inputs[name].tobytes()))
        assert offset == len(plain)
        try:
            outputs = self.model(inputs)
        except IndexError:
            return encode(3, ["index", "an index is out of bounds"], [])
        return encode(1, describe(OUTPUTS), [outputs[name] for name, _, _ in OUTPUTS])


class Host(LocalServer):
    """A host of model ``m``; everything it does wrong is switched on by a test."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.root = SimulationRoot.create(datetime.now(UTC))
        self.platform = Platform.create(self.root)
        self.digest = os.urandom(32)
        self.enclave = Enclave(self.digest)
        self.ready = True
        self.evidence_count = 0
        self.alter_evidence: Callable[[bytes], bytes] = bytes
        self.alter_answer: Callable[[bytes], bytes] = bytes
        self.instead: tuple[int, bytes] | None = None
        """What predict answers, whatever it is asked."""
        self.drops = 0
        """So many requests from now on are not answered: their connections are closed."""
        self.headers_seen: list[dict[str, str]] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that give up are part of the tests."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def restart(self, digest: bytes | None = None) -> None:
        """Another enclave, with another key."""
        self.enclave = Enclave(self.digest if digest is None else digest)

    def policy(self, *others: bytes) -> Policy:
        """One that accepts this host's model, and ``others``."""
        digests = [d.hex() for d in (self.digest, *others)]
        return policy(
            models={"m": digests}, sgx={"mr_enclave": [ENCLAVE.mr_enclave.hex()]}, root=self.root
        )


class _Handler(QuietHandler):
    server: Host
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        host = self.server
        if url.path == "/vessels/v1/models/m/evidence":
            nonce = bytes.fromhex(urllib.parse.parse_qs(url.query)["nonce"][0])
            host.evidence_count += 1
            claims = Claims(SUITE, host.enclave.public_key, host.enclave.digest, nonce)
            self.answer(200, host.alter_evidence(host.platform.evidence(claims, ENCLAVE).encoded()))
        elif url.path == "/v2/models/m/ready":
            self.answer(200 if host.ready else 503, b"")
        else:
            self._refuse(404, "unknown_model")

    def do_POST(self) -> None:
        host = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        host.headers_seen.append(dict(self.headers))
        if host.drops:
            host.drops -= 1
            self.close_connection = True
        elif self.path != "/vessels/v1/models/m/predict":
            self._refuse(404, "unknown_model")
        elif host.instead is not None:
            self.answer(*host.instead)
        elif (answer := host.enclave.exchange(body)) is None:
            self._refuse(421, "not_opened")
        else:
            self.answer(200, host.alter_answer(answer))

    def _refuse(self, status: int, code: str) -> None:
        self.answer(status, error_body(code))


def error_body(code: str, message: str = "what the host says") -> bytes:
    return json.dumps({"error": {"code": code, "message": message}}).encode()
