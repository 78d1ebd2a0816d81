"""One replica: one environment, from its start to its end.

A replica lives as long as its enclave. It is a replica only once the enclave has its key, and when
the enclave ends, whoever waits is told and the replica ends, too: Serve starts another, with
another key pair, where there is room. Only so is a replica's environment, by which requests find
it, one and the same for as long as it is there.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import select
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vessels.attestation import Evidence, model_digest
from vessels.cluster.router import ENVIRONMENT
from vessels.errors import EnclaveError, KeyFileError, SealedError, VesselsError
from vessels.predict_headers import identity_of
from vessels.schedule.model import Shape
from vessels.serve.backends import Backend, Gramine, Native, Process, Simulation
from vessels.serve.errors import Code, ServeError
from vessels.serve.keys import InsecureKeyFiles, KeyService, KeySource
from vessels.serve.runs import exchange

log = logging.getLogger("ray.serve")

NONCE_SIZE = 32
KNOWN_SECONDS = 0.5
"""Within which all routers know of a replica that one of them knows."""

_FIRST_KEY_DELAY, _MOST_KEY_DELAY = 0.5, 5.0
_WATCH_SECONDS = 0.25
_LAST_WORDS_SECONDS = 0.5
_SMOOTH_COUNT = 8
"""Runs over which what one takes is averaged."""

T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """What a replica is to run; made where the application is, checked where the replica is."""

    name: str
    path: Path
    digest: bytes
    shape: Shape
    backend: str
    manifest: Path | None
    keys: str | None
    insecure_keys: tuple[Path, ...]
    predict_seconds: float
    waiting_count: int


@dataclass(frozen=True)
class Answer:
    """What a replica says: ``value``, or the ``code`` of a refusal and its ``message``."""

    value: bytes = b""
    code: Code | None = None
    message: str = ""


class Environment:
    """The enclave of one model. Made when it has its key, however long that takes.

    Raises :class:`VesselsError` for what no waiting helps against: no such file, another model.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        if model_digest(task.path) != task.digest:
            raise SealedError(
                f"{task.path} on this node is another build than the application was made for."
            )
        self._backend = _backend(task)
        keys = _keys(task)
        self._process: Process = self._backend.start(task.path, task.shape)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="enclave")
        self._busy_since: float | None = None
        self._known_since: float | None = None
        self._waiting = 0
        self._run_seconds = 0.0
        self._ended = False
        try:
            claims = self._process.claims(os.urandom(NONCE_SIZE))
            self.environment = identity_of(claims.public_key)
            self._process.give_key(self._key(keys))
        except BaseException:
            self.close()
            raise
        log.info("model %s: environment %s is ready", task.name, self.environment)
        threading.Thread(target=self._watch, daemon=True, name="watch").start()

    async def predict(
        self, sealed: bytes, environment: str | None, seconds: float = math.inf
    ) -> Answer:
        """The sealed answer to a request that was sealed to ``environment``.

        Refused at once when its turn would not be over within ``seconds``.
        """
        if environment not in (None, self.environment):
            return _not_opened("it was sealed to another environment, which is gone or busy")
        if (self._waiting + 1) * self._run_seconds > seconds:
            return Answer(
                code=Code.OVERLOADED, message=f"{self._waiting} requests wait: not in time."
            )
        return await self._answer(lambda: self._run(sealed))

    async def evidence(self, nonce: bytes) -> Answer:
        """Evidence of this environment, encoded."""
        # Who has it sends requests by way of any router.
        await asyncio.sleep(max(0.0, self._known() + KNOWN_SECONDS - time.monotonic()))
        return await self._answer(lambda: self._prove(nonce).encoded(), Code.NO_EVIDENCE)

    def record_replica_metadata(self) -> dict[str, Any]:
        """For routers, by Serve."""
        return {ENVIRONMENT: self.environment}

    def check_health(self) -> None:
        """For Serve: raises when the enclave has ended."""
        if self._ended:
            raise EnclaveError("the enclave has ended.")

    def close(self) -> None:
        """End the enclave."""
        self._ended = True
        self._process.kill()
        self._thread.shutdown(wait=True)
        self._process.close()

    def __del__(self) -> None:
        # By Serve, when the replica is to end. One that never was has nothing to close.
        if not getattr(self, "_ended", True):
            self.close()

    async def _answer(self, job: Callable[[], bytes], failed: Code = Code.ENCLAVE_ENDED) -> Answer:
        """What ``job`` gives in its turn, or why it gives nothing."""
        self._known()
        if self._waiting >= self._task.waiting_count:
            return Answer(
                code=Code.OVERLOADED, message=f"{self._waiting} requests wait for this environment."
            )
        self._waiting += 1
        try:
            return Answer(await asyncio.wrap_future(self._thread.submit(self._timed, job)))
        except ServeError as refused:
            return Answer(code=refused.code, message=refused.message)
        except (SealedError, KeyFileError):
            return Answer(code=Code.MODEL_REFUSED, message="the enclave refuses the model.")
        except (VesselsError, RuntimeError) as error:
            # A pool of threads that takes no more has been closed.
            if isinstance(error, RuntimeError) and not self._ended:
                raise
            log.warning("model %s: environment %s: %s", self._task.name, self.environment, error)
            return Answer(
                code=failed,
                message="the enclave ended before it had answered; get new evidence and ask again.",
            )
        finally:
            self._waiting -= 1

    def _run(self, sealed: bytes) -> bytes:
        began = time.monotonic()
        [answer] = exchange(self._process, [sealed])
        if isinstance(answer, ServeError):
            raise answer
        taken = time.monotonic() - began
        old = self._run_seconds or taken
        self._run_seconds = old + (taken - old) / _SMOOTH_COUNT
        return answer

    def _timed(self, job: Callable[[], T]) -> T:
        self._busy_since = time.monotonic()
        try:
            return job()
        finally:
            self._busy_since = None

    def _prove(self, nonce: bytes) -> Evidence:
        return self._backend.evidence(self._process.claims(nonce))

    def _key(self, keys: KeySource) -> bytes:
        """The wrapped key, however often it takes to ask while the enclave runs."""
        delay = _FIRST_KEY_DELAY
        while True:
            try:
                return keys.get(self._task.digest, self._task.path, self._prove)
            except EnclaveError:
                raise
            except VesselsError as error:
                log.warning("model %s waits for its key: %s", self._task.name, error)
                time.sleep(delay)
                delay = min(2 * delay, _MOST_KEY_DELAY)

    def _known(self) -> float:
        """Since when a router knows of this replica: its first request."""
        if self._known_since is None:
            self._known_since = time.monotonic()
        return self._known_since

    def _watch(self) -> None:
        """Wait for the enclave's end, make it end where it takes too long, and end with it."""
        handle = os.pidfd_open(self._process.pid)
        while not select.select([handle], [], [], _WATCH_SECONDS)[0]:
            since = self._busy_since
            if since is not None and time.monotonic() - since > self._task.predict_seconds:
                log.error("model %s: the enclave took too long, and is ended", self._task.name)
                self._process.kill()
        os.close(handle)
        if self._ended:
            return
        self._ended = True
        log.error("model %s: environment %s has ended", self._task.name, self.environment)
        # Who waits is told; then Serve sees at once that there is no such replica any more.
        time.sleep(_LAST_WORDS_SECONDS)
        _leave()


def _leave() -> None:
    """End this process, which is the replica."""
    os._exit(1)


def _backend(task: Task) -> Backend:
    if task.backend == "gramine":
        assert task.manifest is not None
        return Gramine({task.path: task.manifest})
    return Native() if task.backend == "native" else Simulation()


def _keys(task: Task) -> KeySource:
    if task.keys is not None:
        return KeyService.at(task.keys)
    return InsecureKeyFiles.load(task.insecure_keys)


def _not_opened(why: str) -> Answer:
    return Answer(
        code=Code.NOT_OPENED,
        message=f"the enclave cannot open this request: {why}; get new evidence and seal it anew.",
    )
