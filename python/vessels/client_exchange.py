"""What a client does, without the doing: which messages go out, and what is made of the answers.

:class:`~vessels.client.Client` and :class:`~vessels.client.AsyncClient` have one way of working and
two ways of waiting. The way of working is here, as generators: each yields the steps that take
time (:class:`Send`, :class:`Verify`, :class:`Attest`) and is sent their results.
"""

from __future__ import annotations

import functools
import json
import math
import re
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from vessels.attestation import Evidence, Policy, VerifiedEvidence, new_nonce
from vessels.attestation.evidence import MAX_SIZE
from vessels.attestation.fetch import evidence_url
from vessels.attestation.text import printable
from vessels.enclave import Array, checked_inputs
from vessels.errors import (
    AttestationError,
    DeadlineError,
    EnclaveError,
    ServerError,
    UsageError,
)
from vessels.ports import Port
from vessels.predict_headers import DEADLINE, ENVIRONMENT, MAX_DEADLINE_MS, identity_of
from vessels.sealed_messages import SUITE, RequestSealer, ResponseOpener

MEDIA_TYPE = "application/octet-stream"

FRESH = timedelta(days=1)
"""How long a verified enclave is used before it is asked for evidence again."""

MAX_ERROR_SIZE = 1 << 16
_MAX_DESCRIPTION_SIZE = 4 << 20
_ROOM = 1 << 20
"""For the names and shapes of an answer, and its seal."""

# Codes of docs/serving.md.
_UNKNOWN_MODEL = "unknown_model"
_NOT_OPENED = "not_opened"
_ENCLAVE_ENDED = "enclave_ended"

_TIMER_SECONDS = 0.001
_LONGEST_SECONDS = 1e9
"""A timeout beyond this is as good, and timers take it."""

T = TypeVar("T")


@dataclass(frozen=True)
class AttestedModel:
    """A model in an enclave that was verified, with its interface as that enclave tells it."""

    name: str
    verified: VerifiedEvidence
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def is_current(self, now: datetime) -> bool:
        """Whether what was verified still holds; later, evidence is to be asked for anew."""
        quote = self.verified.quote
        return now < min(quote.expires, quote.verified + FRESH)


class Body:
    """The body of a request, made when it is wanted: the server can read its head meanwhile."""

    def __init__(self, size: int, make: Callable[[], bytes]) -> None:
        self.size = size
        self._make = functools.cache(make)

    def __iter__(self) -> Iterator[bytes]:
        yield self._make()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._make()


def deadline_in(timeout: float | None) -> float | None:
    """The deadline that is ``timeout`` seconds from now, if it is any.

    Raises :class:`~vessels.errors.UsageError` for a timeout that is no number.
    """
    if timeout is None:
        return None
    if math.isnan(timeout):
        raise UsageError("a timeout is a number of seconds.")
    return time.monotonic() + min(timeout, _LONGEST_SECONDS)


def late(url: str) -> DeadlineError:
    """The error for an answer of ``url`` that did not come in time."""
    return DeadlineError(f"{url.partition('?')[0]}: there was no answer before the deadline.")


@dataclass(frozen=True)
class Send:
    """A request over HTTP. Its result is the body of a good answer, of ``limit`` bytes at most.

    ``deadline`` is when the answer is of no more use, as a time of :func:`time.monotonic`.
    """

    method: str
    url: str
    limit: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    deadline: float | None = None

    def all_headers(self) -> dict[str, str]:
        """The headers, with the time that is left. Raises :class:`DeadlineError` if none is."""
        if self.deadline is None:
            return dict(self.headers)
        left = math.ceil(self.seconds(math.inf) * 1000)
        return {**self.headers, DEADLINE: str(min(left, MAX_DEADLINE_MS))}

    def seconds(self, most: float) -> float:
        """How long the answer may take, up to ``most``. Raises :class:`DeadlineError`."""
        if self.deadline is None:
            return most
        left = self.deadline - time.monotonic()
        # A timer may be a little early.
        if left <= _TIMER_SECONDS:
            raise late(self.url)
        return min(most, left)


@dataclass(frozen=True)
class Verify:
    """A check of evidence, which may wait for collateral. Its result is the verified evidence."""

    evidence: Evidence
    nonce: bytes
    model: str


