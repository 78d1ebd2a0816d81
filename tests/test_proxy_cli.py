"""``vessels proxy``: what it prints, what it refuses, and how it ends."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import tritonclient.grpc
from typer.testing import CliRunner

from tests.attestation import ENCLAVE, policy_text
from tests.http_running import running
from tests.sealed_double import Host, example_inputs
from tests.test_proxy_rest import INFER, as_json
from vessels.cli import app
from vessels.errors import UsageError
from vessels.proxy.run import check_local


@pytest.fixture
def host() -> Iterator[Host]:
    with running(Host()) as server:
        yield server


@pytest.fixture
def rules(host: Host, tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(
        policy_text(
            models={"m": [host.digest.hex()], "elsewhere": [bytes(32).hex()]},
            sgx={"mr_enclave": [ENCLAVE.mr_enclave.hex()]},
            root=host.root,
        )
    )
    return path


def test_a_whole_proxy(host: Host, rules: Path) -> None:
    command = [sys.executable, "-m", "vessels", "proxy"]
    command += ["--server", host.url, "--policy", str(rules), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            said = process.stdout.readline() + process.stdout.readline()
            found = re.fullmatch(r"REST (http://127\.0\.0\.1:\d+)\ngRPC (127\.0\.0\.1:\d+)\n", said)
            assert found is not None, said
            with httpx2.Client(base_url=found.group(1), timeout=60) as web:
                assert web.get("/v2/health/ready").status_code == 200
                assert web.post(INFER, json=as_json(example_inputs())).status_code == 200
                assert web.get("/v2/models/elsewhere").status_code == 404
            with tritonclient.grpc.InferenceServerClient(found.group(2)) as client:
                assert client.is_model_ready("m")
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        log = process.stderr.read()
    assert "trusts a SIMULATION" in log
    assert f"m: attested, SIMULATED, which proves nothing, build {host.digest.hex()}" in log
    assert "elsewhere: not attested: " in log and "HTTP 404 (unknown_model)" in log
    assert "Traceback" not in log


def test_what_other_machines_reach_needs_a_switch(rules: Path) -> None:
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        check_local((host, 8000))
    for host in ("0.0.0.0", "::", "192.168.1.1", "example.org"):
        with pytest.raises(UsageError, match="--insecure-network"):
            check_local(("127.0.0.1", 8000), (host, 8001))
    options = ["proxy", "--server", "http://h", "--policy", str(rules), "--listen", "0.0.0.0:0"]
    result = CliRunner().invoke(app, options)
    assert isinstance(result.exception, UsageError)


def test_a_port_in_use(host: Host, rules: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for option in ("--listen", "--listen-grpc"):
            options = ["proxy", "--server", host.url, "--policy", str(rules), option, address]
            if option == "--listen-grpc":
                options += ["--listen", "127.0.0.1:0"]
            result = CliRunner().invoke(app, options)
            assert f"cannot listen on {address}" in str(result.exception)


@pytest.mark.parametrize(
    "options",
    [
        ["--server", "ftp://h"],
        ["--server", "http://h", "--listen", "here"],
        ["--server", "http://h", "--pccs", "http://p", "--collateral", "c.json"],
    ],
)
def test_misuse(rules: Path, options: list[str]) -> None:
    result = CliRunner().invoke(app, ["proxy", "--policy", str(rules), *options])
    assert isinstance(result.exception, UsageError)
