"""Recorded quotes of real hardware: verified as of their day, else refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import dcap_qvl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.attestation import (
    CLAIMS,
    OUTDATED,
    SGX,
    SGX_MR_ENCLAVE,
    SGX_MR_SIGNER,
    SGX_TCB,
    TDX,
    TDX_MR_TD,
    TDX_RTMR,
    Recorded,
    policy,
)
from vessels.attestation import (
    INTEL,
    CollateralFile,
    Evidence,
    Kind,
    SgxMeasurements,
    TdxMeasurements,
    Tee,
    VerifiedEvidence,
    VerifiedQuote,
    Verifier,
    authenticate,
    check_quote,
    verify_quote,
)
from vessels.attestation.text import printable
from vessels.errors import AttestationError, VesselsError

RECORDED = pytest.mark.parametrize("recorded", [SGX, TDX], ids=lambda r: r.name)
OTHER = "ab" * 32
OTHER_48 = "ab" * 48


def verified(recorded: Recorded, now: datetime | None = None) -> VerifiedQuote:
    return verify_quote(recorded.quote, recorded.collateral, root=INTEL, now=now or recorded.day)


def test_sgx_quote_verifies_as_of_its_day() -> None:
    quote = verified(SGX)
    assert quote.tee is Tee.SGX and not quote.simulated
    assert quote.measurements == SgxMeasurements(
        bytes.fromhex(SGX_MR_ENCLAVE), bytes.fromhex(SGX_MR_SIGNER), 0, 0
    )
    assert quote.report_data.rstrip(b"\0") == b"Hello, world!"
    assert quote.tcb_status == "ConfigurationAndSWHardeningNeeded"
    assert quote.advisories == ("INTEL-SA-00289", "INTEL-SA-00615")
    assert quote.expires == datetime.fromisoformat("2025-07-19T10:01:18Z")


def test_tdx_quote_verifies_as_of_its_day() -> None:
    quote = verified(TDX)
    assert quote.tee is Tee.TDX and not quote.simulated
    assert isinstance(quote.measurements, TdxMeasurements)
    assert quote.measurements.mr_td.hex() == TDX_MR_TD
    assert [r.hex() for r in quote.measurements.rtmr] == TDX_RTMR
    assert (quote.tcb_status, quote.advisories) == ("UpToDate", ())


def test_the_trusted_root_is_the_librarys() -> None:
    seconds = int(TDX.day.timestamp())
    claims_only = dcap_qvl.QuotePolicy.claims_only(seconds)
    for verifier in (dcap_qvl.QuoteVerifier(), dcap_qvl.QuoteVerifier(INTEL.der)):
        verifier.verify_with_policy(TDX.quote, TDX.collateral.for_library(), seconds, claims_only)


@RECORDED
def test_expired_today(recorded: Recorded) -> None:
    with pytest.raises(AttestationError, match=r"^collateral: .* expired on 2025-07-19"):
        verified(recorded, datetime.now(UTC))


@RECORDED
def test_current_until_the_last_second(recorded: Recorded) -> None:
    end = recorded.collateral.expires
    verified(recorded, end - timedelta(seconds=1))
    with pytest.raises(AttestationError, match="expired"):
        verified(recorded, end)


@RECORDED
def test_refused_before_its_collateral_was_issued(recorded: Recorded) -> None:
    with pytest.raises(AttestationError, match=r"^quote: it was refused: .*future"):
        verified(recorded, recorded.day - timedelta(days=1))


@RECORDED
def test_any_byte_changed_is_refused(recorded: Recorded) -> None:
    good, collateral = recorded.quote, recorded.collateral
    accepted = []
    for index in range(0, len(good), 3):
        bad = bytearray(good)
        bad[index] ^= 1 << index % 8
        try:
            verify_quote(bytes(bad), collateral, root=INTEL, now=recorded.day)
        except AttestationError:
            continue
        accepted.append(index)
    assert not accepted


@RECORDED
@given(data=st.data())
def test_any_bytes_replaced_are_refused(recorded: Recorded, data: st.DataObject) -> None:
    good = recorded.quote
    start = data.draw(st.integers(0, len(good) - 1))
    bad = data.draw(st.binary(min_size=1, max_size=8).map(lambda b: b[: len(good) - start]))
    changed = good[:start] + bad + good[start + len(bad) :]
    if changed != good:
        with pytest.raises(AttestationError):
            verify_quote(changed, recorded.collateral, root=INTEL, now=recorded.day)


@RECORDED
def test_any_truncation_is_refused(recorded: Recorded) -> None:
    # What a platform puts behind a quote as padding may be cut off.
    good = recorded.quote.rstrip(b"\0") + b"\0"
    collateral = recorded.collateral
    verify_quote(good, collateral, root=INTEL, now=recorded.day)
    for size in (*range(0, len(good), 7), len(good) - 1):
        with pytest.raises(AttestationError, match="malformed"):
            verify_quote(good[:size], collateral, root=INTEL, now=recorded.day)


@RECORDED
def test_trailing_bytes_are_refused(recorded: Recorded) -> None:
    with pytest.raises(AttestationError, match="that are not padding"):
        verify_quote(recorded.quote + b"\1", recorded.collateral, root=INTEL, now=recorded.day)


def test_collateral_of_another_platform_is_refused() -> None:
    with pytest.raises(AttestationError, match=r"^quote: it was refused: "):
        verify_quote(SGX.quote, TDX.collateral, root=INTEL, now=SGX.day)


def test_altered_collateral_is_refused() -> None:
    collateral = TDX.collateral
    text = collateral.text.replace("OutOfDate", "UpToDate")
    assert text != collateral.text
    with pytest.raises(AttestationError, match=r"^quote: it was refused: .*tcb_info"):
        verify_quote(TDX.quote, replace(collateral, text=text), root=INTEL, now=TDX.day)


def test_a_platform_below_every_level_is_refused() -> None:
    with pytest.raises(AttestationError, match=r"No matching TCB level"):
        verified(OUTDATED)


def test_outdated_platform_is_refused_unless_its_status_is_accepted() -> None:
    rules: dict[str, Any] = {"mr_enclave": [SGX_MR_ENCLAVE]}
    quote = verified(SGX)
    with pytest.raises(AttestationError) as refused:
        check_quote(quote, policy(sgx=rules))
    message = str(refused.value)
    assert "tcb status: seen ConfigurationAndSWHardeningNeeded, accepted UpToDate" in message
    assert "advisories: seen INTEL-SA-00289, INTEL-SA-00615, accepted none" in message
    with pytest.raises(AttestationError, match=r"^advisories: seen INTEL-SA-00615, accepted INT"):
        check_quote(quote, policy(sgx=rules, tcb=SGX_TCB | {"advisories": ["INTEL-SA-00289"]}))
    check_quote(quote, policy(sgx=rules, tcb=SGX_TCB))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mr_enclave": [OTHER]}, f"mr_enclave: seen {SGX_MR_ENCLAVE}, accepted {OTHER}."),
        ({"mr_signer": [OTHER]}, f"mr_signer: seen {SGX_MR_SIGNER}, accepted {OTHER}."),
        ({"isv_prod_id": 1}, "isv_prod_id: seen 0, accepted 1."),
        ({"minimum_isv_svn": 2}, "isv_svn: seen 0, accepted 2 or more."),
    ],
)
def test_sgx_mismatches_are_named(change: dict[str, Any], message: str) -> None:
    rules = {"mr_enclave": [SGX_MR_ENCLAVE]} | change
    with pytest.raises(AttestationError) as refused:
        check_quote(verified(SGX), policy(sgx=rules, tcb=SGX_TCB))
    assert str(refused.value) == message


@pytest.mark.parametrize("register", ["mr_td", "rtmr0", "rtmr1", "rtmr2", "rtmr3"])
def test_tdx_mismatches_are_named(register: str) -> None:
    rules = {"mr_td": [TDX_MR_TD]} | {f"rtmr{i}": [r] for i, r in enumerate(TDX_RTMR)}
    check_quote(verified(TDX), policy(tdx=rules))
    [seen] = rules[register]
    with pytest.raises(AttestationError) as refused:
        check_quote(verified(TDX), policy(tdx=rules | {register: [OTHER_48]}))
    assert str(refused.value) == f"{register}: seen {seen}, accepted {OTHER_48}."
    check_quote(verified(TDX), policy(tdx=rules | {register: [OTHER_48, seen]}))


def test_all_mismatches_are_listed() -> None:
    rules = {"mr_enclave": [OTHER], "isv_prod_id": 1}
    with pytest.raises(AttestationError) as refused:
        check_quote(verified(SGX), policy(sgx=rules, tcb={"minimum_evaluation": 18}))
    checks = [part.split(":")[0] for part in str(refused.value).split("; ")]
    assert checks == ["mr_enclave", "isv_prod_id", "tcb status", "advisories", "tcb evaluation"]


def test_a_kind_without_rules_is_refused() -> None:
    tdx = {"mr_td": [TDX_MR_TD], "rtmr1": [TDX_RTMR[1]], "rtmr2": [TDX_RTMR[2]]}
    with pytest.raises(AttestationError, match=r"^tee: seen sgx, accepted tdx\.$"):
        check_quote(verified(SGX), policy(tdx=tdx, tcb=SGX_TCB))
    with pytest.raises(AttestationError, match=r"^tee: seen tdx, accepted sgx\.$"):
        check_quote(verified(TDX), policy(sgx={"mr_enclave": [OTHER]}))


def test_a_quote_of_other_claims_is_refused() -> None:
    source = CollateralFile(SGX.collateral_file)
    evidence = Evidence(Kind.DCAP, SGX.quote, CLAIMS)
    with pytest.raises(AttestationError, match=r"^report data: seen 48656c6c6f.*, accepted "):
        authenticate(evidence, nonce=CLAIMS.nonce, root=INTEL, source=source, now=SGX.day)


def test_sev_snp_is_refused_with_the_reason() -> None:
    rules = policy(sgx={"mr_enclave": [OTHER]})
    evidence = Evidence(Kind.SEV_SNP, bytes(1184), CLAIMS)
    with pytest.raises(AttestationError, match=r"^tee: seen sev-snp, .*maintained library"):
        Verifier(rules).verify(evidence, nonce=CLAIMS.nonce)


def test_only_a_check_makes_verified_values() -> None:
    quote = verified(SGX)
    for forged in (object(), None, True):
        with pytest.raises(TypeError, match="only a passed check"):
            replace(quote, tcb_status="UpToDate", passed=forged)
        with pytest.raises(TypeError, match="only a passed check"):
            VerifiedEvidence("m", None, forged)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        quote.tcb_status = "UpToDate"  # type: ignore[misc]


def test_messages_carry_no_control_characters() -> None:
    shown = printable("a\x1b[2J\nb\u202e" + "x" * 1000)
    assert shown.startswith("a\\x1b[2J b\\u202exx") and len(shown) <= 300
    assert shown.isprintable()


def test_the_error_has_its_exit_code() -> None:
    assert issubclass(AttestationError, VesselsError) and AttestationError.exit_code == 9
