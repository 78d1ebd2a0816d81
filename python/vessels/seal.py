"""Seal: a plan becomes one encrypted file, and back.

``docs/format.md`` specifies the file and numbers the rules by which it is refused; every
:class:`SealedError` begins with the number of the rule. Writing is whole or not at all.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import cbor2
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from vessels.decode import decode_program, encode_program
from vessels.errors import KeyFileError, SealedError
from vessels.files import write_whole
from vessels.header import (
    BUILD_ID_SIZE,
    TAG_SIZE,
    Header,
    HeaderPort,
    decode_header,
    disagreement,
    ladder_problem,
)
from vessels.program import ALIGNMENT, Chunk, Program
from vessels.secret_files import create_secret, read_secret

if TYPE_CHECKING:
    from vessels.plan import Plan

MAGIC = b"VESSEL\0"
VERSION = 2
KEY_SIZE = 32
PREFIX = struct.Struct("<8sII")
MAX_HEADER_SIZE = 1 << 20
MAX_PROGRAM_SIZE = 1 << 28
_MAX_KEY_FILE_SIZE = 1 << 12


def create_key(path: Path, key: bytes | None = None) -> bytes:
    """``key``, or a new random one, written to ``path`` (mode 0600).

    Raises :class:`KeyFileError` where there is a file, which is never overwritten, and
    :class:`OutputError` where none can be made.
    """
    key = secrets.token_bytes(KEY_SIZE) if key is None else key
    create_secret(path, key.hex() + "\n", "key file")
    return key


def load_key(path: Path) -> bytes:
    """The 32-byte key in ``path``; warns (:class:`UserWarning`) when others may read the file.

    Raises :class:`KeyFileError`.
    """
    digits = read_secret(path, "key file", _MAX_KEY_FILE_SIZE).removesuffix("\n")
    if len(digits) != 2 * KEY_SIZE or set(digits) - set("0123456789abcdef"):
        raise KeyFileError(f"{path} is no key file: it must hold 64 lower-case hex digits.")
    return bytes.fromhex(digits)


@dataclass(frozen=True)
class _Keys:
    """What is derived from the model key for one build."""

    check: bytes
    program: AESGCM
    parameters: AESGCM

    @classmethod
    def derive(cls, key: bytes, build_id: bytes) -> _Keys:
        if len(key) != KEY_SIZE:
            raise KeyFileError(f"a model key has {KEY_SIZE} bytes, not {len(key)}.")

        def expand(purpose: str, size: int) -> bytes:
            info = f"vessels v1 {purpose}".encode()
            return HKDF(SHA256(), size, salt=build_id, info=info).derive(key)

        return cls(
            expand("key check", TAG_SIZE),
            AESGCM(expand("program", 32)),
            AESGCM(expand("parameters", 32)),
        )


def seal(
    plan: Plan,
    key: bytes,
    out: Path,
    progress: Callable[[float], None] | None = None,
    *,
    build_id: bytes | None = None,
) -> None:
    """Encrypt ``plan`` to ``out``, whole or not at all; ``progress`` gets the part done, 0 to 1.

    ``build_id`` (32 bytes) must be new for every build under a key; it is random unless given, for
    test vectors. Raises :class:`~vessels.errors.OutputError`; nothing is then left behind.
    """
    build = secrets.token_bytes(BUILD_ID_SIZE) if build_id is None else build_id
    keys = _Keys.derive(key, build)
    program = plan.program

    def write(path: Path) -> None:
        with path.open("wb") as file:
            _write(file, plan, program, keys, build, progress or (lambda part: None))

    write_whole(out, write)


def _write(
    file: BinaryIO,
    plan: Plan,
    program: Program,
    keys: _Keys,
    build_id: bytes,
    progress: Callable[[float], None],
) -> None:
    inputs, outputs = (
        tuple(HeaderPort(p.name, p.view.dtype, p.view.shape) for p in ports)
        for ports in (program.inputs, program.outputs)
    )
    layout = program.layout
    header = Header(
        build_id, keys.check, layout.slot_size, program.rungs, program.rung, layout.thread_count,
        inputs, outputs,
    )  # fmt: skip
    encoded = header.encoded()
    start = PREFIX.size + len(encoded)
    # Tags have one size, so the program's size is known before the chunks are encrypted.
    blank = tuple(replace(c, tag=bytes(TAG_SIZE)) for c in program.chunks)
    size = len(encode_program(replace(program, chunks=blank)))
    size += -(start + size + TAG_SIZE) % ALIGNMENT
    file.seek(start + size + TAG_SIZE)
    chunks: list[Chunk] = []
    total = max(plan.parameter_size, 1)
    done = 0
    for index, chunk in enumerate(program.chunks):
        sealed = keys.parameters.encrypt(index.to_bytes(12, "big"), plan.chunk(index), None)
        file.write(memoryview(sealed)[:-TAG_SIZE])
        chunks.append(replace(chunk, tag=sealed[-TAG_SIZE:]))
        done += chunk.size
        progress(done / total)
    plain = encode_program(replace(program, chunks=tuple(chunks))).ljust(size, b"\0")
    public = PREFIX.pack(MAGIC + bytes([VERSION]), len(encoded), size) + encoded
    file.seek(0)
    file.write(public + keys.program.encrypt(bytes(12), plain, public))


def read_header(path: Path) -> Header:
    """The public header of a sealed model, not authenticated. Raises :class:`SealedError`."""
    with _opened(path) as file:
        return _read_header(file, path)[0]


def open_sealed(path: Path, key: bytes) -> Program:
    """The program of a sealed model, after every byte of the file has been authenticated.

    All its views are of one buffer, the pool. Raises :class:`SealedError` with the rule that
    refuses the file, and :class:`KeyFileError` (rule S5) for a wrong key.
    """
    with _opened(path) as file:
        header, public, program_size = _read_header(file, path)
        keys = _Keys.derive(key, header.build_id)
        if not hmac.compare_digest(keys.check, header.key_check):
            raise KeyFileError(f"S5 {path}: the key is not this model's, or its header is altered.")
        sealed = file.read(program_size + TAG_SIZE)
        if len(sealed) != program_size + TAG_SIZE:
            raise SealedError(f"S1 {path} is truncated: its program is cut off.")
        try:
            plain = keys.program.decrypt(bytes(12), sealed, public)
        except InvalidTag:
            raise SealedError(
                f"S6 {path}: the program or header failed authentication; the file is altered."
            ) from None
        program = decode_program(plain, str(path))
        start = file.tell()
        if start % ALIGNMENT:
            raise SealedError(f"S8 {path}: the first chunk starts at byte {start}.")
        expected = start + sum(c.size for c in program.chunks)
        actual = os.fstat(file.fileno()).st_size
        if actual != expected:
            raise SealedError(f"S9 {path} has {actual} bytes where {expected} are due.")
        program = _agreed(program, header, path)
        for index, chunk in enumerate(program.chunks):
            body = file.read(chunk.size)
            try:
                keys.parameters.decrypt(index.to_bytes(12, "big"), body + chunk.tag, None)
            except InvalidTag:
                raise SealedError(
                    f"S12 {path}: parameter chunk {index} failed authentication; "
                    "the file is altered."
                ) from None
        return program


def opens(path: Path, key: bytes) -> bool:
    """Whether ``key`` is that of the sealed model at ``path``, as its header tells.

    Nothing is authenticated. Raises :class:`SealedError`, :class:`KeyFileError`.
    """
    header = read_header(path)
    return hmac.compare_digest(_Keys.derive(key, header.build_id).check, header.key_check)


def _opened(path: Path) -> BinaryIO:
    try:
        # To open a pipe would be to wait for who writes to it.
        if not stat.S_ISREG(path.stat().st_mode):
            raise SealedError(f"cannot read sealed model {path}: it is no regular file.")
        return path.open("rb")
    except OSError as error:
        raise SealedError(f"cannot read sealed model {path}: {error.strerror}.") from error


def _read_header(file: BinaryIO, path: Path) -> tuple[Header, bytes, int]:
    """The header, all bytes of the file before the program, and the program's size."""
    prefix = file.read(PREFIX.size)
    if not prefix.startswith(MAGIC):
        raise SealedError(f"S2 {path} is no sealed model.")
    if len(prefix) < PREFIX.size:
        raise SealedError(f"S1 {path} is truncated: its prefix is cut off.")
    magic, header_size, program_size = PREFIX.unpack(prefix)
    if magic[-1] != VERSION:
        raise SealedError(
            f"S3 {path} has format version {magic[-1]}; this build opens version {VERSION} only. "
            "Build the model again from its ONNX file."
        )
    if header_size > MAX_HEADER_SIZE or program_size > MAX_PROGRAM_SIZE:
        raise SealedError(
            f"S4 {path}: a header of {header_size} or a program of {program_size} bytes is absurd."
        )
    encoded = file.read(header_size)
    rest = os.fstat(file.fileno()).st_size - file.tell()
    if len(encoded) != header_size or rest < program_size + TAG_SIZE:
        raise SealedError(f"S1 {path} is truncated: its header or program is cut off.")
    try:
        header = decode_header(cbor2.loads(encoded), program_size)
        same = header.encoded() == encoded
    except Exception as error:  # Whatever a decoder may raise: the bytes are anybody's.
        raise SealedError(f"S4 {path}: the header is malformed.") from error
    if not same:
        raise SealedError(f"S4 {path}: the header is not in canonical form.")
    if (problem := ladder_problem(header)) is not None:
        raise SealedError(f"S13 {path}: {problem}.")
    return header, prefix + encoded, program_size


def _agreed(program: Program, header: Header, path: Path) -> Program:
    """``program`` with the header's names and ladder, when the two agree (rule S10)."""
    if (problem := disagreement(header, program)) is not None:
        raise SealedError(f"S10 {path}: header and program differ in {problem}.")
    inputs, outputs = (
        tuple(replace(p, name=h.name) for p, h in zip(ports, listed, strict=True))
        for ports, listed in ((program.inputs, header.inputs), (program.outputs, header.outputs))
    )
    named = replace(program, inputs=inputs, outputs=outputs, rungs=header.rungs)
    return named.at(header.rung)
