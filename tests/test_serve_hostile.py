"""What one client can do to the others of a server, and what it can leave behind in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx2
import numpy as np
import pytest

from tests.conftest import Sealed
from tests.serving import PATIENCE, Running, post_head, serving, until
from vessels.attestation import new_nonce
from vessels.enclave import EnclaveClaims, EnclaveProcess
from vessels.schedule.model import Shape
from vessels.serve.backends import Process, Simulation
from vessels.serve.limits import Limits

QUOTE_SECONDS = 0.05
INPUTS = {"image": np.zeros((1, 3, 16, 16), np.float32)}


class SlowQuotes(Simulation):
    """As on hardware, where a quote takes its time."""

    def start(self, model: Path, shape: Shape) -> Process:
        class Slow(EnclaveProcess):
            def claims(self, nonce: bytes) -> EnclaveClaims:
                time.sleep(QUOTE_SECONDS)
                return super().claims(nonce)

        return Slow(model, threads=shape.threads, slots=shape.slots, rung=shape.rung)


@pytest.fixture(scope="module")
def running(sealed: Sealed, home: None) -> Iterator[Running]:
    limits = replace(Limits(), waiting_count=60)
    with serving({"m": sealed.vessel}, sealed.key, limits=limits, backend=SlowQuotes()) as found:
        found.await_ready()
        yield found


def test_who_asks_for_evidence_all_the_time_is_not_in_the_way_of_predictions(
    running: Running,
) -> None:
    body, opener = running.sealed(INPUTS)
    count = 40

    def ask() -> float:
        answer = httpx2.get(f"{running.path}/evidence?nonce={new_nonce().hex()}", timeout=PATIENCE)
        assert answer.status_code == 200
        return time.monotonic()

    with ThreadPoolExecutor(count) as threads:
        began = time.monotonic()
        asked = [threads.submit(ask) for _ in range(count)]
        taken: list[float] = []
        while not asked[-1].done() and len(taken) < 5:
            time.sleep(QUOTE_SECONDS)
            before = time.monotonic()
            opener.open(running.post(body).content)
            taken.append(time.monotonic() - before)
        flood = max(each.result() for each in asked) - began
    assert flood >= count * QUOTE_SECONDS
    # A quote each; behind all that ask they would have waited for most of the flood.
    assert len(taken) == 5 and sum(taken) < flood / 2


def test_who_leaves_leaves_nothing(running: Running) -> None:
    host = running.site.host
    size = running.served.largest_request
    with running.stalled():
        connections = [running.connect() for _ in range(20)]
        for number, connection in enumerate(connections):
            connection.sendall(post_head(running, size) + bytes(size if number % 2 else size // 2))
        until(lambda: running.served.waiting == 10, "requests that wait")
        nonce = new_nonce().hex()
        for _ in range(10):
            path = f"/vessels/v1/models/{running.model}/evidence?nonce={nonce}"
            late = running.connect()
            late.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            connections.append(late)
        for connection in connections:
            connection.close()
        until(lambda: host.queue_length(running.model) == 0, "nobody to wait")
    until(lambda: running.served.waiting == 0, "nobody to be left")
    until(lambda: not host._open and not host._queued and not host._runs, "nothing to be left")
    assert running.served.environment._asking_count == 0
    body, opener = running.sealed(INPUTS)
    opener.open(running.post(body).content)


def test_nothing_that_a_client_makes_up_is_a_label(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with httpx2.Client(timeout=PATIENCE) as client:
        for number in range(5):
            made_up = f"made-up-{number}"
            for answer in (
                client.get(f"{running.url}/vessels/v1/models/{made_up}/evidence?nonce={made_up}"),
                client.post(f"{running.url}/vessels/v1/models/{made_up}/predict", content=b"x"),
                client.get(f"{running.url}/{made_up}", headers={made_up: made_up}),
                client.request("PUT", f"{running.url}/v2/models/{made_up}/ready"),
                client.post(f"{running.path}/predict", headers={"vessels-environment": made_up}),
                client.post(f"{running.path}/predict", headers={"vessels-deadline-ms": made_up}),
            ):
                assert answer.status_code >= 400 and made_up not in answer.text
    assert "made-up" not in httpx2.get(f"{running.url}/metrics").text.lower()
    assert "made-up" not in str([vars(record) for record in caplog.records]).lower()
