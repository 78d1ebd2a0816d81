"""The client of key release: how a host gets its enclave a key that only the enclave can open."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx2

from vessels.attestation import Evidence
from vessels.attestation.text import printable
from vessels.errors import AttestationError, KeyReleaseError, UsageError
from vessels.keys.messages import (
    EVIDENCE_TYPE,
    JSON_TYPE,
    MAX_ANSWER_SIZE,
    MAX_MESSAGE_SIZE,
    PREFIX,
    Auth,
    Challenge,
    Code,
    ErrorAnswer,
    Refusal,
    authorization,
)
from vessels.seal import KEY_SIZE
from vessels.sealed_messages import PUBLIC_SIZE, TAG_SIZE

PATIENCE = 60.0
TIMEOUT = 10.0
ATTEST_TIMEOUT = 45.0
"""The service may ask for collateral meanwhile."""

SEALED_KEY_SIZE = PUBLIC_SIZE + KEY_SIZE + TAG_SIZE

_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 5.0
_PASSING = frozenset(code.text for code in Code if code.passing)

_log = logging.getLogger("vessels.keys")


def fetch_key(
    url: str,
    evidence_for_nonce: Callable[[bytes], Evidence],
    model_digest: bytes,
    *,
    patience: float = PATIENCE,
    timeout: float = TIMEOUT,
    attest_timeout: float = ATTEST_TIMEOUT,
) -> bytes:
    """The sealed key of the build with ``model_digest``, from the key service at ``url``.

    ``evidence_for_nonce`` is asked for new evidence at each try; what it raises is raised. Blocks;
    in a thread without an event loop. What may pass is tried again until ``patience`` seconds
    have gone, with pauses that grow; each answer is waited for ``timeout`` seconds.

    Raises :class:`AttestationError` when the service refused the evidence, and
    :class:`KeyReleaseError` when it cannot be reached or gives no key: then ``passing`` says
    whether to try again later. :class:`UsageError` for a wrong URL.
    """
    base = service_url(url)
    deadline = time.monotonic() + patience
    pause = _FIRST_PAUSE
    warned = False
    while True:
        service = _Service(base, timeout, attest_timeout)
        try:
            return asyncio.run(service.exchange(evidence_for_nonce, model_digest))
        except KeyReleaseError as error:
            # Hosts that start together shall not ask together.
            wait = pause * random.uniform(0.5, 1.0)
            if not error.passing or time.monotonic() + wait >= deadline:
                raise
            if not warned:
                _log.warning("%s Trying again for %.0f seconds.", error, patience)
                warned = True
        time.sleep(wait)
        pause = min(2 * pause, _LONGEST_PAUSE)


def service_url(url: str) -> str:
    """``url`` without a slash at its end. Raises :class:`UsageError` for one of no key service."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UsageError(f"{url!r} is no URL of a key service; write one like https://owner:8443.")
    return url.rstrip("/")


class _Service:
    """A key service, for one exchange."""

    def __init__(self, url: str, timeout: float, attest_timeout: float) -> None:
        self._url = url
        self._timeout = timeout
        self._attest_timeout = attest_timeout

    async def exchange(
        self, evidence_for_nonce: Callable[[bytes], Evidence], model_digest: bytes
    ) -> bytes:
        # Limits of a whole answer are set below; redirects are not followed.
        async with httpx2.AsyncClient(timeout=None) as client:
            challenge = self._challenge(
                await self._ask(
                    client,
                    "POST",
                    "auth",
                    Auth(model_digest).encoded(),
                    {"Content-Type": JSON_TYPE},
                )
            )
            evidence = await asyncio.to_thread(evidence_for_nonce, challenge.nonce)
            session = {"Authorization": authorization(challenge.session)}
            await self._ask(
                client,
                "POST",
                "attest",
                evidence.encoded(),
                {**session, "Content-Type": EVIDENCE_TYPE},
                timeout=self._attest_timeout,
            )
            sealed = await self._ask(client, "GET", f"resource/{model_digest.hex()}", None, session)
        if len(sealed) != SEALED_KEY_SIZE:
            raise self._nonsense(f"a sealed key of {len(sealed)} bytes")
        return sealed

    def _challenge(self, body: bytes) -> Challenge:
        try:
            return Challenge.decode(body)
        except Refusal as refusal:
            raise self._nonsense(str(refusal)) from refusal

    async def _ask(
        self,
        client: httpx2.AsyncClient,
        method: str,
        path: str,
        content: bytes | None,
        headers: dict[str, str],
        *,
        timeout: float | None = None,
    ) -> bytes:
        """The body of a good answer, which is whole and in time."""
        try:
            async with (
                asyncio.timeout(timeout or self._timeout),
                client.stream(
                    method, f"{self._url}{PREFIX}/{path}", content=content, headers=headers
                ) as response,
            ):
                body = bytearray()
                async for part in response.aiter_raw():
                    body += part
                    if len(body) > MAX_ANSWER_SIZE:
                        raise self._nonsense("an answer without end")
        except TimeoutError:
            raise self._out_of_reach("it did not answer in time") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            why = printable(error) or type(error).__name__
            raise self._out_of_reach(why) from error
        if response.status_code in (200, 204):
            return bytes(body)
        raise self._refusal(response.status_code, bytes(body))

    def _refusal(self, status: int, body: bytes) -> AttestationError | KeyReleaseError:
        answer = ErrorAnswer.decode(body)
        if answer is None:
            # Not of a key service: a proxy before it, perhaps.
            if status in (429, 502, 503, 504):
                return self._out_of_reach(f"HTTP {status}")
            return self._nonsense(f"HTTP {status}")
        message = printable(answer.message, MAX_MESSAGE_SIZE)
        if answer.code == Code.EVIDENCE.text:
            return AttestationError(f"the key service {self._url} refused the evidence: {message}")
        return KeyReleaseError(
            f"the key service {self._url} gave no key ({answer.code}): {message}",
            answer.code,
            passing=answer.code in _PASSING,
        )

    def _out_of_reach(self, why: str) -> KeyReleaseError:
        return KeyReleaseError(
            f"the key service {self._url} is out of reach: {why}.", "unreachable", passing=True
        )

    def _nonsense(self, what: str) -> KeyReleaseError:
        return KeyReleaseError(
            f"{self._url} does not answer as a key service does: {what}.", "nonsense"
        )
