"""What is sealed for an enclave, and how its answers are opened: ``docs/messages.md``.

A message is sealed with HPKE (RFC 9180) to the public key that an enclave's evidence binds, and
its answer is keyed from the same exchange, so that it can answer nothing else. Who verified the
evidence first is the only one who may be sure of who reads it.

The messages of errors begin with the number of the rule that is broken.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

import cbor2
import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from pyhpke import AEADId, CipherSuite, KDFId, KEMId, KEMKeyPair, PyHPKEError
from pyhpke.context_interface import ContextInterface

from vessels.errors import EnclaveError, RequestError, UsageError
from vessels.ports import Port
from vessels.program import DType
from vessels.seal import KEY_SIZE

Array = np.ndarray[Any, Any]
T = TypeVar("T")

SUITE = bytes.fromhex("002000010002")
"""DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM; as evidence names it."""

PUBLIC_SIZE = 32
NONCE_SIZE = 32
TAG_SIZE = 16
VERSION = 1
MAX_SIZE = 1 << 40
CONTENT_OFFSET = 64
"""Where the content begins in an enclave's memory for a message."""

_KEY_INFO = b"vessels key v1"
_REQUEST_INFO = b"vessels request v1"
_RESPONSE_LABEL = b"vessels response v1"
_PREDICT, _DESCRIBE = 1, 2
_OUTPUTS, _DESCRIPTION, _ERROR = 1, 2, 3
_ALIGNMENT = 64
_SLACK = 4096
_MAX_ERROR_SIZE = 640
_HEAD = struct.Struct("<BBHI")

_CIPHERS = CipherSuite.new(KEMId.DHKEM_X25519_HKDF_SHA256, KDFId.HKDF_SHA256, AEADId.AES256_GCM)


def seal_key(
    public_key: bytes, model_digest: bytes, key: bytes, *, ephemeral: KEMKeyPair | None = None
) -> bytes:
    """``key``, the 32 bytes of a model key, for the enclave with ``public_key`` alone.

    ``ephemeral`` is for test vectors. Raises :class:`UsageError` for a key of another size, and
    :class:`EnclaveError` for what is no public key.
    """
    if len(key) != KEY_SIZE:
        raise UsageError(f"a model key has {KEY_SIZE} bytes, this one {len(key)}.")
    enc, context = _sender(public_key, _KEY_INFO, ephemeral)
    return enc + context.seal(key, model_digest)


