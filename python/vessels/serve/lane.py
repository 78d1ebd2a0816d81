"""The line before one enclave: what asks of it is done in turn, in a thread of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from vessels.errors import EnclaveError

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

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="enclave")
        self._busy_since: float | None = None

    @property
    def busy_seconds(self) -> float:
        """How long the job under way has been."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def submit(self, job: Callable[[], T]) -> Future[Done[T]]:
        """The outcome of ``job``, or what it raises.

        When the future is cancelled before the job's turn, the job is not done. It fails with
        :class:`EnclaveError` when the enclave has ended.
        """
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
            late: Future[Done[T]] = Future()
            late.set_exception(EnclaveError("the enclave has ended"))
            return late

    def call(self, job: Callable[[], T]) -> T:
        """The outcome of ``job``, for callers that block."""
        return self.submit(job).result().value

    def end(self) -> None:
        """Take no more jobs, and wait for those there are: the enclave must have ended."""
        self._thread.shutdown(wait=True)
