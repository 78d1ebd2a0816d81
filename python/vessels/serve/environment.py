"""The life of one environment: an enclave starts, proves who it is, gets its key, runs, and ends.

Here nothing is known of why it runs and whose turn it is: :mod:`vessels.serve.host` says so. A key
service that does not answer is asked again for as long as it takes. Whatever an enclave is asked
fails at once when it ends: what was sealed to one enclave no other can open.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from vessels.attestation import Evidence, new_nonce
from vessels.errors import EnclaveError, KeyFileError, SealedError, VesselsError
from vessels.predict_headers import identity_of
from vessels.schedule.model import Shape
from vessels.serve.backends import Backend, Process
from vessels.serve.ended import watched
from vessels.serve.errors import Code, ServeError
from vessels.serve.keys import KeySource
from vessels.serve.lane import Done, Lane
from vessels.serve.limits import Limits
from vessels.serve.logs import event
from vessels.serve.metrics import Metrics
from vessels.serve.model import Build, ServedModel
from vessels.serve.runs import Answer, exchange
from vessels.serve.threads import in_thread

T = TypeVar("T")

_FIRST_DELAY = 0.5
_MOST_KEY_DELAY = 5.0
_CHECK_SECONDS = 0.5
_MEMORY_SECONDS = 10.0


class State(StrEnum):
    """Where an environment stands."""

    STARTING = "starting"
    KEYLESS = "waiting for its key"
    READY = "ready"
    DOWN = "down"


@dataclass(frozen=True)
class Tools:
    """What every environment of a host is run with."""

    backend: Backend
    keys: KeySource
    limits: Limits
    metrics: Metrics


class Watcher(Protocol):
    """Who is told what becomes of an environment, on the event loop."""

    def keyless(self, environment: Environment) -> None:
        """It did not get its key; it will ask again."""

    def ready(self, environment: Environment) -> None:
        """It answers requests."""

    def larger(self, environment: Environment, size: int) -> None:
        """It holds ``size`` bytes, more than its shape says."""


class Environment:
    """One enclave process of ``model``, from its start to its end, which :meth:`live` is.

    If it is ``modest``, it does not keep its memory for long without being given its key.
    """

    def __init__(
        self,
        number: int,
        model: ServedModel,
        shape: Shape,
        tools: Tools,
        watcher: Watcher,
        *,
        modest: bool = False,
    ) -> None:
        self.number = number
        self.model = model
        self.shape = shape
        self.state = State.STARTING
        self.identity: str | None = None
        """The name by which requests say which environment they are sealed to."""
        self.build: Build = model.build
        self.pool_size = 0
        self.refused_key = False
        """Whether it waits for a key that it was not given when it asked."""
        self.running_count = 0
        """Requests in the run under way."""
        self._tools = tools
        self._watcher = watcher
        self._modest = modest
        self._lane = Lane()
        self._process: Process | None = None
        self._known = asyncio.Event()
        self._told_to_stop = asyncio.Event()
        self._asking_count = 0
        self._asking = asyncio.Lock()
        self._overdue = False
        self._why: str | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the enclave, once it has one."""
        return None if self._process is None else self._process.pid

    @property
    def serves(self) -> bool:
        """Whether it has its key and answers requests."""
        return self.state is State.READY

    @property
    def stopping(self) -> bool:
        """Whether it was told to end."""
        return self._told_to_stop.is_set()

    def stop(self) -> None:
        """Have it end; it must have nothing to do."""
        self._told_to_stop.set()

    def kill(self) -> None:
        """End its process now, whatever it does; :meth:`live` notices."""
        if self._process is not None:
            self._process.kill()

    async def live(self) -> str:
        """From its start to its end; how it ended. The process is reaped by then.

        Raises :class:`VesselsError` that says why, where it ended itself.
        """
        try:
            self.build = await in_thread(lambda: self.model.read(self.shape))
            # Who is cancelled meanwhile leaves an enclave that ends with this process.
            process = await in_thread(
                lambda: self._tools.backend.start(self.model.path, self.shape)
            )
            self._process = process
            self._tools.metrics.starts.labels(self.model.name).inc()
            event(
                "enclave_started", model=self.model.name, environment=self.number, pid=process.pid,
                rung=self.shape.rung, slots=self.shape.slots, threads=self.shape.threads,
                size=self.shape.size,
            )  # fmt: skip
            try:
                return await self._until_its_end(process)
            finally:
                process.kill()
                await in_thread(self._lane.end)
                await in_thread(process.close)
        finally:
            self.state = State.DOWN
            # Whoever waits for it need not any more.
            self._known.set()

    def run(self, sealed: Sequence[bytes]) -> Awaitable[Done[list[Answer]]]:
        """Begin to run these requests together; to be awaited for their answers, in order.

        That raises :class:`ServeError` where the enclave ends and none is answered.
        """
        process = self._process
        assert process is not None
        self.running_count = len(sealed)
        return self._outcome(self._lane.submit(lambda: exchange(process, sealed)))

    async def evidence(self, nonce: bytes) -> bytes:
        """Evidence of this enclave, encoded, as soon as there is any. Raises :class:`ServeError`.

        However many ask, so many wait and no more, and of these one is in the way of a run: an
        enclave gives evidence between its runs.
        """
        if self._asking_count >= self._tools.limits.waiting_count:
            raise ServeError(Code.OVERLOADED, "too many wait for evidence of this enclave.")
        self._asking_count += 1
        try:
            await self._known.wait()
            process = self._process
            if process is None:
                raise EnclaveError("the enclave did not start")
            async with self._asking:
                asked = self._lane.submit(lambda: process.claims(nonce))
                claims = (await asyncio.wrap_future(asked)).value
            return await in_thread(lambda: self._tools.backend.evidence(claims).encoded())
        except VesselsError as error:
            event("no_evidence", level=logging.ERROR, model=self.model.name, why=str(error))
            raise ServeError(Code.NO_EVIDENCE, "the enclave gave no evidence.") from None
        finally:
            self._asking_count -= 1

    async def _outcome(self, run: Future[Done[list[Answer]]]) -> Done[list[Answer]]:
        """What came of a run; the enclave's own words stay in the log."""
        try:
            return await asyncio.wrap_future(run)
        except (SealedError, KeyFileError) as error:
            self._why = str(error)
            raise ServeError(Code.MODEL_REFUSED, "the enclave refuses the model.") from None
        except VesselsError as error:
            self._why = str(error)
            if self._overdue:
                raise ServeError(Code.TOO_LONG, "the enclave took too long.") from None
            raise ServeError(
                Code.ENCLAVE_ENDED,
                "the enclave ended before it had answered; get new evidence and ask again.",
            ) from None
        finally:
            self.running_count = 0

    async def _until_its_end(self, process: Process) -> str:
        with watched(process.pid) as ended:
            serving = asyncio.ensure_future(self._serve(process))
            stop = asyncio.ensure_future(self._told_to_stop.wait())
            ways: list[asyncio.Future[Any]] = [serving, stop, ended]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                if self.stopping:
                    return "it was told to"
                if not serving.done() and self.state is not State.READY:
                    # What it said before it ended tells more than how it did.
                    await asyncio.wait({serving}, timeout=1)
                if serving.done():
                    serving.result()
                how = ended.result()
            finally:
                self.state = State.DOWN
                serving.cancel()
                stop.cancel()
        await in_thread(self._lane.end)
        return "it took too long" if self._overdue else self._why or how

    async def _serve(self, process: Process) -> None:
        """Get the key, and watch over the enclave for as long as it runs."""
        claims = await self._in_time(lambda: self._lane.call(lambda: process.claims(new_nonce())))
        self.identity = identity_of(claims.public_key)
        self.state = State.KEYLESS
        self._known.set()
        sealed = await self._key(process)
        ready = await self._in_time(lambda: self._lane.call(lambda: process.give_key(sealed)))
        self.state = State.READY
        self.refused_key = False
        self.pool_size = ready.pool_size
        event(
            "model_ready", model=self.model.name, environment=self.number,
            digest=self.build.digest.hex(), isa=ready.isa, threads=ready.thread_count,
            pool_size=ready.pool_size,
        )  # fmt: skip
        await self._check_memory(process)
        self._watcher.ready(self)
        limit = self._tools.limits.predict_seconds
        pause = min(_CHECK_SECONDS, limit / 4)
        since = 0.0
        while True:
            await asyncio.sleep(pause)
            if self._lane.busy_seconds > limit:
                self._overdue = True
                process.kill()
            since += pause
            if since >= _MEMORY_SECONDS:
                since = 0.0
                await self._check_memory(process)

    async def _check_memory(self, process: Process) -> None:
        """What it holds must be what it was planned to hold at most."""
        held = await in_thread(lambda: self._tools.backend.memory(process))
        if held is not None and held > self.shape.size:
            self._watcher.larger(self, held)

    async def _key(self, process: Process) -> bytes:
        """The wrapped key of this model for the enclave, however often it takes to ask."""
        outcomes = self._tools.metrics.key_requests
        name = self.model.name
        due = time.monotonic() + self._tools.limits.key_seconds

        def prove(nonce: bytes) -> Evidence:
            claims = self._lane.call(lambda: process.claims(nonce))
            return self._tools.backend.evidence(claims)

        def ask() -> bytes:
            return self._tools.keys.get(self.build.digest, self.model.path, prove)

        for delay in _delays(_MOST_KEY_DELAY):
            try:
                sealed = await self._in_time(ask)
            except EnclaveError:
                raise
            except VesselsError as error:
                outcomes.labels(name, "failed").inc()
                event(
                    "key_not_given", level=logging.WARNING, model=name, environment=self.number,
                    why=str(error), retry_seconds=delay,
                )  # fmt: skip
                self.refused_key = True
                self._watcher.keyless(self)
                if self._modest and time.monotonic() + delay > due:
                    raise EnclaveError("it was not given its key in time") from None
                await asyncio.sleep(delay)
            else:
                outcomes.labels(name, "given").inc()
                event("key_given", model=name, environment=self.number)
                return sealed
        raise AssertionError("delays end")

    async def _in_time(self, call: Callable[[], T]) -> T:
        """What ``call`` gives, in the time that an enclave has for it."""
        try:
            return await asyncio.wait_for(in_thread(call), self._tools.limits.open_seconds)
        except TimeoutError:
            raise EnclaveError("it did not open its model in time") from None


def _delays(most: float) -> Iterator[float]:
    """Seconds between attempts: doubling up to ``most``."""
    delay = _FIRST_DELAY
    while True:
        yield min(delay, most)
        delay *= 2
