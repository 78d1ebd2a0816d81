"""A simulation of SGX's attestation, for development and tests. IT PROTECTS NOTHING.

It makes quotes and collateral of the same formats as Intel's, under a root of its own that lies
in the user's state folder, so that one path of code verifies both. Whoever has the root's key can
make any enclave seem to run anywhere; a verifier trusts it only through the policy's
``insecure_simulation_root``.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from vessels.attestation.evidence import Claims, Evidence, Kind
from vessels.attestation.folders import state_folder
from vessels.attestation.roots import Root
from vessels.errors import AttestationError, OutputError

ROOT_FILE = "simulation-root.pem"

FMSPC = b"VESSEL"
"""The platform's model; six bytes."""

CPU_SVN = bytes([2] * 8 + [0] * 8)
PCE_SVN = 13
TCB_EVALUATION = 1
MR_SIGNER = hashlib.sha256(b"vessels simulation signer").digest()

_LIFE = timedelta(days=3650)
_CURRENT = timedelta(days=30)
_SKEW = timedelta(hours=1)
_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_QE_SIGNER = hashlib.sha256(b"vessels simulation quoting enclave").digest()
_QE_SVN = 1
_FLAGS_64_BIT = 0b101
_FLAG_DEBUG = 0b010
_SGX_EXTENSION = "1.2.840.113741.1.13.1"
# DER of that identifier without its length; those below it append one byte or two.
_SGX_ARC = bytes.fromhex("2a864886f84d010d01")


@dataclass(frozen=True)
class SimulationRoot:
    """The root's key and certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls, now: datetime) -> SimulationRoot:
        """A new root, kept nowhere."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("Vessels Simulation Root CA - INSECURE")
        certificate = _certificate(name, key.public_key(), name, key, now, ca=1)
        return cls(key, certificate)

    @classmethod
    def load_or_create(cls, folder: Path | None = None) -> SimulationRoot:
        """The root in ``folder`` (default: the user's state), made at first use, mode 0600.

        Raises :class:`AttestationError` where the file is broken, :class:`OutputError` where it
        cannot be made.
        """
        path = (folder or state_folder()) / ROOT_FILE
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                _write_secret(path, cls.create(datetime.now(UTC))._pem())
            pem = path.read_bytes()
        except OSError as error:
            raise OutputError(
                f"cannot make the simulation's root {path}: {error.strerror}."
            ) from error
        try:
            key = load_pem_private_key(pem, None)
            [certificate] = x509.load_pem_x509_certificates(pem)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise ValueError("another kind of key")
        except ValueError as error:
            raise AttestationError(
                f"the simulation's root {path} is broken; remove it, and a new one is made."
            ) from error
        return cls(key, certificate)

    def _pem(self) -> bytes:
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return key + self.certificate.public_bytes(Encoding.PEM)

    @property
    def trusted(self) -> Root:
        """The certificate, for a policy that trusts it."""
        return Root(self.certificate.public_bytes(Encoding.DER), simulated=True)


@dataclass(frozen=True)
class Enclave:
    """What the simulated hardware says of an enclave."""

    mr_enclave: bytes
    mr_signer: bytes = MR_SIGNER
    isv_prod_id: int = 0
    isv_svn: int = 0
    debug: bool = False

    @classmethod
    def of_binary(cls, binary: Path) -> Enclave:
        """A program as its own measurement: SHA-256 of the file. No hardware measures it."""
        with binary.open("rb") as file:
            return cls(hashlib.file_digest(file, "sha256").digest())


