"""What the server refuses, as clients see it: a code, an HTTP status and a message.

``docs/serving.md`` lists the codes. A message never holds anything of a request.
"""

from __future__ import annotations

import math
from enum import StrEnum


class Code(StrEnum):
    """Why a request was not answered; each has one HTTP status."""

    MALFORMED = "malformed"
    """It is no request that could be one: its HTTP, its nonce, a body too short to be sealed."""
    NOT_FOUND = "not_found"
    """There is nothing at this address."""
    UNKNOWN_MODEL = "unknown_model"
    """No model of this name is served."""
    METHOD = "method"
    """The address takes another method."""
    TOO_SLOW = "too_slow"
    """The body did not arrive in time."""
    NOT_OPENED = "not_opened"
    """No enclave can open the request: altered, or sealed to one that is gone or going."""
    TOO_LARGE = "too_large"
    """The body is larger than any request of this model."""
    MEDIA_TYPE = "media_type"
    """The body is not of the type that a sealed request has."""
    INTERNAL = "internal"
    """A defect of the server."""
    MODEL_REFUSED = "model_refused"
    """The enclave refuses its own model: the sealed file was altered, cut or taken away."""
    NOT_READY = "not_ready"
    """The model's enclave cannot get its key at present, or ended before it could answer."""
    ENCLAVE_ENDED = "enclave_ended"
    """The enclave ended before it had answered; another is being started, with another key."""
    NO_EVIDENCE = "no_evidence"
    """The enclave gave none: it ended, or its platform signs nothing at present."""
    NO_ROOM = "no_room"
    """Other models have the trusted memory that an enclave of this one needs."""
    OVERLOADED = "overloaded"
    """Too many requests or connections wait already, or it would not be answered in time."""
    STOPPING = "stopping"
    """The server is being shut down."""
    TOO_LONG = "too_long"
    """The enclave took longer than is allowed, and was ended."""


STATUS = {
    Code.MALFORMED: 400,
    Code.NOT_FOUND: 404,
    Code.UNKNOWN_MODEL: 404,
    Code.METHOD: 405,
    Code.TOO_SLOW: 408,
    Code.TOO_LARGE: 413,
    Code.MEDIA_TYPE: 415,
    Code.NOT_OPENED: 421,
    Code.OVERLOADED: 429,
    Code.INTERNAL: 500,
    Code.MODEL_REFUSED: 500,
    Code.NOT_READY: 503,
    Code.ENCLAVE_ENDED: 503,
    Code.NO_EVIDENCE: 503,
    Code.NO_ROOM: 503,
    Code.STOPPING: 503,
    Code.TOO_LONG: 504,
}

RETRY_SECONDS = 1
"""What an answer with status 429 or 503 proposes to wait, if nothing better is known."""


class ServeError(Exception):
    """A request that ends with an error at the host; the enclave's own errors are sealed.

    ``retry_after`` are seconds that are worth waiting before the next attempt.
    """

    def __init__(self, code: Code, message: str, *, retry_after: float = RETRY_SECONDS) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after = retry_after

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUS[self.code]

    @property
    def headers(self) -> dict[str, str]:
        """What the answer needs beside its body."""
        headers = {}
        if self.status in (429, 503):
            # Whole seconds are all that HTTP has.
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        if self.code in (Code.TOO_SLOW, Code.STOPPING):
            headers["connection"] = "close"
        return headers

    def as_json(self) -> dict[str, object]:
        """The answer's body."""
        return {"error": {"code": str(self.code), "message": self.message}}
