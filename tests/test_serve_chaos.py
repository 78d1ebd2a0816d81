"""Enclaves are killed and stopped, keys withheld, at random under load.

Every request is answered, rightly or with an error, and afterwards all is as it was.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx2
import numpy as np
import pytest

from tests.conftest import Sealed
from tests.serving import PATIENCE, Running, serving, until
from tests.test_enclave import expected
from tests.test_serve_many import Shaped, size_of
from vessels.attestation import Evidence
from vessels.errors import KeyReleaseError
from vessels.predict_headers import identity_of
from vessels.schedule import scheduler
from vessels.sealed_messages import RequestSealer
from vessels.serve.config import ModelSettings
from vessels.serve.keys import InsecureKeyFiles, Prove
from vessels.serve.limits import Limits

SECONDS = 10.0
SLOTS = 4
MODELS = ("a", "b", "c")
ALLOWED = {
    "enclave_ended", "no_evidence", "no_room", "not_opened", "not_ready", "overloaded", "too_long",
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("home")


class Moody:
    """A key service that is out of reach now and then, until it is ``calm``."""

    def __init__(self, key: Path, chance: random.Random) -> None:
        self._keys = InsecureKeyFiles.load([key])
        self._chance = chance
        self.calm = False

    def get(self, model_digest: bytes, path: Path, prove: Prove) -> bytes:
        if not self.calm and self._chance.random() < 0.3:
            raise KeyReleaseError("away.", "unreachable")
        return self._keys.get(model_digest, path, prove)


def enclaves(running: Running) -> list[int]:
    host = running.site.host
    return [e.pid for name in MODELS for e in host.environments(name) if e.pid is not None]


class Asker(threading.Thread):
    """Asks for predictions one after the other, and counts what comes of them."""

    def __init__(self, running: Running, images: list[np.ndarray], right: list[np.ndarray]) -> None:
        super().__init__()
        self.running, self.images, self.right = running, images, right
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.going = True

    def run(self) -> None:
        with httpx2.Client(timeout=PATIENCE) as http:
            turn = 0
            while self.going:
                turn += 1
                try:
                    self.outcomes[self.ask(http, turn)] += 1
                except Exception as error:
                    self.wrong.append(repr(error))

    def ask(self, http: httpx2.Client, turn: int) -> str:
        which = turn % len(self.images)
        nonce = os.urandom(32)
        found = http.get(f"{self.running.path}/evidence", params={"nonce": nonce.hex()})
        if found.status_code != 200:
            return self.refusal(found)
        claims = Evidence.decode(found.content).claims
        assert claims.nonce == nonce
        sealer = RequestSealer(claims.public_key, claims.model_digest)
        headers = {"vessels-environment": identity_of(claims.public_key)}
        for _ in range(20):
            body, opener = sealer.seal_predict({"image": self.images[which]})
            answer = http.post(f"{self.running.path}/predict", content=body, headers=headers)
            if answer.status_code != 200:
                return self.refusal(answer)
            scores = opener.open(answer.content)["scores"]
            np.testing.assert_allclose(scores, self.right[which], rtol=1e-4, atol=1e-5)
            self.outcomes["ok"] += 1
        return "ok"

    def refusal(self, answer: httpx2.Response) -> str:
        code: str = answer.json()["error"]["code"]
        assert code in ALLOWED, answer.text
        return code


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What ends again and again is started again soon: a test has no time to wait."""
    monkeypatch.setattr(scheduler, "MOST_RESTART_SECONDS", 1.0)
    yield


def test_chaos(sealed: Sealed, impatient: None) -> None:
    """Three models in the memory of two environments, which are killed or stopped now and then."""
    chance = random.Random(20201019)
    images = [np.full((1, 3, 16, 16), i, np.float32) for i in range(4)]
    right = [expected(sealed, image) for image in images]
    settings = [ModelSettings(name, sealed.vessel) for name in MODELS]
    size = size_of(sealed, SLOTS)
    capacity = int(2.5 * size)
    keys = Moody(sealed.key, random.Random(7))
    limits = Limits(predict_seconds=1.0, open_seconds=3.0)
    with serving(
        settings, keys, limits=limits, backend=Shaped(slots=SLOTS), epc_size=capacity
    ) as running:
        host = running.site.host
        askers = [Asker(replace(running, model=n), images, right) for n in MODELS for _ in range(2)]
        for asker in askers:
            asker.start()
        begun, passed, killed = time.monotonic(), 0.0, 0

        def enough() -> bool:
            outcomes = sum((a.outcomes for a in askers), Counter())
            return killed >= 5 and outcomes.total() > outcomes["ok"] > 20

        # On a busy machine it may take longer until something was tested.
        while passed < SECONDS or (passed < PATIENCE and not enough()):
            time.sleep(chance.uniform(0.2, 0.8))
            if pids := enclaves(running):
                with suppress(ProcessLookupError):
                    how = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP])
                    os.kill(chance.choice(pids), how)
                killed += 1
            assert host.account.used <= capacity
            passed = time.monotonic() - begun
        keys.calm = True
        for asker in askers:
            asker.going = False
        for asker in askers:
            asker.join(PATIENCE)
            assert not asker.is_alive(), "a request was left unanswered"
            assert asker.wrong == []
        total = sum((a.outcomes for a in askers), Counter())
        assert killed >= 5 and total["ok"] > 20, (killed, total)
        assert total.total() > total["ok"], "nothing was refused: nothing was tested"
        # Nothing is left over, and each model answers again.
        until(
            lambda: all(host.queue_length(n) == host.waiting(n) == 0 for n in MODELS),
            "empty queues",
        )
        for name in MODELS:
            last = Asker(replace(running, model=name), images, right)
            with httpx2.Client(timeout=PATIENCE) as http:
                until(lambda ask=last.ask, http=http: ask(http, 1) == "ok", f"an answer of {name}")  # type: ignore[misc]
        until(
            lambda: host.account.used == size * len(enclaves(running)),
            "an exact account",
        )
