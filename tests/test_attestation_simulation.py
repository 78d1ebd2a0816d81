"""The simulation's quotes: of the same format, and trusted only where a policy says insecure."""

from __future__ import annotations

import concurrent.futures
import json
import logging
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dcap_qvl
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.attestation import CLAIMS, ENCLAVE, SGX, SGX_MR_ENCLAVE, SGX_TCB, policy
from vessels.attestation import (
    INTEL,
    Claims,
    CollateralFile,
    Evidence,
    Kind,
    Policy,
    Verifier,
    verify_quote,
)
from vessels.attestation.collateral import Collateral
from vessels.attestation.simulation import ROOT_FILE, Platform, SimulationRoot, _sign
from vessels.errors import AttestationError

RULES: dict[str, Any] = {"mr_enclave": [ENCLAVE.mr_enclave.hex()]}


@pytest.fixture(scope="module")
def root() -> SimulationRoot:
    return SimulationRoot.create(datetime.now(UTC))


@pytest.fixture(scope="module")
def platform(root: SimulationRoot) -> Platform:
    return Platform.create(root)


@pytest.fixture
def insecure(root: SimulationRoot) -> Policy:
    return policy(sgx=RULES, root=root)


def test_accepted_with_the_insecure_switch(platform: Platform, insecure: Policy) -> None:
    evidence = platform.evidence(CLAIMS, ENCLAVE)
    verified = Verifier(insecure).verify(evidence, nonce=CLAIMS.nonce)
    assert verified.simulated and verified.quote.simulated
    assert (verified.model, verified.claims) == ("m", CLAIMS)
    assert verified.quote.tcb_status == "UpToDate"
    assert verified.as_json()["simulated"] is True


def test_refused_without_it(platform: Platform) -> None:
    evidence = platform.evidence(CLAIMS, ENCLAVE)
    with pytest.raises(
        AttestationError, match=r"^root: seen CN=Vessels Simulation .*, accepted .*"
    ):
        Verifier(policy(sgx=RULES)).verify(evidence, nonce=CLAIMS.nonce)


def test_refused_under_another_simulation(platform: Platform) -> None:
    other = SimulationRoot.create(datetime.now(UTC))
    evidence = platform.evidence(CLAIMS, ENCLAVE)
    with pytest.raises(AttestationError, match=r"^root: "):
        Verifier(policy(sgx=RULES, root=other)).verify(evidence, nonce=CLAIMS.nonce)


def test_the_chain_is_judged_by_its_signatures(platform: Platform, insecure: Policy) -> None:
    """Another root of the same name, with the trusted certificate put at the chain's end."""
    impostor = Platform.create(SimulationRoot.create(datetime.now(UTC)))
    evidence = replace(impostor, root=platform.root).evidence(CLAIMS, ENCLAVE)
    with pytest.raises(AttestationError, match=r"^quote: it was refused: "):
        Verifier(insecure).verify(evidence, nonce=CLAIMS.nonce)


def test_hardware_is_refused_where_a_simulation_is_trusted(root: SimulationRoot) -> None:
    rules = policy(sgx={"mr_enclave": [SGX_MR_ENCLAVE]}, tcb=SGX_TCB, root=root)
    evidence = Evidence(Kind.DCAP, SGX.quote, CLAIMS)
    with pytest.raises(AttestationError, match=r"^root: seen .*Intel"):
        Verifier(rules).verify(evidence, nonce=CLAIMS.nonce, now=SGX.day)


def test_hardware_never_passes_with_collateral_of_the_hosts(platform: Platform) -> None:
    """Collateral that comes with evidence is for simulations alone."""
    evidence = Evidence.decode(
        replace(
            platform.evidence(CLAIMS, ENCLAVE),
            quote=SGX.quote,
            collateral=SGX.collateral_file.read_text(),
        ).encoded()
    )
    source = CollateralFile(Path("/nonexistent"))
    with pytest.raises(AttestationError, match=r"^collateral: cannot read /nonexistent"):
        Verifier(policy(sgx=RULES), source).verify(evidence, nonce=CLAIMS.nonce, now=SGX.day)


