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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from vessels.attestation import Evidence, new_nonce
from vessels.enclave import Array
from vessels.errors import VesselsError
from vessels.listening import bound_socket, run_loop, url_of
from vessels.predict_headers import DEADLINE, ENVIRONMENT, identity_of
from vessels.schedule.model import Machine
from vessels.sealed_messages import RequestSealer, ResponseOpener
from vessels.serve.app import Site
from vessels.serve.backends import Backend, Simulation
from vessels.serve.config import ModelSettings
from vessels.serve.environment import Environment, Tools
from vessels.serve.host import Host
from vessels.serve.keys import InsecureKeyFiles, KeySource
from vessels.serve.limits import Limits
from vessels.serve.metrics import Metrics
from vessels.serve.model import ServedModel
from vessels.serve.server import serve

PATIENCE = 60.0
"""Seconds within which everything here happens; what takes longer has failed."""


def until(
    true: Callable[[], object], what: str, *, patience: float = PATIENCE, pause: float = 0.01
) -> None:
    """Wait for ``true``, which is asked every ``pause`` seconds, for ``patience`` at most."""
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(pause)


def state_of(pid: int) -> str | None:
    """The kernel's letter for what a process does; none if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process is stopped meanwhile: it neither works nor ends."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        # It may have been ended and replaced.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@dataclass(frozen=True)
class Served:
    """One model as its host sees it."""

    host: Host
    name: str

    @property
    def ready(self) -> bool:
        return self.host.is_serving(self.name)

    @property
    def waiting(self) -> int:
        return self.host.waiting(self.name)

    @property
    def digest(self) -> bytes:
        return self.host.models[self.name].build.digest

    @property
    def largest_request(self) -> int:
        return self.host.models[self.name].build.largest_request

    @property
    def environment(self) -> Environment:
        """The latest that has a process."""
        return [e for e in self.host.environments(self.name) if e.pid is not None][-1]


@dataclass
class Running:
    """A server that runs; ``model`` is the name of its first model.

    ``failures`` is how it ended, if not as it should.
    """

    url: str
    address: tuple[str, int]
    site: Site
    stop: Callable[[], None]
    model: str
    failures: list[VesselsError] = field(default_factory=list)

    @property
    def path(self) -> str:
        return f"{self.url}/vessels/v1/models/{self.model}"

    @property
    def served(self) -> Served:
        return Served(self.site.host, self.model)

    @property
    def enclave(self) -> int:
        """Process id of the enclave of the first model."""
        pid = self.served.environment.pid
        assert pid is not None
        return pid

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

    def post(
        self, body: bytes, *, key: bytes | None = None, deadline_ms: int | None = None
    ) -> httpx2.Response:
        """The answer to a sealed request, which names the environment that has ``key``."""
        headers = {"Content-Type": "application/octet-stream"}
        if key is not None:
            headers[ENVIRONMENT] = identity_of(key)
        if deadline_ms is not None:
            headers[DEADLINE] = str(deadline_ms)
        path = f"{self.path}/predict"
        return httpx2.post(path, content=body, timeout=PATIENCE, headers=headers)

    def count(self, name: str, **labels: str) -> float:
        """A metric, as a scraper reads it."""
        found = self.site.metrics.registry.get_sample_value(name, labels)
        return 0.0 if found is None else found

    def stalled(self) -> AbstractContextManager[None]:
        """The enclave is stopped meanwhile: it neither works nor ends."""
        return stopped(self.enclave)

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
    models: Mapping[str, Path] | Sequence[ModelSettings],
    keys: KeySource | Path,
    *,
    limits: Limits | None = None,
    backend: Backend | None = None,
    epc_size: int | None = None,
) -> Iterator[Running]:
    """A server of ``models`` on a free port; it is ended, and its enclaves with it.

    Models given by name have all the time there is: enclaves are stopped in tests.
    """
    source = InsecureKeyFiles.load([keys]) if isinstance(keys, Path) else keys
    bounds = limits or Limits()
    launcher = backend or Simulation()
    tools = Tools(launcher, source, bounds, Metrics())
    machine = Machine(len(os.sched_getaffinity(0)), epc_size)
    if isinstance(models, Mapping):
        models = [ModelSettings(n, path, deadline=PATIENCE) for n, path in models.items()]
    served = [ServedModel(m, backend=launcher, limits=bounds, machine=machine) for m in models]
    site = Site(Host(served, machine, tools), bounds, tools.metrics)
    bound = bound_socket("127.0.0.1", 0)
    address = bound.getsockname()
    url = url_of(bound)
    started = threading.Event()
    ends: list[Callable[[], None]] = []
    failures: list[VesselsError] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()

        def keep(end: Callable[[], None]) -> None:
            def end_soon() -> None:
                loop.call_soon_threadsafe(end)

            ends.append(end_soon)
            loop.call_soon(started.set)

        try:
            await serve(site, bound, stop=keep)
        except VesselsError as error:
            failures.append(error)

    thread = threading.Thread(target=lambda: run_loop(run()))
    thread.start()
    assert started.wait(PATIENCE)
    running = Running(url, address, site, ends[0], models[0].name, failures)
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
