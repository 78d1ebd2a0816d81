"""Blocking calls beside an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(call: Callable[[], T]) -> T:
    """What ``call`` returns or raises, from a thread that nobody waits for at exit.

    So a call to a service that does not answer never holds up a shutdown.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def finish(value: T | None, error: BaseException | None) -> None:
        if result.done():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)  # type: ignore[arg-type]

    def work() -> None:
        value, failed = None, None
        try:
            value = call()
        except BaseException as error:
            failed = error
        # The loop may have ended meanwhile; nobody is left to tell.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(finish, value, failed)

    threading.Thread(target=work, daemon=True).start()
    return await result
