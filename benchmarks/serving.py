"""``python -m benchmarks.serving``: what serving adds to a prediction, and what one server bears.

All on this machine, over loopback, in the simulation: ResNet-50 asked for one prediction after the
other, in turn with an enclave of this process's own; magika's small model asked by many clients at
once, with the processor time that each process took.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer

import vessels
from benchmarks import zoo
from benchmarks.machine import core_seconds, magika_model
from benchmarks.trust import client_policy
from vessels.attestation import Policy
from vessels.cli.common import run_app
from vessels.client import AsyncClient, Client

Array = np.ndarray[Any, Any]

LIMIT = 1.05
"""Most that a served prediction may take, in times of one in an enclave alone."""


@dataclass(frozen=True)
class Sequential:
    """Medians in milliseconds, and what passed in the enclave's process of both.

    Processor time is in milliseconds for each served prediction; what else runs on the machine
    changes it less than it changes the others.
    """

    alone_ms: float
    alone_in_enclave_ms: float
    served_ms: float
    in_enclave_ms: float
    client_cpu_ms: float
    server_cpu_ms: float

    @property
    def ratio(self) -> float:
        return self.served_ms / self.alone_ms


@dataclass(frozen=True)
class Concurrent:
    """Many clients at once; processor time is in milliseconds for each request."""

    clients: int
    requests_per_second: float
    median_ms: float
    p99_ms: float
    waiting_ms: float
    in_enclave_ms: float
    alone_ms: float
    client_cpu_ms: float
    server_cpu_ms: float
    enclave_cpu_ms: float


@dataclass
class Served:
    """A server of one model, in a process of its own."""

    url: str
    policy: Policy
    pid: int
    enclave: int

    def seconds(self, name: str) -> tuple[float, float]:
        """Sum and count of a histogram so far."""
        with urllib.request.urlopen(f"{self.url}/metrics") as answer:
            text = answer.read().decode()
        total, count = (
            float(re.findall(rf"^{name}_{part}\{{.*?\}} (\S+)$", text, re.MULTILINE)[0])
            for part in ("sum", "count")
        )
        return total, count


@contextlib.contextmanager
def served(sealed: Path, key: Path, threads: int | None) -> Iterator[Served]:
    """``vessels serve`` for one model."""
    command = [sys.executable, "-m", "vessels", "serve", f"m={sealed}", "--insecure-key", str(key)]
    command += ["--listen", "127.0.0.1:0", "--log", "json"]
    command += [] if threads is None else ["--threads", str(threads)]
    text = client_policy({"m": sealed})
    log = sealed.with_suffix(".log")
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file)
    try:
        events: dict[str, dict[str, Any]] = {}
        while "model_ready" not in events:
            if process.poll() is not None or "enclave_ended" in events:
                raise SystemExit(log.read_text())
            time.sleep(0.05)
            whole = log.read_text().rpartition("\n")[0]
            events = {e["event"]: e for e in map(json.loads, whole.splitlines())}
        yield Served(
            events["serving"]["url"], Policy.parse(text, "policy.toml"), process.pid,
            events["enclave_started"]["pid"],
        )  # fmt: skip
    finally:
        process.terminate()
        process.wait()


def measure_sequential(seconds: float, threads: int | None, folder: Path) -> Sequential:
    """ResNet-50, served and alone in turn."""
    model = zoo.build("resnet50")
    onnx.save(model, folder / "r.onnx")
    inputs = zoo.example_input(model)
    sealed, key = folder / "r.vessel", folder / "r.key"
    vessels.build(folder / "r.onnx", sealed, key=key)
    alone_ms: list[float] = []
    inside_ms: list[float] = []
    served_ms: list[float] = []
    client_cpu = 0.0
    with (
        served(sealed, key, threads) as server,
        Client(server.url, policy=server.policy) as client,
        vessels.Enclave(sealed, key=key, threads=threads) as enclave,
    ):
        for _ in range(3):
            client.predict("m", inputs)
            enclave.run(inputs)
        request = enclave.sealed(inputs)
        before = server.seconds("vessels_predict_enclave_seconds")
        server_cpu = core_seconds(server.pid)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            inside_ms.append(_timed_ms(lambda: enclave.exchange(request)))
            alone_ms.append(_timed_ms(lambda: enclave.run(inputs)))
            spent = time.process_time()
            served_ms.append(_timed_ms(lambda: client.predict("m", inputs)))
            client_cpu += time.process_time() - spent
        server_cpu = core_seconds(server.pid) - server_cpu
        after = server.seconds("vessels_predict_enclave_seconds")
    alone, inside, whole = map(statistics.median, (alone_ms, inside_ms, served_ms))
    return Sequential(
        alone, inside, whole, _mean_ms(before, after),
        client_cpu * 1e3 / len(served_ms), server_cpu * 1e3 / len(served_ms),
    )  # fmt: skip


def measure_concurrent(seconds: float, clients: int, folder: Path) -> Concurrent:
    """magika's model of 2,048 bytes of a file, asked by ``clients`` at once."""
    sealed, key = folder / "m.vessel", folder / "m.key"
    vessels.build(magika_model(), sealed, key=key, shapes={"bytes": [1, 2048]})
    inputs = {"bytes": np.full((1, 2048), 101, np.int32)}
    with vessels.Enclave(sealed, key=key) as enclave:
        alone = [_timed_ms(lambda: enclave.run(inputs)) for _ in range(200)]
    with served(sealed, key, None) as server:
        latencies = asyncio.run(_ask(server, inputs, clients, 1.0))
        names = ("vessels_predict_waiting_seconds", "vessels_predict_enclave_seconds")
        before = [server.seconds(name) for name in names]
        cpu = [core_seconds(pid) for pid in (os.getpid(), server.pid, server.enclave)]
        start = time.monotonic()
        latencies = asyncio.run(_ask(server, inputs, clients, seconds))
        taken = time.monotonic() - start
        spent = [
            (core_seconds(pid) - was) * 1e3 / len(latencies)
            for pid, was in zip((os.getpid(), server.pid, server.enclave), cpu, strict=True)
        ]
        waiting, inside = (
            _mean_ms(was, server.seconds(name)) for was, name in zip(before, names, strict=True)
        )
    return Concurrent(
        clients, len(latencies) / taken, statistics.median(latencies),
        float(np.percentile(latencies, 99)), waiting, inside, statistics.median(alone), *spent,
    )  # fmt: skip