def test_a_verifier_that_trusts_it_says_so(
    insecure: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "vessels"):
        Verifier(insecure)
        assert "SIMULATION" in caplog.text and "insecure_simulation_root" in caplog.text
        caplog.clear()
        Verifier(policy(sgx=RULES))
        assert not caplog.text


@pytest.mark.parametrize(
    ("field", "check"),
    [("suite", "report data"), ("public_key", "report data"), ("model_digest", "report data")],
)
def test_swapped_claims_are_refused(
    platform: Platform, insecure: Policy, field: str, check: str
) -> None:
    evidence = platform.evidence(CLAIMS, ENCLAVE)
    value = bytes(len(getattr(CLAIMS, field)))
    swapped = replace(evidence, claims=replace(CLAIMS, **{field: value}))
    with pytest.raises(AttestationError, match=rf"^{check}: seen .*, accepted "):
        Verifier(insecure).verify(swapped, nonce=CLAIMS.nonce)


def test_evidence_for_another_nonce_is_refused(platform: Platform, insecure: Policy) -> None:
    evidence = platform.evidence(CLAIMS, ENCLAVE)
    nonce = bytes(32)
    with pytest.raises(AttestationError) as refused:
        Verifier(insecure).verify(evidence, nonce=nonce)
    assert str(refused.value) == f"nonce: seen {CLAIMS.nonce.hex()}, accepted {nonce.hex()}."
    # The host cannot put another nonce there either.
    renamed = replace(evidence, claims=replace(CLAIMS, nonce=nonce))
    with pytest.raises(AttestationError, match=r"^report data: "):
        Verifier(insecure).verify(renamed, nonce=nonce)


def test_another_model_is_refused(platform: Platform, insecure: Policy) -> None:
    other = replace(CLAIMS, model_digest=bytes(32))
    with pytest.raises(AttestationError) as refused:
        Verifier(insecure).verify(platform.evidence(other, ENCLAVE), nonce=CLAIMS.nonce)
    accepted = CLAIMS.model_digest.hex()
    assert str(refused.value) == f"model: seen {bytes(32).hex()}, accepted {accepted} (m)."


def test_another_of_the_accepted_models_is_refused(
    platform: Platform, root: SimulationRoot
) -> None:
    digest, other = CLAIMS.model_digest.hex(), "ab" * 32
    rules = Verifier(policy(models={"m": [digest], "n": [other]}, sgx=RULES, root=root))
    evidence = platform.evidence(CLAIMS, ENCLAVE)
    assert rules.verify(evidence, nonce=CLAIMS.nonce, model="m").model == "m"
    for name, accepted in (("n", f"{other} (n)"), ("x", "none by the name 'x'")):
        with pytest.raises(AttestationError) as refused:
            rules.verify(evidence, nonce=CLAIMS.nonce, model=name)
        assert str(refused.value) == f"model: seen {digest}, accepted {accepted}."


def test_debug_is_refused_whatever_is_accepted(platform: Platform, insecure: Policy) -> None:
    evidence = platform.evidence(CLAIMS, replace(ENCLAVE, debug=True))
    with pytest.raises(AttestationError, match=r"^quote: it was refused: Debug mode is enabled"):
        Verifier(insecure).verify(evidence, nonce=CLAIMS.nonce)


def test_statuses_of_a_platform(root: SimulationRoot) -> None:
    outdated = Platform.create(root, tcb_status="OutOfDate", advisories=["INTEL-SA-00001"])
    evidence = outdated.evidence(CLAIMS, ENCLAVE)
    with pytest.raises(AttestationError, match=r"^tcb status: seen OutOfDate, accepted UpToDate;"):
        Verifier(policy(sgx=RULES, root=root)).verify(evidence, nonce=CLAIMS.nonce)
    tcb = {"statuses": ["OutOfDate"], "advisories": ["INTEL-SA-00001"]}
    verified = Verifier(policy(sgx=RULES, tcb=tcb, root=root)).verify(evidence, nonce=CLAIMS.nonce)
    assert verified.quote.tcb_status == "OutOfDate"


def test_a_revoked_platform_is_refused(root: SimulationRoot, insecure: Policy) -> None:
    revoked = Platform.create(root, tcb_status="Revoked").evidence(CLAIMS, ENCLAVE)
    with pytest.raises(AttestationError, match=r"^quote: it was refused: .*Revoked"):
        Verifier(insecure).verify(revoked, nonce=CLAIMS.nonce)


