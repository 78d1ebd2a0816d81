"""The life of enclaves under a server: keys, predictions, deaths, shutdown."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import numpy as np
import pytest

from tests.conftest import Sealed
from tests.keys import listening
from tests.serving import PATIENCE, Running, post_head, rest, serving, until
from tests.test_enclave import expected
from vessels.attestation import Evidence, Policy, Verifier, model_digest
from vessels.attestation.simulation import SimulationRoot
from vessels.attestation.template import new_policy
from vessels.enclave import EnclaveClaims, find_enclave_binary
from vessels.errors import KeyFileError, KeyReleaseError, RequestError
from vessels.keys.app import key_app
from vessels.keys.release import KeyService as Owner
from vessels.keys.store import ModelKey, now
from vessels.seal import load_key
from vessels.serve.backends import Simulation
from vessels.serve.keys import InsecureKeyFiles, KeyService, KeySource, Prove
from vessels.serve.limits import Limits

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def running(sealed: Sealed) -> Iterator[Running]:
    with serving({"m": sealed.vessel}, sealed.key) as found:
        found.await_ready()
        yield found


@dataclass
class Keys:
    """A key source that answers when it is told to, and counts how often it is asked."""

    keys: KeySource
    refusal: Exception | None = None
    asked: int = 0

    def get(self, model_digest: bytes, path: Path, prove: Prove) -> bytes:
        self.asked += 1
        assert prove(bytes(32)).claims.model_digest == model_digest
        if self.refusal is not None:
            raise self.refusal
        return self.keys.get(model_digest, path, prove)


def image(scale: int = 1) -> np.ndarray:
    return np.full((1, 3, 16, 16), scale, np.float32)


def in_background(count: int, call: Callable[[], httpx2.Response]) -> list[Future[httpx2.Response]]:
    threads = ThreadPoolExecutor(count)
    futures = [threads.submit(call) for _ in range(count)]
    threads.shutdown(wait=False)
    return futures


def test_predicts_as_onnxruntime_does(running: Running, sealed: Sealed) -> None:
    for scale in (1, -2, 0):
        body, opener = running.sealed({"image": image(scale)})
        answer = running.post(body)
        assert answer.headers["content-type"] == "application/octet-stream"
        scores = opener.open(answer.content)["scores"]
        np.testing.assert_allclose(scores, expected(sealed, image(scale)), rtol=1e-4, atol=1e-5)
    assert running.count("vessels_requests_total", model="m", kind="predict", outcome="ok") == 3
    until(
        lambda: running.count("vessels_predict_enclave_seconds_count", model="m") == 3,
        "predictions to be counted",
    )


def test_wrong_shapes_are_refused_inside(running: Running) -> None:
    body, opener = running.sealed({"image": np.zeros((1, 3, 16, 15), np.float32)})
    answer = running.post(body)
    assert answer.status_code == 200
    with pytest.raises(RequestError):
        opener.open(answer.content)


def test_an_altered_request_is_refused_and_the_next_answered(running: Running) -> None:
    enclave = running.enclave
    body, opener = running.sealed({"image": image()})
    for place in (0, 40, len(body) - 1):
        altered = bytearray(body)
        altered[place] ^= 1
        assert running.post(bytes(altered)).json()["error"]["code"] == "not_opened"
    assert running.post(body[:-1]).json()["error"]["code"] == "not_opened"
    opener.open(running.post(body).content)
    assert running.enclave == enclave


def test_a_killed_enclave_is_replaced_and_who_waited_is_told(running: Running) -> None:
    old, _ = running.sealed({"image": image()})
    killed = running.enclave
    with running.stalled():
        answers = in_background(5, lambda: running.post(old))
        until(lambda: running.served.waiting == 5, "requests that wait")
        began = time.monotonic()
        os.kill(killed, signal.SIGKILL)
        for answer in answers:
            told = answer.result(PATIENCE)
            assert (told.status_code, told.json()["error"]["code"]) == (503, "enclave_ended")
        assert time.monotonic() - began < 30
    assert httpx2.get(f"{running.url}/v2/health/live", timeout=PATIENCE).status_code == 200
    running.await_ready()
    assert running.enclave != killed
    # No other enclave opens what was sealed to the first.
    assert running.post(old).json()["error"]["code"] == "not_opened"
    body, opener = running.sealed({"image": image()})
    opener.open(running.post(body).content)
    assert running.count("vessels_enclave_starts_total", model="m") == 2
    assert running.count("vessels_enclave_ends_total", model="m") == 1


def test_an_enclave_killed_at_rest_is_replaced(running: Running) -> None:
    killed = running.enclave
    os.kill(killed, signal.SIGKILL)
    until(lambda: running.count("vessels_enclave_ends_total", model="m") == 1, "its end")
    down = httpx2.get(f"{running.url}/v2/health/ready", timeout=PATIENCE)
    assert down.status_code in (200, 503)
    running.await_ready()
    assert running.enclave != killed


def test_while_an_enclave_starts_requests_are_refused_at_once(sealed: Sealed) -> None:
    keys = Keys(InsecureKeyFiles.load([sealed.key]), KeyReleaseError("away.", "unreachable"))
    with serving({"m": sealed.vessel}, keys) as running:
        until(lambda: keys.asked >= 1, "the key to be asked for")
        answer = running.post(bytes(200))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert answer.headers["retry-after"]
        ready = httpx2.get(f"{running.url}/v2/health/ready", timeout=PATIENCE)
        assert ready.status_code == 503
        assert ready.json()["models"] == {"m": "waiting for its key"}
        assert httpx2.get(f"{running.url}/v2/models/m/ready", timeout=PATIENCE).status_code == 503
        # Evidence is there before the key is, or nobody could give it.
        assert running.evidence().claims.model_digest == running.served.digest


def test_a_key_service_that_comes_back(sealed: Sealed) -> None:
    keys = Keys(InsecureKeyFiles.load([sealed.key]), KeyReleaseError("away.", "unreachable"))
    with serving({"m": sealed.vessel}, keys) as running:
        until(lambda: failed_keys(running) >= 2, "another attempt")
        enclave = running.enclave
        keys.refusal = None
        running.await_ready()
        # The enclave has waited; only the asking was done again.
        assert running.enclave == enclave
        assert running.count("vessels_key_requests_total", model="m", outcome="failed") >= 2
        assert running.count("vessels_key_requests_total", model="m", outcome="given") == 1
        body, opener = running.sealed({"image": image()})
        opener.open(running.post(body).content)


def test_a_defect_of_a_key_source_does_not_stop_the_server(sealed: Sealed) -> None:
    keys = Keys(InsecureKeyFiles.load([sealed.key]), ZeroDivisionError())
    with serving({"m": sealed.vessel}, keys) as running:
        until(lambda: keys.asked >= 1, "the key to be asked for")
        keys.refusal = None
        running.await_ready()


def test_the_key_of_another_model(sealed: Sealed, tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="none of the given keys"):
        InsecureKeyFiles((bytes(32),)).key_of(sealed.vessel)

    @dataclass
    class Wrong:
        def get(self, model_digest: bytes, path: Path, prove: Prove) -> bytes:
            from vessels.sealed_messages import seal_key

            return seal_key(prove(bytes(32)).claims.public_key, model_digest, bytes(32))

    with serving({"m": sealed.vessel}, Wrong()) as running:
        until(
            lambda: running.count("vessels_enclave_ends_total", model="m") >= 1, "a refusal"
        )  # fmt: skip
        assert not running.served.ready
        assert httpx2.get(f"{running.url}/v2/health/live", timeout=PATIENCE).status_code == 200


@dataclass
class OneKey:
    """An owner's key of one build, which may be revoked."""

    key: ModelKey

    def all(self) -> list[ModelKey]:
        return [self.key]

    def find(self, digest: bytes) -> ModelKey | None:
        return self.key if digest == self.key.digest else None


