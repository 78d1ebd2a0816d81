"""Requests on their way through a host, and why they are refused."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from vessels.schedule.decisions import Reason
from vessels.serve.errors import Code, ServeError

_REFUSALS = {
    Reason.OVERLOADED: (
        Code.OVERLOADED, "too many requests wait for this model, or this one would be late.",
    ),
    Reason.NO_ROOM: (Code.NO_ROOM, "there is no room for an enclave of this model at present."),
    Reason.ELSEWHERE: (
        Code.NOT_OPENED, "this enclave is gone or going; get new evidence and seal anew.",
    ),
    Reason.ENDED: (
        Code.ENCLAVE_ENDED,
        "the enclave ended before it had answered; get new evidence and ask again.",
    ),
}  # fmt: skip


@dataclass(eq=False)
class Ticket:
    """A request, from its arrival until it is answered or refused."""

    number: int
    model: str
    environment: int
    sealed: bytes
    asked: float
    future: asyncio.Future[Any]

    def give(self, value: object) -> None:
        if not self.future.done():
            self.future.set_result(value)

    def refuse(self, error: ServeError) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            # Who asked may be gone.
            self.future.exception()


def refusal(reason: Reason, retry_after: float = 1.0) -> ServeError:
    """What a client is told when the scheduler refuses its request for ``reason``."""
    code, message = _REFUSALS[reason]
    return ServeError(code, message, retry_after=retry_after)


def unusable() -> ServeError:
    """What a client is told while no enclave opens the model that is there."""
    return ServeError(
        Code.MODEL_REFUSED, "the sealed model on this host was altered, cut or taken away."
    )


def keyless() -> ServeError:
    """What a client is told while an enclave does not get its key."""
    return ServeError(Code.NOT_READY, "the enclave of this model has not been given its key.")
