"""One replica of a cluster, in this process: what it answers, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'vessels[ray]'")

from tests.conftest import Sealed
from tests.serving import until
from vessels import Enclave
from vessels.attestation import Evidence, model_digest, new_nonce
from vessels.cluster import replica as replicas
from vessels.cluster.need import need_of
from vessels.cluster.replica import Environment, Task
from vessels.errors import KeyFileError, SealedError
from vessels.sealed_messages import RequestSealer
from vessels.serve.errors import Code
from vessels.serve.keys import InsecureKeyFiles


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A user's own state, with the simulation's root."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="module")
def image(sealed: Sealed) -> Any:
    return np.load(sealed.image)


@pytest.fixture(scope="module")
def expected(sealed: Sealed, image: Any) -> Any:
    with Enclave(sealed.vessel, key=sealed.key) as enclave:
        return enclave.run({"image": image})["scores"]


def task(sealed: Sealed, **parts: Any) -> Task:
    values: dict[str, Any] = {
        "name": "m", "path": sealed.vessel, "digest": model_digest(sealed.vessel),
        "shape": need_of(sealed.vessel, threads=1).shape,
        "backend": "simulation", "manifest": None, "keys": None, "insecure_keys": (sealed.key,),
        "predict_seconds": 60.0, "waiting_count": 4,
    }  # fmt: skip
    return Task(**values | parts)


@pytest.fixture
def environment(sealed: Sealed, home: None) -> Iterator[Environment]:
    made = Environment(task(sealed))
    yield made
    made.close()


def test_a_replica_answers_what_is_its_own(
    environment: Environment, image: Any, expected: Any
) -> None:
    async def ask() -> None:
        nonce = new_nonce()
        evidence = Evidence.decode((await environment.evidence(nonce)).value)
        assert evidence.claims.nonce == nonce
        sealer = RequestSealer(evidence.claims.public_key, evidence.claims.model_digest)
        request, opener = sealer.seal_predict({"image": image})
        held = environment.record_replica_metadata()["environment"]
        answer = await environment.predict(request, held)
        assert np.array_equal(opener.open(answer.value)["scores"], expected)
        assert (await environment.predict(request, "00" * 8)).code is Code.NOT_OPENED
        assert (await environment.predict(request[:-1], held)).code is Code.NOT_OPENED
        # Its turn is never over in no time; the first knows what one takes.
        assert (await environment.predict(request, held, 1e-9)).code is Code.OVERLOADED
        again, own = sealer.seal_predict({"image": image})
        answer = await environment.predict(again, held, 60.0)
        assert np.array_equal(own.open(answer.value)["scores"], expected)
        several = [sealer.seal_predict({"image": image}) for _ in range(12)]
        answers = await asyncio.gather(*(environment.predict(r, held) for r, _ in several))
        for (_, own), answer in zip(several, answers, strict=True):
            if answer.code is not Code.OVERLOADED:
                assert np.array_equal(own.open(answer.value)["scores"], expected)
        # Four may wait; all twelve come at once.
        assert sum(a.code is Code.OVERLOADED for a in answers) == 8

    asyncio.run(ask())
    environment.check_health()


def test_a_replica_ends_with_its_enclave(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[bool] = []
    monkeypatch.setattr(replicas, "_leave", lambda: left.append(True))
    os.kill(environment._process.pid, signal.SIGKILL)
    answer = asyncio.run(environment.predict(bytes(100), None))
    assert answer.code is Code.ENCLAVE_ENDED
    until(lambda: left, "its end")
    with pytest.raises(Exception, match="has ended"):
        environment.check_health()
    assert asyncio.run(environment.evidence(new_nonce())).code is Code.NO_EVIDENCE


def test_a_replica_ends_an_enclave_that_takes_too_long(
    sealed: Sealed, home: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[bool] = []
    monkeypatch.setattr(replicas, "_leave", lambda: left.append(True))
    made = Environment(task(sealed, predict_seconds=0.5))
    try:
        os.kill(made._process.pid, signal.SIGSTOP)
        assert asyncio.run(made.predict(bytes(100), None)).code is Code.ENCLAVE_ENDED
        until(lambda: left, "its end")
    finally:
        made.close()


def test_a_replica_waits_for_its_key(
    sealed: Sealed, home: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []

    class Late:
        def get(self, digest: bytes, path: Path, prove: Any) -> bytes:
            asked.append(digest)
            if len(asked) < 3:
                raise KeyFileError("no key yet.")
            return InsecureKeyFiles.load([sealed.key]).get(digest, path, prove)

    monkeypatch.setattr(replicas, "_keys", lambda task: Late())
    made = Environment(task(sealed))
    try:
        assert len(asked) == 3
        made.check_health()
    finally:
        made.close()


def test_a_replica_takes_the_build_it_was_made_for_alone(sealed: Sealed, home: None) -> None:
    with pytest.raises(SealedError, match="another build"):
        Environment(task(sealed, digest=bytes(32)))
