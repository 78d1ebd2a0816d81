"""Collateral: from a service, from a file, from the cache, and never expired."""

from __future__ import annotations

import json
import logging
import urllib.parse
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.attestation import SGX, TDX, Recorded
from tests.http_running import LocalServer, QuietHandler, running
from vessels.attestation import INTEL, Collateral, CollateralFile, CollateralService, verify_quote
from vessels.attestation.collateral import MAX_AGE, MAX_SIZE
from vessels.attestation.folders import cache_folder, state_folder
from vessels.errors import AttestationError


class Pccs(LocalServer):
    """A PCCS that serves the recorded collateral of one quote, and counts what it is asked."""

    def __init__(self, recorded: Recorded) -> None:
        super().__init__(_Handler)
        self.fields = json.loads(recorded.collateral_file.read_text())
        self.asked: list[str] = []
        self.broken = False


class _Handler(QuietHandler):
    server: Pccs

    def do_GET(self) -> None:
        path = urllib.parse.urlsplit(self.path).path
        self.server.asked.append(path)
        f = self.server.fields
        answers = {
            "pckcrl": (
                "pck_crl_issuer_chain",
                "SGX-PCK-CRL-Issuer-Chain",
                bytes.fromhex(f["pck_crl"]),
            ),
            "tcb": (
                "tcb_info_issuer_chain",
                "TCB-Info-Issuer-Chain",
                self._signed("tcbInfo", "tcb_info"),
            ),
            "identity": (
                "qe_identity_issuer_chain",
                "SGX-Enclave-Identity-Issuer-Chain",
                self._signed("enclaveIdentity", "qe_identity"),
            ),
            "rootcacrl": ("tcb_info_issuer_chain", "X-Unused", f["root_ca_crl"].encode()),
        }
        chain, header, body = answers[path.rsplit("/", 1)[1]]
        status = 500 if self.server.broken else 200
        self.answer(status, body, **{header: urllib.parse.quote(f[chain])})

    def _signed(self, name: str, field: str) -> bytes:
        signature = self.server.fields[f"{field}_signature"]
        return f'{{"{name}":{self.server.fields[field]},"signature":"{signature}"}}'.encode()


@pytest.fixture
def pccs() -> Iterator[Pccs]:
    with running(Pccs(TDX)) as server:
        yield server


@pytest.fixture
def service(pccs: Pccs, tmp_path: Path) -> CollateralService:
    return CollateralService(pccs.url, tmp_path / "cache")


def test_fetched_collateral_verifies(service: CollateralService) -> None:
    collateral = service.get(TDX.quote, TDX.day)
    quote = verify_quote(TDX.quote, collateral, root=INTEL, now=TDX.day)
    assert quote.tcb_status == "UpToDate"
    assert collateral.expires == TDX.collateral.expires


def test_cached_until_it_is_a_day_old(service: CollateralService, pccs: Pccs) -> None:
    first = service.get(TDX.quote, TDX.day)
    asked = len(pccs.asked)
    again = service.get(TDX.quote, TDX.day + MAX_AGE - timedelta(seconds=1))
    assert len(pccs.asked) == asked and again.text == first.text
    service.get(TDX.quote, TDX.day + MAX_AGE)
    assert len(pccs.asked) == 2 * asked


def test_cache_survives_a_service_that_is_down(
    service: CollateralService, pccs: Pccs, caplog: pytest.LogCaptureFixture
) -> None:
    service.get(TDX.quote, TDX.day)
    pccs.broken = True
    with caplog.at_level(logging.WARNING, "vessels"):
        service.get(TDX.quote, TDX.day + timedelta(days=5))
    assert "HTTP 500" in caplog.text and "5 days ago" in caplog.text


