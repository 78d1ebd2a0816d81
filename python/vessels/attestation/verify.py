"""Verification: from evidence that is anybody's word to a value that only a passed check makes.

Signatures, certificate chains, revocation, collateral, TCB status and the debug attribute are
``dcap-qvl``'s to judge. Here its verdict is compared with a policy, and the report data with what
the enclave claims. A failed check raises :class:`~vessels.errors.AttestationError`; there is no
way to a :class:`VerifiedEvidence` but through :class:`Verifier`.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator
from dataclasses import InitVar, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import dcap_qvl

from vessels.attestation.collateral import Collateral, CollateralService, CollateralSource
from vessels.attestation.evidence import Claims, Evidence, Kind
from vessels.attestation.policy import Policy, SgxRule, TdxRule
from vessels.attestation.quote import check_form
from vessels.attestation.roots import Root
from vessels.attestation.text import printable
from vessels.errors import AttestationError

_PASSED = object()
"""Known to the checks in this module alone."""


class Tee(StrEnum):
    """The kinds of trusted environment that can be verified."""

    SGX = "sgx"
    TDX = "tdx"


@dataclass(frozen=True)
class SgxMeasurements:
    """What SGX says of an enclave."""

    mr_enclave: bytes
    mr_signer: bytes
    isv_prod_id: int
    isv_svn: int

    def as_json(self) -> dict[str, Any]:
        """For ``vessels attest --json``."""
        return {
            "mr_enclave": self.mr_enclave.hex(),
            "mr_signer": self.mr_signer.hex(),
            "isv_prod_id": self.isv_prod_id,
            "isv_svn": self.isv_svn,
        }


@dataclass(frozen=True)
class TdxMeasurements:
    """What TDX says of a guest."""

    mr_td: bytes
    rtmr: tuple[bytes, bytes, bytes, bytes]

    def as_json(self) -> dict[str, Any]:
        """For ``vessels attest --json``."""
        return {"mr_td": self.mr_td.hex()} | {
            f"rtmr{i}": register.hex() for i, register in enumerate(self.rtmr)
        }


@dataclass(frozen=True)
class VerifiedQuote:
    """A quote that is authentic as of ``verified``; only :func:`verify_quote` makes one.

    That software of these measurements runs on hardware of the trusted root says nothing yet
    about whether it is the software one wants: that is the policy's to say. The judgement holds
    until ``expires``. Where ``simulated`` is true it proves nothing.
    """

    tee: Tee
    measurements: SgxMeasurements | TdxMeasurements
    report_data: bytes
    tcb_status: str
    advisories: tuple[str, ...]
    tcb_evaluation: int
    platform: bytes
    simulated: bool
    verified: datetime
    expires: datetime
    passed: InitVar[object]

    def __post_init__(self, passed: object) -> None:
        _only_checks(passed)

    def as_json(self) -> dict[str, Any]:
        """For ``vessels attest --json``."""
        return {
            "tee": str(self.tee),
            "simulated": self.simulated,
            **self.measurements.as_json(),
            "report_data": self.report_data.hex(),
            "tcb_status": self.tcb_status,
            "advisories": list(self.advisories),
            "tcb_evaluation": self.tcb_evaluation,
            "platform": self.platform.hex(),
            "verified": self.verified.isoformat(),
            "expires": self.expires.isoformat(),
        }


@dataclass(frozen=True)
class AuthenticEvidence:
    """Evidence whose quote is authentic and binds its claims; only :func:`authenticate` makes one.

    No policy was asked: it may be of any software.
    """

    claims: Claims
    quote: VerifiedQuote
    passed: InitVar[object]

    def __post_init__(self, passed: object) -> None:
        _only_checks(passed)

    def as_json(self) -> dict[str, Any]:
        """For ``vessels attest --json``."""
        return {
            "model_digest": self.claims.model_digest.hex(),
            "suite": self.claims.suite.hex(),
            "public_key": self.claims.public_key.hex(),
            **self.quote.as_json(),
        }


@dataclass(frozen=True)
class VerifiedEvidence:
    """Evidence that passed every check of a policy; only :class:`Verifier` makes one.

    Who holds it may encrypt to ``claims.public_key``: its private key is in an enclave that the
    policy accepts, which opened the model that the policy calls ``model``.
    """

    model: str
    authentic: AuthenticEvidence
    passed: InitVar[object]

    def __post_init__(self, passed: object) -> None:
        _only_checks(passed)

    @property
    def claims(self) -> Claims:
        """What the enclave says of itself, which is now proven."""
        return self.authentic.claims

    @property
    def quote(self) -> VerifiedQuote:
        """What the hardware says of the enclave."""
        return self.authentic.quote

    @property
    def simulated(self) -> bool:
        """Whether the evidence proves nothing, since a simulation's root was trusted."""
        return self.quote.simulated

    def as_json(self) -> dict[str, Any]:
        """For ``vessels attest --json``."""
        return {"model": self.model, **self.authentic.as_json()}


