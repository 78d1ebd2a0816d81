"""The one form in which a DCAP quote is accepted.

A quote is signed in part only: its lengths, its certificates' text and what follows them are
not, and a lenient parser takes many texts for one. So before a quote is verified its form is
checked: every length fits, the certificates are written as they would be written anew and end in
the trusted root, and only zeros follow. After that no byte of an accepted quote can be another.
Nothing here is authenticated; :mod:`vessels.attestation.verify` does that.

Layouts: Intel SGX ECDSA QuoteGenReference (version 3) and Intel TDX DCAP Quote Generation Library
(versions 4 and 5). All integers are little-endian.
"""

from __future__ import annotations

import struct

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from vessels.attestation.roots import Root
from vessels.attestation.text import printable
from vessels.errors import AttestationError

HEADER_SIZE = 48
SGX_REPORT_SIZE = 384
TD_REPORT_SIZE = 584
SIGNATURE_SIZE = 64
PUBLIC_KEY_SIZE = 64
MAX_PADDING_SIZE = 1 << 16

PCK_CHAIN = 5
QE_REPORT = 6

_TD_BODIES = {2: 584, 3: 648, 4: 885}
_CHAIN_LENGTH = 3


class _Reader:
    """Takes a quote apart from its beginning; refuses to go past its end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        if len(self.data) - self.at < size:
            raise _malformed(f"it ends at byte {len(self.data)}, within a part")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, format: str) -> int:
        packed = struct.Struct(format)
        [value] = packed.unpack(self.take(packed.size))
        return int(value)

    def nested(self, size: int) -> _Reader:
        return _Reader(self.take(size))

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.at)


def check_form(quote: bytes, root: Root) -> None:
    """Refuse ``quote`` unless it is in the one form. Raises :class:`AttestationError`."""
    reader = _Reader(quote)
    version = reader.number("<H")
    reader.take(HEADER_SIZE - 2)
    if version == 3:
        reader.take(SGX_REPORT_SIZE)
    elif version == 4:
        reader.take(TD_REPORT_SIZE)
    elif version == 5:
        body, size = reader.number("<H"), reader.number("<I")
        if _TD_BODIES.get(body) != size:
            raise _malformed(f"a body of type {body} and {size} bytes is not known")
        reader.take(size)
    else:
        raise _malformed(f"version {version} is not known; 3, 4 and 5 are")
    signed = reader.nested(reader.number("<I"))
    padding = reader.rest()
    if any(padding) or len(padding) > MAX_PADDING_SIZE:
        raise _malformed(f"{len(padding)} bytes follow it that are not padding")
    signed.take(SIGNATURE_SIZE + PUBLIC_KEY_SIZE)
    if version > 3:
        signed = _certification(signed, QE_REPORT)
    signed.take(SGX_REPORT_SIZE + SIGNATURE_SIZE)
    signed.take(signed.number("<H"))
    _check_chain(_certification(signed, PCK_CHAIN).rest(), root)


def _certification(reader: _Reader, due: int) -> _Reader:
    """The certification data that is all the rest of ``reader``."""
    kind, size = reader.number("<H"), reader.number("<I")
    if kind != due:
        raise _malformed(f"its certification data is of type {kind}, where {due} is due")
    data = reader.nested(size)
    if left := reader.rest():
        raise _malformed(f"{len(left)} bytes follow its certification data")
    return data


def _check_chain(pem: bytes, root: Root) -> None:
    text = pem.removesuffix(b"\0")
    certificates = canonical_chain(text)
    if certificates is None or len(certificates) != _CHAIN_LENGTH:
        raise _malformed("its certificates are not a chain of three in canonical form")
    if certificates[-1] != root.der:
        raise AttestationError(
            f"root: seen {_subject(certificates[-1])}, "
            f"accepted {_subject(root.der)} ({root.fingerprint[:16]})."
        )


def canonical_chain(pem: bytes) -> list[bytes] | None:
    """The certificates (DER) in ``pem``; none where it is not what writing them would give."""
    try:
        certificates = x509.load_pem_x509_certificates(pem)
        if b"".join(c.public_bytes(Encoding.PEM) for c in certificates) != pem:
            return None
        return [c.public_bytes(Encoding.DER) for c in certificates]
    except Exception:  # Whatever a parser may raise: the bytes are anybody's.
        return None


def _subject(certificate: bytes) -> str:
    try:
        return printable(x509.load_der_x509_certificate(certificate).subject.rfc4514_string())
    except Exception:  # As above.
        return "a certificate that cannot be read"


def _malformed(what: str) -> AttestationError:
    return AttestationError(f"quote: it is malformed: {what}.")
