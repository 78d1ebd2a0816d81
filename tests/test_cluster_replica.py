"""One replica of a cluster, in this process: what it answers, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'vessels[ray]'")

from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Sealed
from tests.serving import stopped
from vessels import Enclave
from vessels.attestation import Evidence, model_digest, new_nonce
from vessels.cluster import replica as replicas
from vessels.cluster.need import need_of
from vessels.cluster.replica import Answer, Replica, Task
from vessels.errors import EnclaveError, KeyFileError, SealedError
from vessels.sealed_messages import RequestSealer
from vessels.serve.errors import Code
from vessels.serve.keys import InsecureKeyFiles

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Holds something once a replica has ended its process, which goes on here."""
    left: list[bool] = []
    monkeypatch.setattr(replicas, "_leave", lambda: left.append(True))
    return left


def task(sealed: Sealed, **parts: Any) -> Task:
    values: dict[str, Any] = {
        "name": "m", "path": sealed.vessel, "digest": model_digest(sealed.vessel),
        "shape": need_of(sealed.vessel, threads=1, slots=parts.pop("slots", 1)).shape,
        "backend": "simulation", "manifest": None, "keys": None, "insecure_keys": (sealed.key,),
        "predict_seconds": 60.0, "waiting_count": 4, "deadline_seconds": None,
    }  # fmt: skip
    return Task(**values | parts)


@dataclass
class Running:
    """A replica that is one, and what clients know of its environment."""

    replica: Replica
    environment: str
    sealer: RequestSealer

    @property
    def enclave(self) -> int:
        """Its process id."""
        [environment] = self.replica._host.environments("m")
        assert environment.pid is not None
        return environment.pid

    def stalled(self) -> AbstractContextManager[None]:
        """The enclave is stopped meanwhile: it neither works nor ends."""
        return stopped(self.enclave)

    async def ask(self, image: Any, seconds: float | None = None) -> Any:
        """The scores, or the replica's refusal."""
        request, opener = self.sealer.seal_predict({"image": image})
        answer = await self.replica.predict(request, self.environment, seconds)
        return opener.open(answer.unwrapped())["scores"] if answer.code is None else answer

    async def count(self, name: str) -> float:
        """A metric."""
        families = text_string_to_metric_families(await self.replica.metrics())
        return sum(s.value for f in families for s in f.samples if s.name == name)


@asynccontextmanager
async def running(given: Task) -> AsyncIterator[Running]:
    replica = Replica(given)
    try:
        environment = (await replica.record_replica_metadata())["environment"]
        nonce = new_nonce()
        claims = Evidence.decode((await replica.evidence(nonce)).unwrapped()).claims
        assert claims.nonce == nonce
        yield Running(replica, environment, RequestSealer(claims.public_key, claims.model_digest))
    finally:
        await replica.close()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


def images(count: int) -> list[Any]:
    rng = np.random.default_rng(5)
    return [rng.standard_normal((1, 3, 16, 16)).astype(np.float32) for _ in range(count)]


def expected(sealed: Sealed, asked: list[Any]) -> list[Any]:
    with Enclave(sealed.vessel, key=sealed.key) as enclave:
        return [enclave.run({"image": image})["scores"] for image in asked]


async def refused(answer: Awaitable[Answer]) -> Code | None:
    return (await answer).code


def test_a_replica_answers_what_is_its_own(sealed: Sealed) -> None:
    async def main() -> None:
        async with running(task(sealed)) as made:
            [image] = images(1)
            assert np.array_equal(await made.ask(image), expected(sealed, [image])[0])
            assert np.array_equal(await made.ask(image, 60.0), expected(sealed, [image])[0])
            request, _ = made.sealer.seal_predict({"image": image})
            ask = made.replica.predict
            assert await refused(ask(request, "00" * 8)) is Code.NOT_OPENED
            assert await refused(ask(request[:-1], made.environment)) is Code.NOT_OPENED
            await made.replica.check_health()

    asyncio.run(main())


