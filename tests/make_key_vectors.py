"""Writes ``tests/vectors/key-release.json``, the vectors of ``docs/key-release.md``.

``python -m tests.make_key_vectors`` writes it anew. ``auth`` and ``challenge`` have bodies with the
code by which they are refused, or none; ``error`` has answers with what a client reads of them;
``session`` has headers; ``sealed_key`` has an enclave's private key and what it opens, or
refuses.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pyhpke import KEMKey, KEMKeyPair

from tests.keys import DIGEST, KEY, OTHER_DIGEST
from vessels.keys.messages import MAX_AUTH_SIZE, Auth, Challenge, Code, Refusal, authorization
from vessels.sealed_messages import seal_key

FILE = Path(__file__).parent / "vectors" / "key-release.json"

SESSION = bytes(range(32))
NONCE = bytes(range(200, 232))


def vectors() -> dict[str, list[dict[str, Any]]]:
    """All vectors, as the file has them."""
    digest = DIGEST.hex()
    auth = {
        "good": ("", Auth(DIGEST).encoded().decode()),
        "spaces": ("", f'{{ "model_digest": "{digest}",\n"version": 1 }}'),
        "empty": ("malformed", ""),
        "no-json": ("malformed", "version=1"),
        "array": ("malformed", f'[1, "{digest}"]'),
        "version-missing": ("malformed", f'{{"model_digest":"{digest}"}}'),
        "version-text": ("malformed", f'{{"version":"1","model_digest":"{digest}"}}'),
        "version-true": ("malformed", f'{{"version":true,"model_digest":"{digest}"}}'),
        "version-later": ("version", f'{{"version":2,"model_digest":"{digest}"}}'),
        "version-later-with-other-fields": ("version", '{"version":2,"models":[]}'),
        "digest-missing": ("malformed", '{"version":1}'),
        "digest-short": ("malformed", f'{{"version":1,"model_digest":"{digest[2:]}"}}'),
        "digest-upper-case": ("malformed", f'{{"version":1,"model_digest":"{digest.upper()}"}}'),
        "digest-null": ("malformed", '{"version":1,"model_digest":null}'),
        "field-more": ("malformed", f'{{"version":1,"model_digest":"{digest}","tee":"sgx"}}'),
        "field-twice": ("malformed", f'{{"version":1,"version":1,"model_digest":"{digest}"}}'),
        "trailing": ("malformed", Auth(DIGEST).encoded().decode() + "{}"),
        "deep": ("malformed", "[" * MAX_AUTH_SIZE),
        "large": ("size", Auth(DIGEST).encoded().decode().ljust(MAX_AUTH_SIZE + 1)),
    }
    s, n = SESSION.hex(), NONCE.hex()
    challenge = {
        "good": ("", Challenge(SESSION, NONCE, 120).encoded().decode()),
        "session-short": (
            "malformed", f'{{"session":"{s[2:]}","nonce":"{n}","expires_in":120}}',
        ),
        "nonce-short": ("malformed", f'{{"session":"{s}","nonce":"{n[2:]}","expires_in":120}}'),
        "nonce-missing": ("malformed", f'{{"session":"{s}","expires_in":120}}'),
        "expires-zero": ("malformed", f'{{"session":"{s}","nonce":"{n}","expires_in":0}}'),
        "expires-late": ("malformed", f'{{"session":"{s}","nonce":"{n}","expires_in":3601}}'),
        "expires-fraction": ("malformed", f'{{"session":"{s}","nonce":"{n}","expires_in":1.5}}'),
        "field-more": (
            "malformed", f'{{"session":"{s}","nonce":"{n}","expires_in":120,"extra-params":{{}}}}',
        ),
    }  # fmt: skip
    session = {
        "good": ("", authorization(SESSION)),
        "scheme": ("session", f"Basic {s}"),
        "scheme-lower-case": ("session", f"bearer {s}"),
        "none": ("session", ""),
        "short": ("malformed", f"Bearer {s[2:]}"),
        "two-spaces": ("malformed", f"Bearer  {s}"),
        "upper-case": ("malformed", f"Bearer {s.upper()}"),
    }
    return {
        "auth": _refused(auth),
        "challenge": _refused(challenge),
        "session": _refused(session),
        "error": [
            {"name": code.text, "status": code.status, "again": code.passing,
             "body": Refusal(code, "why").encoded().decode()}
            for code in Code
        ],
        "sealed_key": _sealed(),
    }  # fmt: skip


def _refused(texts: dict[str, tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"name": n, "code": code, "text": text} for n, (code, text) in texts.items()]


def _pair(secret: X25519PrivateKey) -> KEMKeyPair:
    return KEMKeyPair(
        KEMKey.from_pyca_cryptography_key(secret),
        KEMKey.from_pyca_cryptography_key(secret.public_key()),
    )


def _sealed() -> list[dict[str, Any]]:
    private_key = X25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
    public_key = private_key.public_key().public_bytes_raw()
    ephemeral = X25519PrivateKey.from_private_bytes(bytes(range(3, 35)))
    good = seal_key(public_key, DIGEST, KEY, ephemeral=_pair(ephemeral))
    flipped = bytearray(good)
    flipped[40] ^= 1
    other = X25519PrivateKey.from_private_bytes(bytes(range(2, 34)))
    cases = {
        "good": (private_key, DIGEST, good, KEY),
        "another-model": (private_key, OTHER_DIGEST, good, None),
        "another-enclave": (other, DIGEST, good, None),
        "bit": (private_key, DIGEST, bytes(flipped), None),
        "truncated": (private_key, DIGEST, good[:-1], None),
        "enc-zero": (private_key, DIGEST, bytes(32) + good[32:], None),
    }
    return [
        {
            "name": name, "private_key": secret.private_bytes_raw().hex(),
            "model_digest": digest.hex(), "sealed": sealed.hex(),
            "key": None if key is None else key.hex(),
        }
        for name, (secret, digest, sealed, key) in cases.items()
    ]  # fmt: skip


if __name__ == "__main__":
    FILE.write_text(json.dumps(vectors(), indent=2) + "\n")
