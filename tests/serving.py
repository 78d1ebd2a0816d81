"""A server in a thread of the test, with simulated enclaves, and ways to ask it badly."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from vessels.attestation import Evidence, new_nonce
from vessels.enclave import Array
from vessels.listening import bound_socket, url_of
from vessels.sealed_messages import RequestSealer, ResponseOpener
from vessels.serve.app import Site
from vessels.serve.backends import Backend, Simulation
from vessels.serve.keys import InsecureKeyFiles, KeySource
from vessels.serve.limits import Limits
from vessels.serve.metrics import Metrics
from vessels.serve.model import ServedModel
from vessels.serve.server import serve

PATIENCE = 60.0
"""Seconds within which everything here happens; what takes longer has failed."""


def until(true: Callable[[], object], what: str) -> None:
    """Wait for ``true``."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


@dataclass
class Running:
    """A server that runs; ``model`` is the name of its first model."""

    url: str
    address: tuple[str, int]
    site: Site
    stop: Callable[[], None]
    model: str

    @property
    def path(self) -> str:
        return f"{self.url}/vessels/v1/models/{self.model}"

    @property
    def served(self) -> ServedModel:
        return self.site.models[self.model]

    @property
    def enclave(self) -> int:
        """Process id of the enclave of the first model."""
        running = self.served._running
        assert running is not None
        return running.process.pid

    def await_ready(self) -> None:
        until(lambda: self.served.ready, "an enclave that serves")

    def evidence(self) -> Evidence:
        """Of the first model's enclave."""
        answer = httpx2.get(f"{self.path}/evidence?nonce={new_nonce().hex()}", timeout=PATIENCE)
        assert answer.status_code == 200, answer.text
        return Evidence.decode(answer.content)

    def sealed(self, inputs: Mapping[str, Array]) -> tuple[bytes, ResponseOpener[dict[str, Array]]]:
        """A request to the enclave that runs now, unverified."""
        claims = self.evidence().claims
        return RequestSealer(claims.public_key, claims.model_digest).seal_predict(inputs)

    def post(self, body: bytes) -> httpx2.Response:
        return httpx2.post(
            f"{self.path}/predict", content=body, timeout=PATIENCE,
            headers={"Content-Type": "application/octet-stream"},
        )  # fmt: skip

    def count(self, name: str, **labels: str) -> float:
        """A metric, as a scraper reads it."""
        found = self.site.metrics.registry.get_sample_value(name, labels)
        return 0.0 if found is None else found

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """The enclave is stopped meanwhile: it neither works nor ends."""
        pid = self.enclave
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            # It may have been ended and replaced.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def connect(self) -> socket.socket:
        """A connection, to say anything on."""
        connection = socket.create_connection(self.address, timeout=PATIENCE)
        return connection

    def say(self, raw: bytes) -> bytes:
        """All that the server says to ``raw`` until it closes the connection."""
        with self.connect() as connection:
            connection.sendall(raw)
            return rest(connection)


def rest(connection: socket.socket) -> bytes:
    """All that comes until the other side closes or resets."""
    said = b""
    try:
        while part := connection.recv(1 << 16):
            said += part
    except ConnectionResetError:
        pass
    return said


def one(connection: socket.socket) -> bytes:
    """One answer, whose size its head tells."""
    said = b""
    while not (size := re.search(rb"(?i)content-length: (\d+)\r\n(?s:.*?)\r\n\r\n", said)) or (
        len(said) < size.end() + int(size[1])
    ):
        part = connection.recv(1 << 16)
        assert part, said[:200]
        said += part
    return said


def error_of(said: bytes) -> str:
    """The error code in the first HTTP answer in ``said``."""
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 "), said[:200]
    answer: dict[str, Any] = json.loads(body)
    code: str = answer["error"]["code"]
    return code


def post_head(running: Running, size: int, *more: str) -> bytes:
    """The head of a predict request with a body of ``size`` bytes."""
    lines = [
        f"POST /vessels/v1/models/{running.model}/predict HTTP/1.1", "Host: x",
        "Content-Type: application/octet-stream", f"Content-Length: {size}", *more,
    ]  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode()


@contextmanager
def serving(
    models: Mapping[str, Path],
    keys: KeySource | Path,
    *,
    limits: Limits | None = None,
    backend: Backend | None = None,
) -> Iterator[Running]:
    """A server of ``models`` on a free port; it is ended, and its enclaves with it."""
    source = InsecureKeyFiles.load([keys]) if isinstance(keys, Path) else keys
    bounds = limits or Limits()
    metrics = Metrics()
    launcher = backend or Simulation()
    site = Site(
        {
            name: ServedModel(
                name, path, backend=launcher, keys=source, limits=bounds, metrics=metrics
            )
            for name, path in models.items()
        },
        bounds,
        metrics,
    )
    bound = bound_socket("127.0.0.1", 0)
    address = bound.getsockname()
    url = url_of(bound)
    started = threading.Event()
    ends: list[Callable[[], None]] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()

        def keep(end: Callable[[], None]) -> None:
            def end_soon() -> None:
                loop.call_soon_threadsafe(end)

            ends.append(end_soon)
            loop.call_soon(started.set)

        await serve(site, bound, stop=keep)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert started.wait(PATIENCE)
    running = Running(url, address, site, ends[0], next(iter(models)))
    try:
        until(lambda: _lives(url), "a server that answers")
        yield running
    finally:
        if thread.is_alive():
            ends[0]()
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the server did not end"


def _lives(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/v2/health/live", timeout=PATIENCE).status_code == 200
    except httpx2.HTTPError:
        return False
