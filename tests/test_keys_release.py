"""Key release: who gets a key, and every way to be refused. A running service, real HTTP."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pyhpke import AEADId, CipherSuite, KDFId, KEMId, KEMKey, OpenError

from tests.attestation import CLAIMS, ENCLAVE, SGX
from tests.keys import DIGEST, KEY, OTHER_DIGEST, Attester, listening, policy_of
from tests.serving import one
from vessels.attestation import CollateralFile, Evidence, Kind, Verifier
from vessels.attestation.simulation import Platform, SimulationRoot
from vessels.errors import KeyFileError
from vessels.keys.app import key_app
from vessels.keys.messages import PREFIX, Auth, Challenge, authorization
from vessels.keys.release import KeyService
from vessels.keys.store import ModelKey
from vessels.listening import Limits

ADDED = datetime(2026, 1, 1, tzinfo=UTC)


def ask(method: str, url: str, **options: Any) -> httpx2.Response:
    """An answer, which may take long where the tests have little of the machine."""
    return httpx2.request(method, url, timeout=60, **options)


class Keys:
    """Keys in a dictionary, which tests change."""

    def __init__(self) -> None:
        self.kept = {d: ModelKey(n, d, KEY, ADDED) for n, d in (("m", DIGEST), ("n", OTHER_DIGEST))}
        self.broken = False

    def all(self) -> list[ModelKey]:
        if self.broken:
            raise KeyFileError("the disk /secret/path is gone")
        return list(self.kept.values())

    def find(self, digest: bytes) -> ModelKey | None:
        self.all()
        return self.kept.get(digest)


@dataclass
class Running:
    """A service, and what tests turn in it."""

    url: str
    keys: Keys
    attester: Attester
    root: SimulationRoot
    clock: list[float]

    def post(self, path: str, body: bytes, session: bytes | None = None) -> httpx2.Response:
        headers = {} if session is None else {"Authorization": authorization(session)}
        return ask("post", f"{self.url}{PREFIX}/{path}", content=body, headers=headers)

    def get(self, digest: bytes, session: bytes | None) -> httpx2.Response:
        headers = {} if session is None else {"Authorization": authorization(session)}
        url = f"{self.url}{PREFIX}/resource/{digest.hex()}"
        return ask("get", url, headers=headers)

    def begin(self, digest: bytes = DIGEST) -> Challenge:
        answer = self.post("auth", Auth(digest).encoded())
        assert answer.status_code == 200
        return Challenge.decode(answer.content)

    def attested(self) -> bytes:
        """A session that has attested."""
        begun = self.begin()
        evidence = self.attester.evidence(begun.nonce)
        assert self.post("attest", evidence.encoded(), begun.session).status_code == 204
        return begun.session


@pytest.fixture(scope="module")
def root() -> SimulationRoot:
    return SimulationRoot.create(datetime.now(UTC))


@pytest.fixture(scope="module")
def platform(root: SimulationRoot) -> Platform:
    return Platform.create(root)


@pytest.fixture
def start(root: SimulationRoot, platform: Platform) -> Iterator[Callable[..., Running]]:
    """Starts services, with a policy and limits of the test's choice."""
    with contextlib.ExitStack() as running:

        def started(
            *, verifier: Verifier | None = None, limits: Limits | None = None, **options: Any
        ) -> Running:
            keys, clock = Keys(), [1000.0]
            service = KeyService(
                verifier or Verifier(policy_of(root)), keys, clock=lambda: clock[0], **options
            )
            url = running.enter_context(listening(key_app(service, limits), limits))
            return Running(url, keys, Attester(platform), root, clock)

        yield started


@pytest.fixture
def running(start: Callable[..., Running]) -> Running:
    return start()


def opened(sealed: bytes, private_key: X25519PrivateKey, digest: bytes) -> bytes:
    """The key in ``sealed``, as an enclave opens it."""
    suite = CipherSuite.new(KEMId.DHKEM_X25519_HKDF_SHA256, KDFId.HKDF_SHA256, AEADId.AES256_GCM)
    secret = KEMKey.from_pyca_cryptography_key(private_key)
    context = suite.create_recipient_context(sealed[:32], secret, info=b"vessels key v1")
    return context.open(sealed[32:], aad=digest)


def refused(answer: httpx2.Response, status: int, code: str, message: str = "") -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    error = answer.json()["error"]
    assert error["code"] == code
    assert re.search(message, error["message"]), error["message"]


