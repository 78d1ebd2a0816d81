"""What clients of this machine's simulated enclaves accept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vessels.attestation import model_digest
from vessels.attestation.simulation import Enclave, SimulationRoot
from vessels.attestation.template import new_policy
from vessels.binaries import find_enclave_binary


def client_policy(models: Mapping[str, Path]) -> str:
    """The text of a policy for these sealed models, by name."""
    return new_policy(
        {name: [model_digest(path)] for name, path in models.items()},
        measurements=[Enclave.of_binary(find_enclave_binary()).mr_enclave],
        insecure_simulation_root=SimulationRoot.load_or_create().trusted,
    )