def test_expired_cache_does_not_help(service: CollateralService, pccs: Pccs) -> None:
    service.get(TDX.quote, TDX.day)
    with pytest.raises(AttestationError, match=r"^collateral: http://127.* expired on 2025-07-19"):
        service.get(TDX.quote, TDX.day + timedelta(days=40))
    pccs.broken = True
    with pytest.raises(AttestationError, match=r"^collateral: http://127.* gave none: "):
        service.get(TDX.quote, TDX.day + timedelta(days=40))


def test_a_broken_cache_is_fetched_anew(service: CollateralService, pccs: Pccs) -> None:
    first = service.get(TDX.quote, TDX.day)
    assert service.folder is not None
    [kept] = service.folder.iterdir()
    good = kept.read_text()
    for broken in ("", "{}", "[]", good[:-9], json.dumps(json.loads(good) | {"collateral": "{}"})):
        kept.write_text(broken)
        asked = len(pccs.asked)
        assert service.get(TDX.quote, TDX.day).text == first.text
        assert len(pccs.asked) > asked


def test_a_clock_set_back_asks_again(service: CollateralService, pccs: Pccs) -> None:
    service.get(TDX.quote, TDX.day)
    asked = len(pccs.asked)
    service.get(TDX.quote, TDX.day - timedelta(hours=1))
    assert len(pccs.asked) > asked


def test_platforms_do_not_share_a_cache(service: CollateralService) -> None:
    paths = {
        service._cached_path(TDX.quote),
        service._cached_path(SGX.quote),
        replace(service, url="http://other")._cached_path(TDX.quote),
    }
    assert len(paths) == 3


def test_a_cache_that_cannot_be_written_is_no_reason_to_refuse(pccs: Pccs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    service = CollateralService(pccs.url, tmp_path / "file" / "cache")
    assert service.get(TDX.quote, TDX.day).expires == TDX.collateral.expires


def test_nobody_listens(tmp_path: Path) -> None:
    service = CollateralService("http://127.0.0.1:9", tmp_path)
    with pytest.raises(AttestationError, match=r"^collateral: http://127.0.0.1:9 gave none: "):
        service.get(TDX.quote, TDX.day)


def test_from_a_file(tmp_path: Path) -> None:
    found = CollateralFile(TDX.collateral_file).get(TDX.quote, TDX.day)
    verify_quote(TDX.quote, found, root=INTEL, now=TDX.day)
    with pytest.raises(AttestationError, match=r"^collateral: .*\.json expired on 2025-07-19"):
        CollateralFile(TDX.collateral_file).get(TDX.quote, TDX.day + timedelta(days=40))
    with pytest.raises(AttestationError, match=r"^collateral: cannot read .*/none: No such file"):
        CollateralFile(tmp_path / "none").get(TDX.quote, TDX.day)
    large = tmp_path / "large"
    large.write_bytes(bytes(MAX_SIZE + 1))
    with pytest.raises(AttestationError, match="too large"):
        CollateralFile(large).get(TDX.quote, TDX.day)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "\0"])
def test_what_is_no_collateral_is_refused(text: str) -> None:
    with pytest.raises(AttestationError, match=r"^collateral: here holds none that can be read"):
        Collateral.parse(text, "here")


@pytest.mark.parametrize("field", ["tcb_info", "qe_identity", "pck_crl", "root_ca_crl"])
def test_broken_parts_are_refused(field: str) -> None:
    fields = json.loads(TDX.collateral.text)
    fields[field] = fields[field][: len(fields[field]) // 2]
    with pytest.raises(AttestationError, match=r"^collateral: "):
        Collateral.parse(json.dumps(fields), "here")


def test_the_platforms_chain_is_the_quotes_own() -> None:
    fields = json.loads(TDX.collateral.text) | {"pck_certificate_chain": INTEL.pem}
    collateral = Collateral.parse(json.dumps(fields), "here")
    assert "pck_certificate_chain" not in json.loads(collateral.text)
    verify_quote(TDX.quote, collateral, root=INTEL, now=TDX.day)


def test_folders_follow_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "vessels"
    assert state_folder() == tmp_path / "home" / ".local" / "state" / "vessels"