@dataclass(frozen=True)
class Verifier:
    """Checks evidence against ``policy``, with collateral from ``collateral``.

    Warns once, when it is made, if the policy trusts a simulation.
    """

    policy: Policy
    collateral: CollateralSource = field(default_factory=CollateralService)

    def __post_init__(self) -> None:
        self.policy.announce()

    def verify(
        self,
        evidence: Evidence,
        *,
        nonce: bytes,
        model: str | None = None,
        now: datetime | None = None,
    ) -> VerifiedEvidence:
        """What ``evidence`` proves, or :class:`AttestationError` with the checks that failed.

        ``nonce`` is what this verifier asked with. It must be fresh, which is the caller's to
        see to: the same evidence passes again with the same nonce. ``model`` is the name in the
        policy of the one that is wanted, of all that it accepts; any of them unless given.
        ``now`` is this machine's time unless given. Blocks while it asks for collateral.
        """
        authentic = authenticate(
            evidence, nonce=nonce, root=self.policy.root, source=self.collateral, now=now
        )
        refusals = [*_quote_refusals(authentic.quote, self.policy)]
        digest = authentic.claims.model_digest
        found = self.policy.model_of(digest)
        if found is None or model not in (None, found):
            accepted = [
                f"{d.hex()} ({name})"
                for name, digests in self.policy.models.items()
                for d in sorted(digests)
                if model in (None, name)
            ]
            wanted = " or ".join(accepted) or f"none by the name {model!r}"
            refusals.append(_refusal("model", digest.hex(), wanted))
        if refusals or found is None:
            raise _refused(refusals)
        return VerifiedEvidence(found, authentic, _PASSED)


def authenticate(
    evidence: Evidence,
    *,
    nonce: bytes,
    root: Root,
    source: CollateralSource,
    now: datetime | None = None,
) -> AuthenticEvidence:
    """Check all of ``evidence`` but whether it is of the software one wants.

    A simulation's collateral comes with the evidence, that of real hardware from ``source`` alone.
    Raises :class:`AttestationError`.
    """
    if evidence.kind is Kind.SEV_SNP:
        raise AttestationError(
            "tee: seen sev-snp, accepted sgx or tdx: AMD SEV-SNP reports cannot be verified, "
            "for want of a maintained library that does it."
        )
    time = now or datetime.now(UTC)
    # Nobody is asked for the collateral of what is malformed or of another root.
    check_form(evidence.quote, root)
    if root.simulated:
        collateral = Collateral.parse(evidence.collateral, "the simulation")
    else:
        collateral = source.get(evidence.quote, time)
    quote = verify_quote(evidence.quote, collateral, root=root, now=time)
    claims = evidence.claims
    refusals = []
    if not hmac.compare_digest(claims.nonce, nonce):
        refusals.append(_refusal("nonce", claims.nonce.hex(), nonce.hex()))
    if not hmac.compare_digest(quote.report_data, claims.report_data()):
        refusals.append(
            _refusal("report data", quote.report_data.hex(), claims.report_data().hex())
        )
    if refusals:
        raise _refused(refusals)
    return AuthenticEvidence(claims, quote, _PASSED)


def check_quote(quote: VerifiedQuote, policy: Policy) -> None:
    """Whether ``policy`` accepts what runs there, whatever it claims of itself.

    Raises :class:`AttestationError` with every check that failed.
    """
    if refusals := [*_quote_refusals(quote, policy)]:
        raise _refused(refusals)


def verify_quote(
    quote: bytes, collateral: Collateral, *, root: Root, now: datetime
) -> VerifiedQuote:
    """An authentic quote of a chain that ends in ``root``. Raises :class:`AttestationError`.

    A debug enclave or guest is none, nor is one of a revoked platform, whatever a policy says.
    """
    check_form(quote, root)
    collateral.check_current(now)
    _check_issuers(collateral, root)
    seconds = int(now.timestamp())
    library = collateral.for_library()
    try:
        claims = json.loads(
            dcap_qvl.QuoteVerifier(root.der)
            .verify_with_policy(quote, library, seconds, dcap_qvl.QuotePolicy.claims_only(seconds))
            .to_json()
        )
    except ValueError as error:
        why = _reason(quote, library, root, seconds) or error
        raise AttestationError(f"quote: it was refused: {printable(why)}.") from error
    [(body, report)] = claims["report"].items()
    tee = Tee.SGX if body == "SgxEnclave" else Tee.TDX
    while "base" in report:
        report = report["base"]
    return VerifiedQuote(
        tee=tee,
        measurements=_sgx(report) if tee is Tee.SGX else _tdx(report),
        report_data=bytes.fromhex(report["report_data"]),
        tcb_status=claims["tcb"]["status"],
        advisories=_advisories(claims),
        tcb_evaluation=claims["tcb"]["eval_data_number"],
        platform=bytes(claims["platform"]["pck"]["fmspc"]),
        simulated=root.simulated,
        verified=now,
        expires=datetime.fromtimestamp(claims["earliest_expiration_date"], UTC),
        passed=_PASSED,
    )


