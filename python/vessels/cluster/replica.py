"""One replica: one environment, from its start to its end.

It runs what a server runs (:class:`~vessels.serve.host.Host`), for one model in one shape, on just
what its node keeps for it. A replica lives as long as its environment. It is a replica only once
that has its key, and when it ends, whoever waits is told and the replica ends, too: Serve starts
another, with another key pair, where there is room. Only so is a replica's environment, by which
requests find it, one and the same for as long as it is there.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import exposition

from vessels.cluster.need import Need
from vessels.cluster.router import ENVIRONMENT
from vessels.errors import EnclaveError, SealedError
from vessels.schedule.model import Shape
from vessels.schedule.scheduler import RESTART_SECONDS
from vessels.serve.backends import Backend, Gramine, Native, Simulation
from vessels.serve.config import ModelSettings
from vessels.serve.environment import Environment, Tools
from vessels.serve.errors import Code, ServeError
from vessels.serve.host import Host
from vessels.serve.keys import InsecureKeyFiles, KeyService, KeySource
from vessels.serve.limits import Limits
from vessels.serve.logs import use_guest_log
from vessels.serve.metrics import Metrics
from vessels.serve.model import ServedModel

KNOWN_SECONDS = 0.5
"""Within which all routers know of a replica that one of them knows."""

_LAST_WORDS_SECONDS = RESTART_SECONDS / 2
"""What is left for telling who waits. After twice that the host would start another enclave."""


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
    deadline_seconds: float | None


@dataclass(frozen=True)
class Answer:
    """What a replica says: ``value``, or the parts of a :class:`ServeError`, which has a ``code``.

    Errors themselves do not travel between processes.
    """

    value: bytes = b""
    code: Code | None = None
    message: str = ""
    retry_after: float = 0.0

    @classmethod
    async def of(cls, work: Awaitable[bytes]) -> Answer:
        """What ``work`` gives or raises."""
        try:
            return cls(await work)
        except ServeError as error:
            return cls(code=error.code, message=error.message, retry_after=error.retry_after)

    def unwrapped(self) -> bytes:
        """The value. Raises the :class:`ServeError`."""
        if self.code is not None:
            raise ServeError(self.code, self.message, retry_after=self.retry_after)
        return self.value


class Replica:
    """The environment of one model; to be made on the event loop that calls it.

    Raises :class:`~vessels.errors.VesselsError` for what no waiting helps against: no such file,
    another build.
    """

    def __init__(self, task: Task) -> None:
        use_guest_log()
        self._task = task
        self._metrics = Metrics()
        self._known_since: float | None = None
        self._ended = self._closed = False
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[str] = self._loop.create_future()
        limits = Limits(
            waiting_count=task.waiting_count,
            predict_seconds=task.predict_seconds,
            # Its memory is kept for it alone, however long it waits for its key.
            key_seconds=math.inf,
        )
        settings = ModelSettings(
            task.name,
            task.path,
            deadline=task.deadline_seconds,
            threads=task.shape.threads,
            slots=task.shape.slots,
        )
        backend = _backend(task)
        machine = Need(task.shape).machine
        model = ServedModel(
            settings, backend=backend, limits=limits, machine=machine, shape=task.shape
        )
        if model.build.digest != task.digest:
            raise SealedError(
                f"{task.path} on this node is another build than the application was made for."
            )
        self._host = Host(
            [model],
            machine,
            Tools(backend, _keys(task), limits, self._metrics),
            on_ready=self._begin,
            on_end=lambda _, how: self._end(how),
            on_defect=lambda: self._end("a defect of the server"),
        )
        self._host.start()

    async def record_replica_metadata(self) -> dict[str, Any]:
        """For routers, by Serve: the environment, once it has its key, however long that takes.

        Raises :class:`EnclaveError` when it ended before.
        """
        return {ENVIRONMENT: await self._ready}

    async def predict(
        self, sealed: bytes, environment: str | None, seconds: float | None = None
    ) -> Answer:
        """The sealed answer to a request that was sealed to ``environment``.

        It is of no use after ``seconds``.
        """
        self._known()
        due = None if seconds is None else time.monotonic() + seconds
        return await Answer.of(self._predicted(sealed, environment, due))

    async def evidence(self, nonce: bytes) -> Answer:
        """Evidence of this environment, encoded."""
        # Who has it sends requests by way of any router.
        await asyncio.sleep(max(0.0, self._known() + KNOWN_SECONDS - time.monotonic()))
        return await Answer.of(self._host.evidence(self._task.name, nonce, None))

    async def metrics(self) -> str:
        """What it has counted, as Prometheus has it."""
        return exposition.generate_latest(self._metrics.registry).decode()

    async def check_health(self) -> None:
        """For Serve: raises when the environment has ended."""
        if self._ended:
            raise EnclaveError("the enclave has ended.")

    async def close(self) -> None:
        """End the environment."""
        self._ended = self._closed = True
        self._ready.cancel()
        await self._host.close()

    def __del__(self) -> Coroutine[Any, Any, None] | None:
        # By Serve, which awaits it, when the replica is to end. One that never was has no host.
        return None if self._closed or not hasattr(self, "_host") else self.close()

    async def _predicted(self, sealed: bytes, environment: str | None, due: float | None) -> bytes:
        found = self._host.find(self._task.name, environment)
        return (await self._host.predict(found, sealed, due)).value

    def _known(self) -> float:
        """Since when a router knows of this replica: its first request."""
        if self._known_since is None:
            self._known_since = time.monotonic()
        return self._known_since

    def _begin(self, environment: Environment) -> None:
        if not self._ready.done():
            assert environment.identity is not None
            self._ready.set_result(environment.identity)

    def _end(self, how: str) -> None:
        self._ended = True
        if self._ready.done():
            # Who waits is told; then Serve sees at once that there is no such replica any more.
            self._loop.call_later(_LAST_WORDS_SECONDS, _leave)
        else:
            self._ready.set_exception(EnclaveError(f"the enclave ended before its time: {how}."))


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
