"""The line before one enclave: what asks of it waits its turn, in order, up to a number."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from vessels.errors import EnclaveError
from vessels.serve.errors import Code, ServeError

T = TypeVar("T")


@dataclass(frozen=True)
class Done(Generic[T]):
    """What came of one job, and its times."""

    value: T
    waiting_seconds: float
    working_seconds: float


class Lane:
    """Runs jobs of one enclave, one after the other, in a thread that alone talks to it.

    An enclave answers one question at a time, and each blocks. When it dies, the job under way
    fails at once, and so does each after it.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="enclave")
        self._busy_since: float | None = None
        self.waiting = 0

    @property
    def busy_seconds(self) -> float:
        """How long the job under way has been."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    async def run(self, job: Callable[[], T]) -> Done[T]:
        """The outcome of ``job``, or what it raises; ``overloaded`` when too many wait.

        When the caller is cancelled before the job's turn, the job is not done. Raises
        :class:`EnclaveError` when the enclave has ended.
        """
        if self.waiting >= self._most:
            raise ServeError(Code.OVERLOADED, f"{self.waiting} requests wait for this model.")
        self.waiting += 1
        try:
            return await asyncio.wrap_future(self._submit(job))
        finally:
            self.waiting -= 1

    def call(self, job: Callable[[], T]) -> T:
        """The outcome of ``job``, for callers that block; they are few, and have no limit."""
        return self._submit(job).result().value

    def end(self) -> None:
        """Take no more jobs, and wait for those there are: the enclave must have ended."""
        self._thread.shutdown(wait=True)

    def _submit(self, job: Callable[[], T]) -> Future[Done[T]]:
        asked = time.monotonic()

        def work() -> Done[T]:
            began = self._busy_since = time.monotonic()
            try:
                value = job()
            finally:
                self._busy_since = None
            return Done(value, began - asked, time.monotonic() - began)

        try:
            return self._thread.submit(work)
        except RuntimeError:
            raise EnclaveError("the enclave has ended") from None