def test_requests_that_wait_are_run_together(sealed: Sealed) -> None:
    async def main() -> None:
        async with running(task(sealed, slots=4, waiting_count=64)) as made:
            asked = images(16)
            found: list[Any] = []
            for _ in range(3):
                found += await asyncio.gather(*(made.ask(image, 60.0) for image in asked))
            for answer, wanted in zip(found, 3 * expected(sealed, asked), strict=True):
                assert np.array_equal(answer, wanted)
            runs = await made.count("vessels_batch_size_count")
            assert await made.count("vessels_batch_size_sum") == len(found)
            # The first of sixteen finds nobody waiting; the others come in four runs of up to four.
            assert runs <= 15

    asyncio.run(main())


def test_what_a_replica_cannot_answer_in_time_is_refused_at_once(sealed: Sealed) -> None:
    async def main() -> None:
        async with running(task(sealed)) as made:
            [image] = images(1)
            # Its turn is never over in no time.
            assert (await made.ask(image, 1e-9)).code is Code.OVERLOADED
            answers = await asyncio.gather(*(made.ask(image) for _ in range(12)))
            # One runs and four may wait; all twelve come at once.
            told = [a for a in answers if isinstance(a, Answer)]
            assert [a.code for a in told] == [Code.OVERLOADED] * 7
            assert all(a.retry_after > 0 for a in told)
            with made.stalled():
                first = asyncio.ensure_future(made.ask(image, 60.0))
                await asyncio.sleep(0)
                began = time.monotonic()
                assert (await made.ask(image, 0.2)).code is Code.OVERLOADED
                assert time.monotonic() - began < 30
                assert not first.done()
            assert isinstance(await first, np.ndarray)

    asyncio.run(main())


def test_a_replica_ends_with_its_enclave(sealed: Sealed, left: list[bool]) -> None:
    async def main() -> None:
        async with running(task(sealed)) as made:
            [image] = images(1)
            pid = made.enclave
            with made.stalled():
                asked = [asyncio.ensure_future(made.ask(image)) for _ in range(3)]
                await asyncio.sleep(0)
                os.kill(pid, signal.SIGKILL)
                told = await asyncio.gather(*asked)
            # The one that was in it, and those that waited for it.
            assert [answer.code for answer in told] == [Code.ENCLAVE_ENDED] * 3
            with pytest.raises(EnclaveError, match="has ended"):
                await made.replica.check_health()
            assert (await made.ask(image)).code is Code.NOT_OPENED
            await until(lambda: left)

    asyncio.run(main())


def test_a_replica_ends_an_enclave_that_takes_too_long(sealed: Sealed, left: list[bool]) -> None:
    async def main() -> None:
        async with running(task(sealed, predict_seconds=3.0)) as made:
            os.kill(made.enclave, signal.SIGSTOP)
            assert (await made.ask(*images(1))).code is Code.TOO_LONG
            await until(lambda: left)

    asyncio.run(main())


def test_a_replica_waits_for_its_key(sealed: Sealed, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    class Late:
        def get(self, digest: bytes, path: Path, prove: Any) -> bytes:
            asked.append(digest)
            if len(asked) < 3:
                raise KeyFileError("no key yet.")
            return InsecureKeyFiles.load([sealed.key]).get(digest, path, prove)

    monkeypatch.setattr(replicas, "_keys", lambda task: Late())

    async def main() -> None:
        async with running(task(sealed)) as made:
            assert len(asked) == 3
            await made.replica.check_health()

    asyncio.run(main())


def test_what_ends_without_its_key_was_no_replica(
    sealed: Sealed, monkeypatch: pytest.MonkeyPatch, left: list[bool]
) -> None:
    class Never:
        def get(self, digest: bytes, path: Path, prove: Any) -> bytes:
            raise KeyFileError("no key.")

    monkeypatch.setattr(replicas, "_keys", lambda task: Never())

    async def main() -> None:
        replica = Replica(task(sealed))
        try:
            [environment] = replica._host.environments("m")
            await until(lambda: environment.refused_key)
            environment.kill()
            with pytest.raises(EnclaveError, match="ended before"):
                await replica.record_replica_metadata()
            assert not left
        finally:
            await replica.close()

    asyncio.run(main())


def test_a_replica_takes_the_build_it_was_made_for_alone(sealed: Sealed) -> None:
    async def main() -> None:
        with pytest.raises(SealedError, match="another build"):
            Replica(task(sealed, digest=bytes(32)))

    asyncio.run(main())
