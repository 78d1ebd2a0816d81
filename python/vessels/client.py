"""Asking a server for predictions that it cannot read: the client's side.

A client verifies an enclave's evidence against its own policy before it sends anything, seals each
request to that enclave alone, and opens answers that nobody else could have made. It keeps a
verified enclave for at most a day, and attests anew when the server has started another.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from vessels.attestation import (
    CollateralService,
    CollateralSource,
    Policy,
    VerifiedEvidence,
    Verifier,
)
from vessels.client_exchange import (
    Attest,
    AttestedModel,
    Exchanges,
    Progress,
    Send,
    Step,
    Verify,
    Work,
    deadline_in,
    late,
)
from vessels.client_http import AsyncHttp, Http
from vessels.closing import Closing
from vessels.enclave import Array

__all__ = ["AsyncClient", "AttestedModel", "Client"]

T = TypeVar("T")


class _Base:
    """What both clients are made of."""

    def __init__(
        self,
        url: str,
        policy: Policy | str | Path,
        collateral: CollateralSource | None,
    ) -> None:
        rules = policy if isinstance(policy, Policy) else Policy.load(Path(policy))
        self._exchanges = Exchanges(url, rules)
        self._verifier = Verifier(rules, collateral or CollateralService())

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


class Client(_Base, Closing):
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
        super().__init__(url, policy, collateral)
        self._http = Http(self.url, timeout)
        self._turns = {name: threading.Lock() for name in self.policy.models}

    def predict(
        self, model: str, inputs: Mapping[str, Array], *, timeout: float | None = None
    ) -> dict[str, Array]:
        """One prediction: all inputs by name to all outputs by name.

        Its answer is of use for ``timeout`` seconds from now. The server is told so, and refuses
        at once what it cannot answer by then; afterwards it is a
        :class:`~vessels.errors.DeadlineError`.
        """
        return self.predict_attested(model, inputs, timeout=timeout)[0]

    def predict_attested(
        self, model: str, inputs: Mapping[str, Array], *, timeout: float | None = None
    ) -> tuple[dict[str, Array], AttestedModel]:
        """As :meth:`predict`, and the attested model that gave the outputs."""
        return self._run(self._exchanges.predict(model, inputs, timeout))

    def describe(self, model: str, *, timeout: float | None = None) -> AttestedModel:
        """The attested model: its evidence, inputs and outputs, within ``timeout`` seconds."""
        return self._attested(Attest(model, deadline=deadline_in(timeout)))

    def attest(self, model: str) -> AttestedModel:
        """As :meth:`describe`, with evidence asked for now."""
        return self._attested(Attest(model, instead_of=self._exchanges.at_hand(Attest(model))))

    def ready(self, model: str) -> bool:
        """Whether the model is attested, and the server says that it is ready."""
        return self._run(self._exchanges.ready(model))

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def _run(self, work: Work[T]) -> T:
        """Do all steps of ``work``."""
        progress = Progress(work)
        while progress.step is not None:
            try:
                result = self._do(progress.step)
            except Exception as error:
                progress.failed(error)
            else:
                progress.done(result)
        return progress.value

    def _do(self, step: Step) -> Any:
        match step:
            case Send():
                return self._http.send(step)
            case Verify():
                return self._verify(step)
            case Attest():
                return self._attested(step)

    def _attested(self, wish: Attest) -> AttestedModel:
        if (found := self._exchanges.at_hand(wish)) is not None:
            return found
        turn, seconds = self._turns[wish.model], wish.seconds
        if not turn.acquire(timeout=-1 if seconds is None else seconds):
            raise late(self.url)
        try:
            # Another thread may have been first.
            if (found := self._exchanges.at_hand(wish)) is not None:
                return found
            return self._run(self._exchanges.attest(wish))
        finally:
            turn.release()


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
        super().__init__(url, policy, collateral)
        self._http = AsyncHttp(self.url, timeout)
        self._turns = {name: asyncio.Lock() for name in self.policy.models}

    async def predict(
        self, model: str, inputs: Mapping[str, Array], *, timeout: float | None = None
    ) -> dict[str, Array]:
        """One prediction: all inputs by name to all outputs by name.

        Its answer is of use for ``timeout`` seconds from now. The server is told so, and refuses
        at once what it cannot answer by then; afterwards it is a
        :class:`~vessels.errors.DeadlineError`.
        """
        return (await self.predict_attested(model, inputs, timeout=timeout))[0]

    async def predict_attested(
        self, model: str, inputs: Mapping[str, Array], *, timeout: float | None = None
    ) -> tuple[dict[str, Array], AttestedModel]:
        """As :meth:`predict`, and the attested model that gave the outputs."""
        return await self._run(self._exchanges.predict(model, inputs, timeout))

    async def describe(self, model: str, *, timeout: float | None = None) -> AttestedModel:
        """The attested model: its evidence, inputs and outputs, within ``timeout`` seconds."""
        return await self._attested(Attest(model, deadline=deadline_in(timeout)))

    async def attest(self, model: str) -> AttestedModel:
        """As :meth:`describe`, with evidence asked for now."""
        at_hand = self._exchanges.at_hand(Attest(model))
        return await self._attested(Attest(model, instead_of=at_hand))

    async def ready(self, model: str) -> bool:
        """Whether the model is attested, and the server says that it is ready."""
        return await self._run(self._exchanges.ready(model))

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, work: Work[T]) -> T:
        """Do all steps of ``work``."""
        progress = Progress(work)
        while progress.step is not None:
            try:
                result = await self._do(progress.step)
            except Exception as error:
                progress.failed(error)
            else:
                progress.done(result)
        return progress.value

    async def _do(self, step: Step) -> Any:
        match step:
            case Send():
                return await self._http.send(step)
            case Verify():
                # It may wait for a service of collateral.
                return await asyncio.to_thread(self._verify, step)
            case Attest():
                return await self._attested(step)

    async def _attested(self, wish: Attest) -> AttestedModel:
        if (found := self._exchanges.at_hand(wish)) is not None:
            return found
        turn = self._turns[wish.model]
        try:
            async with asyncio.timeout(wish.seconds):
                await turn.acquire()
        except TimeoutError:
            raise late(self.url) from None
        try:
            # Another task may have been first.
            if (found := self._exchanges.at_hand(wish)) is not None:
                return found
            return await self._run(self._exchanges.attest(wish))
        finally:
            turn.release()
