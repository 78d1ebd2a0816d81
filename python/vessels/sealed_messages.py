"""What is sealed for an enclave, and how its answers are opened: ``docs/messages.md``.

A message is sealed with HPKE (RFC 9180) to the public key that an enclave's evidence binds, and
its answer is keyed from the same exchange, so that it can answer nothing else. Who verified the
evidence first is the only one who may be sure of who reads it. :mod:`vessels.messages` knows what
is inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from pyhpke import AEADId, CipherSuite, KDFId, KEMId, KEMKeyPair, PyHPKEError
from pyhpke.context_interface import ContextInterface

from vessels.errors import EnclaveError, UsageError
from vessels.messages import (
    DESCRIBE,
    DESCRIPTION,
    OUTPUTS,
    PREDICT,
    Array,
    HasShape,
    PredictContent,
    broken,
    content_size,
    front,
    listed,
    read_response,
)
from vessels.ports import Port
from vessels.program import align
from vessels.seal import KEY_SIZE

T = TypeVar("T")

SUITE = bytes.fromhex("002000010002")
"""DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM; as evidence names it."""

PUBLIC_SIZE = 32
NONCE_SIZE = 32
TAG_SIZE = 16
MAX_SIZE = 1 << 40
CONTENT_OFFSET = 64
"""Where the content begins in an enclave's memory for a message."""

_KEY_INFO = b"vessels key v1"
_REQUEST_INFO = b"vessels request v1"
_RESPONSE_LABEL = b"vessels response v1"
_SLACK = 4096
_MAX_ERROR_SIZE = 640

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
        given, due = listed(inputs), listed(outputs)
        request, response = content_size(PREDICT, given), content_size(OUTPUTS, due)
        largest = request + _SLACK
        description = len(front(DESCRIPTION, [given, due]))
        content = max(largest, response, description, _MAX_ERROR_SIZE)
        return cls(request, response, largest, align(CONTENT_OFFSET + content + TAG_SIZE))


def request_size(inputs: Iterable[HasShape]) -> int:
    """Bytes of the largest sealed request that a model with these inputs reads."""
    return PUBLIC_SIZE + content_size(PREDICT, listed(inputs)) + _SLACK + TAG_SIZE


def response_size(outputs: Iterable[HasShape]) -> int:
    """Bytes of the sealed response with these outputs."""
    return NONCE_SIZE + content_size(OUTPUTS, listed(outputs)) + TAG_SIZE


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
        result: T = read_response(self._unsealed(sealed), self._kind)
        return result

    def _unsealed(self, sealed: bytes) -> bytearray:
        nonce = sealed[:NONCE_SIZE]
        if not NONCE_SIZE + TAG_SIZE <= len(sealed) <= MAX_SIZE:
            raise broken("M11", f"{len(sealed)} bytes")
        key, iv = _answer_key(self._enc, self._secret, nonce)
        plain = bytearray(len(sealed) - NONCE_SIZE - TAG_SIZE)
        try:
            AESGCM(key).decrypt_into(iv, memoryview(sealed)[NONCE_SIZE:], None, plain)
        except InvalidTag:
            raise broken("M11", "its seal") from None
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
        return Prediction(self, PredictContent.of(inputs))

    def seal_predict(
        self, inputs: Mapping[str, Array], *, ephemeral: KEMKeyPair | None = None
    ) -> tuple[bytes, ResponseOpener[Outputs]]:
        """As :meth:`prepare`, and sealed. ``ephemeral`` is for test vectors."""
        return self.prepare(inputs).seal(ephemeral=ephemeral)

    def seal_describe(
        self, *, ephemeral: KEMKeyPair | None = None
    ) -> tuple[bytes, ResponseOpener[Description]]:
        """A request for the model's inputs and outputs."""
        return self._seal(front(DESCRIBE, []), DESCRIPTION, ephemeral)

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
    _content: PredictContent

    @property
    def size(self) -> int:
        """Bytes once sealed."""
        return PUBLIC_SIZE + self._content.size + TAG_SIZE

    def seal(self, *, ephemeral: KEMKeyPair | None = None) -> tuple[bytes, ResponseOpener[Outputs]]:
        """The sealed request and what opens its answer, anew at each call."""
        return self._sealer._seal(self._content.encoded(), OUTPUTS, ephemeral)


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