@contextmanager
def key_service(sealed: Sealed, *, of: bytes | None = None) -> Iterator[tuple[str, OneKey]]:
    """A real key service for the small model, or for the build ``of``; its URL and its key."""
    root = SimulationRoot.load_or_create()
    software = hashlib.sha256(find_enclave_binary().read_bytes()).digest()
    digest = of or model_digest(sealed.vessel)
    text = new_policy(
        {"m": [digest]}, measurements=[software], insecure_simulation_root=root.trusted
    )  # fmt: skip
    rules = Policy.parse(text, "policy.toml")
    keys = OneKey(ModelKey("m", digest, load_key(sealed.key), now()))
    with listening(key_app(Owner(Verifier(rules), keys))) as url:
        yield url, keys


def failed_keys(running: Running) -> float:
    return running.count("vessels_key_requests_total", model="m", outcome="failed")


def test_a_revoked_key_and_its_return(sealed: Sealed) -> None:
    with key_service(sealed) as (url, keys):
        keys.key = replace(keys.key, revoked=now())
        with serving({"m": sealed.vessel}, KeyService.at(url)) as running:
            until(lambda: failed_keys(running) >= 2, "refusals")
            assert not running.served.ready
            keys.key = replace(keys.key, revoked=None)
            running.await_ready()


