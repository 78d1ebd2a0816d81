"""A proxy that runs in a thread of a test's own process, and what its clients ask and check."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from tritonclient.utils import np_to_triton_dtype

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


def tensors(module: Any, arrays: dict[str, Any], **options: Any) -> list[Any]:
    """Inputs of tritonclient's ``module``, of whichever of its APIs."""
    made = []
    for name, array in arrays.items():
        tensor = module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array, **options)
        made.append(tensor)
    return made


def check(result: Any, expected: dict[str, Any]) -> None:
    """Its outputs are those, to the bit."""
    for name, array in expected.items():
        found = result.as_numpy(name)
        assert found.dtype == array.dtype and found.shape == array.shape
        assert np.array_equal(found, array)