class HasShape(Protocol):
    """A named tensor as a header or a program lists it."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> DType: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class MessageSizes:
    """Bytes of the contents of a model's messages, sealed or not.

    ``request`` is a right request for a prediction, ``response`` its answer, ``largest_request``
    the largest that is read. ``memory`` is what an enclave keeps for one message at a time: in the
    arena, or where that is smaller, beside the pool.
    """

    request: int
    response: int
    largest_request: int
    memory: int

    @classmethod
    def of(cls, inputs: Iterable[HasShape], outputs: Iterable[HasShape]) -> MessageSizes:
        """Those of a model with these inputs and outputs."""
        given, due = _listed(inputs), _listed(outputs)
        request, response = _size(_PREDICT, given), _size(_OUTPUTS, due)
        largest = request + _SLACK
        description = len(_front(_DESCRIPTION, [given, due]))
        content = max(largest, response, description, _MAX_ERROR_SIZE)
        return cls(request, response, largest, padded(CONTENT_OFFSET + content + TAG_SIZE))


def request_size(inputs: Iterable[HasShape]) -> int:
    """Bytes of the largest sealed request that a model with these inputs reads."""
    return PUBLIC_SIZE + _size(_PREDICT, _listed(inputs)) + _SLACK + TAG_SIZE


def response_size(outputs: Iterable[HasShape]) -> int:
    """Bytes of the sealed response with these outputs."""
    return NONCE_SIZE + _size(_OUTPUTS, _listed(outputs)) + TAG_SIZE


_Listed = list[tuple[str, int, list[int]]]


def _listed(ports: Iterable[HasShape]) -> _Listed:
    return [(p.name, int(p.dtype), list(p.shape)) for p in ports]


def _size(kind: int, ports: _Listed) -> int:
    """Bytes of a message of tensors."""
    tensors = (padded(DType(code).size * math.prod(shape)) for _, code, shape in ports)
    return len(_front(kind, ports)) + sum(tensors)


@dataclass(frozen=True)
class ResponseOpener(Generic[T]):
    """Opens the answer to one request, and no other."""

    _enc: bytes
    _secret: bytes
    _kind: int

    def open(self, sealed: bytes) -> T:
        """The outputs by name; or of a description, the model's inputs and outputs.

        Raises :class:`RequestError` for what the enclave refused, and :class:`EnclaveError` when
        ``sealed`` is not the answer to this request: altered, cut, or another's.
        """
        kind, header, content, at = _read(self._unsealed(sealed))
        if kind == _ERROR:
            raise _refusal(header, content[at:])
        if kind != self._kind:
            raise _broken("M12", f"a response of kind {kind}, which answers another question")
        result: Any
        if kind == _OUTPUTS:
            result = _tensors(_ports(header), content, at)
        else:
            if at != len(content):
                raise _broken("M3", "its size")
            if type(header) is not list or len(header) != 2:
                raise _broken("M7", "the form of a description")
            result = _ports(header[0]), _ports(header[1])
        return result  # type: ignore[no-any-return]

    def _unsealed(self, sealed: bytes) -> bytearray:
        nonce = sealed[:NONCE_SIZE]
        if not NONCE_SIZE + TAG_SIZE <= len(sealed) <= MAX_SIZE:
            raise _broken("M11", f"{len(sealed)} bytes")
        key, iv = _answer_key(self._enc, self._secret, nonce)
        plain = bytearray(len(sealed) - NONCE_SIZE - TAG_SIZE)
        try:
            AESGCM(key).decrypt_into(iv, memoryview(sealed)[NONCE_SIZE:], None, plain)
        except InvalidTag:
            raise _broken("M11", "its seal") from None
        return plain


Outputs = dict[str, Array]
Description = tuple[tuple[Port, ...], tuple[Port, ...]]


@dataclass(frozen=True)
class RequestSealer:
    """Seals requests for the model of ``model_digest`` in the enclave with ``public_key``."""

    public_key: bytes
    model_digest: bytes

    def prepare(self, inputs: Mapping[str, Array]) -> Prediction:
        """A request for a prediction, not sealed yet; ``inputs`` must be in the model's order.

        Raises :class:`RequestError` for a dtype that no model takes.
        """
        arrays = {name: np.asarray(array) for name, array in inputs.items()}
        ports = [[name, _code(name, a.dtype), list(a.shape)] for name, a in arrays.items()]
        return Prediction(self, _front(_PREDICT, ports), list(arrays.values()))

    def seal_predict(
        self, inputs: Mapping[str, Array], *, ephemeral: KEMKeyPair | None = None
    ) -> tuple[bytes, ResponseOpener[Outputs]]:
        """As :meth:`prepare`, and sealed. ``ephemeral`` is for test vectors."""
        return self.prepare(inputs).seal(ephemeral=ephemeral)

    def seal_describe(
        self, *, ephemeral: KEMKeyPair | None = None
    ) -> tuple[bytes, ResponseOpener[Description]]:
        """A request for the model's inputs and outputs."""
        return self._seal(_front(_DESCRIBE, []), _DESCRIPTION, ephemeral)

    def _seal(
        self, plain: bytes | bytearray, answer: int, ephemeral: KEMKeyPair | None
    ) -> tuple[bytes, ResponseOpener[Any]]:
        enc, context = _sender(self.public_key, _REQUEST_INFO + self.model_digest, ephemeral)
        secret = context.export(_RESPONSE_LABEL, 32)
        # Any bytes-like will do for the library, which has them as bytes in its types.
        return enc + context.seal(cast(bytes, plain)), ResponseOpener(enc, secret, answer)


@dataclass(frozen=True)
class Prediction:
    """A request for a prediction whose size is known before it is sealed."""

    _sealer: RequestSealer
    _front: bytes
    _arrays: list[Array]

    @property
    def size(self) -> int:
        """Bytes once sealed."""
        return PUBLIC_SIZE + self._plain_size + TAG_SIZE

    @property
    def _plain_size(self) -> int:
        return len(self._front) + sum(padded(a.nbytes) for a in self._arrays)

    def seal(self, *, ephemeral: KEMKeyPair | None = None) -> tuple[bytes, ResponseOpener[Outputs]]:
        """The sealed request and what opens its answer, anew at each call."""
        plain = bytearray(self._plain_size)
        at = len(self._front)
        plain[:at] = self._front
        for array in self._arrays:
            little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
            if little.size:
                np.frombuffer(plain, little.dtype, little.size, at)[:] = little.reshape(-1)
            at += padded(array.nbytes)
        return self._sealer._seal(plain, _OUTPUTS, ephemeral)


