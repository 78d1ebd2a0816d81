"""What one client can do to the others of a server, and what it can leave behind in it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
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
from vessels.errors import RequestError
from vessels.schedule.model import Shape
from vessels.serve.backends import Process, Simulation
from vessels.serve.limits import Limits

QUOTE_SECONDS = 0.05
INPUTS = {"image": np.zeros((1, 3, 16, 16), np.float32)}


class SlowQuotes(Simulation):
    """As on hardware, where a quote takes its time; it counts them."""

    quote_count = 0
    at_run: list[int]
    """How many quotes there had been at each run."""

    def start(self, model: Path, shape: Shape) -> Process:
        backend = self

        class Slow(EnclaveProcess):
            def claims(self, nonce: bytes) -> EnclaveClaims:
                time.sleep(QUOTE_SECONDS)
                backend.quote_count += 1
                return super().claims(nonce)

            def exchange_batch(self, sealed: Sequence[bytes]) -> list[bytes | RequestError]:
                backend.at_run.append(backend.quote_count)
                return super().exchange_batch(sealed)

        self.at_run = []
        return Slow(model, threads=shape.threads, slots=shape.slots, rung=shape.rung)


@pytest.fixture(scope="module")
def quotes() -> SlowQuotes:
    return SlowQuotes()


@pytest.fixture(scope="module")
def running(quotes: SlowQuotes, sealed: Sealed, home: None) -> Iterator[Running]:
    limits = replace(Limits(), waiting_count=60)
    with serving({"m": sealed.vessel}, sealed.key, limits=limits, backend=quotes) as found:
        found.await_ready()
        yield found


def test_who_asks_for_evidence_all_the_time_is_not_in_the_way_of_predictions(
    running: Running, quotes: SlowQuotes
) -> None:
    body, opener = running.sealed(INPUTS)
    askers, predictions = 40, 5
    enough = threading.Event()

    def ask() -> None:
        while not enough.is_set():
            nonce = new_nonce().hex()
            answer = httpx2.get(f"{running.path}/evidence?nonce={nonce}", timeout=PATIENCE)
            assert answer.status_code == 200

    waited: list[int] = []
    with ThreadPoolExecutor(askers) as threads:
        asked = [threads.submit(ask) for _ in range(askers)]
        try:
            # From now on nearly all of them wait whenever a prediction comes.
            until(lambda: quotes.quote_count > askers // 4, "quotes")
            for _ in range(predictions):
                before = quotes.quote_count
                opener.open(running.post(body).content)
                waited.append(quotes.at_run[-1] - before)
        finally:
            enough.set()
        for each in asked:
            each.result()
    # A quote each; behind all that ask each would have waited for nearly as many as ask.
    assert sum(waited) < predictions * askers / 4, waited


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
    until(lambda: running.served.environment._asking_count == 0, "no evidence to be made")
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
    assert "made-up" not in httpx2.get(f"{running.url}/metrics", timeout=PATIENCE).text.lower()
    assert "made-up" not in str([vars(record) for record in caplog.records]).lower()
