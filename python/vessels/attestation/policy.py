"""Policies: what evidence a person accepts, as a TOML file.

``docs/attestation.md`` lists every key. A file is parsed to a frozen :class:`Policy` or refused as
a whole: with a key that is not known, a value of the wrong form, or a gap through which any
software could pass.
"""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from vessels.attestation.evidence import DIGEST_SIZE
from vessels.attestation.roots import INTEL, Root
from vessels.errors import PolicyError

VERSION = 1
MAX_SIZE = 1 << 20

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
        try:
            with path.open("rb") as file:
                text = file.read(MAX_SIZE + 1)
        except OSError as error:
            raise PolicyError(f"cannot read policy {path}: {error.strerror}.") from error
        if len(text) > MAX_SIZE:
            raise PolicyError(f"{path} is too large to be a policy.")
        try:
            return cls.parse(text.decode(), str(path))
        except UnicodeDecodeError as error:
            raise PolicyError(f"{path}: it is not UTF-8.") from error

    @classmethod
    def parse(cls, text: str, source: str) -> Policy:
        """The policy in ``text``; errors name ``source``. Raises :class:`PolicyError`."""
        try:
            top = _Table(tomllib.loads(text), "", source)
        except tomllib.TOMLDecodeError as error:
            raise PolicyError(f"{source}: it is no TOML: {error}.") from error
        version = top.whole("version", default=None)
        if version != VERSION:
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


class _Table:
    """A table of a policy whose keys are taken one by one; what is left is not known."""

    def __init__(self, values: dict[str, Any], path: str, source: str) -> None:
        self._left = dict(values)
        self._path = path
        self._source = source
        self._tables: list[_Table] = []

    def refuse(self, key: str, why: str) -> NoReturn:
        raise PolicyError(f"{self._source}: {self._path}{key}: {why}.")

    def take(self, key: str, kind: type, what: str) -> Any:
        value = self._left.pop(key, None)
        # A TOML boolean is a Python integer too.
        if value is not None and type(value) is not kind:
            self.refuse(key, f"it must be {what}")
        return value

    def text(self, key: str) -> str | None:
        value: str | None = self.take(key, str, "text")
        return value

    def whole(self, key: str, *, default: int | None, most: int = 0xFFFF) -> int | None:
        value: int | None = self.take(key, int, "a whole number")
        if value is None:
            return default
        if not 0 <= value <= most:
            self.refuse(key, f"it must be from 0 to {most}")
        return value

    def texts(self, key: str) -> frozenset[str] | None:
        values = self.take(key, list, "a list of texts")
        if values is None:
            return None
        if any(type(v) is not str for v in values):
            self.refuse(key, "it must be a list of texts")
        return frozenset(values)

    def measurements(self, key: str, size: int) -> Allowed:
        texts = self.texts(key)
        if texts is None:
            return _ANY
        if not texts:
            self.refuse(key, "it is empty, so nothing could pass; fill it in or take it out")
        values = frozenset(_bytes_of(t) for t in texts)
        if any(v is None or len(v) != size for v in values):
            self.refuse(key, f"each value must be {2 * size} hexadecimal digits")
        return Allowed(frozenset(v for v in values if v is not None))

    def table(self, key: str) -> _Table | None:
        values = self.take(key, dict, "a table")
        if values is None:
            return None
        table = _Table(values, f"{self._path}{key}.", self._source)
        self._tables.append(table)
        return table

    def names(self) -> Iterator[str]:
        return iter(list(self._left))

    def refuse_unknown(self) -> None:
        for key in self._left:
            self.refuse(key, "this key is not known; take it out or correct it")
        for table in self._tables:
            table.refuse_unknown()


def _models(top: _Table) -> dict[str, frozenset[bytes]]:
    models = {}
    if (table := top.table("models")) is not None:
        for name in table.names():
            models[name] = table.measurements(name, DIGEST_SIZE).values or frozenset()
    if not models:
        top.refuse("models", 'name at least one model, as in NAME = ["digest"]')
    digests = [d for values in models.values() for d in values]
    if len(set(digests)) != len(digests):
        top.refuse("models", "one digest stands under two names")
    return models


def _sgx(table: _Table | None) -> SgxRule | None:
    if table is None:
        return None
    rule = SgxRule(
        mr_enclave=table.measurements("mr_enclave", 32),
        mr_signer=table.measurements("mr_signer", 32),
        isv_prod_id=table.whole("isv_prod_id", default=None),
        minimum_isv_svn=table.whole("minimum_isv_svn", default=0) or 0,
    )
    signed = rule.mr_signer.values is not None and rule.isv_prod_id is not None
    if rule.mr_enclave.values is None and not signed:
        table.refuse(
            "mr_enclave",
            "without it any software passes; give it, or mr_signer with isv_prod_id",
        )
    return rule


def _tdx(table: _Table | None) -> TdxRule | None:
    if table is None:
        return None
    r0, r1, r2, r3 = (table.measurements(f"rtmr{i}", 48) for i in range(4))
    rule = TdxRule(table.measurements("mr_td", 48), (r0, r1, r2, r3))
    for name, allowed in (("mr_td", rule.mr_td), ("rtmr1", r1), ("rtmr2", r2)):
        if allowed.values is None:
            table.refuse(name, "without it any software passes; mr_td, rtmr1 and rtmr2 are needed")
    return rule


def _tcb(table: _Table | None) -> TcbRule:
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
        minimum_evaluation=table.whole("minimum_evaluation", default=0, most=1 << 31) or 0,
    )


def _bytes_of(text: str) -> bytes | None:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        return None
    # fromhex skips spaces; a measurement with spaces is a mistake.
    return value if len(text) == 2 * len(value) else None
