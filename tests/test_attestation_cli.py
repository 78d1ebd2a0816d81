"""``vessels attest`` and ``vessels policy``: what they print, and when they refuse."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

import vessels
from tests.attestation import CLAIMS, SGX
from tests.conftest import Sealed
from tests.http_running import LocalServer, QuietHandler, running
from vessels.attestation import Claims, Evidence, Kind, Policy, model_digest
from vessels.attestation.fetch import evidence_url, fetch_evidence
from vessels.attestation.simulation import Enclave, Platform, SimulationRoot
from vessels.cli import attest, policy
from vessels.enclave import find_enclave_binary
from vessels.errors import AttestationError, PolicyError, UsageError, VesselsError

app = typer.Typer()
app.command()(attest.attest)
app.add_typer(policy.app, name="policy")


class Host(LocalServer):
    """A host of one simulated enclave, which answers with evidence for the nonce it is asked."""

    def __init__(self, digest: bytes) -> None:
        super().__init__(_Handler)
        self.digest = digest
        self.platform = Platform.create(SimulationRoot.load_or_create())
        self.replayed: bytes | None = None


class _Handler(QuietHandler):
    server: Host

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        if url.path != "/vessels/v1/models/m/evidence":
            self.send_error(404)
            return
        nonce = bytes.fromhex(urllib.parse.parse_qs(url.query)["nonce"][0])
        claims = Claims(CLAIMS.suite, CLAIMS.public_key, self.server.digest, nonce)
        enclave = Enclave.of_binary(find_enclave_binary())
        body = self.server.replayed or self.server.platform.evidence(claims, enclave).encoded()
        self.answer(200, body)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user's own state and cache, and a terminal wide enough for a table."""
    for variable in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("COLUMNS", "300")
    return tmp_path


@pytest.fixture
def host(sealed: Sealed, home: Path) -> Iterator[Host]:
    with running(Host(model_digest(sealed.vessel))) as server:
        yield server


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if isinstance(result.exception, VesselsError):
        raise result.exception
    return result


