"""The messages of key release, as ``docs/key-release.md`` specifies them.

Both sides parse with what is here: a message has exactly the fields it must have, or is refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from vessels.attestation.evidence import DIGEST_SIZE, NONCE_SIZE

VERSION = 1
PREFIX = "/vessels/v1/keys"
SESSION_SIZE = 32
MAX_AUTH_SIZE = 1024
MAX_ANSWER_SIZE = 1 << 16
MAX_LIFETIME = 3600
MAX_MESSAGE_SIZE = 2000
"""Characters of a refusal's message that are shown."""

JSON_TYPE = "application/json"
EVIDENCE_TYPE = "application/cbor"
KEY_TYPE = "application/octet-stream"

_SCHEME = "Bearer "


class Code(Enum):
    """Why a service refuses: its code in the answer, the HTTP status, whether to try again."""

    MALFORMED = ("malformed", 400, False)
    VERSION = ("version", 400, False)
    SESSION = ("session", 401, True)
    EVIDENCE = ("evidence", 403, False)
    REVOKED = ("revoked", 403, False)
    UNKNOWN = ("unknown", 404, False)
    PATH = ("path", 404, False)
    METHOD = ("method", 405, False)
    SLOW = ("slow", 408, True)
    SIZE = ("size", 413, False)
    DEFECT = ("defect", 500, True)
    COLLATERAL = ("collateral", 503, True)
    UNAVAILABLE = ("unavailable", 503, True)
    BUSY = ("busy", 503, True)

    def __init__(self, text: str, status: int, passing: bool) -> None:
        self.text = text
        self.status = status
        self.passing = passing


class Refusal(Exception):
    """What a service answers instead of what was asked for."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code

    def encoded(self) -> bytes:
        """The answer's body."""
        return _json({"error": {"code": self.code.text, "message": str(self)}})


@dataclass(frozen=True)
class Auth:
    """The first message: the model whose key is wanted."""

    model_digest: bytes

    def encoded(self) -> bytes:
        """The message's body."""
        return _json({"version": VERSION, "model_digest": self.model_digest.hex()})

    @classmethod
    def decode(cls, body: bytes) -> Auth:
        """Raises :class:`Refusal`."""
        fields = _object(body, MAX_AUTH_SIZE)
        version = fields.get("version")
        # A later version may have other fields.
        if type(version) is int and version != VERSION:
            raise Refusal(Code.VERSION, f"this service speaks version {VERSION} only.")
        if set(fields) != {"version", "model_digest"} or type(version) is not int:
            raise malformed("it must have the fields version and model_digest")
        return cls(_hex(fields["model_digest"], DIGEST_SIZE, "model_digest"))


@dataclass(frozen=True)
class Challenge:
    """The answer: a session, the nonce to attest with, and for how many seconds both hold."""

    session: bytes
    nonce: bytes
    expires_in: int

    def encoded(self) -> bytes:
        """The answer's body."""
        return _json(
            {
                "session": self.session.hex(),
                "nonce": self.nonce.hex(),
                "expires_in": self.expires_in,
            }
        )

    @classmethod
    def decode(cls, body: bytes) -> Challenge:
        """Raises :class:`Refusal`."""
        fields = _object(body, MAX_ANSWER_SIZE)
        if set(fields) != {"session", "nonce", "expires_in"}:
            raise malformed("it must have the fields session, nonce and expires_in")
        expires = fields["expires_in"]
        if type(expires) is not int or not 1 <= expires <= MAX_LIFETIME:
            raise malformed(f"expires_in must be from 1 to {MAX_LIFETIME}")
        return cls(
            _hex(fields["session"], SESSION_SIZE, "session"),
            _hex(fields["nonce"], NONCE_SIZE, "nonce"),
            expires,
        )


@dataclass(frozen=True)
class ErrorAnswer:
    """What a client reads of a refusal; nothing where the answer is of another form."""

    code: str
    message: str

    @classmethod
    def decode(cls, body: bytes) -> ErrorAnswer | None:
        """The refusal in ``body``, if it is one."""
        try:
            error = _object(body, MAX_ANSWER_SIZE)["error"]
            code, message = error["code"], error["message"]
        except (Refusal, KeyError, TypeError):
            return None
        if type(code) is not str or type(message) is not str:
            return None
        return cls(code, message) if re.fullmatch("[a-z]{1,20}", code) else None


def authorization(session: bytes) -> str:
    """The header ``Authorization`` of requests in ``session``."""
    return _SCHEME + session.hex()


def session_of(header: str | None) -> bytes:
    """The session that a header ``Authorization`` names. Raises :class:`Refusal`."""
    if header is None or not header.startswith(_SCHEME):
        raise Refusal(Code.SESSION, "the header Authorization: Bearer SESSION is missing.")
    return _hex(header.removeprefix(_SCHEME), SESSION_SIZE, "session")


def digest_of(text: str) -> bytes:
    """The model digest in a resource's path. Raises :class:`Refusal`."""
    return _hex(text, DIGEST_SIZE, "model digest")


def malformed(why: str) -> Refusal:
    """The refusal of a message that is not of its form."""
    return Refusal(Code.MALFORMED, f"the message is malformed: {why}.")


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _object(body: bytes, most: int) -> dict[str, Any]:
    if len(body) > most:
        raise Refusal(Code.SIZE, f"the message has at most {most} bytes.")
    try:
        found = json.loads(body.decode(), object_pairs_hook=_without_twins)
    except (ValueError, RecursionError):
        raise malformed("it is no JSON, or has a field twice") from None
    if type(found) is not dict:
        raise malformed("it is no JSON object")
    return found


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field twice")
    return fields


def _hex(value: Any, size: int, name: str) -> bytes:
    if type(value) is not str or not re.fullmatch(f"[0-9a-f]{{{2 * size}}}", value):
        raise malformed(f"{name} must be {2 * size} lower-case hexadecimal digits")
    return bytes.fromhex(value)
