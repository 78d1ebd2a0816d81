"""``vessels keys serve`` as a process of its own, and a real sealed model's key through it."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from tests.attestation import ENCLAVE, policy_text
from tests.conftest import Sealed
from tests.keys import Attester
from tests.test_keys_release import opened
from vessels.attestation import model_digest
from vessels.attestation.simulation import Platform, SimulationRoot
from vessels.cli import app
from vessels.errors import KeyReleaseError, VesselsError
from vessels.keys.client import fetch_key
from vessels.keys.envelope import Identity
from vessels.keys.store import KeyStore
from vessels.seal import load_key, open_sealed


@dataclass
class Service:
    """A running process, where it listens, and what it said."""

    process: subprocess.Popen[str]
    url: str
    log: list[str]

    def end(self) -> int:
        """Its exit code after SIGTERM; the rest of what it said is in the log."""
        assert self.process.stderr is not None
        self.process.send_signal(signal.SIGTERM)
        self.log += self.process.stderr.read().splitlines()
        return self.process.wait(60)


@contextlib.contextmanager
def serving(*arguments: object) -> Iterator[Service]:
    command = [sys.executable, "-m", "vessels", "keys", "serve", "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, *map(str, arguments)], stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stderr is not None
    log: list[str] = []
    try:
        for line in process.stderr:
            log.append(line.rstrip())
            if " serving " in line:
                url = next(w.removeprefix("url=") for w in line.split() if w.startswith("url="))
                yield Service(process, url, log)
                break
        else:
            pytest.fail(f"it ended: {log}")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture(scope="module")
def root() -> SimulationRoot:
    return SimulationRoot.create(datetime.datetime.now(datetime.UTC))


@pytest.fixture
def rules(root: SimulationRoot, sealed: Sealed, tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    models = {"m": [model_digest(sealed.vessel).hex()]}
    sgx = {"mr_enclave": [ENCLAVE.mr_enclave.hex()]}
    path.write_text(policy_text(models=models, sgx=sgx, root=root))
    return path


def test_a_store_is_served_and_a_revocation_holds_at_once(
    root: SimulationRoot, rules: Path, sealed: Sealed, tmp_path: Path
) -> None:
    identity = tmp_path / "owner.identity"
    store = KeyStore.create(tmp_path / "keys.age", Identity.create(identity))
    store.add(sealed.vessel, sealed.key)
    digest = model_digest(sealed.vessel)
    attester = Attester(Platform.create(root), digest)
    options = ("--policy", rules, "--store", store.path, "--identity", identity)
    with serving(*options) as service:
        key = opened(
            fetch_key(service.url, attester.evidence, digest), attester.private_key, digest
        )
        assert open_sealed(sealed.vessel, key)
        store.revoke("m")
        with pytest.raises(KeyReleaseError, match="is revoked"):
            fetch_key(service.url, attester.evidence, digest)
        store.restore("m")
        fetch_key(service.url, attester.evidence, digest)
        limits = Path(f"/proc/{service.process.pid}/limits").read_text().splitlines()
        [core] = [line for line in limits if line.startswith("Max core file size")]
        assert core.split()[4:6] == ["0", "0"]
        assert service.end() == 0
    said = "\n".join(service.log)
    assert "SIMULATION" in service.log[0]
    assert said.count("key_released model=m") == 2 and "code=revoked" in said
    assert "stopped" in service.log[-1]
    assert load_key(sealed.key).hex() not in said


def test_key_files_are_served(root: SimulationRoot, rules: Path, sealed: Sealed) -> None:
    digest = model_digest(sealed.vessel)
    attester = Attester(Platform.create(root), digest)
    with serving("--policy", rules, "--key", sealed.key) as service:
        sealed_key = fetch_key(service.url, attester.evidence, digest)
        assert opened(sealed_key, attester.private_key, digest) == load_key(sealed.key)


def test_tls(root: SimulationRoot, rules: Path, sealed: Sealed, tmp_path: Path) -> None:
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "owner")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .sign(secret, hashes.SHA256())
    )
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(certificate.public_bytes(Encoding.PEM))
    key.write_bytes(secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    options = ("--policy", rules, "--key", sealed.key)
    with serving(*options, "--tls-certificate", chain, "--tls-key", key) as service:
        assert service.url.startswith("https://127.0.0.1:")
        answer = httpx2.get(f"{service.url}/vessels/v1/keys/ready", verify=False, timeout=60)
        assert answer.json() == {"ready": True}
        attester = Attester(Platform.create(root), model_digest(sealed.vessel))
        with pytest.raises(KeyReleaseError, match=r"out of reach: .*CERTIFICATE_VERIFY_FAILED"):
            fetch_key(service.url, attester.evidence, attester.digest, patience=0, timeout=60)


def test_misuse(rules: Path, sealed: Sealed, tmp_path: Path) -> None:
    options = ("--policy", rules, "--key", sealed.key)
    for arguments, code, message in (
        ((*options, "--store", tmp_path / "s"), 2, "not both"),
        ((*options, "--tls-key", sealed.key), 2, "go together"),
        ((*options, "--pccs", "http://x", "--collateral", "y"), 2, "not both"),
        ((*options, "--listen", "8090"), 2, "is no address to listen on"),
        ((*options, "--listen", "192.0.2.1:8090"), 8, "cannot listen on 192.0.2.1:8090"),
        ((*options, "--log", "xml"), 2, "json or text"),
        (("--policy", rules, "--key", f"x={sealed.key}"), 2, "accepts no model 'x'"),
        (("--policy", rules, "--store", tmp_path / "s"), 5, "there is no key store"),
        (("--policy", tmp_path / "none"), 2, "cannot read policy"),
    ):
        result = CliRunner().invoke(app, ["keys", "serve", *map(str, arguments)])
        assert isinstance(result.exception, VesselsError), result.exception
        assert result.exception.exit_code == code and message in str(result.exception)


def test_a_certificate_that_is_none(rules: Path, sealed: Sealed) -> None:
    command = [sys.executable, "-m", "vessels", "keys", "serve", "--listen", "127.0.0.1:0"]
    options = [
        "--policy",
        rules,
        "--key",
        sealed.key,
        "--tls-certificate",
        rules,
        "--tls-key",
        rules,
    ]
    done = subprocess.run(
        [*command, *map(str, options)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "cannot use certificate" in done.stderr
    assert "Traceback" not in done.stderr
