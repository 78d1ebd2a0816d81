"""What a host reads of a request before anything else is done with it.

Each raises :class:`ServeError` for what is not as ``docs/serving.md`` says.
"""

from __future__ import annotations

import re
from typing import Final

from starlette.requests import Request

from vessels.attestation.evidence import NONCE_SIZE
from vessels.listening import TooLarge, TooSlow, read_body
from vessels.predict_headers import DEADLINE, ENVIRONMENT, IDENTITY_SIZE, MAX_DEADLINE_MS
from vessels.serve.errors import Code, ServeError
from vessels.serve.limits import Limits

SEALED_TYPE: Final = "application/octet-stream"
SMALLEST_REQUEST: Final = 32 + 16
"""An encapsulated key and a tag."""

_IDENTITY = re.compile(rf"[0-9a-fA-F]{{{2 * IDENTITY_SIZE}}}")
_DEADLINE = re.compile(r"[0-9]{1,7}")
_NONCE = re.compile(rf"[0-9a-fA-F]{{{2 * NONCE_SIZE}}}")


def stated_nonce(request: Request) -> bytes:
    """The nonce that it asks evidence for."""
    nonces = request.query_params.getlist("nonce")
    if len(nonces) != 1 or not _NONCE.fullmatch(nonces[0]):
        raise ServeError(
            Code.MALFORMED, f"nonce must be given once, as {2 * NONCE_SIZE} hexadecimal digits."
        )
    return bytes.fromhex(nonces[0])


def named_environment(request: Request) -> str | None:
    """The environment that it is sealed to, in lower case, if it names one."""
    text = request.headers.get(ENVIRONMENT)
    if text is None:
        return None
    if not _IDENTITY.fullmatch(text):
        raise ServeError(
            Code.MALFORMED, f"{ENVIRONMENT} has {2 * IDENTITY_SIZE} hexadecimal digits."
        )
    return text.lower()


def stated_seconds(request: Request) -> float | None:
    """Seconds from its arrival in which its answer is of use, if it states any."""
    text = request.headers.get(DEADLINE)
    if text is None:
        return None
    if not _DEADLINE.fullmatch(text) or not 1 <= int(text) <= MAX_DEADLINE_MS:
        raise ServeError(
            Code.MALFORMED, f"{DEADLINE} is a whole number from 1 to {MAX_DEADLINE_MS}."
        )
    return int(text) / 1000


def check_sealed(request: Request) -> None:
    """Its body must be of the type that a sealed request has."""
    media_type = request.headers.get("content-type", SEALED_TYPE)
    if media_type.partition(";")[0].strip().lower() != SEALED_TYPE:
        raise ServeError(Code.MEDIA_TYPE, f"a sealed request is {SEALED_TYPE}.")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ServeError(Code.MEDIA_TYPE, "a sealed request has no content encoding.")


async def sealed_body(request: Request, most: int, limits: Limits) -> bytes:
    """The whole body, which may have ``most`` bytes and takes the time that ``limits`` allow.

    Raises starlette's ``ClientDisconnect`` when the client is gone.
    """
    announced = request.headers.get("content-length", "")
    size = min(int(announced), most) if announced.isdecimal() else most
    try:
        sealed = await read_body(request, most, limits.seconds_for(size))
    except TooLarge:
        raise ServeError(
            Code.TOO_LARGE, f"a request of this model has at most {most} bytes."
        ) from None
    except TooSlow:
        raise ServeError(Code.TOO_SLOW, "the body did not arrive in time.") from None
    if len(sealed) < SMALLEST_REQUEST:
        raise ServeError(Code.MALFORMED, "this body is too short to be a sealed request.")
    return sealed
