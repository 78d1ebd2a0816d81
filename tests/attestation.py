"""Recorded quotes of real hardware, and policies for tests of attestation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.trust import client_policy
from vessels.attestation import Claims, Collateral, Policy
from vessels.attestation.simulation import Enclave, SimulationRoot

FOLDER = Path(__file__).parent / "quotes"

CLAIMS = Claims(
    suite=bytes.fromhex("002000010002"),
    public_key=bytes(range(32)),
    model_digest=bytes(range(100, 132)),
    nonce=bytes(range(200, 232)),
)
ENCLAVE = Enclave(mr_enclave=bytes(range(32, 64)), isv_prod_id=7, isv_svn=3)


@dataclass(frozen=True)
class Recorded:
    """A recorded quote with the collateral of its day."""

    name: str
    day: datetime

    @property
    def quote(self) -> bytes:
        return (FOLDER / self.name).read_bytes()

    @property
    def collateral_file(self) -> Path:
        return FOLDER / f"{self.name}_collateral.json"

    @property
    def collateral(self) -> Collateral:
        return Collateral.parse(self.collateral_file.read_text(), self.name)


SGX = Recorded("sgx_quote", datetime.fromisoformat("2025-06-19T12:00:00Z"))
TDX = Recorded("tdx_quote", datetime.fromisoformat("2025-06-19T12:00:00Z"))
OUTDATED = Recorded("tdx_quote_outdated", datetime.fromisoformat("2026-02-18T10:58:51Z"))

SGX_MR_ENCLAVE = "33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb"
SGX_MR_SIGNER = "815f42f11cf64430c30bab7816ba596a1da0130c3b028b673133a66cf9a3e0e6"
SGX_TCB = {
    "statuses": ["UpToDate", "ConfigurationAndSWHardeningNeeded"],
    "advisories": ["INTEL-SA-00289", "INTEL-SA-00615"],
}
TDX_MR_TD = (
    "91eb2b44d141d4ece09f0c75c2c53d247a3c68edd7fafe8a"
    "3520c942a604a407de03ae6dc5f87f27428b2538873118b7"
)
TDX_RTMR = [
    "44c0197b39157fdd7a4dcc44767f9d6b0bb3977c7a8e347b8492f827fe9d9e5c48aca29b220b80b6a540cf994b9bc9c0",
    "0084452c01668329d4bc06acdf58a7205c26743304509973949e5619bf81a6a7aea8c323c173019b3093d54e579e9378",
    "d833feef2cd945148aa38ead2c53e9b7f138190aaaebfc551dccd829fc207aa3ba80b70870d7330733642e01d48c3132",
    "00" * 48,
]


def policy_text(
    *,
    models: dict[str, list[str]] | None = None,
    sgx: dict[str, Any] | None = None,
    tdx: dict[str, Any] | None = None,
    tcb: dict[str, Any] | None = None,
    root: SimulationRoot | None = None,
) -> str:
    """A policy; by default for the model of :data:`CLAIMS`."""
    lines = ["version = 1"]
    if root is not None:
        lines.append(f'insecure_simulation_root = """{root.trusted.pem}"""')
    tables = {"models": models or {"m": [CLAIMS.model_digest.hex()]}}
    tables |= {k: v for k, v in (("sgx", sgx), ("tdx", tdx), ("tcb", tcb)) if v is not None}
    for name, values in tables.items():
        lines.append(f"[{name}]")
        # Texts, numbers and lists of texts are in TOML what they are in Python.
        lines += [f"'{key}' = {value!r}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def policy(**parts: Any) -> Policy:
    """The policy of :func:`policy_text`."""
    return Policy.parse(policy_text(**parts), "p.toml")


def rules_of(vessel: Path) -> Policy:
    """What clients of this machine's simulated enclaves accept as the model ``m``."""
    return Policy.parse(client_policy({"m": vessel}), "p.toml")