def test_an_unknown_model_gets_no_key(sealed: Sealed, caplog: pytest.LogCaptureFixture) -> None:
    with (
        key_service(sealed, of=bytes(32)) as (url, _),
        serving({"m": sealed.vessel}, KeyService.at(url)) as running,
    ):
        until(lambda: failed_keys(running) >= 1, "a refusal")
        assert not running.served.ready
    assert "(unknown)" in reason(caplog)


def test_an_expired_quote_gets_no_key(sealed: Sealed, caplog: pytest.LogCaptureFixture) -> None:
    class Old(Simulation):
        """Its evidence is of forty days ago until it is ``fresh``."""

        fresh = False

        def evidence(self, claims: EnclaveClaims) -> Evidence:
            new = super().evidence(claims)
            if self.fresh:
                return new
            then = datetime.now(UTC) - timedelta(days=40)
            return replace(new, collateral=self._platform.collateral(now=then))

    backend = Old()
    with (
        key_service(sealed) as (url, _),
        serving({"m": sealed.vessel}, KeyService.at(url), backend=backend) as running,
    ):
        until(lambda: failed_keys(running) >= 1, "a refusal")
        assert not running.served.ready
        assert httpx2.get(f"{running.url}/v2/health/live", timeout=PATIENCE).status_code == 200
        backend.fresh = True
        running.await_ready()
    assert "expired" in reason(caplog)


def reason(caplog: pytest.LogCaptureFixture) -> str:
    """Why the first key was not given, by the log."""
    fields = next(r.__dict__["fields"] for r in caplog.records if r.message == "key_not_given")
    return str(fields["why"])


def test_an_enclave_that_hangs_is_ended(sealed: Sealed) -> None:
    with serving({"m": sealed.vessel}, sealed.key, limits=Limits(predict_seconds=3.0)) as running:
        running.await_ready()
        hung = running.enclave
        body, _ = running.sealed({"image": image()})
        with running.stalled():
            answer = running.post(body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "too_long")
        running.await_ready()
        assert running.enclave != hung


def test_an_enclave_that_hangs_at_its_start_is_ended(sealed: Sealed) -> None:
    keys = Keys(InsecureKeyFiles.load([sealed.key]), KeyReleaseError("away.", "unreachable"))
    with serving({"m": sealed.vessel}, keys, limits=Limits(open_seconds=1)) as running:
        until(lambda: keys.asked >= 1, "the key to be asked for")
        hung = running.enclave
        with running.stalled():
            keys.refusal = None
            running.await_ready()
        assert running.enclave != hung


def test_too_many_that_wait(sealed: Sealed) -> None:
    with serving({"m": sealed.vessel}, sealed.key, limits=Limits(waiting_count=3)) as running:
        running.await_ready()
        body, opener = running.sealed({"image": image()})
        with running.stalled():
            # One is in a run, the others wait for it.
            answers = in_background(4, lambda: running.post(body))
            until(lambda: running.served.waiting == 4, "requests that wait")
            answer = running.post(body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "overloaded")
            with running.connect() as connection:
                # Its body need not come first. If it comes it is thrown away, and the next is read.
                for _ in range(2):
                    connection.sendall(post_head(running, len(body)))
                    said = b""
                    while not said.endswith(b"}}"):
                        said += connection.recv(1 << 16)
                    assert b" 429 " in said and b"overloaded" in said
                    connection.sendall(body)
        for waited in answers:
            opener.open(waited.result(PATIENCE).content)


def test_who_has_gone_is_not_answered(running: Running) -> None:
    body, _ = running.sealed({"image": image()})
    with running.stalled():
        for half in (True, False):
            with running.connect() as first, running.connect() as second:
                for connection in (first, second):
                    connection.sendall(post_head(running, len(body)) + body)
                until(lambda: running.served.waiting == 2, "requests that wait")
                if half:
                    second.shutdown(socket.SHUT_WR)
                    assert rest(second) == b""
            until(lambda: running.served.waiting == 0, "requests to be given up")
    assert (
        running.count("vessels_requests_total", model="m", kind="predict", outcome="client_gone")
        == 4
    )
    body, opener = running.sealed({"image": image()})
    opener.open(running.post(body).content)


def test_requests_at_once_get_each_their_own_answer(running: Running, sealed: Sealed) -> None:
    def ask(scale: int) -> None:
        body, opener = running.sealed({"image": image(scale)})
        for _ in range(3):
            answer = running.post(body)
            np.testing.assert_allclose(
                opener.open(answer.content)["scores"], wanted[scale], rtol=1e-4, atol=1e-5
            )

    wanted = {scale: expected(sealed, image(scale)) for scale in range(8)}
    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(ask, scale) for scale in wanted]:
            done.result(PATIENCE)


