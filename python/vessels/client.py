"""Asking a server for predictions that it cannot read: the client's side.

A client verifies an enclave's evidence against its own policy before it sends anything, seals each
request to that enclave alone, and opens answers that nobody else could have made. It keeps a
verified enclave for at most a day, and attests anew when the server has started another.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import httpx2

from vessels.attestation import (
    CollateralService,
    CollateralSource,
    Policy,
    VerifiedEvidence,
    Verifier,
)
from vessels.attestation.text import printable
from vessels.client_exchange import (
    MAX_ERROR_SIZE,
    MEDIA_TYPE,
    Attest,
    AttestedModel,
    Exchanges,
    Send,
    Step,
    Verify,
    Work,
    refused,
)
from vessels.enclave import Array
from vessels.errors import ServerError

__all__ = ["AsyncClient", "AttestedModel", "Client"]

CONNECT_SECONDS = 10.0
MAX_CONNECTIONS = 256

# What was compressed by a host nobody trusts is not unpacked.
_HEADERS = {"Accept-Encoding": "identity"}

# A server may close an idle connection just as it is used again. Nothing happens but the same
# answer if both of two equal requests arrive.
_CLOSED = (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError)

T = TypeVar("T")


class _Base:
    """What both clients are made of."""

    def __init__(
        self,
        url: str,
        policy: Policy | str | Path,
        collateral: CollateralSource | None,
        timeout: float,
    ) -> None:
        rules = policy if isinstance(policy, Policy) else Policy.load(Path(policy))
        self._exchanges = Exchanges(url, rules)
        self._verifier = Verifier(rules, collateral or CollateralService())
        self._limits = httpx2.Limits(max_connections=MAX_CONNECTIONS)
        self._timeout = httpx2.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS))

    @property
    def url(self) -> str:
        """The server's."""
        return self._exchanges.url

    @property
    def policy(self) -> Policy:
        """What this client accepts."""
        return self._verifier.policy

    def _verify(self, step: Verify) -> VerifiedEvidence:
        return self._verifier.verify(step.evidence, nonce=step.nonce, model=step.model)

    def _failed(self, error: Exception) -> NoReturn:
        raise ServerError(f"{self.url} cannot be asked: {_why(error)}.") from error


