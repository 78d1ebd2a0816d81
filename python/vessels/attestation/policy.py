"""Policies: what evidence a person accepts, as a TOML file.

``docs/attestation.md`` lists every key. A file is parsed to a frozen :class:`Policy` or refused as
a whole: with a key that is not known, a value of the wrong form, or a gap through which any
software could pass.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from vessels.attestation.evidence import DIGEST_SIZE
from vessels.attestation.roots import INTEL, Root
from vessels.errors import PolicyError
from vessels.toml_table import TomlTable

VERSION = 1

STATUSES = (
    "UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded",
    "OutOfDate", "OutOfDateConfigurationNeeded", "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
)  # fmt: skip
"""The TCB statuses of Intel's that a policy may accept; ``Revoked`` is none of them."""

_log = logging.getLogger("vessels")


@dataclass(frozen=True)
class Allowed:
    """The values accepted for one measurement; ``None`` where any is."""

    values: frozenset[bytes] | None

    def admits(self, seen: bytes) -> bool:
        """Whether ``seen`` is accepted."""
        return self.values is None or seen in self.values

    def describe(self) -> str:
        """The values for people."""
        return "any" if self.values is None else " or ".join(sorted(v.hex() for v in self.values))


_ANY = Allowed(None)


@dataclass(frozen=True)
class SgxRule:
    """What is accepted of an SGX enclave."""

    mr_enclave: Allowed
    mr_signer: Allowed
    isv_prod_id: int | None
    minimum_isv_svn: int


@dataclass(frozen=True)
class TdxRule:
    """What is accepted of a TDX guest; ``rtmr`` has four parts."""

    mr_td: Allowed
    rtmr: tuple[Allowed, Allowed, Allowed, Allowed]


@dataclass(frozen=True)
class TcbRule:
    """What is accepted of a platform: TCB statuses, and advisories that it is known to be open to.

    ``minimum_evaluation`` is the least TCB evaluation data number.
    """

    statuses: frozenset[str] = frozenset({"UpToDate"})
    advisories: frozenset[str] = frozenset()
    minimum_evaluation: int = 0


@dataclass(frozen=True)
class Policy:
    """A whole policy. ``models`` has the accepted digests of each model's sealed builds by name.

    Without ``sgx`` no SGX enclave is accepted, without ``tdx`` no TDX guest.
    """

    source: str
    models: Mapping[str, frozenset[bytes]]
    sgx: SgxRule | None
    tdx: TdxRule | None
    tcb: TcbRule = field(default_factory=TcbRule)
    root: Root = INTEL

    @classmethod
    def load(cls, path: Path) -> Policy:
        """The policy in the file at ``path``. Raises :class:`PolicyError`."""
        return cls._read(TomlTable.load(path, "policy", PolicyError), str(path))

    @classmethod
    def parse(cls, text: str, source: str) -> Policy:
        """The policy in ``text``; errors name ``source``. Raises :class:`PolicyError`."""
        return cls._read(TomlTable.parse(text, source, PolicyError), source)

    @classmethod
    def _read(cls, top: TomlTable, source: str) -> Policy:
        if top.whole("version", 0, 0xFFFF) != VERSION:
            top.refuse("version", f"it must be {VERSION}")
        pem = top.text("insecure_simulation_root")
        try:
            root = INTEL if pem is None else Root.of_pem(pem.encode(), simulated=True)
        except ValueError:
            top.refuse("insecure_simulation_root", "it must be one certificate in PEM")
        policy = cls(
            source=source,
            models=MappingProxyType(_models(top)),
            sgx=_sgx(top.table("sgx")),
            tdx=_tdx(top.table("tdx")),
            tcb=_tcb(top.table("tcb")),
            root=root,
        )
        top.refuse_unknown()
        if policy.sgx is None and policy.tdx is None:
            raise PolicyError(f"{source}: it accepts nothing; add a table [sgx] or [tdx].")
        return policy

    def announce(self) -> None:
        """Warn of what weakens this policy."""
        if self.root.simulated:
            _log.warning(
                "%s trusts a SIMULATION (insecure_simulation_root): evidence under it proves "
                "nothing, and the host can read everything.", self.source,
            )  # fmt: skip

    def model_of(self, digest: bytes) -> str | None:
        """The name of the accepted model with ``digest``."""
        return next((name for name, digests in self.models.items() if digest in digests), None)


def _models(top: TomlTable) -> dict[str, frozenset[bytes]]:
    models = {}
    if (table := top.table("models")) is not None:
        for name in table.names():
            models[name] = _measurements(table, name, DIGEST_SIZE).values or frozenset()
    if not models:
        top.refuse("models", 'name at least one model, as in NAME = ["digest"]')
    digests = [d for values in models.values() for d in values]
    if len(set(digests)) != len(digests):
        top.refuse("models", "one digest stands under two names")
    return models


def _sgx(table: TomlTable | None) -> SgxRule | None:
    if table is None:
        return None
    rule = SgxRule(
        mr_enclave=_measurements(table, "mr_enclave", 32),
        mr_signer=_measurements(table, "mr_signer", 32),
        isv_prod_id=table.whole("isv_prod_id", 0, 0xFFFF),
        minimum_isv_svn=table.whole("minimum_isv_svn", 0, 0xFFFF) or 0,
    )
    signed = rule.mr_signer.values is not None and rule.isv_prod_id is not None
    if rule.mr_enclave.values is None and not signed:
        table.refuse(
            "mr_enclave",
            "without it any software passes; give it, or mr_signer with isv_prod_id",
        )
    return rule


def _tdx(table: TomlTable | None) -> TdxRule | None:
    if table is None:
        return None
    r0, r1, r2, r3 = (_measurements(table, f"rtmr{i}", 48) for i in range(4))
    rule = TdxRule(_measurements(table, "mr_td", 48), (r0, r1, r2, r3))
    for name, allowed in (("mr_td", rule.mr_td), ("rtmr1", r1), ("rtmr2", r2)):
        if allowed.values is None:
            table.refuse(name, "without it any software passes; mr_td, rtmr1 and rtmr2 are needed")
    return rule


def _tcb(table: TomlTable | None) -> TcbRule:
    if table is None:
        return TcbRule()
    statuses = table.texts("statuses")
    for status in sorted(statuses or ()):
        if status not in STATUSES:
            table.refuse("statuses", f"{status!r} is none of {', '.join(STATUSES)}")
    if statuses is not None and not statuses:
        table.refuse("statuses", "it is empty, so nothing could pass")
    return TcbRule(
        statuses=TcbRule.statuses if statuses is None else statuses,
        advisories=table.texts("advisories") or frozenset(),
        minimum_evaluation=table.whole("minimum_evaluation", 0, 1 << 31) or 0,
    )


def _measurements(table: TomlTable, key: str, size: int) -> Allowed:
    texts = table.texts(key)
    if texts is None:
        return _ANY
    if not texts:
        table.refuse(key, "it is empty, so nothing could pass; fill it in or take it out")
    values = frozenset(_bytes_of(t) for t in texts)
    if any(v is None or len(v) != size for v in values):
        table.refuse(key, f"each value must be {2 * size} hexadecimal digits")
    return Allowed(frozenset(v for v in values if v is not None))


def _bytes_of(text: str) -> bytes | None:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        return None
    # fromhex skips spaces; a measurement with spaces is a mistake.
    return value if len(text) == 2 * len(value) else None