def test_the_key_is_released_to_the_enclave_alone(running: Running) -> None:
    session = running.attested()
    answer = running.get(DIGEST, session)
    assert answer.status_code == 200 and len(answer.content) == 80
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["cache-control"] == "no-store"
    assert opened(answer.content, running.attester.private_key, DIGEST) == KEY
    assert KEY not in answer.content
    with pytest.raises((OpenError, ValueError)):
        opened(answer.content, X25519PrivateKey.generate(), DIGEST)
    with pytest.raises((OpenError, ValueError)):
        opened(answer.content, running.attester.private_key, OTHER_DIGEST)
    # A session may ask again, as when an answer was lost; it is sealed anew.
    again = running.get(DIGEST, session)
    assert again.content != answer.content
    assert opened(again.content, running.attester.private_key, DIGEST) == KEY


def test_nonces_and_sessions_are_fresh(running: Running) -> None:
    begun = [running.begin() for _ in range(8)]
    assert len({b.nonce for b in begun} | {b.session for b in begun}) == 16
    assert {b.expires_in for b in begun} == {120}


@pytest.mark.parametrize("asked", ["auth", "resource"])
def test_revoked(running: Running, asked: str) -> None:
    session = running.attested()
    running.keys.kept[DIGEST] = replace(running.keys.kept[DIGEST], revoked=ADDED)
    answer = (
        running.post("auth", Auth(DIGEST).encoded()) if asked == "auth"
        else running.get(DIGEST, session)
    )  # fmt: skip
    refused(answer, 403, "revoked", f"the model {DIGEST.hex()} is revoked")


@pytest.mark.parametrize("asked", ["auth", "resource"])
def test_unknown(running: Running, asked: str) -> None:
    session = running.attested()
    del running.keys.kept[DIGEST]
    answer = (
        running.post("auth", Auth(DIGEST).encoded()) if asked == "auth"
        else running.get(DIGEST, session)
    )  # fmt: skip
    refused(answer, 404, "unknown", f"no key is kept for the model {DIGEST.hex()}")