@dataclass(frozen=True)
class Attest:
    """The wish for an attested model: the one at hand, unless it is ``instead_of``, or a new one.

    However many wish at once, one asks for evidence.
    """

    model: str
    instead_of: AttestedModel | None = None
    deadline: float | None = None

    @property
    def seconds(self) -> float | None:
        """How long it is of use."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


Step = Send | Verify | Attest
Work = Generator[Step, Any, T]


class Progress(Generic[T]):
    """How far some work is: ``step`` is what to do next; when there is none, ``value`` is due."""

    step: Step | None
    value: T

    def __init__(self, work: Work[T]) -> None:
        self._work = work
        self._go(lambda: next(work))

    def done(self, result: Any) -> None:
        """The step was done, with ``result``."""
        self._go(lambda: self._work.send(result))

    def failed(self, error: Exception) -> None:
        """The step raised ``error``. Raises what the work makes of that."""
        self._go(lambda: self._work.throw(error))

    def _go(self, on: Callable[[], Step]) -> None:
        try:
            self.step = on()
        except StopIteration as end:
            self.step = None
            self.value = end.value


class Exchanges:
    """The work of a client of the server at ``url``, and the attested models it has at hand."""

    def __init__(self, url: str, policy: Policy) -> None:
        # Refuses what is no URL.
        evidence_url(url, "", b"")
        self.url = url.rstrip("/")
        self.policy = policy
        self._attested: dict[str, AttestedModel] = {}

    def at_hand(self, wish: Attest) -> AttestedModel | None:
        """What fulfils ``wish`` without any work. Refuses models that the policy does not name."""
        if wish.model not in self.policy.models:
            known = ", ".join(self.policy.models)
            raise AttestationError(f"model: seen {wish.model!r:.80}, accepted {known}.")
        found = self._attested.get(wish.model)
        if found is wish.instead_of or found is None or not found.is_current(datetime.now(UTC)):
            return None
        return found

    def attest(self, wish: Attest) -> Work[AttestedModel]:
        """Verify the enclave of the model and ask it for the model's interface."""
        model, nonce = wish.model, new_nonce()
        url = evidence_url(self.url, model, nonce)
        body = yield Send("GET", url, MAX_SIZE, deadline=wish.deadline)
        try:
            verified = yield Verify(Evidence.decode(body), nonce, model)
            claims = verified.claims
            if claims.suite != SUITE:
                raise AttestationError(f"suite: seen {claims.suite.hex()}, accepted {SUITE.hex()}.")
        except AttestationError:
            # What was accepted before is no longer.
            self._attested.pop(model, None)
            raise
        try:
            request, opener = RequestSealer(claims.public_key, claims.model_digest).seal_describe()
        except EnclaveError as error:
            raise ServerError(f"{self.url}: {error}") from error
        body, key = Body(len(request), lambda: request), claims.public_key
        answer = yield self._predict_step(model, key, body, _MAX_DESCRIPTION_SIZE, wish.deadline)
        inputs, outputs = self._open(opener, answer)
        found = AttestedModel(model, verified, inputs, outputs)
        self._attested[model] = found
        return found

    def predict(
        self, model: str, inputs: Mapping[str, Array], timeout: float | None = None
    ) -> Work[tuple[dict[str, Array], AttestedModel]]:
        """One prediction, and who gave it; once more if the enclave is another by now."""
        deadline = deadline_in(timeout)
        attested = yield Attest(model, deadline=deadline)
        try:
            outputs = yield from self._predict(attested, inputs, deadline)
        except ServerError as error:
            if error.code == _ENCLAVE_ENDED:
                self._forget(attested)
            if error.code != _NOT_OPENED:
                raise
            renewed = yield Attest(model, instead_of=attested, deadline=deadline)
            if renewed.verified.claims.public_key == attested.verified.claims.public_key:
                raise
            attested = renewed
            outputs = yield from self._predict(attested, inputs, deadline)
        return outputs, attested

    def ready(self, model: str) -> Work[bool]:
        """Whether the enclave of ``model`` is verified, and its server says it is ready."""
        yield Attest(model)
        try:
            yield Send("GET", f"{self.url}/v2/models/{_quoted(model)}/ready", MAX_ERROR_SIZE)
        except ServerError as error:
            if error.status is None or error.code == _UNKNOWN_MODEL:
                raise
            return False
        return True

    def _predict(
        self, attested: AttestedModel, inputs: Mapping[str, Array], deadline: float | None
    ) -> Work[dict[str, Array]]:
        arrays = checked_inputs(inputs, attested.inputs)
        named = {p.name: a for p, a in zip(attested.inputs, arrays, strict=True)}
        claims = attested.verified.claims
        request = RequestSealer(claims.public_key, claims.model_digest).prepare(named)
        seal = functools.cache(request.seal)
        body = Body(request.size, lambda: seal()[0])
        size = sum(math.prod(p.shape) * p.dtype.itemsize + 64 for p in attested.outputs)
        key = claims.public_key
        answer = yield self._predict_step(attested.name, key, body, size + _ROOM, deadline)
        outputs = self._open(seal()[1], answer)
        found = [(n, a.dtype, a.shape) for n, a in outputs.items()]
        if found != [(p.name, p.dtype, p.shape) for p in attested.outputs]:
            raise ServerError(f"{self.url}: an answer has other outputs than the model.")
        return outputs

    def _open(self, opener: ResponseOpener[T], answer: bytes) -> T:
        try:
            return opener.open(answer)
        except EnclaveError as error:
            raise ServerError(f"{self.url}: {error}") from error

    def _forget(self, attested: AttestedModel) -> None:
        if self._attested.get(attested.name) is attested:
            del self._attested[attested.name]

    def _predict_step(
        self, model: str, key: bytes, body: Body, limit: int, deadline: float | None
    ) -> Send:
        """A request sealed to the enclave that has the public key ``key``, which it names."""
        url = f"{self.url}/vessels/v1/models/{_quoted(model)}/predict"
        named = {"Content-Type": MEDIA_TYPE, ENVIRONMENT: identity_of(key)}
        return Send("POST", url, limit, named, body, deadline)


def refused(url: str, status: int, body: bytes, retry_after: bytes = b"") -> ServerError:
    """What an answer that is no good says; it may say anything. The last is its ``Retry-After``."""
    code, message = None, ""
    try:
        found = json.loads(body)["error"]
        code, message = found["code"], found["message"]
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    code = code if isinstance(code, str) else None
    said = f": {printable(message).rstrip('.')}" if message else ""
    return ServerError(
        f"{url} answered with HTTP {status}{f' ({printable(code)})' if code else ''}{said}.",
        status=status,
        code=code,
        retry_after=int(retry_after) if re.fullmatch(rb"[0-9]{1,9}", retry_after) else None,
    )


def _quoted(model: str) -> str:
    return urllib.parse.quote(model, safe="")
