"""A real enclave gets its key from a service, and refuses every other."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.attestation import ENCLAVE
from tests.conftest import Sealed
from tests.keys import DIGEST, listening, policy_of
from vessels.attestation import Claims, Evidence, Verifier, model_digest
from vessels.attestation.simulation import Platform, SimulationRoot
from vessels.enclave import EnclaveProcess
from vessels.errors import KeyFileError, VesselsError
from vessels.keys.app import key_app
from vessels.keys.client import fetch_key
from vessels.keys.release import KeyService
from vessels.keys.source import FileKeys
from vessels.seal import create_key, load_key
from vessels.sealed_messages import seal_key


@pytest.fixture(scope="module")
def root() -> SimulationRoot:
    return SimulationRoot.create(datetime.now(UTC))


@pytest.fixture
def process(sealed: Sealed) -> Iterator[EnclaveProcess]:
    with EnclaveProcess(sealed.vessel) as process:
        yield process


class Host:
    """What a host makes of an enclave's claims, in a simulation."""

    def __init__(self, process: EnclaveProcess, root: SimulationRoot) -> None:
        self._process = process
        self._platform = Platform.create(root)

    def evidence(self, nonce: bytes) -> Evidence:
        said = self._process.claims(nonce)
        claims = Claims(said.suite, said.public_key, said.model_digest, said.nonce)
        return self._platform.evidence(claims, ENCLAVE)


@pytest.fixture
def url(root: SimulationRoot, sealed: Sealed) -> Iterator[str]:
    rules = policy_of(root, models={"m": [model_digest(sealed.vessel).hex()]})
    keys = FileKeys({"m": sealed.key}, rules)
    with listening(key_app(KeyService(Verifier(rules), keys))) as url:
        yield url


def test_the_key_opens_the_model(
    process: EnclaveProcess, root: SimulationRoot, url: str, sealed: Sealed
) -> None:
    key = fetch_key(url, Host(process, root).evidence, model_digest(sealed.vessel))
    assert process.give_key(key).instruction_count > 0


def test_the_key_of_one_enclave_opens_no_other(
    process: EnclaveProcess, root: SimulationRoot, url: str, sealed: Sealed
) -> None:
    key = fetch_key(url, Host(process, root).evidence, model_digest(sealed.vessel))
    with EnclaveProcess(sealed.vessel) as other, pytest.raises(KeyFileError):
        other.give_key(key)


def test_who_answers_in_the_services_place_gains_nothing(
    process: EnclaveProcess, sealed: Sealed, tmp_path: Path
) -> None:
    """A sealed key says nothing of who sealed it; the model does."""
    mine = create_key(tmp_path / "mine.key")
    public_key = process.claims(bytes(32)).public_key
    with pytest.raises(KeyFileError):
        process.give_key(seal_key(public_key, model_digest(sealed.vessel), mine))


@pytest.mark.parametrize("wrong", ["digest", "bit", "cut", "empty"])
def test_altered_keys(process: EnclaveProcess, sealed: Sealed, wrong: str) -> None:
    public_key = process.claims(bytes(32)).public_key
    digest = DIGEST if wrong == "digest" else model_digest(sealed.vessel)
    key = bytearray(seal_key(public_key, digest, load_key(sealed.key)))
    if wrong == "bit":
        key[-1] ^= 1
    given = {"cut": bytes(key[:-1]), "empty": b""}.get(wrong, bytes(key))
    with pytest.raises(VesselsError):
        process.give_key(given)
