"""A proxy that runs in a thread of a test's own process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator

from vessels.attestation import Policy
from vessels.client import AsyncClient
from vessels.proxy.run import Addresses, run_proxy


@contextlib.contextmanager
def running_proxy(
    url: str, policy: Policy, *, largest_request: int = 1 << 20
) -> Iterator[Addresses]:
    """A proxy for the server at ``url``, ended with the context."""
    started = threading.Event()
    found: list[Addresses] = []
    loops: list[asyncio.AbstractEventLoop] = []
    ends: list[Callable[[], None]] = []

    def ready(at: Addresses) -> None:
        found.append(at)
        started.set()

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        async with AsyncClient(url, policy=policy, timeout=20.0) as client:
            await run_proxy(
                client,
                ("127.0.0.1", 0),
                ("127.0.0.1", 0),
                largest_request=largest_request,
                ready=ready,
                stop=ends.append,
            )

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert started.wait(60)
        yield found[0]
    finally:
        loops[0].call_soon_threadsafe(ends[0])
        thread.join()
