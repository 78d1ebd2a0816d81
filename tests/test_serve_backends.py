"""How each backend makes evidence of an enclave's claims, and what it refuses to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.attestation import CLAIMS, SGX
from vessels.attestation import Evidence, Kind
from vessels.enclave import EnclaveClaims
from vessels.errors import EnclaveError
from vessels.serve.backends import Backend, Gramine, Native, Simulation

SEEN = EnclaveClaims(
    "simulation", CLAIMS.suite, CLAIMS.public_key, CLAIMS.model_digest, CLAIMS.nonce, None
)


@pytest.fixture(params=["simulation", "gramine", "native"])
def backend(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Backend:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    made: dict[str, Backend] = {
        "simulation": Simulation(), "gramine": Gramine({}), "native": Native(),
    }  # fmt: skip
    return made[request.param]


TEES = {Simulation: ["simulation"], Gramine: ["sgx"], Native: ["tdx", "snp"]}


@pytest.mark.parametrize("tee", ["simulation", "sgx", "tdx", "snp", "other"])
def test_evidence_is_of_the_backend_s_own_kind_of_enclave(backend: Backend, tee: str) -> None:
    claims = replace(SEEN, tee=tee, quote=None if tee == "simulation" else SGX.quote)
    if tee not in TEES[type(backend)]:
        with pytest.raises(EnclaveError, match=f"says it runs in '{tee}'"):
            backend.evidence(claims)
        return
    evidence = Evidence.decode(backend.evidence(claims).encoded())
    assert evidence.claims == CLAIMS
    assert evidence.kind is (Kind.SEV_SNP if tee == "snp" else Kind.DCAP)
    # Collateral is a simulation's own to give, and nobody else's.
    assert bool(evidence.collateral) == (tee == "simulation")
    if tee != "simulation":
        assert evidence.quote == SGX.quote


def test_hardware_without_a_quote_is_refused() -> None:
    with pytest.raises(EnclaveError, match="no quote"):
        Native().evidence(replace(SEEN, tee="tdx"))


def test_a_folder_that_is_not_signed(tmp_path: Path) -> None:
    with pytest.raises(EnclaveError, match="no signed enclave"):
        Gramine({tmp_path / "m.vessel": tmp_path})
