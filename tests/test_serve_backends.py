"""How each backend makes evidence of an enclave's claims, and what it refuses to."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from tests.attestation import CLAIMS, SGX
from tests.conftest import Sealed
from vessels.attestation import Evidence, Kind
from vessels.enclave import EnclaveClaims
from vessels.errors import EnclaveError
from vessels.gramine import plan_enclave
from vessels.gramine_folder import SIGNED_MANIFEST, manifest_template
from vessels.ladder import Ladder
from vessels.schedule.model import Machine, Shape
from vessels.seal import read_header
from vessels.serve.backends import Backend, Gramine, Native, Simulation
from vessels.serve.shapes import first_guess, manifest_shape, plain_shapes

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


def manifest(folder: Path, text: str) -> Path:
    path = folder / SIGNED_MANIFEST
    path.write_text(text)
    return folder


def test_an_enclave_under_gramine_has_the_shape_of_its_manifest(
    sealed: Sealed, tmp_path: Path
) -> None:
    header = read_header(sealed.vessel)
    text = manifest_template(plan_enclave(sealed.vessel, threads=1))
    shape = manifest_shape(manifest(tmp_path, text), header)
    written = tomllib.loads(text)["sgx"]["enclave_size"]
    size = int(written[:-1]) << 20
    assert (shape.threads, shape.slots) == (1, 1)
    # Beside the enclave: a page of its own, and one for each 512 pages, that one among them.
    assert shape.size == size + 4096 * (2 + size // 4096 // 512)
    for bad in ("", "x", "[sgx]\nenclave_size = '1T'\n[loader]\nargv = []", "[sgx]\nloader = 1"):
        with pytest.raises(EnclaveError, match="no manifest that"):
            manifest_shape(manifest(tmp_path, bad), header)


def test_no_run_takes_more_threads_than_there_are_cores(sealed: Sealed) -> None:
    header = read_header(sealed.vessel)
    for cores, wanted, threads in ((1, None, 1), (64, None, 2), (64, 1, 1), (64, 5, 2)):
        shapes = plain_shapes(header, Machine(cores, 1 << 40), threads=wanted)
        assert {s.threads for s in shapes} == {1, threads}
        assert all(s.size > Ladder.of(header).pool_size(s.rung, s.slots, s.threads) for s in shapes)


def test_memory_that_has_no_figure_is_not_taken_for_plenty(sealed: Sealed) -> None:
    header = read_header(sealed.vessel)
    shapes = plain_shapes(header, Machine(1))
    assert [(s.rung, s.slots, s.threads) for s in shapes] == [(header.rung, 1, 1)]
    assert {s.slots for s in plain_shapes(header, Machine(1), slots=4)} == {1, 2, 4}


def test_the_first_guess_of_what_is_streamed() -> None:
    shapes = [(0, 1, 1, 10), (0, 2, 1, 12), (0, 1, 2, 11), (3, 1, 1, 76), (3, 2, 2, 99)]
    guess = first_guess(tuple(Shape(r, s, t, size * 10**8) for r, s, t, size in shapes))
    assert guess.fixed == pytest.approx(1.0) and guess.each > 0
    assert first_guess((Shape(0, 1, 1, 10**8),)).fixed == 0


def test_a_folder_that_is_not_signed(tmp_path: Path) -> None:
    with pytest.raises(EnclaveError, match="no signed enclave"):
        Gramine({tmp_path / "m.vessel": tmp_path})
