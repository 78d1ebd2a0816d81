"""The client: it sends nothing before it has verified, and takes nothing that is not sealed."""

from __future__ import annotations

import asyncio
import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from tests.http_running import running
from tests.sealed_double import Host, compute, error_body, example_inputs
from vessels import client_exchange
from vessels.client import AsyncClient, AttestedModel, Client
from vessels.client_exchange import Attest, refused
from vessels.errors import (
    AttestationError,
    DeadlineError,
    PolicyError,
    RequestError,
    ServerError,
    UsageError,
)

Array = np.ndarray[Any, Any]


@pytest.fixture
def host() -> Iterator[Host]:
    with running(Host()) as server:
        yield server


class Asynchronous:
    """An :class:`AsyncClient` with the interface of :class:`Client`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self.inner = AsyncClient(*args, **options)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        return lambda *args, **options: self._runner.run(method(*args, **options))

    def __enter__(self) -> Asynchronous:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self.inner.close())
        self._runner.close()


Kind = Callable[..., Any]


@pytest.fixture(params=[Client, Asynchronous])
def kind(request: pytest.FixtureRequest) -> Kind:
    made: Kind = request.param
    return made


def same(found: Mapping[str, Array], expected: Mapping[str, Array]) -> bool:
    return list(found) == list(expected) and all(
        found[n].dtype == a.dtype and found[n].shape == a.shape and np.array_equal(found[n], a)
        for n, a in expected.items()
    )


def test_predictions_after_one_attestation(host: Host, kind: Kind) -> None:
    inputs = example_inputs()
    with kind(host.url, policy=host.policy()) as client:
        for _ in range(3):
            assert same(client.predict("m", inputs), compute(inputs))
            inputs["image"] = inputs["image"] + 1
        outputs, attested = client.predict_attested("m", inputs)
        assert same(outputs, compute(inputs))
        assert attested.verified.claims.model_digest == host.digest and attested.verified.simulated
        assert host.evidence_count == 1
        assert client.attest("m").verified.claims.nonce != attested.verified.claims.nonce
        assert host.evidence_count == 2
        described = client.describe("m")
        assert host.evidence_count == 2
        assert [p.name for p in described.inputs] == list(inputs)


def test_nothing_is_sent_to_what_is_refused(host: Host, kind: Kind) -> None:
    other = Host()
    try:
        with kind(host.url, policy=other.policy()) as client:
            for _ in range(2):
                with pytest.raises(AttestationError, match=r"^root: "):
                    client.predict("m", example_inputs())
    finally:
        other.server_close()
    assert host.headers_seen == [] and host.enclave.requests == 0


def test_evidence_of_an_earlier_question_is_refused(host: Host, kind: Kind) -> None:
    kept: list[bytes] = []

    def replay(evidence: bytes) -> bytes:
        kept.append(evidence)
        return kept[0]

    host.alter_evidence = replay
    with kind(host.url, policy=host.policy()) as client:
        client.predict("m", example_inputs())
        with pytest.raises(AttestationError, match=r"^nonce: "):
            client.attest("m")
        # Nor does what was accepted before hold any longer.
        with pytest.raises(AttestationError, match=r"^nonce: "):
            client.predict("m", example_inputs())
    assert host.enclave.requests == 2


def test_a_model_that_the_policy_does_not_name(host: Host, kind: Kind) -> None:
    with (
        kind(host.url, policy=host.policy()) as client,
        pytest.raises(AttestationError, match=r"^model: seen 'other', accepted m\.$"),
    ):
        client.predict("other", {})
    assert host.evidence_count == 0


def test_another_enclave_is_attested_and_asked_again(host: Host, kind: Kind) -> None:
    inputs = example_inputs()
    with kind(host.url, policy=host.policy()) as client:
        before = client.describe("m")
        host.restart()
        outputs, after = client.predict_attested("m", inputs)
        assert same(outputs, compute(inputs))
        assert after.verified.claims.public_key != before.verified.claims.public_key
        assert host.evidence_count == 2
        # A build that the policy does not accept gets nothing.
        host.restart(bytes(32))
        with pytest.raises(AttestationError, match=r"^model: seen 0000"):
            client.predict("m", inputs)
        assert host.enclave.requests == 0


def test_an_enclave_that_opens_nothing_is_asked_once(host: Host, kind: Kind) -> None:
    with kind(host.url, policy=host.policy()) as client:
        client.describe("m")
        host.instead = 421, error_body("not_opened")
        with pytest.raises(ServerError, match=r"HTTP 421 \(not_opened\)") as caught:
            client.predict("m", example_inputs())
        assert caught.value.code == "not_opened" and caught.value.status == 421
        assert len(host.headers_seen) <= 3


def test_an_enclave_that_ended_is_not_used_again(host: Host, kind: Kind) -> None:
    with kind(host.url, policy=host.policy()) as client:
        client.describe("m")
        host.instead = 503, error_body("enclave_ended")
        with pytest.raises(ServerError, match="enclave_ended"):
            client.predict("m", example_inputs())
        host.instead = None
        host.restart()
        sent = len(host.headers_seen)
        client.predict("m", example_inputs())
        # The interface and the prediction: nothing went to the old key.
        assert len(host.headers_seen) == sent + 2


def test_what_was_verified_holds_for_a_day(
    host: Host, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kind(host.url, policy=host.policy()) as client:
        attested: AttestedModel = client.describe("m")
        quote = attested.verified.quote
        day = timedelta(days=1)
        assert quote.expires - quote.verified > day
        assert attested.is_current(quote.verified + day - timedelta(seconds=1))
        assert not attested.is_current(quote.verified + day)
        monkeypatch.setattr(client_exchange, "FRESH", timedelta(days=100))
        assert attested.is_current(quote.expires - timedelta(seconds=1))
        assert not attested.is_current(quote.expires)
        monkeypatch.setattr(client_exchange, "FRESH", datetime.now(UTC) - quote.verified)
        client.predict("m", example_inputs())
        assert host.evidence_count == 2


@pytest.mark.parametrize(
    "alter",
    [
        lambda a: a[:-1] + bytes([a[-1] ^ 1]),
        lambda a: bytes([a[0] ^ 1]) + a[1:],
        lambda a: a[:40] + bytes([a[40] ^ 1]) + a[41:],
        lambda a: a[:-1],
        lambda a: a + b"\0",
        lambda a: b"",
        lambda a: a[:31],
    ],
)
def test_altered_answers_are_refused(
    host: Host, kind: Kind, alter: Callable[[bytes], bytes]
) -> None:
    with kind(host.url, policy=host.policy()) as client:
        client.describe("m")
        host.alter_answer = alter
        with pytest.raises(ServerError, match="it is not the answer to this request"):
            client.predict("m", example_inputs())
        host.alter_answer = bytes
        client.predict("m", example_inputs())


def test_an_answer_to_another_request_is_refused(host: Host, kind: Kind) -> None:
    answers: list[bytes] = []

    def swap(answer: bytes) -> bytes:
        answers.append(answer)
        return answers[0]

    with kind(host.url, policy=host.policy()) as client:
        client.describe("m")
        host.alter_answer = swap
        client.predict("m", example_inputs())
        with pytest.raises(ServerError, match="it is not the answer to this request"):
            client.predict("m", example_inputs())


def test_an_answer_without_end_is_cut_off(host: Host, kind: Kind) -> None:
    with kind(host.url, policy=host.policy()) as client:
        client.describe("m")
        host.instead = 200, bytes(3 << 20)
        with pytest.raises(ServerError, match="more than the"):
            client.predict("m", example_inputs())
        host.instead = 500, bytes(3 << 20)
        with pytest.raises(ServerError, match="more than the"):
            client.predict("m", example_inputs())


def test_wrong_inputs_are_refused_before_they_are_sent(host: Host, kind: Kind) -> None:
    with kind(host.url, policy=host.policy()) as client:
        client.describe("m")
        sent = len(host.headers_seen)
        with pytest.raises(RequestError, match=r"'image' is missing.*there is no input 'imago'"):
            inputs = example_inputs()
            client.predict("m", {"imago": inputs.pop("image"), **inputs})
        with pytest.raises(RequestError, match="is float64, the model takes float32"):
            client.predict("m", example_inputs() | {"image": np.zeros((1, 3, 4))})
        assert len(host.headers_seen) == sent


def test_what_the_enclave_refuses(host: Host, kind: Kind) -> None:
    def refuse(_: Mapping[str, Array]) -> dict[str, Array]:
        raise IndexError

    with kind(host.url, policy=host.policy()) as client:
        client.describe("m")
        host.enclave.model = refuse
        with pytest.raises(RequestError, match="index"):
            client.predict("m", example_inputs())


def test_readiness(host: Host, kind: Kind) -> None:
    with kind(host.url, policy=host.policy()) as client:
        assert client.ready("m") is True
        host.ready = False
        assert client.ready("m") is False


def test_a_server_that_is_not_there(host: Host, kind: Kind) -> None:
    with kind("http://127.0.0.1:9", policy=host.policy()) as client:
        with pytest.raises(
            ServerError, match=r"^http://127\.0\.0\.1:9 cannot be asked: "
        ) as caught:
            client.predict("m", example_inputs())
        assert caught.value.status is None


def test_a_connection_that_was_closed_is_made_again_once(host: Host, kind: Kind) -> None:
    with kind(host.url, policy=host.policy()) as client:
        client.describe("m")
        host.drops = 1
        assert same(client.predict("m", example_inputs()), compute(example_inputs()))
        host.drops = 2
        with pytest.raises(ServerError, match="cannot be asked"):
            client.predict("m", example_inputs())
        assert host.drops == 0


def test_a_server_that_is_silent(host: Host, kind: Kind) -> None:
    going_on = threading.Event()

    def wait(inputs: dict[str, Array]) -> dict[str, Array]:
        going_on.wait(30)
        return compute(inputs)

    with kind(host.url, policy=host.policy(), timeout=4.0) as client:
        client.describe("m")
        host.enclave.model = wait
        with pytest.raises(ServerError, match="did not answer in time"):
            client.predict("m", example_inputs())
    going_on.set()


def test_requests_name_their_enclave_and_their_deadline(host: Host, kind: Kind) -> None:
    with kind(host.url, policy=host.policy()) as client:
        client.predict("m", example_inputs())
        client.predict("m", example_inputs(), timeout=20.0)
    named = hashlib.sha256(host.enclave.public_key).hexdigest()[:16]
    assert [h["vessels-environment"] for h in host.headers_seen] == [named] * 3
    times = [h.get("vessels-deadline-ms") for h in host.headers_seen]
    assert times[:2] == [None, None] and times[2] is not None and 1_000 < int(times[2]) <= 20_000


def test_an_answer_that_comes_too_late(host: Host, kind: Kind) -> None:
    going_on = threading.Event()

    def wait(inputs: dict[str, Array]) -> dict[str, Array]:
        going_on.wait(30)
        return compute(inputs)

    with kind(host.url, policy=host.policy()) as client:
        client.describe("m")
        with pytest.raises(DeadlineError, match="no answer before the deadline"):
            client.predict("m", example_inputs(), timeout=0.0)
        with pytest.raises(UsageError, match="a number of seconds"):
            client.predict("m", example_inputs(), timeout=math.nan)
        client.predict("m", example_inputs(), timeout=math.inf)
        host.enclave.model = wait
        with pytest.raises(DeadlineError, match="no answer before the deadline"):
            client.predict("m", example_inputs(), timeout=0.3)
    going_on.set()


def test_nobody_waits_beyond_a_deadline_for_anothers_attestation(host: Host) -> None:
    going_on, asked = threading.Event(), threading.Event()

    def late(evidence: bytes) -> bytes:
        asked.set()
        going_on.wait(30)
        return evidence

    host.alter_evidence = late
    with Client(host.url, policy=host.policy()) as client, ThreadPoolExecutor(1) as pool:
        patient = pool.submit(client.describe, "m")
        assert asked.wait(30)
        for call in (
            lambda: client.predict("m", example_inputs(), timeout=0.2),
            lambda: client.describe("m", timeout=0.2),
        ):
            with pytest.raises(DeadlineError, match="no answer before the deadline"):
                call()
        going_on.set()
        assert patient.result(30).name == "m"

    async def run() -> None:
        going_on.clear()
        asked.clear()
        async with AsyncClient(host.url, policy=host.policy()) as client:
            patient = asyncio.create_task(client.describe("m"))
            await asyncio.to_thread(asked.wait, 30)
            with pytest.raises(DeadlineError, match="no answer before the deadline"):
                await client.predict("m", example_inputs(), timeout=0.2)
            going_on.set()
            assert (await patient).name == "m"
            assert (await client.describe("m", timeout=20.0)).name == "m"

    asyncio.run(run())


@pytest.mark.parametrize("url", ["host:8080", "ftp://host", "http://["])
def test_what_is_no_url(host: Host, kind: Kind, url: str) -> None:
    with pytest.raises(UsageError):
        kind(url, policy=host.policy())


def test_a_policy_from_a_file(host: Host, tmp_path: Any) -> None:
    with pytest.raises(PolicyError, match="cannot read policy"):
        Client(host.url, policy=tmp_path / "none.toml")


def test_many_threads_share_one_attestation(host: Host) -> None:
    inputs = example_inputs()
    with Client(host.url, policy=host.policy()) as client, ThreadPoolExecutor(8) as pool:
        for outputs in pool.map(lambda _: client.predict("m", inputs), range(24)):
            assert same(outputs, compute(inputs))
        assert host.evidence_count == 1
        host.restart()
        for outputs in pool.map(lambda _: client.predict("m", inputs), range(24)):
            assert same(outputs, compute(inputs))
        assert host.evidence_count == 2


def test_many_tasks_share_one_attestation(host: Host) -> None:
    inputs = example_inputs()

    async def run() -> None:
        async with AsyncClient(host.url, policy=host.policy()) as client:
            for _ in range(2):
                found = await asyncio.gather(*(client.predict("m", inputs) for _ in range(24)))
                assert all(same(outputs, compute(inputs)) for outputs in found)
                host.restart()
            assert host.evidence_count == 2

    asyncio.run(run())


def test_what_a_host_says_does_not_steer_a_terminal() -> None:
    said = refused("http://h", 500, error_body("co\x1b[2Jde", "first\nsecond\x1b[31m"))
    assert str(said) == ("http://h answered with HTTP 500 (co\\x1b[2Jde): first second\\x1b[31m.")
    for body in (b"", b"[]", b'{"error": 5}', b'{"error": {"code": 5}}', b"[" * 60000):
        assert refused("http://h", 500, body).code is None


def test_the_wish_for_another_is_not_fulfilled_by_the_same(host: Host) -> None:
    with Client(host.url, policy=host.policy()) as client:
        first = client.describe("m")
        exchanges = client._exchanges
        assert exchanges.at_hand(Attest("m")) is first
        assert exchanges.at_hand(Attest("m", instead_of=first)) is None
