"""A server in a process of its own, its enclaves in an emulated EPC, and what it counts."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.serving_evaluation.systems import System
from benchmarks.trust import client_policy
from vessels.closing import await_end
from vessels.errors import UsageError
from vessels.study.emulator import Emulator

START_SECONDS = 120.0
STOP_SECONDS = 60.0


class NotServedError(Exception):
    """The server refused to serve these models; its words."""


@dataclass(frozen=True)
class Counts:
    """Of a server and its EPC since they began. Faults are pages that were brought back."""

    faults: int
    launches: int
    evictions: int
    runs: int
    run_requests: int
    run_seconds: float
    """Of all requests, each with all of the run that it was in."""
    cpu_seconds: float
    """Of the server's own process."""


@dataclass(frozen=True)
class Served:
    """A server of ``models``; ``policy`` is a file for its clients."""

    url: str
    models: tuple[str, ...]
    policy: Path
    emulator: Emulator

    def totals(self) -> dict[str, float]:
        """The server's metrics by name, summed over models."""
        text = httpx2.get(f"{self.url}/metrics", timeout=START_SECONDS).text
        totals: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name
                if "state" in sample.labels:
                    name = f"{name}:{sample.labels['state']}"
                totals[name] = totals.get(name, 0.0) + sample.value
        return totals

    def counts(self) -> Counts:
        totals = self.totals()
        return Counts(
            faults=self.emulator.counters().fetched,
            launches=round(totals.get("vessels_launches_total", 0)),
            evictions=round(totals.get("vessels_evictions_total", 0)),
            runs=round(totals.get("vessels_batch_size_count", 0)),
            run_requests=round(totals.get("vessels_batch_size_sum", 0)),
            run_seconds=totals.get("vessels_predict_enclave_seconds_sum", 0.0),
            cpu_seconds=totals["process_cpu_seconds_total"],
        )

    def wait(self) -> None:
        """Until what is to run from the start does."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            totals = self.totals()
            starting = totals.get("vessels_environments:starting", 0)
            if not starting and totals.get("vessels_environments:ready", 0):
                return
            time.sleep(0.1)
        raise RuntimeError(f"enclaves were not ready within {START_SECONDS:.0f} s")


@contextlib.contextmanager
def served(
    system: System, models: dict[str, Path], epc_size: int, folder: Path
) -> Iterator[Served]:
    """``system`` serving ``models``, ready. Raises :class:`NotServedError`."""
    policy = folder / "policy.toml"
    policy.write_text(client_policy(models))
    log = folder / "server.log"
    with contextlib.ExitStack() as stack:
        emulator = stack.enter_context(Emulator(epc_size))
        config: dict[str, Any] = {
            "command": emulator.command,
            "models": {name: str(path) for name, path in models.items()},
            "epc_size": epc_size if system.admits else None,
            "slots": system.slots,
        }
        file = folder / "host.json"
        file.write_text(json.dumps(config))
        command = [sys.executable, "-m", "benchmarks.serving_evaluation.host", str(file)]
        process = subprocess.Popen(command, stderr=stack.enter_context(log.open("wb")))
        stack.callback(await_end, process, STOP_SECONDS)
        stack.callback(process.terminate)
        found = Served(_url(process, log), tuple(models), policy, emulator)
        found.wait()
        yield found


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    while True:
        ended = process.poll() is not None
        for line in log.read_text().rpartition("\n")[0].splitlines():
            if line.startswith("{") and (event := json.loads(line))["event"] == "serving":
                return str(event["url"])
        if ended:
            said = log.read_text().strip()
            if process.returncode == UsageError.exit_code:
                raise NotServedError(said.splitlines()[-1])
            raise RuntimeError(f"the server ended at its start: {said}")
        time.sleep(0.05)
