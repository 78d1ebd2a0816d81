"""Collateral: what Intel signs about platforms, without which a quote cannot be judged.

It is TCB information, the quoting enclave's identity and the revocation lists, each signed and
dated, so it may come from anywhere: a provisioning certificate caching service (PCCS) or a file.
What is expired is refused. What a service gave is kept in the user's cache until it expires, and
asked for anew after :data:`MAX_AGE`, so that a recovery of the TCB is soon seen.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import hashlib
import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import dcap_qvl
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from vessels.attestation.folders import cache_folder
from vessels.attestation.text import printable
from vessels.errors import AttestationError, OutputError
from vessels.files import write_text

INTEL_PCS = dcap_qvl.INTEL_PCS_URL
"""Intel's own service; a PCCS of one's own or a cloud's speaks the same protocol."""

MAX_AGE = timedelta(days=1)
MAX_SIZE = 1 << 22

_ISSUER_CHAINS = ("pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain")
_CRLS = ("root_ca_crl", "pck_crl")
_JSON = ("tcb_info", "qe_identity")

_log = logging.getLogger("vessels")


@dataclass(frozen=True)
class Collateral:
    """Collateral of a known form. Who signed it is checked with the quote.

    ``text`` is its JSON as ``dcap-qvl`` writes it; ``expires`` is when the first part of it does.
    """

    text: str
    source: str
    expires: datetime

    @classmethod
    def parse(cls, text: str, source: str) -> Collateral:
        """The collateral in ``text``. Raises :class:`AttestationError`, which names ``source``."""
        try:
            fields = json.loads(dcap_qvl.QuoteCollateralV3.from_json(text).to_json())
            # The chain of the platform's key is the quote's own, never another.
            fields.pop("pck_certificate_chain", None)
            expires = min(_expiries(fields))
        except Exception as error:  # Whatever a decoder may raise: the text is anybody's.
            raise AttestationError(f"collateral: {source} holds none that can be read.") from error
        return cls(json.dumps(fields), source, expires)

    def check_current(self, now: datetime) -> None:
        """Raises :class:`AttestationError` when a part of the collateral has expired."""
        if now >= self.expires:
            raise AttestationError(
                f"collateral: {self.source} expired on {_day(self.expires)}, "
                f"and it is {_day(now)}; fetch it anew."
            )

    def issuers(self, kind: str) -> list[bytes]:
        """The certificates (DER) of who signed ``kind``, ``tcb_info`` or ``qe_identity``."""
        chain = json.loads(self.text)[f"{kind}_issuer_chain"]
        return [_der(c) for c in x509.load_pem_x509_certificates(chain.encode())]

    def for_library(self) -> dcap_qvl.QuoteCollateralV3:
        """The collateral as ``dcap-qvl`` takes it."""
        return dcap_qvl.QuoteCollateralV3.from_json(self.text)


class CollateralSource(Protocol):
    """Where a verifier gets collateral from."""

    def get(self, quote: bytes, now: datetime) -> Collateral:
        """Current collateral for ``quote``. Raises :class:`AttestationError`."""
        ...


@dataclass(frozen=True)
class CollateralFile:
    """Collateral in a file, as JSON, fetched by somebody before."""

    path: Path

    def get(self, quote: bytes, now: datetime) -> Collateral:
        """What is in the file, whatever platform ``quote`` is of; the verification finds out."""
        try:
            with self.path.open("rb") as file:
                text = file.read(MAX_SIZE + 1)
        except OSError as error:
            raise AttestationError(
                f"collateral: cannot read {self.path}: {error.strerror}."
            ) from error
        if len(text) > MAX_SIZE:
            raise AttestationError(f"collateral: {self.path} is too large to be any.")
        collateral = Collateral.parse(text.decode(errors="replace"), str(self.path))
        collateral.check_current(now)
        return collateral


@dataclass(frozen=True)
class CollateralService:
    """Collateral from a PCCS at ``url``, kept in ``folder`` (default: the user's cache)."""

    url: str = INTEL_PCS
    folder: Path | None = None
    timeout: timedelta = timedelta(seconds=30)

    def get(self, quote: bytes, now: datetime) -> Collateral:
        """From the cache while it is young, else from the service, else from the cache again.

        Blocks while it asks the service; a caller with an event loop uses a thread.
        """
        path = self._cached_path(quote)
        cached, age = self._cached(path, now)
        if cached is not None and age < MAX_AGE:
            return cached
        try:
            fetched = Collateral.parse(self._fetch(quote), self.url)
            fetched.check_current(now)
        except AttestationError as error:
            if cached is None:
                raise
            _log.warning("%s Using what was fetched %d days ago.", error, age.days)
            return cached
        self._keep(path, fetched, now)
        return fetched

    def _cached_path(self, quote: bytes) -> Path:
        """One file for each service, kind of TEE, platform model and certificate authority."""
        try:
            parsed = dcap_qvl.parse_quote(quote)
            of = [self.url, parsed.quote_type(), parsed.fmspc(), parsed.ca()]
        except ValueError as error:
            raise AttestationError(f"quote: it is malformed: {printable(error)}.") from error
        name = hashlib.sha256(json.dumps(of).encode()).hexdigest()[:32]
        return (self.folder or cache_folder() / "collateral") / f"{name}.json"

    def _cached(self, path: Path, now: datetime) -> tuple[Collateral | None, timedelta]:
        """What is kept at ``path``, and its age; nothing where it is expired or broken."""
        try:
            kept = json.loads(path.read_text())
            age = now - datetime.fromisoformat(kept["fetched"])
            collateral = Collateral.parse(kept["collateral"], f"{self.url} (cached)")
            collateral.check_current(now)
        except (OSError, ValueError, TypeError, KeyError, AttestationError):
            return None, timedelta()
        # A clock that was set back makes the age negative: ask again.
        return collateral, age if age >= timedelta() else MAX_AGE

    def _fetch(self, quote: bytes) -> str:
        async def fetch() -> str:
            waiting = dcap_qvl.get_collateral(self.url, quote)
            collateral = await asyncio.wait_for(waiting, self.timeout.total_seconds())
            text: str = collateral.to_json()
            return text

        try:
            # A thread of its own: the caller's may have an event loop already.
            with concurrent.futures.ThreadPoolExecutor(1) as thread:
                return thread.submit(asyncio.run, fetch()).result()
        except (ValueError, RuntimeError, TimeoutError) as error:
            late = isinstance(error, TimeoutError)
            what = "it did not answer in time" if late else printable(error)
            raise AttestationError(f"collateral: {self.url} gave none: {what}.") from error

    def _keep(self, path: Path, collateral: Collateral, now: datetime) -> None:
        kept = {
            "fetched": now.isoformat(),
            "expires": collateral.expires.isoformat(),
            "collateral": collateral.text,
        }

        # Who has no cache asks again; that is no reason to refuse evidence.
        with contextlib.suppress(OSError, OutputError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(kept))


def _expiries(fields: dict[str, Any]) -> list[datetime]:
    found = [_time(json.loads(fields[name])["nextUpdate"]) for name in _JSON]
    for name in _CRLS:
        update = x509.load_der_x509_crl(bytes.fromhex(fields[name])).next_update_utc
        if update is None:
            raise ValueError("a revocation list that never expires")
        found.append(update)
    for name in _ISSUER_CHAINS:
        chain = x509.load_pem_x509_certificates(fields[name].encode())
        found += [c.not_valid_after_utc for c in chain]
    return found


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _der(certificate: x509.Certificate) -> bytes:

    return certificate.public_bytes(Encoding.DER)


def _day(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