def test_keys_that_cannot_be_read(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    session = running.attested()
    assert ask("get", f"{running.url}{PREFIX}/ready").json() == {"ready": True}
    running.keys.broken = True
    for answer in (
        running.get(DIGEST, session),
        running.post("auth", Auth(DIGEST).encoded()),
        ask("get", f"{running.url}{PREFIX}/ready"),
    ):
        refused(answer, 503, "unavailable")
        assert "/secret/path" not in answer.text
    running.keys.broken = False
    assert running.get(DIGEST, session).status_code == 200


def test_a_nonce_is_for_one_attempt(running: Running) -> None:
    begun = running.begin()
    evidence = running.attester.evidence(begun.nonce).encoded()
    assert running.post("attest", evidence, begun.session).status_code == 204
    refused(running.post("attest", evidence, begun.session), 401, "session", "nonce was used")
    # The session itself goes on.
    assert running.get(DIGEST, begun.session).status_code == 200


def test_a_failed_attempt_ends_the_session(running: Running) -> None:
    begun = running.begin()
    good = running.attester.evidence(begun.nonce).encoded()
    refused(running.post("attest", b"nonsense", begun.session), 403, "evidence", "^E1 ")
    refused(running.post("attest", good, begun.session), 401, "session", "no such session")
    refused(running.get(DIGEST, begun.session), 401, "session")


def test_evidence_of_another_session_is_refused(running: Running) -> None:
    first, second = running.begin(), running.begin()
    replayed = running.attester.evidence(first.nonce).encoded()
    answer = running.post("attest", replayed, second.session)
    refused(answer, 403, "evidence", f"^nonce: seen {first.nonce.hex()}")


def test_another_of_the_policys_models_is_refused(running: Running) -> None:
    begun = running.begin(OTHER_DIGEST)
    evidence = running.attester.evidence(begun.nonce).encoded()
    answer = running.post("attest", evidence, begun.session)
    refused(answer, 403, "evidence", f"^model: seen {DIGEST.hex()}, accepted {OTHER_DIGEST.hex()}")


def test_a_session_is_for_one_model(running: Running) -> None:
    session = running.attested()
    refused(running.get(OTHER_DIGEST, session), 401, "session", "another model's")
    assert running.get(DIGEST, session).status_code == 200


def test_no_key_before_attestation(running: Running) -> None:
    refused(running.get(DIGEST, running.begin().session), 401, "session", "has not attested")


@pytest.mark.parametrize("after", [119.0, 120.0])
def test_sessions_expire(running: Running, after: float) -> None:
    waiting, attested = running.begin(), running.attested()
    running.clock[0] += after
    evidence = running.attester.evidence(waiting.nonce).encoded()
    if after < 120:
        assert running.post("attest", evidence, waiting.session).status_code == 204
        assert running.get(DIGEST, attested).status_code == 200
    else:
        refused(running.post("attest", evidence, waiting.session), 401, "session", "expired")
        refused(running.get(DIGEST, attested), 401, "session", "expired")


def test_a_session_that_expires_while_it_attests(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = running.begin()
    evidence = running.attester.evidence(begun.nonce).encoded()
    verify = Verifier.verify

    def slow(*arguments: Any, **options: Any) -> Any:
        running.clock[0] += 200
        return verify(*arguments, **options)

    monkeypatch.setattr(Verifier, "verify", slow)
    running.post("attest", evidence, begun.session)
    refused(running.get(DIGEST, begun.session), 401, "session", "expired")


def test_a_flood_of_sessions_drops_the_oldest(start: Callable[..., Running]) -> None:
    running = start(max_sessions=4)
    begun = [running.begin() for _ in range(5)]
    evidence = [running.attester.evidence(b.nonce).encoded() for b in begun]
    refused(running.post("attest", evidence[0], begun[0].session), 401, "session")
    assert running.post("attest", evidence[4], begun[4].session).status_code == 204


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic eDp5", "bearer " + "0" * 64])
def test_no_session(running: Running, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    for answer in (
        ask("post", f"{running.url}{PREFIX}/attest", content=b"x", headers=headers),
        ask("get", f"{running.url}{PREFIX}/resource/{DIGEST.hex()}", headers=headers),
    ):
        refused(answer, 401, "session", "Authorization")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_sessions_that_never_were(running: Running) -> None:
    refused(running.post("attest", b"x", bytes(32)), 401, "session")
    refused(running.get(DIGEST, bytes(32)), 401, "session")
    refused(running.get(DIGEST, bytes(31)), 400, "malformed")


def test_enclaves_that_the_policy_refuses(running: Running, platform: Platform) -> None:
    for enclave, message in (
        (replace(ENCLAVE, mr_enclave=bytes(32)), f"^mr_enclave: seen {bytes(32).hex()}, accepted "),
        (replace(ENCLAVE, debug=True), "^quote: it was refused: Debug"),
    ):
        begun = running.begin()
        attester = replace(running.attester, enclave=enclave)
        answer = running.post("attest", attester.evidence(begun.nonce).encoded(), begun.session)
        refused(answer, 403, "evidence", message)


def test_a_simulation_of_another_root(running: Running) -> None:
    other = Attester(Platform.create(SimulationRoot.create(datetime.now(UTC))))
    begun = running.begin()
    answer = running.post("attest", other.evidence(begun.nonce).encoded(), begun.session)
    refused(answer, 403, "evidence", "^root: ")


def test_without_the_insecure_switch_no_simulation(start: Callable[..., Running]) -> None:
    running = start(verifier=Verifier(policy_of(None)))
    begun = running.begin()
    evidence = running.attester.evidence(begun.nonce).encoded()
    refused(running.post("attest", evidence, begun.session), 403, "evidence", "^root: ")


def test_a_public_key_that_was_put_in_by_the_host(running: Running) -> None:
    begun = running.begin()
    good = running.attester.evidence(begun.nonce)
    mine = X25519PrivateKey.generate().public_key().public_bytes_raw()
    forged = replace(good, claims=replace(good.claims, public_key=mine))
    answer = running.post("attest", forged.encoded(), begun.session)
    refused(answer, 403, "evidence", "^report data: ")


@pytest.mark.parametrize("suite", ["002000010003", "001000010001", "000000000000"])
def test_suites(running: Running, suite: str) -> None:
    begun = running.begin()
    attester = replace(running.attester, suite=bytes.fromhex(suite))
    answer = running.post("attest", attester.evidence(begun.nonce).encoded(), begun.session)
    refused(answer, 403, "evidence", f"^suite: seen {suite}, accepted 002000010002")


@pytest.mark.parametrize("size", [0, 1, 31, 33, 1216])
def test_public_keys_of_another_size(running: Running, platform: Platform, size: int) -> None:
    begun = running.begin()
    claims = replace(CLAIMS, model_digest=DIGEST, nonce=begun.nonce, public_key=bytes(size))
    answer = running.post("attest", platform.evidence(claims, ENCLAVE).encoded(), begun.session)
    refused(answer, 403, "evidence", "^E4 " if size == 0 else "^public key: ")


def test_a_public_key_that_hides_nothing(running: Running, platform: Platform) -> None:
    """Of small order: what is sealed to it, anybody opens."""
    begun = running.begin()
    claims = replace(CLAIMS, model_digest=DIGEST, nonce=begun.nonce, public_key=bytes(32))
    answer = running.post("attest", platform.evidence(claims, ENCLAVE).encoded(), begun.session)
    refused(answer, 403, "evidence", "^public key: ")


@pytest.mark.parametrize("evidence", [b"", b"\xff", b"\x80", b"\x81\x02", b"{}" * 1000])
def test_malformed_evidence(running: Running, evidence: bytes) -> None:
    begun = running.begin()
    refused(running.post("attest", evidence, begun.session), 403, "evidence", "^E[12] ")


def test_sev_snp(running: Running) -> None:
    begun = running.begin()
    claims = replace(CLAIMS, nonce=begun.nonce)
    evidence = Evidence(Kind.SEV_SNP, b"report", claims).encoded()
    answer = running.post("attest", evidence, begun.session)
    refused(answer, 403, "evidence", "^tee: seen sev-snp")


def test_expired_hardware_is_tried_again_with_other_collateral(
    start: Callable[..., Running],
) -> None:
    """Of real hardware, collateral is the service's to get: the host is not to blame."""
    rules = policy_of(None, models={"m": [DIGEST.hex()]})
    running = start(verifier=Verifier(rules, CollateralFile(SGX.collateral_file)))
    begun = running.begin()
    claims = replace(CLAIMS, model_digest=DIGEST, nonce=begun.nonce)
    evidence = Evidence(Kind.DCAP, SGX.quote, claims).encoded()
    answer = running.post("attest", evidence, begun.session)
    refused(answer, 503, "collateral", "^collateral: .* expired on 2025-07-19")


def test_paths_and_methods(running: Running) -> None:
    refused(ask("get", f"{running.url}/"), 404, "path")
    refused(ask("get", f"{running.url}{PREFIX}/nothing"), 404, "path")
    refused(ask("get", f"{running.url}{PREFIX}/ready/"), 404, "path")
    refused(ask("post", f"{running.url}{PREFIX}/auth/"), 404, "path")
    refused(answer := ask("get", f"{running.url}{PREFIX}/auth"), 405, "method")
    assert answer.headers["allow"] == "POST"
    refused(ask("put", f"{running.url}{PREFIX}/attest"), 405, "method")
    refused(ask("post", f"{running.url}{PREFIX}/resource/{DIGEST.hex()}"), 405, "method")
    session = {"Authorization": authorization(running.attested())}
    for digest in ("x", DIGEST.hex().upper(), DIGEST.hex()[:-1]):
        answer = ask("get", f"{running.url}{PREFIX}/resource/{digest}", headers=session)
        refused(answer, 400, "malformed", "model digest must be 64 lower-case")


def test_oversized_bodies(running: Running) -> None:
    refused(running.post("auth", b" " * 1025), 413, "size")
    session = running.begin().session
    refused(running.post("attest", bytes((1 << 20) + 1), session), 413, "size")

    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1 << 16)

    # Of a size that nobody announced. The service stops reading, so the client may fail to write.
    headers = {"Authorization": authorization(session)}
    url = f"{running.url}{PREFIX}/attest"
    try:
        answer = ask("post", url, content=endless(), headers=headers)
    except (httpx2.WriteError, httpx2.RemoteProtocolError, httpx2.ReadError):
        pass
    else:
        refused(answer, 413, "size")
    # No evidence was seen, so the session is as it was.
    evidence = running.attester.evidence(running.begin().nonce)
    assert running.post("attest", evidence.encoded(), session).status_code == 403


def connect(url: str) -> socket.socket:
    address = httpx2.URL(url)
    return socket.create_connection((address.host, address.port or 80), timeout=60)


def everything(connection: socket.socket) -> bytes:
    received = b""
    while part := connection.recv(1 << 16):
        received += part
    return received


HASTY = Limits(head_seconds=3.0, body_seconds=3.0, idle_seconds=3)


def test_slow_bodies(start: Callable[..., Running]) -> None:
    running = start(limits=HASTY)
    with connect(running.url) as connection:
        connection.sendall(f"POST {PREFIX}/auth HTTP/1.1\r\nHost: x\r\n".encode())
        connection.sendall(b"Content-Length: 100\r\n\r\n{")
        received = everything(connection)
    assert received.startswith(b"HTTP/1.1 408 ") and b'"code":"slow"' in received
    assert running.attested()


@pytest.mark.parametrize("sent", [b"", b"GET ", b"GET / HTTP/1.1\r\nHost: "])
def test_slow_heads(start: Callable[..., Running], sent: bytes) -> None:
    running = start(limits=HASTY)
    with connect(running.url) as connection:
        connection.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            assert everything(connection) == b""
    assert running.attested()


def test_a_slow_head_after_an_answer(start: Callable[..., Running]) -> None:
    running = start(limits=replace(HASTY, idle_seconds=120))
    whole = f"GET {PREFIX}/ready HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with connect(running.url) as connection:
        connection.sendall(whole)
        assert one(connection).endswith(b'{"ready":true}')
        connection.sendall(whole[:20])
        began = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert everything(connection) == b""
    assert time.monotonic() - began < 60


def test_half_closed_and_vanishing_clients(running: Running) -> None:
    whole = Auth(DIGEST).encoded()
    head = (
        f"POST {PREFIX}/auth HTTP/1.1\r\nHost: x\r\nContent-Length: {len(whole)}\r\n\r\n".encode()
    )
    with connect(running.url) as connection:
        connection.sendall(head + whole[:5])
    with connect(running.url) as connection:
        connection.sendall(head + whole[:5])
        connection.shutdown(socket.SHUT_WR)
        everything(connection)
    assert running.attested()


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1e9\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: " + b"b" * 100_000,
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
)
def test_what_is_no_http(running: Running, sent: bytes) -> None:
    with connect(running.url) as connection:
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            received = everything(connection)
        except OSError:
            # The service had seen enough.
            received = b""
    assert received == b"" or received.startswith(b"HTTP/1.1 4")
    assert running.attested()


def test_more_connections_than_are_taken(start: Callable[..., Running]) -> None:
    running = start(limits=Limits(connection_count=4, head_seconds=2.0))
    idle = [connect(running.url) for _ in range(8)]
    closed = 0
    for connection in idle:
        connection.settimeout(0.5)
        try:
            closed += connection.recv(1) == b""
        except ConnectionResetError:
            closed += 1
        except TimeoutError:
            pass
    assert closed >= 4
    for connection in idle:
        connection.close()
    deadline = time.monotonic() + 60
    while True:
        # Until the service has seen that they are closed.
        try:
            assert running.attested()
            break
        except httpx2.TransportError:
            assert time.monotonic() < deadline


def test_many_at_once(running: Running) -> None:
    def whole(_: int) -> bool:
        attester = replace(running.attester, private_key=X25519PrivateKey.generate(), nonces=[])
        begun = running.begin()
        evidence = attester.evidence(begun.nonce).encoded()
        assert running.post("attest", evidence, begun.session).status_code == 204
        sealed = running.get(DIGEST, begun.session).content
        return opened(sealed, attester.private_key, DIGEST) == KEY

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(whole, range(16)))


