"""What messages to and from an enclave say, once they are open: ``docs/messages.md``.

The content of a message is a header, canonical CBOR behind a few fixed bytes, and perhaps tensors.
What is read was sealed by an enclave that someone verified, and is refused all the same unless it
has exactly the form it must have. The messages of errors begin with the number of the rule that is
broken.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import cbor2
import numpy as np

from vessels.errors import EnclaveError, RequestError
from vessels.ports import Port
from vessels.program import DType, align

Array = np.ndarray[Any, Any]

VERSION = 1
PREDICT, DESCRIBE = 1, 2
OUTPUTS, DESCRIPTION, ERROR = 1, 2, 3
"""Kinds of requests, and of responses."""

_HEAD = struct.Struct("<BBHI")

Listed = list[tuple[str, int, list[int]]]
"""Names, dtypes and shapes as a header lists them."""


class HasShape(Protocol):
    """A named tensor as a model's header or a program lists it."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> DType: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


def listed(ports: Iterable[HasShape]) -> Listed:
    """These tensors, for a header."""
    return [(p.name, int(p.dtype), list(p.shape)) for p in ports]


def front(kind: int, header: Any) -> bytes:
    """All of a message before its tensors."""
    encoded = cbor2.dumps(header, canonical=True)
    head = _HEAD.pack(VERSION, kind, 0, len(encoded)) + encoded
    return head.ljust(align(len(head)), b"\0")


def content_size(kind: int, ports: Listed) -> int:
    """Bytes of a message of tensors."""
    tensors = (align(DType(code).size * math.prod(shape)) for _, code, shape in ports)
    return len(front(kind, ports)) + sum(tensors)


@dataclass(frozen=True)
class PredictContent:
    """A request for a prediction, whose size is known before it is put together."""

    _front: bytes
    _arrays: list[Array]

    @classmethod
    def of(cls, inputs: Mapping[str, Array]) -> PredictContent:
        """With these inputs, in the model's order; raises :class:`RequestError` for a dtype."""
        arrays = {name: np.asarray(array) for name, array in inputs.items()}
        ports = [[name, _code(name, a.dtype), list(a.shape)] for name, a in arrays.items()]
        return cls(front(PREDICT, ports), list(arrays.values()))

    @property
    def size(self) -> int:
        """Its bytes."""
        return len(self._front) + sum(align(a.nbytes) for a in self._arrays)

    def encoded(self) -> bytearray:
        """All of it."""
        content = bytearray(self.size)
        at = len(self._front)
        content[:at] = self._front
        for array in self._arrays:
            little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
            if little.size:
                np.frombuffer(content, little.dtype, little.size, at)[:] = little.reshape(-1)
            at += align(array.nbytes)
        return content


def read_response(content: bytearray, due: int) -> Any:
    """What a response of the kind ``due`` says: outputs by name, or the model's ports.

    The outputs are in the memory of ``content``. Raises :class:`RequestError` for what the enclave
    refused, and :class:`EnclaveError` for any other content.
    """
    kind, header, at = _read(content)
    if kind == ERROR:
        raise _refusal(header, content[at:])
    if kind != due:
        raise broken("M12", f"a response of kind {kind}, which answers another question")
    if kind == OUTPUTS:
        return _tensors(_ports(header), content, at)
    if at != len(content):
        raise broken("M3", "its size")
    if type(header) is not list or len(header) != 2:
        raise broken("M7", "the form of a description")
    return _ports(header[0]), _ports(header[1])


def broken(rule: str, what: str) -> EnclaveError:
    """The error that a response breaks a rule."""
    return EnclaveError(
        f"{rule} the response is refused for {what}: it is not the answer to this request, or "
        "it was altered on its way."
    )


def _read(content: bytearray) -> tuple[int, Any, int]:
    """Kind and header of a message, and where its tensors begin."""
    if len(content) < _HEAD.size:
        raise broken("M3", "its size")
    version, kind, reserved, size = _HEAD.unpack_from(content)
    if version != VERSION:
        raise broken("M4", f"content of version {version}; this build reads {VERSION}")
    if kind not in (OUTPUTS, DESCRIPTION, ERROR):
        raise broken("M5", f"its unknown kind {kind}")
    if reserved:
        raise broken("M6", "reserved bytes that are not zero")
    at = align(_HEAD.size + size)
    if at > len(content):
        raise broken("M3", "its size")
    encoded = bytes(content[_HEAD.size : _HEAD.size + size])
    try:
        header = cbor2.loads(encoded)
        same = cbor2.dumps(header, canonical=True) == encoded
    except Exception as error:  # Whatever a decoder may raise.
        raise broken("M7", "its header") from error
    if not same:
        raise broken("M7", "a header that is not in canonical form")
    if any(content[_HEAD.size + size : at]):
        raise broken("M8", "padding that is not zero")
    return kind, header, at


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
        raise broken("M7", "its names, dtypes and shapes") from error
    return tuple(ports)


def _tensors(ports: tuple[Port, ...], content: bytearray, at: int) -> dict[str, Array]:
    """The tensors behind a header; they share the memory of ``content``."""
    sizes = [p.dtype.itemsize * math.prod(p.shape) for p in ports]
    if at + sum(align(s) for s in sizes) != len(content):
        raise broken("M3", "its size")
    tensors: dict[str, Array] = {}
    for port, size in zip(ports, sizes, strict=True):
        end = at + align(size)
        if any(content[at + size : end]):
            raise broken("M8", "padding that is not zero")
        flat = np.frombuffer(content, port.dtype.newbyteorder("<"), math.prod(port.shape), at)
        tensors[port.name] = flat.astype(port.dtype, copy=False).reshape(port.shape)
        at = end
    return tensors


def _refusal(header: Any, rest: bytearray) -> Exception:
    """The error that a response tells."""
    if rest:
        return broken("M3", "its size")
    if type(header) is not list or [type(f) for f in header] != [str, str]:
        return broken("M7", "the form of an error")
    code, message = header
    return RequestError(f"the enclave refused the request ({code}): {message}.")


def _code(name: str, dtype: np.dtype[Any]) -> int:
    """The number that stands for a dtype."""
    for known in DType:
        if known.numpy == dtype:
            return int(known)
    raise RequestError(f"input {name!r} is {dtype}, which no model takes.")
