"""Key release: who gets a model's key, and how it is wrapped. No HTTP here.

Three steps, as ``docs/key-release.md`` specifies them: :meth:`KeyService.auth` gives a session
and a nonce for one build, :meth:`KeyService.attest` takes evidence for that nonce, once, and
:meth:`KeyService.resource` gives the key, sealed to the public key that the evidence proved.
Whatever is refused raises :class:`~vessels.keys.messages.Refusal`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from vessels.attestation import Evidence, VerifiedEvidence, Verifier, new_nonce
from vessels.attestation.text import printable
from vessels.errors import AttestationError, EnclaveError, KeyFileError
from vessels.keys.messages import MAX_MESSAGE_SIZE, SESSION_SIZE, Auth, Challenge, Code, Refusal
from vessels.keys.source import KeySource
from vessels.keys.store import ModelKey
from vessels.seal import KEY_SIZE
from vessels.sealed_messages import SUITE, seal_key
from vessels.serve.logs import event

LIFETIME = 120
MAX_SESSIONS = 4096

_USED = "this session's nonce was used; begin another session."

_T = TypeVar("_T")


@dataclass
class _Session:
    """One exchange. ``nonce`` is taken by the first attempt to attest, whatever comes of it."""

    digest: bytes
    expires: float
    nonce: bytes | None
    verified: VerifiedEvidence | None = None


class KeyService:
    """Releases the keys of ``keys`` to enclaves that ``verifier`` accepts. For many threads.

    A session lasts ``lifetime`` seconds from its first step, by ``clock``.
    """

    def __init__(
        self,
        verifier: Verifier,
        keys: KeySource,
        *,
        lifetime: int = LIFETIME,
        max_sessions: int = MAX_SESSIONS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._verifier = verifier
        self._keys = keys
        self._lifetime = lifetime
        self._max_sessions = max_sessions
        self._clock = clock
        self._lock = threading.Lock()
        # In the order in which they expire.
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()

    def check(self) -> None:
        """Refuse with ``unavailable`` where no key can be read at present."""
        self._readable(self._keys.all)

    def auth(self, request: Auth) -> Challenge:
        """Begin a session for one build, unless its key is unknown or revoked."""
        self._releasable(request.model_digest)
        challenge = Challenge(os.urandom(SESSION_SIZE), new_nonce(), self._lifetime)
        with self._lock:
            self._forget_expired()
            # Who floods the service loses sessions, the oldest first, and fills no memory.
            while len(self._sessions) >= self._max_sessions:
                self._sessions.popitem(last=False)
            self._sessions[challenge.session] = _Session(
                request.model_digest, self._clock() + self._lifetime, challenge.nonce
            )
        return challenge

    def check_session(self, session: bytes) -> None:
        """Refuse where ``session`` does not wait for evidence."""
        if self._session(session).nonce is None:
            raise Refusal(Code.SESSION, _USED)

    def attest(self, session: bytes, body: bytes) -> None:
        """Check the evidence in ``body`` against nonce, model and policy. May ask a PCCS: slow."""
        found = self._session(session)
        with self._lock:
            nonce, found.nonce = found.nonce, None
        if nonce is None:
            raise Refusal(Code.SESSION, _USED)
        try:
            verified = self._verified(body, nonce, found.digest)
        except Refusal as refusal:
            with self._lock:
                self._sessions.pop(session, None)
            self._log_refusal(refusal, found.digest)
            raise
        with self._lock:
            found.verified = verified

    def resource(self, session: bytes, digest: bytes) -> bytes:
        """The key of the build with ``digest``, sealed to the enclave that attested."""
        found = self._session(session)
        verified = found.verified
        if verified is None:
            raise Refusal(Code.SESSION, "this session has not attested.")
        if digest != found.digest:
            raise Refusal(Code.SESSION, "this session is another model's.")
        # Once more, as it may have been revoked since the session began.
        key = self._releasable(digest)
        sealed = seal_key(verified.claims.public_key, digest, key.key)
        event(
            "key_released",
            model=verified.model,
            digest=digest.hex(),
            enclave=_described(verified),
            # Which protects nothing.
            SIMULATED=True if verified.simulated else None,
        )
        return sealed

    def _verified(self, body: bytes, nonce: bytes, digest: bytes) -> VerifiedEvidence:
        try:
            evidence = Evidence.decode(body)
            if evidence.claims.model_digest != digest:
                raise AttestationError(
                    f"model: seen {evidence.claims.model_digest.hex()}, accepted {digest.hex()}, "
                    "which this session is for."
                )
            verified = self._verifier.verify(evidence, nonce=nonce)
        except AttestationError as error:
            # Of real hardware, collateral is this side's to get.
            simulated = self._verifier.policy.root.simulated
            if str(error).startswith("collateral: ") and not simulated:
                raise Refusal(Code.COLLATERAL, str(error)) from error
            raise Refusal(Code.EVIDENCE, str(error)) from error
        claims = verified.claims
        if claims.suite != SUITE:
            raise Refusal(
                Code.EVIDENCE, f"suite: seen {claims.suite.hex()}, accepted {SUITE.hex()}."
            )
        try:
            # Of another size, or of small order: what is sealed to that, anybody opens.
            seal_key(claims.public_key, digest, bytes(KEY_SIZE))
        except EnclaveError as error:
            raise Refusal(Code.EVIDENCE, "public key: nothing can be sealed to it.") from error
        return verified

    def _releasable(self, digest: bytes) -> ModelKey:
        key = self._readable(lambda: self._keys.find(digest))
        if key is None:
            refusal = Refusal(Code.UNKNOWN, f"no key is kept for the model {digest.hex()}.")
        elif key.revoked is not None:
            refusal = Refusal(Code.REVOKED, f"the model {digest.hex()} is revoked.")
        else:
            return key
        self._log_refusal(refusal, digest)
        raise refusal

    def _readable(self, read: Callable[[], _T]) -> _T:
        try:
            return read()
        except KeyFileError as error:
            # The reason has paths of this machine.
            event("keys_unreadable", level=logging.ERROR, error=str(error))
            raise Refusal(Code.UNAVAILABLE, "the keys cannot be read at present.") from error

    def _log_refusal(self, refusal: Refusal, digest: bytes) -> None:
        event(
            "key_refused",
            level=logging.WARNING,
            digest=digest.hex(),
            code=refusal.code.text,
            why=printable(refusal, MAX_MESSAGE_SIZE),
        )

    def _session(self, name: bytes) -> _Session:
        with self._lock:
            self._forget_expired()
            found = self._sessions.get(name)
        if found is None:
            raise Refusal(Code.SESSION, "there is no such session, or it has expired.")
        return found

    def _forget_expired(self) -> None:
        now = self._clock()
        while self._sessions:
            oldest = next(iter(self._sessions))
            if self._sessions[oldest].expires > now:
                break
            del self._sessions[oldest]


def _described(verified: VerifiedEvidence) -> str:
    """What a log says of an enclave."""
    quote = verified.quote
    measured = quote.measurements.as_json()
    known = [f"{k}={v}" for k, v in measured.items() if k in ("mr_enclave", "mr_td")]
    return " ".join([str(quote.tee), *known, quote.tcb_status])