def test_only_one_of_many_attempts_counts(running: Running) -> None:
    begun = running.begin()
    evidence = running.attester.evidence(begun.nonce).encoded()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda _: running.post("attest", evidence, begun.session), range(8))
        assert sorted(a.status_code for a in answers) == [204] + [401] * 7


def test_a_defect_tells_nothing(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(f"the key is {KEY.hex()}")

    monkeypatch.setattr(KeyService, "auth", broken)
    answer = running.post("auth", Auth(DIGEST).encoded())
    refused(answer, 500, "defect")
    assert KEY.hex() not in answer.text + caplog.text


def test_the_log(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vessels")
    assert running.get(DIGEST, running.attested()).status_code == 200
    running.post("auth", Auth(bytes(32)).encoded())
    begun = running.begin()
    running.post("attest", b"nonsense", begun.session)
    lines = [
        record.getMessage() + " " + json.dumps(getattr(record, "fields", {}), default=str)
        for record in caplog.records
    ]
    released, unknown, refusal = (x for x in lines if x.startswith(("key_released", "key_refused")))
    assert f'"model": "m", "digest": "{DIGEST.hex()}"' in released and "SIMULATED" in released
    assert ENCLAVE.mr_enclave.hex() in released
    assert '"code": "unknown"' in unknown
    assert '"code": "evidence"' in refusal and "E1 the evidence is malformed" in refusal
    assert KEY.hex() not in caplog.text + "".join(lines)


def test_the_marker_of_a_key_is_in_no_answer(running: Running) -> None:
    session = running.attested()
    for answer in (
        running.get(DIGEST, session),
        running.get(DIGEST, None),
        running.post("auth", Auth(DIGEST).encoded()),
        ask("get", f"{running.url}{PREFIX}/ready"),
    ):
        everything_said = answer.content + repr(answer.headers).encode()
        assert KEY not in everything_said and KEY.hex().encode() not in everything_said