@pytest.fixture
def rules(sealed: Sealed, tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    made = run("policy", "new", sealed.vessel, "-o", path, "--name", "m", "--insecure-simulation")
    assert made.exit_code == 0 and "SIMULATION" in made.stderr
    return path


def test_a_server_that_satisfies_the_policy(host: Host, rules: Path) -> None:
    shown = run("attest", host.url, "--model", "m", "--policy", rules)
    assert shown.exit_code == 0
    assert f"accepted by {rules}; SIMULATED" in shown.stdout
    assert host.digest.hex() in shown.stdout and "UpToDate" in shown.stdout
    found = json.loads(run("attest", host.url, "--model", "m", "--policy", rules, "--json").stdout)
    assert found["model"] == "m" and found["simulated"] is True and found["fresh"] is True
    assert found["public_key"] == CLAIMS.public_key.hex()


def test_a_server_with_another_model_is_refused(host: Host, rules: Path) -> None:
    host.digest = bytes(32)
    with pytest.raises(AttestationError, match=rf"^model: seen {bytes(32).hex()}, accepted "):
        run("attest", host.url, "--model", "m", "--policy", rules)


def test_replayed_evidence_is_refused(host: Host, rules: Path) -> None:
    host.replayed = fetch_evidence(host.url, "m", bytes(32)).encoded()
    with pytest.raises(AttestationError, match=rf"^nonce: seen {bytes(32).hex()}, accepted "):
        run("attest", host.url, "--model", "m", "--policy", rules)


def test_without_a_policy_the_simulation_needs_the_switch(host: Host) -> None:
    with pytest.raises(AttestationError, match=r"^root: seen CN=Vessels Simulation"):
        run("attest", host.url, "--model", "m")
    shown = run("attest", host.url, "--model", "m", "--insecure-simulation", "--json")
    assert "SIMULATION" in shown.stderr
    found = json.loads(shown.stdout)
    assert found["policy"] is None and found["simulated"] is True


def test_evidence_in_a_file(host: Host, rules: Path, tmp_path: Path) -> None:
    nonce = bytes(range(32))
    file = tmp_path / "evidence.cbor"
    file.write_bytes(fetch_evidence(host.url, "m", nonce).encoded())
    for options, fresh in (((), False), (("--nonce", nonce.hex()), True)):
        found = json.loads(run("attest", file, "--policy", rules, "--json", *options).stdout)
        assert found["fresh"] is fresh
    with pytest.raises(AttestationError, match=r"^nonce: "):
        run("attest", file, "--policy", rules, "--nonce", "00" * 32)


def test_hardware_with_collateral_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "evidence.cbor"
    file.write_bytes(Evidence(Kind.DCAP, SGX.quote, CLAIMS).encoded())
    with pytest.raises(AttestationError, match=r"^collateral: .* expired on 2025-07-19"):
        run("attest", file, "--collateral", SGX.collateral_file)


@pytest.mark.parametrize(
    "arguments",
    [
        ["http://127.0.0.1:9"],
        ["ftp://127.0.0.1:9", "--model", "m"],
        ["http://[", "--model", "m"],
        ["f", "--pccs", "http://x", "--collateral", "c"],
        ["f", "--nonce", "xyz"],
    ],
)
def test_misuse(arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        run("attest", *arguments)


def test_what_no_server_gives(host: Host, tmp_path: Path) -> None:
    with pytest.raises(AttestationError, match=r"^evidence: http://127.0.0.1:9 gave none: "):
        run("attest", "http://127.0.0.1:9", "--model", "m")
    with pytest.raises(AttestationError, match=r"gave none for model 'other': HTTP 404"):
        run("attest", host.url, "--model", "other")
    with pytest.raises(AttestationError, match=r"^evidence: cannot read .*none: No such file"):
        run("attest", tmp_path / "none")
    host.replayed = b"not evidence"
    with pytest.raises(AttestationError, match=r"^E1 "):
        run("attest", host.url, "--model", "m")


def test_names_are_quoted_in_urls() -> None:
    url = evidence_url("http://h:1/", "a/b?c", b"\1\2")
    assert url == "http://h:1/vessels/v1/models/a%2Fb%3Fc/evidence?nonce=0102"


def test_new_policies(sealed: Sealed, tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    made = run("policy", "new", sealed.vessel, "-o", path)
    assert made.exit_code == 0 and "Fill in" in made.stderr
    with pytest.raises(PolicyError, match=r"sgx\.mr_enclave: it is empty"):
        Policy.load(path)
    printed = run("policy", "new", sealed.vessel, "--mr-enclave", "ab" * 32)
    found = Policy.parse(printed.stdout, "stdout")
    assert found.model_of(model_digest(sealed.vessel)) == "m"
    assert not found.root.simulated
    tdx = run("policy", "new", sealed.vessel, "--mr-td", "ab" * 48)
    assert "[tdx]" in tdx.stdout and "[sgx]" not in tdx.stdout


def test_a_new_policy_of_several_models_and_builds(sealed: Sealed, tmp_path: Path) -> None:
    others = [tmp_path / "n.vessel", tmp_path / "m2.vessel"]
    for other in others:
        vessels.build(sealed.onnx, other, key=sealed.key)
    options = ("--mr-enclave", "ab" * 32)
    made = run("policy", "new", sealed.vessel, others[0], f"m={others[1]}", *options)
    found = Policy.parse(made.stdout, "stdout")
    first, second, third = map(model_digest, (sealed.vessel, *others))
    assert found.models == {"m": {first, third}, "n": {second}}
    with pytest.raises(UsageError, match="--name is for one model"):
        run("policy", "new", *others, "--name", "m", *options)
    with pytest.raises(UsageError, match="are one build"):
        run("policy", "new", sealed.vessel, f"x={sealed.vessel}", *options)
    with pytest.raises(UsageError, match="would replace"):
        run("policy", "new", *others, *options, "-o", others[1])


@pytest.mark.parametrize(
    "options",
    [
        ["--mr-enclave", "ab"],
        ["--mr-enclave", "xy" * 32],
        ["--mr-enclave", "ab" * 32, "--mr-td", "ab" * 48],
        ["--insecure-simulation", "--mr-td", "ab" * 48],
    ],
)
def test_new_policies_of_nonsense(sealed: Sealed, options: list[str]) -> None:
    with pytest.raises(UsageError):
        run("policy", "new", sealed.vessel, *options)


def test_a_policy_never_replaces_the_model(sealed: Sealed) -> None:
    with pytest.raises(UsageError, match="would replace"):
        run("policy", "new", sealed.vessel, "-o", sealed.vessel)
