"""Many models in one machine's memory: waking, evicting, batches, deadlines, and what fails."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from tests.conftest import Sealed
from tests.serving import PATIENCE, Running, serving, until
from tests.test_enclave import expected
from vessels.attestation import Evidence, new_nonce
from vessels.errors import KeyReleaseError, UsageError
from vessels.schedule.model import Machine, Shape
from vessels.seal import read_header
from vessels.sealed_messages import RequestSealer
from vessels.serve.backends import Simulation
from vessels.serve.config import ModelSettings
from vessels.serve.keys import InsecureKeyFiles, Prove
from vessels.serve.limits import Limits
from vessels.serve.shapes import plain_shapes

SLOT_SIZE = 1 << 20
"""More than a slot of the small model takes."""

IMAGE = np.full((1, 3, 16, 16), 0.5, np.float32)

pytestmark = pytest.mark.usefixtures("home")


class Shaped(Simulation):
    """Its environments have one shape, altered from the plain one."""

    def __init__(self, slots: int = 1, size: int | None = None) -> None:
        super().__init__()
        self._slots, self._size = slots, size

    def shapes(
        self, model: Path, header: Any, settings: ModelSettings, machine: Machine
    ) -> tuple[Shape, ...]:
        [first, *_] = plain_shapes(header, machine)
        size = self._size or first.size + (self._slots - 1) * SLOT_SIZE
        return (replace(first, slots=self._slots, size=size),)


def size_of(sealed: Sealed, slots: int = 1) -> int:
    """Bytes of the smallest environment of the small model."""
    shapes = plain_shapes(read_header(sealed.vessel), Machine(os.cpu_count() or 1, 1 << 40))
    return shapes[0].size + (slots - 1) * SLOT_SIZE


def of(running: Running, model: str) -> Running:
    """The same server, with another model to ask for."""
    return replace(running, model=model)


def ask(running: Running, deadline_ms: int | None = None) -> httpx2.Response:
    """A prediction as a client asks for it, after evidence."""
    claims = running.evidence().claims
    body, _ = RequestSealer(claims.public_key, claims.model_digest).seal_predict({"image": IMAGE})
    return running.post(body, key=claims.public_key, deadline_ms=deadline_ms)


def code(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_cold_model_is_woken_and_makes_another_go(sealed: Sealed) -> None:
    capacity = int(1.5 * size_of(sealed))
    models = {"a": sealed.vessel, "b": sealed.vessel}
    with serving(models, sealed.key, backend=Shaped(), epc_size=capacity) as running:
        a, b = of(running, "a"), of(running, "b")
        until(lambda: a.served.ready or b.served.ready, "one that fits")
        first, second = (a, b) if a.served.ready else (b, a)
        cold = httpx2.get(f"{running.url}/v2/models/{second.model}/ready", timeout=PATIENCE)
        # It is started when it is asked for.
        assert (cold.status_code, cold.json()["state"]) == (200, "cold")
        claims = first.evidence().claims
        old, opener = RequestSealer(claims.public_key, claims.model_digest).seal_predict(
            {"image": IMAGE}
        )
        opener.open(first.post(old, key=claims.public_key).content)
        assert ask(second).status_code == 200
        assert not first.served.ready and second.served.ready
        # What was sealed to the one that went no other opens, and the client is told to ask anew.
        assert code(first.post(old, key=claims.public_key)) == (421, "not_opened")
        assert ask(first).status_code == 200
        assert running.count("vessels_evictions_total", model=second.model) == 1
        assert running.count("vessels_launches_total", model=first.model) == 2
        assert running.count("vessels_enclave_ends_total", model=first.model) == 0
        assert running.count("vessels_epc_capacity_bytes") == capacity
        assert 0 < running.count("vessels_epc_used_bytes") <= capacity
        assert running.count("vessels_environments", model=first.model, state="ready") == 1
        assert running.count("vessels_environment_bytes", model=first.model) == size_of(sealed)


def test_a_model_larger_than_the_memory_is_refused_with_the_figure(sealed: Sealed) -> None:
    size = size_of(sealed)
    with (
        pytest.raises(UsageError, match=f"needs {size:,} bytes"),
        serving({"m": sealed.vessel}, sealed.key, epc_size=size - 1),
    ):
        pass


def test_requests_name_their_environment(sealed: Sealed) -> None:
    with serving({"m": sealed.vessel}, sealed.key) as running:
        running.await_ready()
        body, opener = running.sealed({"image": IMAGE})
        key = running.evidence().claims.public_key
        opener.open(running.post(body, key=key).content)
        assert code(running.post(body, key=bytes(32))) == (421, "not_opened")
        for headers in (
            {"vessels-environment": "00"},
            {"vessels-environment": "x" * 16},
            {"vessels-deadline-ms": "0"},
            {"vessels-deadline-ms": "3600001"},
            {"vessels-deadline-ms": "1.5"},
            {"vessels-deadline-ms": "-1"},
            {"vessels-deadline-ms": "9" * 400},
        ):
            path = f"{running.path}/predict"
            answer = httpx2.post(path, content=body, headers=headers, timeout=PATIENCE)
            assert code(answer) == (400, "malformed"), headers


def test_a_deadline_that_cannot_be_met_is_said_at_once(sealed: Sealed) -> None:
    with serving({"m": sealed.vessel}, sealed.key) as running:
        running.await_ready()
        for _ in range(5):
            assert ask(running).status_code == 200
        body, _ = running.sealed({"image": IMAGE})
        with running.stalled(), ThreadPoolExecutor(1) as thread:
            under_way = thread.submit(running.post, body)
            until(lambda: running.served.waiting == 1, "a request that runs")
            began = time.monotonic()
            late = running.post(body, deadline_ms=300)
            assert code(late) == (429, "overloaded")
            assert int(late.headers["retry-after"]) >= 1
            assert time.monotonic() - began < 30
            os.kill(running.enclave, signal.SIGCONT)
            assert under_way.result(PATIENCE).status_code == 200
        assert running.count("vessels_shed_total", model="m", reason="overloaded") == 1


def in_background(
    count: int, call: Callable[[int], httpx2.Response]
) -> list[Future[httpx2.Response]]:
    threads = ThreadPoolExecutor(count)
    futures = [threads.submit(call, i) for i in range(count)]
    threads.shutdown(wait=False)
    return futures


def test_requests_that_wait_are_run_together(sealed: Sealed) -> None:
    with serving({"m": sealed.vessel}, sealed.key, backend=Shaped(slots=4)) as running:
        running.await_ready()
        images = [np.full_like(IMAGE, i) for i in range(5)]
        requests = [running.sealed({"image": image}) for image in images]
        with running.stalled():
            first = in_background(1, lambda _: running.post(requests[0][0]))
            until(lambda: running.served.waiting == 1, "a request that runs")
            bad = bytes(len(requests[0][0]))
            bodies = [body for body, _ in requests[1:4]] + [bad]
            rest = in_background(4, lambda i: running.post(bodies[i]))
            until(lambda: running.served.waiting == 5, "requests that wait")
        answers = [f.result(PATIENCE) for f in (*first, *rest)]
        # One that cannot be opened does not touch the others.
        assert code(answers[4]) == (421, "not_opened")
        for answer, (_, opener), image in zip(answers[:4], requests, images, strict=False):
            scores = opener.open(answer.content)["scores"]
            np.testing.assert_allclose(scores, expected(sealed, image), rtol=1e-4, atol=1e-5)
        assert running.count("vessels_batch_size_count", model="m") == 2
        assert running.count("vessels_batch_size_sum", model="m") == 5


def test_an_environment_larger_than_planned_is_accounted_for(
    sealed: Sealed, caplog: pytest.LogCaptureFixture
) -> None:
    backend = Shaped(size=1 << 20)
    with serving({"m": sealed.vessel}, sealed.key, backend=backend, epc_size=64 << 20) as running:
        running.await_ready()
        until(lambda: running.count("vessels_epc_used_bytes") > 1 << 20, "the account to be raised")
        held = running.count("vessels_epc_used_bytes")
        until(lambda: ask(running).status_code == 200, "an answer all the same")
        assert running.count("vessels_environment_bytes", model="m") == held
    [said] = [r for r in caplog.records if r.message == "environment_larger_than_planned"]
    assert said.levelname == "ERROR" and said.__dict__["fields"]["size"] == held


def test_an_environment_is_no_larger_than_planned(
    sealed: Sealed, caplog: pytest.LogCaptureFixture
) -> None:
    with serving({"m": sealed.vessel}, sealed.key, epc_size=64 << 20) as running:
        running.await_ready()
        shape = running.served.environment.shape
        assert ask(running).status_code == 200
        assert running.count("vessels_epc_used_bytes") == shape.size
    assert not [r for r in caplog.records if r.message == "environment_larger_than_planned"]


class Away:
    """A key service that is away until it is told to come back; for model ``only``, if given."""

    def __init__(self, keys: Path, only: str = "") -> None:
        self.keys = InsecureKeyFiles.load([keys])
        self.only = only
        self.away = True

    def get(self, model_digest: bytes, path: Path, prove: Prove) -> bytes:
        if self.away and self.only in path.name:
            raise KeyReleaseError("away.", "unreachable")
        return self.keys.get(model_digest, path, prove)


def test_who_gets_no_key_makes_room_for_others(sealed: Sealed, tmp_path: Path) -> None:
    keyless = tmp_path / "keyless.vessel"
    keyless.write_bytes(sealed.vessel.read_bytes())
    models = {"keyless": keyless, "good": sealed.vessel}
    keys = Away(sealed.key, "keyless")
    capacity = int(1.5 * size_of(sealed))
    with serving(models, keys, limits=Limits(key_seconds=1), epc_size=capacity) as running:
        until(
            lambda: running.count("vessels_enclave_ends_total", model="keyless") >= 1,
            "an enclave without a key to end",
        )
        until(lambda: ask(of(running, "good")).status_code == 200, "an answer of the other")


def test_a_build_that_needs_more_is_not_served_in_the_memory_of_the_one_before(
    sealed: Sealed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "m.vessel"
    path.write_bytes(sealed.vessel.read_bytes())
    backend = Shaped()
    with serving({"m": path}, sealed.key, backend=backend) as running:
        running.await_ready()
        backend._size = size_of(sealed) + 1
        os.kill(running.enclave, signal.SIGKILL)
        until(lambda: running.count("vessels_enclave_ends_total", model="m") >= 2, "a refusal")
        assert running.served.host.state("m") in ("down", "starting")
    whys = [r.__dict__["fields"]["why"] for r in caplog.records if r.message == "enclave_ended"]
    assert any("start the server anew" in why for why in whys)


def test_a_defect_of_the_scheduler_leaves_nobody_waiting(
    sealed: Sealed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving({"m": sealed.vessel}, sealed.key) as running:
        running.await_ready()
        enclave = running.enclave
        body, _ = running.sealed({"image": IMAGE})
        with running.stalled():
            answers = in_background(3, lambda _: running.post(body))
            until(lambda: running.served.waiting == 3, "requests that wait")

            def broken(event: object) -> None:
                raise ZeroDivisionError

            monkeypatch.setattr(running.site.host._scheduler, "handle", broken)
            with contextlib.suppress(httpx2.HTTPError):
                # It may find the server gone already.
                running.post(body)
            for answer in answers:
                assert code(answer.result(PATIENCE)) == (500, "internal")
        until(lambda: not Path(f"/proc/{enclave}").exists(), "the enclave to end")
    assert ["by a defect of its own" in str(e) for e in running.failures] == [True]


def test_who_gives_up_waiting_for_a_cold_model_is_forgotten(sealed: Sealed) -> None:
    keys = Away(sealed.key)
    limits = Limits(key_seconds=PATIENCE)
    capacity = int(1.5 * size_of(sealed))
    models = {"a": sealed.vessel, "b": sealed.vessel}
    with serving(models, keys, limits=limits, epc_size=capacity) as running:
        until(lambda: running.site.host.account.used > 0, "one that starts")
        [name] = [n for n in models if running.site.host.state(n) == "cold"]
        path = f"{running.url}/vessels/v1/models/{name}/evidence?nonce={new_nonce().hex()}"
        with contextlib.suppress(httpx2.TimeoutException):
            httpx2.get(path, timeout=0.3)
        until(lambda: running.site.host.queue_length(name) == 0, "the wish to be forgotten")
        late = httpx2.get(path, timeout=PATIENCE, headers={"vessels-deadline-ms": "200"})
        assert code(late) == (503, "no_room") and int(late.headers["retry-after"]) >= 1


def test_evidence_is_of_the_environment_that_is_assigned(sealed: Sealed) -> None:
    with serving({"m": sealed.vessel}, sealed.key) as running:
        running.await_ready()
        found: Evidence = running.evidence()
        assert running.served.environment.identity is not None
        answer = httpx2.post(
            f"{running.path}/predict", content=bytes(200), timeout=PATIENCE,
            headers={"vessels-environment": running.served.environment.identity.upper()},
        )  # fmt: skip
        assert code(answer) == (421, "not_opened")
        assert found.claims.model_digest == running.served.digest
