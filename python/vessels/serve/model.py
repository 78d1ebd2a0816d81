"""One served model: the life of its enclave, again and again, and what is asked of it.

An enclave starts, gives evidence, gets its key, serves, and ends; then another is started. A key
service that does not answer is asked again for as long as it takes. Whoever waits for an enclave
that ends is told so at once: what was sealed to one enclave no other can open.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from vessels.attestation import Evidence, model_digest
from vessels.errors import EnclaveError, KeyFileError, RequestError, SealedError, VesselsError
from vessels.seal import read_header
from vessels.sealed_messages import request_size
from vessels.serve.backends import Backend, Process
from vessels.serve.ended import watched
from vessels.serve.errors import Code, ServeError
from vessels.serve.keys import KeySource
from vessels.serve.lane import Done, Lane
from vessels.serve.limits import Limits
from vessels.serve.logs import event, failure
from vessels.serve.metrics import Metrics
from vessels.serve.threads import in_thread

T = TypeVar("T")

_FIRST_DELAY = 0.5
_MOST_DELAY = 30.0
_MOST_KEY_DELAY = 5.0
_STEADY_SECONDS = 10.0
_CHECK_SECONDS = 0.5


class State(StrEnum):
    """Where a model's enclave stands."""

    STARTING = "starting"
    KEYLESS = "waiting for its key"
    READY = "ready"
    DOWN = "down"


def delays(most: float) -> Iterator[float]:
    """Seconds between attempts: doubling up to ``most``."""
    delay = _FIRST_DELAY
    while True:
        yield min(delay, most)
        delay *= 2


@dataclass
class _Running:
    """An enclave that runs, and the line before it."""

    process: Process
    lane: Lane
    opened: bool = False
    overdue: bool = False
    why: str | None = None


