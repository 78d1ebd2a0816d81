"""Enclaves whose pools lie in an emulated EPC, as a server starts them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vessels.enclave import EnclaveProcess
from vessels.schedule.model import Shape
from vessels.serve.backends import Process, Simulation


class Emulated(Simulation):
    """Enclaves of the simulation backend, each started by ``command``.

    That is what :attr:`vessels.study.emulator.Emulator.command` says.
    """

    def __init__(self, command: Sequence[str]) -> None:
        super().__init__()
        self._command = tuple(command)

    def start(self, model: Path, shape: Shape) -> Process:
        return EnclaveProcess(
            model,
            threads=shape.threads,
            slots=shape.slots,
            rung=shape.rung,
            command=self._command,
        )