def _sender(
    public_key: bytes, info: bytes, ephemeral: KEMKeyPair | None
) -> tuple[bytes, ContextInterface]:
    try:
        receiver = _CIPHERS.kem.deserialize_public_key(public_key)
        return _CIPHERS.create_sender_context(receiver, info, eks=ephemeral)
    except (PyHPKEError, ValueError) as error:
        raise EnclaveError("what the enclave gave for its public key is none.") from error


def _answer_key(enc: bytes, secret: bytes, nonce: bytes) -> tuple[bytes, bytes]:
    """Key and nonce of a response: RFC 9458, section 4.4."""
    extract = HMAC(enc + nonce, SHA256())
    extract.update(secret)
    prk = extract.finalize()
    return HKDFExpand(SHA256(), 32, b"key").derive(prk), HKDFExpand(SHA256(), 12, b"nonce").derive(
        prk
    )


def _front(kind: int, header: Any) -> bytes:
    """All of a message before its tensors."""
    encoded = cbor2.dumps(header, canonical=True)
    front = _HEAD.pack(VERSION, kind, 0, len(encoded)) + encoded
    return front.ljust(padded(len(front)), b"\0")


def _read(plain: bytearray) -> tuple[int, Any, bytearray, int]:
    """Kind and header of a message, all of it, and where its tensors begin."""
    if len(plain) < _HEAD.size:
        raise _broken("M3", "its size")
    version, kind, reserved, size = _HEAD.unpack_from(plain)
    if version != VERSION:
        raise _broken("M4", f"content of version {version}; this build reads {VERSION}")
    if kind not in (_OUTPUTS, _DESCRIPTION, _ERROR):
        raise _broken("M5", f"its unknown kind {kind}")
    if reserved:
        raise _broken("M6", "reserved bytes that are not zero")
    at = padded(_HEAD.size + size)
    if at > len(plain):
        raise _broken("M3", "its size")
    encoded = bytes(plain[_HEAD.size : _HEAD.size + size])
    try:
        header = cbor2.loads(encoded)
        same = cbor2.dumps(header, canonical=True) == encoded
    except Exception as error:  # Whatever a decoder may raise.
        raise _broken("M7", "its header") from error
    if not same:
        raise _broken("M7", "a header that is not in canonical form")
    if any(plain[_HEAD.size + size : at]):
        raise _broken("M8", "padding that is not zero")
    return kind, header, plain, at


def _ports(header: Any) -> tuple[Port, ...]:
    """Names, dtypes and shapes as a header lists them."""
    ports: list[Port] = []
    try:
        for name, code, shape in header:
            if type(name) is not str or type(code) is not int or type(shape) is not list:
                raise ValueError("port")
            if any(type(d) is not int or d < 1 for d in shape):
                raise ValueError("shape")
            ports.append(Port(name, DType(code).numpy, tuple(shape)))
        if len({p.name for p in ports}) != len(ports):
            raise ValueError("two of one name")
    except (TypeError, ValueError) as error:
        raise _broken("M7", "its names, dtypes and shapes") from error
    return tuple(ports)


def _tensors(ports: tuple[Port, ...], content: bytearray, at: int) -> dict[str, Array]:
    """The tensors behind a header; they share the memory of ``content``."""
    sizes = [p.dtype.itemsize * math.prod(p.shape) for p in ports]
    if at + sum(padded(s) for s in sizes) != len(content):
        raise _broken("M3", "its size")
    tensors: dict[str, Array] = {}
    for port, size in zip(ports, sizes, strict=True):
        end = at + padded(size)
        if any(content[at + size : end]):
            raise _broken("M8", "padding that is not zero")
        flat = np.frombuffer(content, port.dtype.newbyteorder("<"), math.prod(port.shape), at)
        tensors[port.name] = flat.astype(port.dtype, copy=False).reshape(port.shape)
        at = end
    return tensors


def _refusal(header: Any, rest: bytearray) -> Exception:
    """The error that a response tells."""
    if rest:
        return _broken("M3", "its size")
    if type(header) is not list or [type(f) for f in header] != [str, str]:
        return _broken("M7", "the form of an error")
    code, message = header
    return RequestError(f"the enclave refused the request ({code}): {message}.")


def _broken(rule: str, what: str) -> EnclaveError:
    return EnclaveError(
        f"{rule} the response is refused for {what}: it is not the answer to this request, or "
        "it was altered on its way."
    )


def _code(name: str, dtype: np.dtype[Any]) -> int:
    """The number that stands for a dtype."""
    for known in DType:
        if known.numpy == dtype:
            return int(known)
    raise RequestError(f"input {name!r} is {dtype}, which no model takes.")


def padded(size: int) -> int:
    """``size`` up to the next multiple of a message's alignment."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT
