"""``vessels serve`` as a process: its options, its signals, its log, and a real key service."""

from __future__ import annotations

import base64
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from benchmarks.ports import held_port
from tests.conftest import ROOT, Sealed
from tests.serving import PATIENCE, until
from vessels.attestation import Evidence, new_nonce
from vessels.cli.serve import _settings, serve
from vessels.errors import EnclaveError, KeyFileError, OutputError, SealedError, UsageError
from vessels.sealed_messages import RequestSealer
from vessels.serve.config import ModelSettings
from vessels.serve.logs import Lines, Style

pytestmark = pytest.mark.usefixtures("home")


def get(url: str, **options: Any) -> httpx2.Response:
    """An answer, which may take long where the tests have little of the machine."""
    return httpx2.get(url, timeout=PATIENCE, **options)


@dataclass
class Command:
    """A `vessels` command that runs, with its log."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def events(self) -> list[dict[str, Any]]:
        """Its log so far; a last line may be half."""
        lines = self.log.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def happened(self, name: str) -> bool:
        return any(e["event"] == name for e in self.events)

    def await_event(self, name: str) -> dict[str, Any]:
        until(lambda: self.happened(name) or self.process.poll() is not None, f"event {name}")
        return next(e for e in self.events if e["event"] == name)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextmanager
def command(log: Path, *arguments: object) -> Iterator[Command]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'python'}{os.pathsep}{ROOT}"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "vessels", *(str(a) for a in arguments)],
            stdout=file, stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip
    try:
        yield Command(process, log)
    finally:
        process.kill()
        process.wait()


def served(tmp_path: Path, *arguments: object) -> Any:
    log = tmp_path / "serve.log"
    return command(log, "serve", *arguments, "--listen", "127.0.0.1:0", "--log", "json")


def test_serves_until_it_is_told_to_stop(sealed: Sealed, tmp_path: Path) -> None:
    with served(tmp_path, sealed.vessel, "--insecure-key", sealed.key) as server:
        url = server.await_event("serving")["url"]
        enclave = server.await_event("model_ready") and server.await_event("enclave_started")["pid"]
        assert get(f"{url}/v2/health/ready").json()["models"] == {"m": "ready"}
        warnings = [e["message"] for e in server.events if e["event"] == "message"]
        assert any("--insecure-key" in w for w in warnings)
        assert any("does NOT protect" in w for w in warnings)
        assert server.end() == 0
        assert server.happened("stopped")
        until(lambda: not Path(f"/proc/{enclave}").exists(), "the enclave to end")


def test_a_folder_within_a_bounded_memory(sealed: Sealed, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.vessel").write_bytes(sealed.vessel.read_bytes())
    config = tmp_path / "serve.toml"
    config.write_text("epc = '1GiB'\n[models.one]\npath = 'models/one.vessel'\nweight = 2.0\n")
    options = ("--models", folder, "--config", config, "--insecure-key", sealed.key.parent)
    with served(tmp_path, *options, "--epc", "20MiB") as server:
        event = server.await_event("serving")
        assert event["models"] == ["one", "two"]
        assert server.await_event("capacity")["epc_size"] == 20 << 20
        url = event["url"]
        for name in event["models"]:
            nonce = new_nonce().hex()
            path = f"{url}/vessels/v1/models/{name}"
            claims = Evidence.decode(get(f"{path}/evidence?nonce={nonce}").content).claims
            body, opener = RequestSealer(claims.public_key, claims.model_digest).seal_describe()
            opener.open(httpx2.post(f"{path}/predict", content=body, timeout=PATIENCE).content)
        assert server.end() == 0


def test_the_command_line_holds_instead_of_the_file(tmp_path: Path) -> None:
    config = tmp_path / "serve.toml"
    config.write_text("[models.m]\npath = 'm.vessel'\nthreads = 1\nqueue = 5\nslots = 2\n")
    model = ModelSettings("m", tmp_path / "m.vessel", threads=1, queue=5, slots=2)
    assert _settings([], None, config) == ({"m": model}, None)
    other = replace(model, threads=2, queue=9)
    assert _settings([], None, config, threads=2, queue=9) == ({"m": other}, None)


def test_a_terminal_that_is_closed_ends_it_in_order(sealed: Sealed, tmp_path: Path) -> None:
    with served(tmp_path, sealed.vessel, "--insecure-key", sealed.key) as server:
        server.await_event("model_ready")
        server.process.send_signal(signal.SIGHUP)
        assert server.end(signal.SIGHUP) == 0
        assert [e["at_once"] for e in server.events if e["event"] == "stopping"] == [False]
        assert server.happened("stopped")


def test_under_nohup_it_outlives_its_terminal(sealed: Sealed, tmp_path: Path) -> None:
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with served(tmp_path, sealed.vessel, "--insecure-key", sealed.key) as server:
            server.await_event("model_ready")
            server.process.send_signal(signal.SIGHUP)
            time.sleep(0.3)
            assert server.process.poll() is None and not server.happened("stopping")
            assert server.end() == 0
    finally:
        signal.signal(signal.SIGHUP, ignored)


def test_why_it_does_not_start_is_an_event_of_its_log(sealed: Sealed, tmp_path: Path) -> None:
    options = (sealed.vessel, "--insecure-key", sealed.key)
    with served(tmp_path, *options, "--epc", "1MiB") as server:
        assert server.process.wait(PATIENCE) == 2
    failed = server.events[-1]
    assert (failed["event"], failed["kind"], failed["exit_code"]) == ("failed", "UsageError", 2)
    assert "bytes of trusted memory" in failed["message"]
    with command(server.log, "serve", *options, "--epc", "1MiB", "--log", "text") as server:
        assert server.process.wait(PATIENCE) == 2
    assert "error: model m needs" in server.log.read_text()


def test_its_enclaves_end_with_it(sealed: Sealed, tmp_path: Path) -> None:
    with served(tmp_path, sealed.vessel, "--insecure-key", sealed.key) as server:
        server.await_event("model_ready")
        enclave = server.await_event("enclave_started")["pid"]
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        until(lambda: not Path(f"/proc/{enclave}").exists(), "the enclave to end")


def test_a_second_signal_ends_it_at_once(sealed: Sealed, tmp_path: Path) -> None:
    with served(tmp_path, sealed.vessel, "--insecure-key", sealed.key) as server:
        url = server.await_event("serving")["url"]
        server.await_event("model_ready")
        enclave = server.await_event("enclave_started")["pid"]
        os.kill(enclave, signal.SIGSTOP)
        connection = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
        with connection:
            connection.sendall(
                b"POST /vessels/v1/models/m/predict HTTP/1.1\r\nHost: x\r\n"
                b"Content-Type: application/octet-stream\r\nContent-Length: 200\r\n\r\n"
                + bytes(200)
            )
            until(lambda: 'vessels_waiting{model="m"} 1' in get(f"{url}/metrics").text, "a request")
            server.process.send_signal(signal.SIGINT)
            server.await_event("stopping")
            time.sleep(0.3)
            assert server.process.poll() is None
            assert server.end(signal.SIGINT) == 0


def test_the_log_holds_no_content(sealed: Sealed, tmp_path: Path) -> None:
    image = np.load(sealed.image)
    text = "a-marker-of-a-client"
    with served(tmp_path, sealed.vessel, "--insecure-key", sealed.key) as server:
        url = server.await_event("serving")["url"]
        server.await_event("model_ready")
        path = f"{url}/vessels/v1/models/m"
        nonce = new_nonce().hex()
        claims = Evidence.decode(get(f"{path}/evidence?nonce={nonce}").content).claims
        sealer = RequestSealer(claims.public_key, claims.model_digest)
        body, opener = sealer.seal_predict({"image": image})
        scores = opener.open(
            httpx2.post(f"{path}/predict", content=body, timeout=PATIENCE).content
        )["scores"]
        httpx2.post(f"{path}/predict", content=body[:-1], timeout=PATIENCE)
        # What a client puts into addresses and headers is nothing for a log either.
        for place in (f"/{text}", f"/v2/models/{text}/ready", f"/vessels/v1/models?{text}"):
            get(url + place, headers={"User-Agent": text, "X-Vessels": text})
        odd = {"Content-Type": text}
        httpx2.post(f"{path}/predict", content=text.encode(), headers=odd, timeout=PATIENCE)
        assert server.end() == 0
    said = server.log.read_bytes()
    assert b"predicted" in said and b"not_opened" in said and b"unknown_model" in said
    key = bytes.fromhex(sealed.key.read_text())
    for secret in (image.tobytes()[:32], scores.tobytes(), key, body[:32], text.encode()):
        for form in (secret, secret.hex().encode(), base64.b64encode(secret)[:-3]):
            assert form not in said
    for number in (*image.flat[:8], *scores.flat):
        assert f"{number:.5f}".encode() not in said


def test_a_defect_is_logged_without_its_message() -> None:
    marker = "what-a-client-sent"
    for style in Style:
        try:
            raise ValueError(marker)
        except ValueError:
            record = logging.LogRecord("x", logging.ERROR, "", 1, "it failed", (), sys.exc_info())
        line = Lines(style).format(record)
        assert "ValueError" in line and "test_serve_cli.py" in line and "it failed" in line
        assert marker not in line


@contextmanager
def key_service(sealed: Sealed, tmp_path: Path, port: int) -> Iterator[Command]:
    policy = tmp_path / "policy.toml"
    with command(
        tmp_path / "policy.log", "policy", "new", sealed.vessel, "-o", policy, "--name", "m",
        "--insecure-simulation",
    ) as made:  # fmt: skip
        assert made.process.wait(PATIENCE) == 0, made.log.read_text()
    with command(
        tmp_path / f"keys-{time.monotonic_ns()}.log", "keys", "serve", "--policy", policy,
        "--key", f"m={sealed.key}", "--listen", f"127.0.0.1:{port}", "--log", "json",
    ) as service:  # fmt: skip
        yield service


def test_a_dead_key_service_and_its_revival(sealed: Sealed, tmp_path: Path) -> None:
    with (
        held_port() as port,
        served(tmp_path, sealed.vessel, "--keys", f"http://127.0.0.1:{port}") as server,
    ):
        url = server.await_event("serving")["url"]
        why = server.await_event("key_not_given")["why"]
        assert "out of reach" in why
        assert get(f"{url}/v2/health/ready").status_code == 503
        with key_service(sealed, tmp_path, port):
            server.await_event("model_ready")
            assert get(f"{url}/v2/health/ready").status_code == 200
        # A dead service is of no concern to an enclave that has its key.
        assert get(f"{url}/v2/health/ready").status_code == 200
        assert server.end() == 0


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, UsageError, "give one"),
        ({"keys": "http://x", "insecure_key": [Path("k")]}, UsageError, "give one"),
        ({"keys": "ftp://x"}, UsageError, "no URL of a key service"),
        ({"insecure_key": [Path("none.key")]}, KeyFileError, "no key file"),
        ({"keys": "http://x", "listen": "80"}, UsageError, "no address"),
        ({"keys": "http://x", "listen": "192.0.2.1:1"}, OutputError, "cannot listen"),
        ({"keys": "http://x", "backend": "sgx"}, UsageError, "simulation, gramine or native"),
        ({"keys": "http://x", "backend": "gramine"}, UsageError, "--manifest for m"),
        ({"keys": "http://x", "backend": "gramine", "manifest": ["x=d"]}, UsageError, "x=d"),
        ({"keys": "http://x", "backend": "gramine", "manifest": ["d"]}, EnclaveError, "no signed"),
        ({"keys": "http://x", "manifest": ["d"]}, UsageError, "--backend gramine"),
        ({"keys": "http://x", "tls_key": Path("k")}, UsageError, "go together"),
        ({"keys": "http://x", "log": "xml"}, UsageError, "json or text"),
        ({"keys": "http://x", "models": ["a b.vessel"]}, UsageError, "no name for a model"),
        ({"keys": "http://x", "models": ["m.vessel", "x/m.vessel"]}, UsageError, "called 'm'"),
        ({"keys": "http://x", "models": []}, UsageError, "no model to serve"),
        ({"keys": "http://x", "folder": Path("none")}, UsageError, "cannot read folder"),
        ({"keys": "http://x", "config": Path("none.toml")}, UsageError, "cannot read config"),
        ({"keys": "http://x", "epc": "much"}, UsageError, "'much' is no size"),
        ({"keys": "http://x", "epc": "1MiB"}, UsageError, "bytes of trusted memory"),
        (
            {"keys": "http://x", "backend": "gramine", "manifest": ["d"], "slots": 2},
            UsageError,
            "threads and slots are the manifest's",
        ),
        ({"keys": "http://x", "models": ["none.vessel"]}, SealedError, "cannot read"),
    ],
)  # fmt: skip
def test_misuse(
    sealed: Sealed, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        serve(**{"models": [str(sealed.vessel)], **options})


def test_a_binary_that_is_missing(sealed: Sealed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VESSELS_ENCLAVE", "/nowhere/vessels-enclave")
    with pytest.raises(EnclaveError, match="VESSELS_ENCLAVE"):
        serve([str(sealed.vessel)], insecure_key=[sealed.key])


def test_an_address_that_is_taken(sealed: Sealed) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OutputError, match="cannot listen"):
            serve([str(sealed.vessel)], insecure_key=[sealed.key], listen=address)