@dataclass(frozen=True)
class Platform:
    """A simulated machine under a root: its keys, and the certificates of all who sign.

    ``tcb_status`` and ``advisories`` are what the root says of it.
    """

    root: SimulationRoot
    made: datetime
    tcb_status: str
    advisories: tuple[str, ...]
    _ca: tuple[ec.EllipticCurvePrivateKey, x509.Certificate] = field(repr=False)
    _pck: tuple[ec.EllipticCurvePrivateKey, x509.Certificate] = field(repr=False)
    _tcb: tuple[ec.EllipticCurvePrivateKey, x509.Certificate] = field(repr=False)
    _attestation: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def create(
        cls,
        root: SimulationRoot,
        *,
        now: datetime | None = None,
        tcb_status: str = "UpToDate",
        advisories: Iterable[str] = (),
    ) -> Platform:
        """A new platform, valid from ``now`` on."""
        made = now or datetime.now(UTC)
        ca, pck, tcb, attestation = (ec.generate_private_key(ec.SECP256R1()) for _ in range(4))
        above = root.certificate.subject
        ca_name = _name("Vessels Simulation PCK Processor CA - INSECURE")
        return cls(
            root=root,
            made=made,
            tcb_status=tcb_status,
            advisories=tuple(advisories),
            _ca=(ca, _certificate(ca_name, ca.public_key(), above, root.key, made, ca=0)),
            _pck=(
                pck,
                _certificate(
                    _name("Vessels Simulation PCK Certificate - INSECURE"), pck.public_key(),
                    ca_name, ca, made, sgx=_sgx_extension(),
                ),
            ),
            _tcb=(
                tcb,
                _certificate(
                    _name("Vessels Simulation TCB Signing - INSECURE"), tcb.public_key(),
                    above, root.key, made,
                ),
            ),
            _attestation=attestation,
        )  # fmt: skip

    def evidence(
        self, claims: Claims, enclave: Enclave, *, now: datetime | None = None
    ) -> Evidence:
        """The evidence that ``enclave`` makes ``claims``, with its collateral."""
        quote = self.quote(claims.report_data(), enclave)
        return Evidence(Kind.DCAP, quote, claims, self.collateral(now=now))

    def quote(self, report_data: bytes, enclave: Enclave) -> bytes:
        """An SGX quote, version 3, with an ECDSA key on P-256."""
        header = struct.pack("<HHIHH", 3, 2, 0, _QE_SVN, PCE_SVN) + _QE_VENDOR + bytes(20)
        signed = header + _report(enclave, report_data)
        public = _raw_public_key(self._attestation)
        authentication = bytes(32)
        bound = hashlib.sha256(public + authentication).digest()
        quoting = Enclave(
            mr_enclave=bytes(32), mr_signer=_QE_SIGNER, isv_prod_id=1, isv_svn=_QE_SVN
        )
        qe_report = _report(quoting, bound.ljust(64, b"\0"))
        chain = self._chain(self._pck[1], self._ca[1], self.root.certificate).encode()
        signature = b"".join((
            _sign(self._attestation, signed), public,
            qe_report, _sign(self._pck[0], qe_report),
            struct.pack("<H", len(authentication)), authentication,
            struct.pack("<HI", 5, len(chain)), chain,
        ))  # fmt: skip
        return signed + struct.pack("<I", len(signature)) + signature

    def collateral(self, *, now: datetime | None = None) -> str:
        """What the root says of this platform, as of ``now`` and for thirty days."""
        time = now or datetime.now(UTC)
        info = json.dumps(self._tcb_info(time), separators=(",", ":"))
        identity = json.dumps(_qe_identity(time), separators=(",", ":"))
        issuers = self._chain(self._tcb[1], self.root.certificate)
        root_name, ca_name = self.root.certificate.subject, self._ca[1].subject
        return json.dumps({
            "pck_crl_issuer_chain": self._chain(self._ca[1], self.root.certificate),
            "root_ca_crl": _empty_crl(root_name, self.root.key, time).hex(),
            "pck_crl": _empty_crl(ca_name, self._ca[0], time).hex(),
            "tcb_info_issuer_chain": issuers,
            "tcb_info": info,
            "tcb_info_signature": _sign(self._tcb[0], info.encode()).hex(),
            "qe_identity_issuer_chain": issuers,
            "qe_identity": identity,
            "qe_identity_signature": _sign(self._tcb[0], identity.encode()).hex(),
        })  # fmt: skip

    def _tcb_info(self, now: datetime) -> dict[str, object]:
        level = {
            "tcb": {"sgxtcbcomponents": [{"svn": svn} for svn in CPU_SVN], "pcesvn": PCE_SVN},
            "tcbDate": _iso(self.made),
            "tcbStatus": self.tcb_status,
            "advisoryIDs": list(self.advisories),
        }
        return {
            "id": "SGX", "version": 3, **_dates(now), "fmspc": FMSPC.hex().upper(),
            "pceId": "0000", "tcbType": 0, "tcbEvaluationDataNumber": TCB_EVALUATION,
            "tcbLevels": [level],
        }  # fmt: skip

    @staticmethod
    def _chain(*certificates: x509.Certificate) -> str:
        return b"".join(c.public_bytes(Encoding.PEM) for c in certificates).decode()


