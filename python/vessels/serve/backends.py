"""Where enclaves run: how one is started, and how its proof becomes evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from vessels.errors import EnclaveError, RequestError, VesselsError
from vessels.gramine_folder import launch_command
from vessels.header import Header
from vessels.memory import EnclaveMemory
from vessels.schedule.model import Machine, Shape
from vessels.serve.config import ModelSettings
from vessels.serve.shapes import manifest_shape, plain_shapes


class Process(Protocol):
    """What a server needs of an enclave process; every call blocks until it is answered."""

    @property
    def pid(self) -> int: ...

    def claims(self, nonce: bytes) -> EnclaveClaims: ...

    def give_key(self, sealed: bytes) -> Ready: ...

    def exchange_batch(self, sealed: Sequence[bytes]) -> list[bytes | RequestError]: ...

    def memory(self) -> EnclaveMemory: ...

    def kill(self) -> None: ...

    def close(self) -> None: ...


class Backend(Protocol):
    """Starts enclaves and makes evidence of what they claim."""

    def shapes(
        self, model: Path, header: Header, settings: ModelSettings, machine: Machine
    ) -> tuple[Shape, ...]:
        """The environments that ``model`` may be given, the most frugal first."""
        ...

    def start(self, model: Path, shape: Shape) -> Process:
        """An enclave with the sealed model at ``model``, without its key. Blocks."""
        ...

    def memory(self, process: Process) -> int | None:
        """Trusted memory that ``process`` holds now; ``None`` where the kernel cannot tell."""
        ...

    def evidence(self, claims: EnclaveClaims) -> Evidence:
        """The evidence for ``claims``. Raises :class:`EnclaveError` where they are no proof."""
        ...


class _Plain:
    """What is the same wherever an enclave is a process of Linux."""

    def shapes(
        self, model: Path, header: Header, settings: ModelSettings, machine: Machine
    ) -> tuple[Shape, ...]:
        return plain_shapes(header, machine, threads=settings.threads, slots=settings.slots)

    def memory(self, process: Process) -> int | None:
        try:
            return process.memory().trusted
        except VesselsError:
            return None


class Simulation(_Plain):
    """Enclaves as ordinary processes, with quotes of this machine's simulation root.

    THEY PROTECT NOTHING from this host.
    """

    def __init__(self) -> None:
        log.warning(SIMULATION_NOTICE)
        self._platform = Platform.create(SimulationRoot.load_or_create())
        self._measured = Measured.of_binary(find_enclave_binary())

    def start(self, model: Path, shape: Shape) -> Process:
        return EnclaveProcess(model, threads=shape.threads, slots=shape.slots, rung=shape.rung)

    def evidence(self, claims: EnclaveClaims) -> Evidence:
        _check_tee(claims, "simulation")
        return self._platform.evidence(_bound(claims), self._measured)


class Native(_Plain):
    """Enclaves as processes of a confidential guest (TDX, SEV-SNP), which is attested whole."""

    def start(self, model: Path, shape: Shape) -> Process:
        return EnclaveProcess(
            model, threads=shape.threads, slots=shape.slots, rung=shape.rung, backend="native"
        )

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

    def shapes(
        self, model: Path, header: Header, settings: ModelSettings, machine: Machine
    ) -> tuple[Shape, ...]:
        return (manifest_shape(self._folders[model], header),)

    def memory(self, process: Process) -> int | None:
        # An enclave's pages are in no process's account.
        return None

    def start(self, model: Path, shape: Shape) -> Process:
        # The model's file may be another than it was.
        command = launch_command(self._folders[model], model)
        return EnclaveProcess(model, command=command, slots=shape.slots)

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
