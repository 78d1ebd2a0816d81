"""Where enclaves run: how one is started, and how its proof becomes evidence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from vessels.attestation import Claims, Evidence, Kind
from vessels.attestation.simulation import Enclave as Measured
from vessels.attestation.simulation import Platform, SimulationRoot
from vessels.enclave import (
    SIMULATION_NOTICE,
    EnclaveClaims,
    EnclaveProcess,
    Ready,
    find_enclave_binary,
    log,
)
from vessels.errors import EnclaveError
from vessels.gramine import launch_command


class Process(Protocol):
    """What a server needs of an enclave process; every call blocks until it is answered."""

    @property
    def pid(self) -> int: ...

    def claims(self, nonce: bytes) -> EnclaveClaims: ...

    def give_key(self, sealed: bytes) -> Ready: ...

    def exchange(self, sealed: bytes) -> bytes: ...

    def kill(self) -> None: ...

    def close(self) -> None: ...


class Backend(Protocol):
    """Starts enclaves and makes evidence of what they claim."""

    def start(self, model: Path) -> Process:
        """An enclave with the sealed model at ``model``, without its key. Blocks."""
        ...

    def evidence(self, claims: EnclaveClaims) -> Evidence:
        """The evidence for ``claims``. Raises :class:`EnclaveError` where they are no proof."""
        ...


class Simulation:
    """Enclaves as ordinary processes, with quotes of this machine's simulation root.

    THEY PROTECT NOTHING from this host.
    """

    def __init__(self, threads: int | None = None) -> None:
        log.warning(SIMULATION_NOTICE)
        self._threads = threads
        self._platform = Platform.create(SimulationRoot.load_or_create())
        self._measured = Measured.of_binary(find_enclave_binary())

    def start(self, model: Path) -> Process:
        return EnclaveProcess(model, threads=self._threads)

    def evidence(self, claims: EnclaveClaims) -> Evidence:
        _check_tee(claims, "simulation")
        return self._platform.evidence(_bound(claims), self._measured)


class Native:
    """Enclaves as processes of a confidential guest (TDX, SEV-SNP), which is attested whole."""

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads

    def start(self, model: Path) -> Process:
        return EnclaveProcess(model, threads=self._threads, backend="native")

    def evidence(self, claims: EnclaveClaims) -> Evidence:
        return _quoted(claims, Kind.SEV_SNP if claims.tee == "snp" else Kind.DCAP, "tdx", "snp")


class Gramine:
    """Enclaves of SGX, under Gramine, each by the signed folder that was made for its model.

    Raises :class:`EnclaveError` where a folder of ``folders`` is none.
    """

    def __init__(self, folders: Mapping[Path, Path]) -> None:
        self._folders = dict(folders)
        for model, folder in self._folders.items():
            launch_command(folder, model)

    def start(self, model: Path) -> Process:
        # The model's file may be another than it was.
        return EnclaveProcess(model, command=launch_command(self._folders[model], model))

    def evidence(self, claims: EnclaveClaims) -> Evidence:
        return _quoted(claims, Kind.DCAP, "sgx")


def _quoted(claims: EnclaveClaims, kind: Kind, *tees: str) -> Evidence:
    _check_tee(claims, *tees)
    if claims.quote is None:
        raise EnclaveError("the enclave gave no quote.")
    return Evidence(kind, claims.quote, _bound(claims))


def _check_tee(claims: EnclaveClaims, *wanted: str) -> None:
    if claims.tee not in wanted:
        raise EnclaveError(
            f"the enclave says it runs in {claims.tee!r}, the backend is for {' or '.join(wanted)}."
        )


def _bound(claims: EnclaveClaims) -> Claims:
    """What a quote binds of ``claims``."""
    return Claims(claims.suite, claims.public_key, claims.model_digest, claims.nonce)
