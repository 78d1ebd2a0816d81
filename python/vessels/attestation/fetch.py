"""Asking a server for evidence.

``GET URL/vessels/v1/models/NAME/evidence?nonce=HEX`` is answered with the evidence as CBOR.
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request

from vessels.attestation.evidence import MAX_SIZE, Evidence
from vessels.attestation.text import printable
from vessels.errors import AttestationError, UsageError

MEDIA_TYPE = "application/cbor"


def evidence_url(url: str, model: str, nonce: bytes) -> str:
    """Where a server at ``url`` gives the evidence of ``model``. Raises :class:`UsageError`."""
    try:
        scheme = urllib.parse.urlsplit(url).scheme
    except ValueError:
        scheme = ""
    if scheme not in ("http", "https"):
        raise UsageError(f"{url!r} is no URL of a server; write one like http://host:8080.")
    name = urllib.parse.quote(model, safe="")
    return f"{url.rstrip('/')}/vessels/v1/models/{name}/evidence?nonce={nonce.hex()}"


def fetch_evidence(url: str, model: str, nonce: bytes, *, timeout: float = 10.0) -> Evidence:
    """The evidence of ``model``'s enclave, as a server at ``url`` gives it: nothing is checked.

    Raises :class:`AttestationError` when there is none, :class:`UsageError` for a wrong URL.
    """
    request = urllib.request.Request(
        evidence_url(url, model, nonce), headers={"Accept": MEDIA_TYPE}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            body: bytes = response.read(MAX_SIZE + 1)
    except urllib.error.HTTPError as error:
        raise AttestationError(
            f"evidence: {url} gave none for model {model!r}: "
            f"HTTP {error.code} {printable(error.reason)}."
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise AttestationError(f"evidence: {url} gave none: {printable(error)}.") from error
    return Evidence.decode(body)