def _check_issuers(collateral: Collateral, root: Root) -> None:
    """Only the root itself names who signs collateral: a platform's certificate may not.

    The library asks for any certificate under the root up to its version 0.7.0.
    """
    for kind in ("tcb_info", "qe_identity"):
        chain = collateral.issuers(kind)
        if len(chain) != 2 or chain[1] != root.der:
            raise AttestationError(
                f"collateral: {kind} of {collateral.source} is not signed by one that the "
                f"trusted root ({root.fingerprint[:16]}) named."
            )


def _reason(
    quote: bytes, collateral: dcap_qvl.QuoteCollateralV3, root: Root, seconds: int
) -> str | None:
    """All of why the library refuses ``quote``; its claims interface tells the outermost only."""
    try:
        dcap_qvl.verify_with_root_ca(quote, collateral, root.der, seconds)
    except ValueError as error:
        return str(error).removeprefix("Verification failed: ")
    return None


def _sgx(report: dict[str, Any]) -> SgxMeasurements:
    return SgxMeasurements(
        mr_enclave=bytes.fromhex(report["mr_enclave"]),
        mr_signer=bytes.fromhex(report["mr_signer"]),
        isv_prod_id=report["isv_prod_id"],
        isv_svn=report["isv_svn"],
    )


def _tdx(report: dict[str, Any]) -> TdxMeasurements:
    r0, r1, r2, r3 = (bytes.fromhex(report[f"rt_mr{i}"]) for i in range(4))
    return TdxMeasurements(mr_td=bytes.fromhex(report["mr_td"]), rtmr=(r0, r1, r2, r3))


def _advisories(claims: dict[str, Any]) -> tuple[str, ...]:
    """Of the platform as it was launched, as it is now, and of the quoting enclave."""
    current = claims["platform"]["current_tcb_level"] or {}
    return tuple(sorted({*claims["tcb"]["advisory_ids"], *current.get("advisoryIDs", [])}))


def _quote_refusals(quote: VerifiedQuote, policy: Policy) -> Iterator[str]:
    """One line for each check of ``policy`` that ``quote`` fails."""
    if quote.simulated != policy.root.simulated:
        yield _refusal("root", _kind(quote.simulated), _kind(policy.root.simulated))
    rule = policy.sgx if quote.tee is Tee.SGX else policy.tdx
    if rule is None:
        accepted = [str(t) for t, r in ((Tee.SGX, policy.sgx), (Tee.TDX, policy.tdx)) if r]
        yield _refusal("tee", str(quote.tee), " or ".join(accepted))
    elif isinstance(rule, SgxRule) and isinstance(quote.measurements, SgxMeasurements):
        yield from _sgx_refusals(quote.measurements, rule)
    elif isinstance(rule, TdxRule) and isinstance(quote.measurements, TdxMeasurements):
        yield from _tdx_refusals(quote.measurements, rule)
    tcb = policy.tcb
    if quote.tcb_status not in tcb.statuses:
        yield _refusal("tcb status", quote.tcb_status, " or ".join(sorted(tcb.statuses)))
    if open_to := [a for a in quote.advisories if a not in tcb.advisories]:
        yield _refusal(
            "advisories", ", ".join(open_to), ", ".join(sorted(tcb.advisories)) or "none"
        )
    if quote.tcb_evaluation < tcb.minimum_evaluation:
        yield _refusal(
            "tcb evaluation", str(quote.tcb_evaluation), f"{tcb.minimum_evaluation} or more"
        )


def _sgx_refusals(seen: SgxMeasurements, rule: SgxRule) -> Iterator[str]:
    for name, value, allowed in (
        ("mr_enclave", seen.mr_enclave, rule.mr_enclave),
        ("mr_signer", seen.mr_signer, rule.mr_signer),
    ):
        if not allowed.admits(value):
            yield _refusal(name, value.hex(), allowed.describe())
    if rule.isv_prod_id is not None and seen.isv_prod_id != rule.isv_prod_id:
        yield _refusal("isv_prod_id", str(seen.isv_prod_id), str(rule.isv_prod_id))
    if seen.isv_svn < rule.minimum_isv_svn:
        yield _refusal("isv_svn", str(seen.isv_svn), f"{rule.minimum_isv_svn} or more")


def _tdx_refusals(seen: TdxMeasurements, rule: TdxRule) -> Iterator[str]:
    if not rule.mr_td.admits(seen.mr_td):
        yield _refusal("mr_td", seen.mr_td.hex(), rule.mr_td.describe())
    for index, (value, allowed) in enumerate(zip(seen.rtmr, rule.rtmr, strict=True)):
        if not allowed.admits(value):
            yield _refusal(f"rtmr{index}", value.hex(), allowed.describe())


def _kind(simulated: bool) -> str:
    return "a simulation" if simulated else "hardware"


def _refusal(check: str, seen: str, accepted: str) -> str:
    return f"{check}: seen {seen}, accepted {accepted}"


def _refused(refusals: list[str]) -> AttestationError:
    return AttestationError("; ".join(refusals) + ".")


def _only_checks(passed: object) -> None:
    if passed is not _PASSED:
        raise TypeError("only a passed check makes this value.")