class Client(_Base):
    """A client of the server at ``url``; a context manager, for any number of threads.

    ``policy`` says which enclaves and models are accepted, under which names; a name is that of
    the server, too. ``timeout`` is how many seconds the server may stay silent.

    Every call may raise :class:`~vessels.errors.AttestationError`, when the evidence is refused
    and nothing was sent; :class:`~vessels.errors.ServerError`, when there is no answer or none
    that the enclave made; :class:`~vessels.errors.RequestError`, when inputs do not fit.

    >>> with Client("http://host:8080", policy="policy.toml") as client:  # doctest: +SKIP
    ...     outputs = client.predict("resnet50", {"input": image})
    """

    def __init__(
        self,
        url: str,
        *,
        policy: Policy | str | Path,
        collateral: CollateralSource | None = None,
        timeout: float = 60.0,
    ) -> None:
        super().__init__(url, policy, collateral, timeout)
        self._http = httpx2.Client(headers=_HEADERS, timeout=self._timeout, limits=self._limits)
        self._turns = {name: threading.Lock() for name in self.policy.models}

    def predict(self, model: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One prediction: all inputs by name to all outputs by name."""
        return self.predict_attested(model, inputs)[0]

    def predict_attested(
        self, model: str, inputs: Mapping[str, Array]
    ) -> tuple[dict[str, Array], AttestedModel]:
        """As :meth:`predict`, and the attested model that gave the outputs."""
        return self._run(self._exchanges.predict(model, inputs))

    def describe(self, model: str) -> AttestedModel:
        """The attested model: its evidence, inputs and outputs."""
        return self._attested(Attest(model))

    def attest(self, model: str) -> AttestedModel:
        """As :meth:`describe`, with evidence asked for now."""
        return self._attested(Attest(model, instead_of=self._exchanges.at_hand(Attest(model))))

    def ready(self, model: str) -> bool:
        """Whether the model is attested, and the server says that it is ready."""
        return self._run(self._exchanges.ready(model))

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, work: Work[T]) -> T:
        """Do all steps of ``work``."""
        result: Any = None
        failure: Exception | None = None
        while True:
            try:
                step = work.send(result) if failure is None else work.throw(failure)
            except StopIteration as end:
                value: T = end.value
                return value
            result = failure = None
            try:
                result = self._do(step)
            except Exception as error:
                failure = error

    def _do(self, step: Step) -> Any:
        match step:
            case Send():
                return self._send(step)
            case Verify():
                return self._verify(step)
            case Attest():
                return self._attested(step)

    def _attested(self, wish: Attest) -> AttestedModel:
        if (found := self._exchanges.at_hand(wish)) is not None:
            return found
        with self._turns[wish.model]:
            # Another thread may have been first.
            if (found := self._exchanges.at_hand(wish)) is not None:
                return found
            return self._run(self._exchanges.attest(wish.model))

    def _send(self, step: Send) -> bytes:
        try:
            try:
                return self._ask(step)
            except _CLOSED:
                return self._ask(step)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            self._failed(error)

    def _ask(self, step: Send) -> bytes:
        with self._http.stream(
            step.method, step.url, content=step.body, headers=_content_headers(step)
        ) as answer:
            good = answer.status_code == 200
            body = _whole(answer.iter_raw(), step.limit if good else MAX_ERROR_SIZE, self.url)
        if not good:
            raise refused(self.url, answer.status_code, body)
        return body


class AsyncClient(_Base):
    """As :class:`Client`, for ``asyncio``; an asynchronous context manager."""

    def __init__(
        self,
        url: str,
        *,
        policy: Policy | str | Path,
        collateral: CollateralSource | None = None,
        timeout: float = 60.0,
    ) -> None:
        super().__init__(url, policy, collateral, timeout)
        self._http = httpx2.AsyncClient(
            headers=_HEADERS, timeout=self._timeout, limits=self._limits
        )
        self._turns = {name: asyncio.Lock() for name in self.policy.models}

    async def predict(self, model: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One prediction: all inputs by name to all outputs by name."""
        return (await self.predict_attested(model, inputs))[0]

    async def predict_attested(
        self, model: str, inputs: Mapping[str, Array]
    ) -> tuple[dict[str, Array], AttestedModel]:
        """As :meth:`predict`, and the attested model that gave the outputs."""
        return await self._run(self._exchanges.predict(model, inputs))

    async def describe(self, model: str) -> AttestedModel:
        """The attested model: its evidence, inputs and outputs."""
        return await self._attested(Attest(model))

    async def attest(self, model: str) -> AttestedModel:
        """As :meth:`describe`, with evidence asked for now."""
        at_hand = self._exchanges.at_hand(Attest(model))
        return await self._attested(Attest(model, instead_of=at_hand))

    async def ready(self, model: str) -> bool:
        """Whether the model is attested, and the server says that it is ready."""
        return await self._run(self._exchanges.ready(model))

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _run(self, work: Work[T]) -> T:
        """Do all steps of ``work``."""
        result: Any = None
        failure: Exception | None = None
        while True:
            try:
                step = work.send(result) if failure is None else work.throw(failure)
            except StopIteration as end:
                value: T = end.value
                return value
            result = failure = None
            try:
                result = await self._do(step)
            except Exception as error:
                failure = error

    async def _do(self, step: Step) -> Any:
        match step:
            case Send():
                return await self._send(step)
            case Verify():
                # It may wait for a service of collateral.
                return await asyncio.to_thread(self._verify, step)
            case Attest():
                return await self._attested(step)

    async def _attested(self, wish: Attest) -> AttestedModel:
        if (found := self._exchanges.at_hand(wish)) is not None:
            return found
        async with self._turns[wish.model]:
            # Another task may have been first.
            if (found := self._exchanges.at_hand(wish)) is not None:
                return found
            return await self._run(self._exchanges.attest(wish.model))

    async def _send(self, step: Send) -> bytes:
        try:
            try:
                return await self._ask(step)
            except _CLOSED:
                return await self._ask(step)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            self._failed(error)

    async def _ask(self, step: Send) -> bytes:
        async with self._http.stream(
            step.method, step.url, content=step.body, headers=_content_headers(step)
        ) as answer:
            good = answer.status_code == 200
            limit = step.limit if good else MAX_ERROR_SIZE
            body = await _whole_async(answer.aiter_raw(), limit, self.url)
        if not good:
            raise refused(self.url, answer.status_code, body)
        return body


def _content_headers(step: Send) -> dict[str, str]:
    return {} if step.body is None else {"Content-Type": MEDIA_TYPE}


def _whole(pieces: Iterator[bytes], limit: int, url: str) -> bytes:
    body = bytearray()
    for piece in pieces:
        body += piece
        _check_size(body, limit, url)
    return bytes(body)


async def _whole_async(pieces: AsyncIterator[bytes], limit: int, url: str) -> bytes:
    body = bytearray()
    async for piece in pieces:
        body += piece
        _check_size(body, limit, url)
    return bytes(body)


def _check_size(body: bytearray, limit: int, url: str) -> None:
    if len(body) > limit:
        raise ServerError(f"{url} sent more than the {limit} bytes that an answer may have.")


def _why(error: Exception) -> str:
    if isinstance(error, httpx2.TimeoutException):
        return "it did not answer in time"
    return printable(error) or type(error).__name__