def _qe_identity(now: datetime) -> dict[str, object]:
    level = {"tcb": {"isvsvn": _QE_SVN}, "tcbDate": _iso(now), "tcbStatus": "UpToDate"}
    return {
        "id": "QE", "version": 2, **_dates(now), "tcbEvaluationDataNumber": TCB_EVALUATION,
        "miscselect": "00000000", "miscselectMask": "FFFFFFFF",
        "attributes": struct.pack("<QQ", _FLAGS_64_BIT, 0).hex(),
        "attributesMask": "FF" * 8 + "00" * 8,
        "mrsigner": _QE_SIGNER.hex().upper(), "isvprodid": 1, "tcbLevels": [level],
    }  # fmt: skip


def _report(enclave: Enclave, report_data: bytes) -> bytes:
    """The 384 bytes of an SGX report."""
    flags = _FLAGS_64_BIT | (_FLAG_DEBUG if enclave.debug else 0)
    return b"".join((
        CPU_SVN, bytes(4 + 28), struct.pack("<QQ", flags, 0b111),
        enclave.mr_enclave, bytes(32), enclave.mr_signer, bytes(96),
        struct.pack("<HH", enclave.isv_prod_id, enclave.isv_svn), bytes(60), report_data,
    ))  # fmt: skip


def _sgx_extension() -> bytes:
    """What a platform's certificate says of it: Intel's extension of PCK certificates."""
    tcb = [_entry(2, i + 1, value=_tlv(0x02, bytes([svn]))) for i, svn in enumerate(CPU_SVN)]
    tcb += [
        _entry(2, 17, value=_tlv(0x02, bytes([PCE_SVN]))),
        _entry(2, 18, value=_tlv(0x04, CPU_SVN)),
    ]
    return _tlv(
        0x30,
        _entry(1, value=_tlv(0x04, hashlib.sha256(FMSPC).digest()[:16])),
        _entry(2, value=_tlv(0x30, *tcb)),
        _entry(3, value=_tlv(0x04, bytes(2))),
        _entry(4, value=_tlv(0x04, FMSPC)),
        _entry(5, value=_tlv(0x0A, bytes(1))),
    )


def _entry(*arc: int, value: bytes) -> bytes:
    return _tlv(0x30, _tlv(0x06, _SGX_ARC + bytes(arc)), value)


def _tlv(tag: int, *content: bytes) -> bytes:
    """DER of one element."""
    body = b"".join(content)
    if len(body) < 0x80:
        return bytes([tag, len(body)]) + body
    size = len(body).to_bytes(2, "big").lstrip(b"\0")
    return bytes([tag, 0x80 | len(size)]) + size + body


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    *,
    ca: int | None = None,
    sgx: bytes | None = None,
) -> x509.Certificate:
    """A certificate; of an authority where ``ca`` says how many others may stand below it."""
    authority = ca is not None
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _LIFE)
        .add_extension(x509.BasicConstraints(authority, ca), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not authority, content_commitment=False,
                key_encipherment=False, data_encipherment=False, key_agreement=False,
                key_cert_sign=authority, crl_sign=authority, encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )  # fmt: skip
    if sgx is not None:
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(_SGX_EXTENSION), sgx)
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _empty_crl(issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime) -> bytes:
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    revoked_none = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer)
        .last_update(now - _SKEW)
        .next_update(now + _CURRENT)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(authority, critical=False)
    )
    return revoked_none.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def _dates(now: datetime) -> dict[str, str]:
    return {"issueDate": _iso(now - _SKEW), "nextUpdate": _iso(now + _CURRENT)}


def _iso(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _raw_public_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    numbers = key.public_key().public_numbers()
    return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")


def _sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """ECDSA with SHA-256, as its two numbers of 32 bytes."""
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _write_secret(path: Path, content: bytes) -> None:
    """Write ``path`` (mode 0600) whole; where another process was first, its file stays."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
    finally:
        temporary.unlink()
