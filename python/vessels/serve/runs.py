"""One run of an enclave: sealed requests to sealed answers, each for itself."""

from __future__ import annotations

from collections.abc import Sequence

from vessels.errors import RequestError
from vessels.serve.backends import Process
from vessels.serve.errors import Code, ServeError

Answer = bytes | ServeError


def exchange(process: Process, sealed: Sequence[bytes]) -> list[Answer]:
    """The answers of one run, in order; blocks.

    A request that cannot be opened does not touch the others.
    """
    return [
        _not_opened() if isinstance(answer, RequestError) else answer
        for answer in process.exchange_batch(sealed)
    ]


def _not_opened() -> ServeError:
    return ServeError(
        Code.NOT_OPENED,
        "the enclave cannot open this request: it was altered, or sealed to another enclave's key; "
        "get new evidence and seal it anew.",
    )