async def _ask(
    server: Served, inputs: dict[str, Array], clients: int, seconds: float
) -> list[float]:
    """Milliseconds of each request of ``clients`` that ask one after the other, each."""
    latencies: list[float] = []
    end = time.monotonic() + seconds

    async def one(client: AsyncClient) -> None:
        while time.monotonic() < end:
            start = time.perf_counter()
            await client.predict("m", inputs)
            latencies.append((time.perf_counter() - start) * 1e3)

    async with AsyncClient(server.url, policy=server.policy) as client:
        await client.attest("m")
        await asyncio.gather(*(one(client) for _ in range(clients)))
    return latencies


def _timed_ms(call: Any) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def _mean_ms(before: tuple[float, float], after: tuple[float, float]) -> float:
    return (after[0] - before[0]) / (after[1] - before[1]) * 1e3


def main(
    seconds: Annotated[float, typer.Option(help="Seconds of timing for each measurement.")] = 10.0,
    clients: Annotated[int, typer.Option(help="Concurrent clients of the small model.")] = 16,
    threads: Annotated[int | None, typer.Option(help="Threads of ResNet-50's enclaves.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure what serving adds."""
    with tempfile.TemporaryDirectory(prefix="vessels-") as folder:
        os.environ["XDG_STATE_HOME"] = folder
        one = measure_sequential(seconds, threads, Path(folder))
        many = measure_concurrent(seconds, clients, Path(folder))
    if as_json:
        report = {"sequential": asdict(one) | {"ratio": one.ratio}, "concurrent": asdict(many)}
        typer.echo(json.dumps(report, indent=2))
        return
    over = "" if one.ratio <= LIMIT else f" OVER THE LIMIT of {LIMIT}"
    typer.echo(
        f"ResNet-50, one after the other: alone {one.alone_ms:.2f} ms, of which in the enclave "
        f"{one.alone_in_enclave_ms:.2f} ms; served {one.served_ms:.2f} ms, of which in the enclave "
        f"{one.in_enclave_ms:.2f} ms; ratio {one.ratio:.3f}{over}"
    )
    typer.echo(
        f"  processor time for each served request: client {one.client_cpu_ms:.2f} ms, server "
        f"{one.server_cpu_ms:.2f} ms"
    )
    typer.echo(
        f"magika, {many.clients} clients: {many.requests_per_second:.0f} requests/s, median "
        f"{many.median_ms:.2f} ms, p99 {many.p99_ms:.2f} ms, of which waiting "
        f"{many.waiting_ms:.2f} ms and in the enclave {many.in_enclave_ms:.2f} ms "
        f"(alone {many.alone_ms:.2f} ms)"
    )
    typer.echo(
        f"  processor time for each request: clients {many.client_cpu_ms:.2f} ms, server "
        f"{many.server_cpu_ms:.2f} ms, enclave {many.enclave_cpu_ms:.2f} ms"
    )


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    run_app(app)
