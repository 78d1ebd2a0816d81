"""A running key service with a simulated platform, for tests of key release."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from starlette.applications import Starlette

from tests.attestation import ENCLAVE, policy
from vessels.attestation import Claims, Evidence, Policy
from vessels.attestation.simulation import Enclave, Platform, SimulationRoot
from vessels.listening import Limits, bound_socket, run_loop, serve_until_signal, server, url_of

SUITE = bytes.fromhex("002000010002")
DIGEST = bytes(range(100, 132))
OTHER_DIGEST = bytes(range(1, 33))
KEY = bytes(range(50, 82))


@dataclass
class Attester:
    """A simulated enclave that opened the model with ``digest``."""

    platform: Platform
    digest: bytes = DIGEST
    enclave: Enclave = ENCLAVE
    suite: bytes = SUITE
    private_key: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)
    nonces: list[bytes] = field(default_factory=list)

    @property
    def public_key(self) -> bytes:
        return self.private_key.public_key().public_bytes_raw()

    def evidence(self, nonce: bytes) -> Evidence:
        self.nonces.append(nonce)
        claims = Claims(self.suite, self.public_key, self.digest, nonce)
        return self.platform.evidence(claims, self.enclave)


def policy_of(root: SimulationRoot | None, **parts: Any) -> Policy:
    """A policy that accepts :data:`ENCLAVE` with either model, simulated where there is a root."""
    models = {"m": [DIGEST.hex()], "n": [OTHER_DIGEST.hex()]}
    rules = {"mr_enclave": [ENCLAVE.mr_enclave.hex()]}
    return policy(**({"models": models, "sgx": rules, "root": root} | parts))


@contextlib.contextmanager
def listening(app: Starlette, limits: Limits | None = None) -> Iterator[str]:
    """``app`` on a port of its own, in a thread; gives its URL."""
    bound = bound_socket("127.0.0.1", 0)
    ends: list[Callable[[], None]] = []
    made = server(app, limits or Limits(), grace_seconds=1)
    thread = threading.Thread(
        target=lambda: run_loop(serve_until_signal(made, bound, stop=ends.append))
    )
    thread.start()
    try:
        yield url_of(bound)
    finally:
        made.should_exit = True
        thread.join()
        bound.close()