class ServedModel:
    """A sealed model by the name that clients use; :meth:`supervise` keeps its enclave running.

    Raises :class:`SealedError` when the file is no sealed model.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        *,
        backend: Backend,
        keys: KeySource,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self.name = name
        self.path = path
        self._backend = backend
        self._keys = keys
        self._limits = limits
        self._metrics = metrics
        self._running: _Running | None = None
        self._read()
        metrics.waiting.labels(name).set_function(lambda: self.waiting)
        self._set(State.STARTING)

    def _read(self) -> None:
        """What the file says now; it may be replaced while its enclave runs."""
        self.digest = model_digest(self.path)
        self.largest_request = request_size(read_header(self.path).inputs)

    @property
    def ready(self) -> bool:
        """Whether predictions are answered."""
        return self.state is State.READY

    @property
    def waiting(self) -> int:
        """How many wait for the enclave, the one it works on included."""
        return 0 if self._running is None else self._running.lane.waiting

    def as_json(self) -> dict[str, object]:
        """What anybody may know."""
        return {
            "name": self.name,
            "model_digest": self.digest.hex(),
            "state": str(self.state),
            "largest_request": self.largest_request,
        }

    async def predict(self, sealed: bytes) -> Done[bytes]:
        """The sealed answer to a sealed request. Raises :class:`ServeError`."""
        running = self._running
        if running is None or self.state is not State.READY:
            raise ServeError(Code.NOT_READY, f"model {self.name} is {self.state}.")
        with self._refusing(running):
            return await running.lane.run(lambda: running.process.exchange(sealed))

    async def evidence(self, nonce: bytes) -> bytes:
        """Evidence of the enclave that runs now, encoded. Raises :class:`ServeError`."""
        running = self._running
        if running is None:
            raise ServeError(Code.NOT_READY, f"model {self.name} is {self.state}.")
        try:
            done = await running.lane.run(lambda: running.process.claims(nonce))
            return await in_thread(lambda: self._backend.evidence(done.value).encoded())
        except VesselsError as error:
            event("no_evidence", level=logging.ERROR, model=self.name, why=str(error))
            raise ServeError(Code.NO_EVIDENCE, "the enclave gave no evidence.") from None

    @contextlib.contextmanager
    def _refusing(self, running: _Running) -> Iterator[None]:
        """What an enclave refuses, or its end, as clients are told.

        The enclave's own words stay in the log: clients get what concerns them.
        """
        try:
            yield
        except RequestError:
            raise ServeError(
                Code.NOT_OPENED,
                "the enclave cannot open this request: it was altered, or sealed to another "
                "enclave's key; get new evidence and seal it anew.",
            ) from None
        except (SealedError, KeyFileError) as error:
            self._fell(running, error)
            raise ServeError(Code.MODEL_REFUSED, "the enclave refuses the model.") from None
        except VesselsError as error:
            self._fell(running, error)
            if running.overdue:
                raise ServeError(Code.TOO_LONG, "the enclave took too long.") from None
            raise ServeError(
                Code.ENCLAVE_ENDED,
                "the enclave ended before it had answered; get new evidence and ask again.",
            ) from None

    def _fell(self, running: _Running, error: VesselsError) -> None:
        """An enclave has ended, as who asked it was told."""
        running.why = str(error)
        if running is self._running:
            self._set(State.DOWN)

    async def supervise(self) -> None:
        """Keep an enclave running until this is cancelled; then end it."""
        waits = delays(_MOST_DELAY)
        while True:
            began = time.monotonic()
            why = None
            try:
                why = await self._live()
            except VesselsError as error:
                why = str(error)
            except Exception as error:
                failure("supervision_failed", error, model=self.name)
            self._metrics.ends.labels(self.name).inc()
            if time.monotonic() - began >= _STEADY_SECONDS:
                waits = delays(_MOST_DELAY)
            delay = next(waits)
            event(
                "enclave_ended", level=logging.ERROR, model=self.name, why=why,
                restart_seconds=delay,
            )  # fmt: skip
            await asyncio.sleep(delay)

    async def _live(self) -> str:
        """One enclave from its start to its end; how it ended."""
        self._set(State.STARTING)
        self._read()
        # Who is cancelled meanwhile leaves an enclave that ends with this process.
        process = await in_thread(lambda: self._backend.start(self.path))
        running = _Running(process, Lane(self._limits.waiting_count))
        try:
            self._metrics.starts.labels(self.name).inc()
            event("enclave_started", model=self.name, pid=process.pid)
            self._running = running
            with watched(process.pid) as ended:
                life = asyncio.ensure_future(self._serve(running))
                try:
                    either: list[asyncio.Future[Any]] = [life, ended]
                    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                    if not life.done() and not running.opened:
                        # What it said before it ended tells more than how it did.
                        await asyncio.wait({life}, timeout=1)
                    if life.done():
                        life.result()
                    how = ended.result()
                finally:
                    life.cancel()
            await in_thread(running.lane.end)
            return "it took too long" if running.overdue else running.why or how
        finally:
            self._running = None
            self._set(State.DOWN)
            process.kill()
            await in_thread(running.lane.end)
            await in_thread(process.close)

    async def _serve(self, running: _Running) -> None:
        """Get the key, and watch over the enclave for as long as it runs."""
        self._set(State.KEYLESS)
        sealed = await self._key(running)
        ready = await self._in_time(
            lambda: running.lane.call(lambda: running.process.give_key(sealed))
        )
        running.opened = True
        self._set(State.READY)
        self._metrics.pool_size.labels(self.name).set(ready.pool_size)
        event(
            "model_ready", model=self.name, digest=self.digest.hex(), isa=ready.isa,
            threads=ready.thread_count, pool_size=ready.pool_size,
        )  # fmt: skip
        while True:
            await asyncio.sleep(min(_CHECK_SECONDS, self._limits.predict_seconds / 4))
            if running.lane.busy_seconds > self._limits.predict_seconds:
                running.overdue = True
                running.process.kill()

    async def _key(self, running: _Running) -> bytes:
        """The wrapped key of this model for an enclave, however often it takes to ask."""
        outcomes = self._metrics.key_requests

        def prove(nonce: bytes) -> Evidence:
            claims = running.lane.call(lambda: running.process.claims(nonce))
            return self._backend.evidence(claims)

        def ask() -> bytes:
            return self._keys.get(self.digest, self.path, prove)

        for delay in delays(_MOST_KEY_DELAY):
            try:
                sealed = await self._in_time(ask)
            except EnclaveError:
                raise
            except VesselsError as error:
                outcomes.labels(self.name, "failed").inc()
                event(
                    "key_not_given", level=logging.WARNING, model=self.name, why=str(error),
                    retry_seconds=delay,
                )  # fmt: skip
                await asyncio.sleep(delay)
            else:
                outcomes.labels(self.name, "given").inc()
                event("key_given", model=self.name)
                return sealed
        raise AssertionError("delays end")

    async def _in_time(self, call: Callable[[], T]) -> T:
        """What ``call`` gives, in the time that an enclave has for it."""
        try:
            return await asyncio.wait_for(in_thread(call), self._limits.open_seconds)
        except TimeoutError:
            raise EnclaveError("it did not open its model in time") from None

    def _set(self, state: State) -> None:
        self.state = state
        self._metrics.ready.labels(self.name).set(state is State.READY)