def test_its_collateral_expires(platform: Platform, insecure: Policy) -> None:
    evidence = platform.evidence(CLAIMS, ENCLAVE)
    later = datetime.now(UTC) + timedelta(days=31)
    with pytest.raises(AttestationError, match=r"^collateral: the simulation expired on "):
        Verifier(insecure).verify(evidence, nonce=CLAIMS.nonce, now=later)
    fresh = platform.evidence(CLAIMS, ENCLAVE, now=later)
    Verifier(insecure).verify(fresh, nonce=CLAIMS.nonce, now=later)


def test_a_platform_may_not_sign_collateral(platform: Platform, root: SimulationRoot) -> None:
    """A platform's own certificate is under the root too, and must not judge platforms."""
    now = datetime.now(UTC)
    fields = json.loads(platform.collateral(now=now))
    key, certificate = platform._pck
    chain = [certificate, platform._ca[1], root.certificate]
    fields["tcb_info"] = fields["tcb_info"].replace(
        '"tcbEvaluationDataNumber":1', '"tcbEvaluationDataNumber":9'
    )
    fields["tcb_info_issuer_chain"] = "".join(c.public_bytes(Encoding.PEM).decode() for c in chain)
    fields["tcb_info_signature"] = _sign(key, fields["tcb_info"].encode()).hex()
    forged = Collateral.parse(json.dumps(fields), "the host")
    quote = platform.quote(CLAIMS.report_data(), ENCLAVE)
    with pytest.raises(AttestationError, match=r"^collateral: tcb_info of the host is not signed"):
        verify_quote(quote, forged, root=root.trusted, now=now)


def test_any_byte_changed_is_refused(platform: Platform, insecure: Policy) -> None:
    evidence = platform.evidence(CLAIMS, ENCLAVE)
    verifier = Verifier(insecure)
    verifier.verify(evidence, nonce=CLAIMS.nonce)
    encoded = evidence.encoded()
    # The collateral's parts are signed each; its text may be written in several ways.
    end = len(encoded) - len(evidence.collateral.encode())
    accepted = []
    for index in range(0, end, 5):
        bad = bytearray(encoded)
        bad[index] ^= 1 << index % 8
        try:
            verifier.verify(Evidence.decode(bytes(bad)), nonce=CLAIMS.nonce)
        except AttestationError:
            continue
        accepted.append(index)
    assert not accepted


def test_quotes_are_what_a_parser_of_intels_reads(platform: Platform) -> None:
    quote = dcap_qvl.parse_quote(platform.quote(CLAIMS.report_data(), ENCLAVE))
    assert (quote.quote_type(), quote.ca(), quote.fmspc()) == ("SGX", "processor", "56455353454C")
    assert quote.report.mr_enclave == ENCLAVE.mr_enclave
    assert quote.report.report_data == CLAIMS.report_data()
    assert quote.pck_extension().pce_svn == 13


def test_the_root_is_made_once_and_kept_secret(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    first = SimulationRoot.load_or_create(folder)
    path = folder / ROOT_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    second = SimulationRoot.load_or_create(folder)
    assert first.trusted == second.trusted
    assert [p.name for p in folder.iterdir()] == [ROOT_FILE]
    assert "INSECURE" in first.certificate.subject.rfc4514_string()
    assert first.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_many_at_once_make_one_root(tmp_path: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        roots = list(pool.map(lambda _: SimulationRoot.load_or_create(tmp_path), range(8)))
    assert len({r.trusted for r in roots}) == 1


@pytest.mark.parametrize("content", [b"", b"nonsense", INTEL.pem.encode()])
def test_a_broken_root_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ROOT_FILE).write_bytes(content)
    with pytest.raises(AttestationError, match=r"is broken; remove it"):
        SimulationRoot.load_or_create(tmp_path)


def test_claims_of_any_key_size_are_bound(platform: Platform, insecure: Policy) -> None:
    large = Claims(CLAIMS.suite, bytes(1216), CLAIMS.model_digest, CLAIMS.nonce)
    evidence = Evidence.decode(platform.evidence(large, ENCLAVE).encoded())
    assert Verifier(insecure).verify(evidence, nonce=CLAIMS.nonce).claims == large
