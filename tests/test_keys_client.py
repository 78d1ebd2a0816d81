"""The host's side of key release: what is tried again, what is not, and what is said."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pyhpke import OpenError

from benchmarks.ports import held_port
from tests.http_running import LocalServer, QuietHandler, running
from tests.keys import DIGEST, KEY, Attester, listening, policy_of
from tests.serving import until
from tests.test_keys_release import Keys, opened
from vessels.attestation import Evidence, Verifier
from vessels.attestation.simulation import Platform, SimulationRoot
from vessels.errors import AttestationError, KeyReleaseError, UsageError, VesselsError
from vessels.keys.app import key_app
from vessels.keys.client import fetch_key, service_url
from vessels.keys.messages import PREFIX, Challenge, Code, Refusal
from vessels.keys.release import KeyService

CHALLENGE = Challenge(bytes(32), bytes(range(32)), 60).encoded()


@pytest.fixture(scope="module")
def root() -> SimulationRoot:
    return SimulationRoot.create(datetime.now(UTC))


@pytest.fixture(scope="module")
def attester(root: SimulationRoot) -> Attester:
    return Attester(Platform.create(root))


@pytest.fixture(scope="module")
def keys() -> Keys:
    return Keys()


@pytest.fixture(scope="module")
def url(root: SimulationRoot, keys: Keys) -> Iterator[str]:
    with listening(key_app(KeyService(Verifier(policy_of(root)), keys))) as url:
        yield url


def test_a_key(url: str, attester: Attester) -> None:
    sealed = fetch_key(url, attester.evidence, DIGEST)
    assert opened(sealed, attester.private_key, DIGEST) == KEY
    # A slash at the end is no other service.
    again = fetch_key(url + "/", attester.evidence, DIGEST)
    assert opened(again, attester.private_key, DIGEST) == KEY


def test_each_try_has_a_nonce_of_its_own(url: str, attester: Attester) -> None:
    attester.nonces.clear()
    for _ in range(3):
        fetch_key(url, attester.evidence, DIGEST)
    assert len(set(attester.nonces)) == 3


def test_what_the_policy_refuses(url: str, attester: Attester) -> None:
    other = replace(attester, enclave=replace(attester.enclave, mr_enclave=bytes(32)))
    with pytest.raises(AttestationError) as refused:
        fetch_key(url, other.evidence, DIGEST)
    assert str(refused.value).startswith(
        f"the key service {url} refused the evidence: mr_enclave: seen {bytes(32).hex()}, accepted"
    )
    assert refused.value.exit_code == 9


def test_unknown_and_revoked(url: str, attester: Attester, keys: Keys) -> None:
    with pytest.raises(KeyReleaseError, match=r"gave no key \(unknown\)") as refused:
        fetch_key(url, attester.evidence, bytes(32))
    assert (refused.value.code, refused.value.passing, refused.value.exit_code) == (
        "unknown", False, 10,
    )  # fmt: skip
    before = keys.kept[DIGEST]
    keys.kept[DIGEST] = replace(before, revoked=before.added)
    try:
        with pytest.raises(KeyReleaseError, match=r"gave no key \(revoked\)") as refused:
            fetch_key(url, attester.evidence, DIGEST)
    finally:
        keys.kept[DIGEST] = before
    assert (refused.value.code, refused.value.passing) == ("revoked", False)


def test_what_the_enclave_raises_is_raised(url: str) -> None:
    def dead(_: bytes) -> Evidence:
        raise VesselsError("the enclave is dead")

    with pytest.raises(VesselsError, match="the enclave is dead"):
        fetch_key(url, dead, DIGEST)


def test_nobody_there(attester: Attester) -> None:
    began = time.monotonic()
    with (
        held_port() as port,
        pytest.raises(KeyReleaseError, match="out of reach") as refused,
    ):
        fetch_key(f"http://127.0.0.1:{port}", attester.evidence, DIGEST, patience=1.0)
    assert refused.value.passing and refused.value.code == "unreachable"
    assert 0.2 < time.monotonic() - began < 60


def test_a_service_that_comes_back(
    attester: Attester, keys: Keys, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    def come_back() -> None:
        until(lambda: "Trying again" in caplog.text, "a first try in vain")
        keys.broken = False

    keys.broken = True
    service = threading.Thread(target=come_back)
    service.start()
    sealed = fetch_key(url, attester.evidence, DIGEST, patience=60)
    service.join()
    assert opened(sealed, attester.private_key, DIGEST) == KEY
    assert caplog.text.count("Trying again for 60 seconds") == 1


Answer = tuple[int, bytes]


@contextlib.contextmanager
def answering(answers: Callable[[str], Answer]) -> Iterator[str]:
    """Something on a port that answers each path as ``answers`` says."""

    class Handler(QuietHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, body = answers(self.path.removeprefix(PREFIX + "/"))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer(status, body, Location="http://127.0.0.1:1/")

        do_POST = do_GET

    with running(LocalServer(Handler)) as server:
        yield server.url


def error(code: str, message: str = "why") -> bytes:
    return json.dumps({"error": {"code": code, "message": message}}).encode()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, b"hello"), "does not answer as a key service does: the message is malformed"),
        ((200, CHALLENGE[:-1]), "does not answer as a key service does"),
        ((200, b"x" * (1 << 17)), "an answer without end"),
        ((302, b""), "HTTP 302"),
        ((404, b"<html>"), "HTTP 404"),
        ((418, b""), "HTTP 418"),
        ((400, b'{"error":{"code":"../x","message":""}}'), "HTTP 400"),
        ((400, b'{"error":"x"}'), "HTTP 400"),
        ((400, b"[" * 60_000), "HTTP 400"),
        ((400, error("version")), r"gave no key \(version\): why"),
        ((404, error("unknown")), r"gave no key \(unknown\): why"),
        ((404, error("new")), r"gave no key \(new\): why"),
        ((404, error("unknown", "\x1b[2J\n")), r"unknown\): \\x1b\[2J$"),
    ],
)
def test_nonsense_is_not_tried_again(attester: Attester, answer: Answer, message: str) -> None:
    asked: list[str] = []

    def answers(path: str) -> Answer:
        asked.append(path)
        return answer

    with (
        answering(answers) as url,
        pytest.raises(KeyReleaseError, match=message) as refused,
    ):
        fetch_key(url, attester.evidence, DIGEST, patience=5)
    assert asked == ["auth"] and not refused.value.passing


@pytest.mark.parametrize(
    "answer",
    [
        (503, error("busy")),
        (503, error("unavailable")),
        (503, error("collateral")),
        (401, error("session")),
        (408, error("slow")),
        (500, error("defect")),
        (502, b"<html>"),
        (503, b""),
        (429, b""),
    ],
)
def test_what_passes_is_tried_again(attester: Attester, answer: Answer) -> None:
    asked: list[str] = []

    def answers(path: str) -> Answer:
        asked.append(path)
        good = {"auth": (200, CHALLENGE), "attest": (204, b"")}.get(path, (200, bytes(80)))
        return answer if len(asked) == 2 else good

    with answering(answers) as url:
        assert fetch_key(url, attester.evidence, DIGEST, patience=60) == bytes(80)
    # All of the exchange is begun anew, with a nonce of its own.
    assert asked == ["auth", "attest", "auth", "attest", f"resource/{DIGEST.hex()}"]


@pytest.mark.parametrize("size", [0, 79, 81])
def test_a_sealed_key_of_another_size(attester: Attester, size: int) -> None:
    good = {"auth": (200, CHALLENGE), "attest": (204, b"")}
    with (
        answering(lambda path: good.get(path, (200, bytes(size)))) as url,
        pytest.raises(KeyReleaseError, match=f"a sealed key of {size} bytes"),
    ):
        fetch_key(url, attester.evidence, DIGEST)


def test_no_patience_is_one_try(attester: Attester) -> None:
    asked: list[str] = []

    def answers(path: str) -> Answer:
        asked.append(path)
        return 503, error("busy")

    with answering(answers) as url, pytest.raises(KeyReleaseError, match="busy"):
        fetch_key(url, attester.evidence, DIGEST, patience=0)
    assert asked == ["auth"]


@contextlib.contextmanager
def dripping(first: bytes) -> Iterator[str]:
    """Something that takes connections, says ``first``, and then a byte now and then."""
    ended = threading.Event()
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=drip, args=(connection,), daemon=True).start()

    def drip(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(first)
            while not ended.wait(0.1):
                connection.sendall(b"x")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    finally:
        ended.set()
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


@pytest.mark.parametrize(
    "first", [b"HTTP/1.1 200 OK\r\nA: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"]
)
def test_an_answer_that_drips_is_not_waited_for(attester: Attester, first: bytes) -> None:
    began = time.monotonic()
    with (
        dripping(first) as url,
        pytest.raises(KeyReleaseError, match="it did not answer in time") as refused,
    ):
        fetch_key(url, attester.evidence, DIGEST, patience=0, timeout=1.0)
    assert refused.value.passing and time.monotonic() - began < 60


def test_a_service_that_speaks_something_else(attester: Attester) -> None:
    with (
        dripping(b"SSH-2.0-x\r\n\r\n") as url,
        pytest.raises(KeyReleaseError, match=r"out of reach: .*illegal"),
    ):
        fetch_key(url, attester.evidence, DIGEST, patience=0, timeout=60.0)


@pytest.mark.parametrize(
    "url", ["owner:8090", "ftp://owner", "http://", "http://[", "http://h:x", "http://h/?a=b", ""]
)
def test_wrong_urls(attester: Attester, url: str) -> None:
    with pytest.raises(UsageError, match="is no URL of a key service"):
        fetch_key(url, attester.evidence, DIGEST)


def test_urls() -> None:
    assert service_url("https://owner:8443/keys/") == "https://owner:8443/keys"


def test_the_key_is_sealed_to_who_attested(url: str, attester: Attester) -> None:
    """A host that puts itself between gets nothing that it could open."""
    sealed = fetch_key(url, attester.evidence, DIGEST)
    assert KEY not in sealed
    with pytest.raises((OpenError, ValueError)):
        opened(sealed, X25519PrivateKey.generate(), DIGEST)


@pytest.mark.parametrize(
    "change",
    [
        {"session": "0" * 63},
        {"session": "G" * 64},
        {"nonce": "A" * 64},
        {"nonce": 5},
        {"nonce": None},
        {"expires_in": 0},
        {"expires_in": 3601},
        {"expires_in": True},
        {"expires_in": "60"},
        {"more": 1},
    ],
)
def test_malformed_challenges(change: dict[str, object]) -> None:
    with pytest.raises(Refusal) as refused:
        Challenge.decode(json.dumps(json.loads(CHALLENGE) | change).encode())
    assert refused.value.code is Code.MALFORMED