def test_an_altered_model_does_not_stop_the_others(sealed: Sealed, tmp_path: Path) -> None:
    content = bytearray(sealed.vessel.read_bytes())
    content[-100] ^= 1
    altered = tmp_path / "altered.vessel"
    altered.write_bytes(content)
    with serving({"good": sealed.vessel, "altered": altered}, sealed.key) as running:
        running.await_ready()
        path = f"{running.url}/vessels/v1/models/altered"
        bad = Running(running.url, running.address, running.site, running.stop, "altered")
        bad.await_ready()
        body, _ = bad.sealed({"image": image()})
        answer = httpx2.post(f"{path}/predict", content=body, timeout=PATIENCE)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_refused")
        body, opener = running.sealed({"image": image()})
        opener.open(running.post(body).content)


@pytest.mark.parametrize("size", [None, 0, -1])
def test_a_model_that_is_taken_away_or_cut_is_missed_until_it_is_back(
    sealed: Sealed, tmp_path: Path, size: int | None
) -> None:
    path = tmp_path / "m.vessel"
    content = sealed.vessel.read_bytes()
    path.write_bytes(content)
    with serving({"m": path}, sealed.key) as running:
        running.await_ready()
        path.unlink()
        if size is not None:
            path.write_bytes(content[:size])
        os.kill(running.enclave, signal.SIGKILL)
        answer = running.post(bytes(200))
        while answer.status_code != 500:
            answer = running.post(bytes(200))
        assert answer.json()["error"]["code"] == "model_refused"
        if size != -1:
            # Else there is an enclave, which gives evidence and finds out when it has its key.
            answer = httpx2.get(f"{running.path}/evidence?nonce={'00' * 32}", timeout=PATIENCE)
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_refused")
        (tmp_path / "whole").write_bytes(content)
        (tmp_path / "whole").replace(path)
        until(lambda: running.served.ready, "an enclave that serves")
        body, opener = running.sealed({"image": image()})
        opener.open(running.post(body).content)


def test_a_model_that_is_replaced_is_served_by_the_next_enclave(
    sealed: Sealed, tmp_path: Path
) -> None:
    import vessels

    path = tmp_path / "m.vessel"
    path.write_bytes(sealed.vessel.read_bytes())
    with serving({"m": path}, sealed.key) as running:
        running.await_ready()
        before = running.served.digest
        vessels.build(sealed.onnx, path, key=sealed.key)
        body, opener = running.sealed({"image": image()})
        opener.open(running.post(body).content)
        os.kill(running.enclave, signal.SIGKILL)
        until(lambda: running.served.digest != before, "the new build")
        running.await_ready()
        assert running.evidence().claims.model_digest == running.served.digest


def test_a_shutdown_finishes_what_is_under_way(sealed: Sealed) -> None:
    with serving({"m": sealed.vessel}, sealed.key) as running:
        running.await_ready()
        enclave = running.enclave
        body, opener = running.sealed({"image": image()})
        with running.connect() as late:
            with running.stalled():
                late.sendall(post_head(running, len(body)))
                [answer] = in_background(1, lambda: running.post(body))
                until(lambda: running.served.waiting == 1, "a request that waits")
                running.stop()
                until(lambda: running.site.stopping, "the shutdown")
                # What had begun is waited for.
                late.sendall(body)
                until(lambda: running.served.waiting == 2, "the other request")
            opener.open(answer.result(PATIENCE).content)
            head, _, content = rest(late).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            opener.open(content)
        until(lambda: not Path(f"/proc/{enclave}").exists(), "the enclave to end")


def test_a_shutdown_waits_only_so_long(sealed: Sealed) -> None:
    limits = Limits(shutdown_seconds=0.5)
    with serving({"m": sealed.vessel}, sealed.key, limits=limits) as running:
        running.await_ready()
        body, _ = running.sealed({"image": image()})
        with running.stalled():
            [answer] = in_background(1, lambda: running.post(body))
            until(lambda: running.served.waiting == 1, "a request that waits")
            running.stop()
            told = answer.result(PATIENCE)
            assert (told.status_code, told.json()["error"]["code"]) == (503, "stopping")


def test_a_shutdown_does_not_wait_for_a_key_service(sealed: Sealed) -> None:
    held = threading.Event()
    asked = threading.Event()

    class Silent:
        def get(self, model_digest: bytes, path: Path, prove: Prove) -> bytes:
            asked.set()
            held.wait()
            raise KeyReleaseError("away.", "unreachable")

    try:
        with serving({"m": sealed.vessel}, Silent()) as running:
            assert asked.wait(PATIENCE)
            began = time.monotonic()
            running.stop()
        assert time.monotonic() - began < 30
    finally:
        held.set()
