"""The headers of a predict request, as clients write and hosts read them: ``docs/serving.md``."""

from __future__ import annotations

import hashlib
from typing import Final

ENVIRONMENT: Final = "vessels-environment"
"""Names the environment that a request is sealed to: :func:`identity_of`."""

DEADLINE: Final = "vessels-deadline-ms"
"""Milliseconds from a request's arrival after which its answer is of no use."""

MAX_DEADLINE_MS: Final = 3_600_000

IDENTITY_SIZE: Final = 8
"""Bytes of a public key's digest that requests name an environment by."""


def identity_of(public_key: bytes) -> str:
    """The name of the environment that has ``public_key``, as requests give it."""
    return hashlib.sha256(public_key).digest()[:IDENTITY_SIZE].hex()
