"""Writes ``tests/vectors``: a good sealed model, and one broken file for each vector name.

``python -m tests.make_vectors`` writes them anew. The names and rules are those of
``docs/format.md``. Keys and build ids are fixed here, which no real build may do.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import onnx
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from onnx import TensorProto, helper, numpy_helper

from vessels.api import compile_model
from vessels.seal import seal

FOLDER = Path(__file__).parent / "vectors"
KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
_TAG = 16


@dataclass(frozen=True)
class Parts:
    """A sealed file taken apart: what its author chose, before encryption.

    ``header`` is ``[build_id, key_check, slot_size, rungs, rung, thread_count, inputs, outputs]``
    and ``program`` the program's CBOR fields; ``padding`` is the zeros behind it.
    """

    header: list[Any]
    program: list[Any]
    padding: bytes
    chunks: list[bytes]

    @classmethod
    def of(cls, file: bytes) -> Parts:
        """The parts of a good file."""
        header_size, program_size = _sizes(file)
        end = 16 + header_size + program_size
        header = cbor2.loads(file[16 : 16 + header_size])
        aead = _aead(header[0], "program")
        plain = aead.decrypt(
            bytes(12), file[16 + header_size : end + _TAG], file[: 16 + header_size]
        )
        program = cbor2.loads(plain)
        chunks = []
        start = end + _TAG
        for size, *_ in program[3]:
            chunks.append(file[start : start + size])
            start += size
        return cls(header, program, plain[len(cbor2.dumps(program, canonical=True)) :], chunks)

    def file(self, *, header: bytes | None = None, program: bytes | None = None) -> bytes:
        """Sealed again, well encrypted; ``header`` and ``program`` stand in for the encodings."""
        encoded = cbor2.dumps(self.header, canonical=True) if header is None else header
        plain = cbor2.dumps(self.program, canonical=True) if program is None else program
        plain += self.padding
        public = b"VESSEL\0\x02" + b"".join(
            size.to_bytes(4, "little") for size in (len(encoded), len(plain))
        )
        public += encoded
        aead = _aead(self.header[0], "program")
        return public + aead.encrypt(bytes(12), plain, public) + b"".join(self.chunks)

    def padded(self) -> Parts:
        """With the padding that the header and program now need."""
        used = 16 + len(cbor2.dumps(self.header, canonical=True))
        used += len(cbor2.dumps(self.program, canonical=True)) + _TAG
        return replace(self, padding=bytes(-used % 64))


def vectors() -> dict[str, tuple[str, bytes, bytes]]:
    """Rule, file and key of each vector by name; the rule of ``good`` is empty."""
    good = _sealed(bytes(32))
    other = _sealed(bytes([1]) * 32)
    parts, others = Parts.of(good), Parts.of(other)
    assert parts.file() == good
    header_size, program_size = _sizes(good)
    program_start = 16 + header_size
    chunks_start = program_start + program_size + _TAG
    assert len(parts.chunks) >= 2 and len(parts.chunks[0]) == len(parts.chunks[1])

    def with_header(index: int, value: Any) -> Parts:
        return replace(parts, header=[*parts.header[:index], value, *parts.header[index + 1 :]])

    none, whole = parts.header[3]

    def with_rungs(rungs: list[list[int]]) -> bytes:
        return with_header(3, rungs).padded().file()

    def with_order(order: list[int]) -> bytes:
        return replace(parts, program=[*parts.program[:5], order]).padded().file()

    def with_chunk_size(size: int) -> bytes:
        program = cbor2.loads(cbor2.dumps(parts.program))
        program[3][0][0] = size
        chunks = [parts.chunks[0][:size].ljust(size, b"\0"), *parts.chunks[1:]]
        return replace(parts, program=program, chunks=chunks).padded().file()

    encoded_program = cbor2.dumps(parts.program, canonical=True)
    name, dtype, shape = parts.header[6][0]
    swapped = [parts.chunks[1], parts.chunks[0], *parts.chunks[2:]]
    unknown = cbor2.loads(cbor2.dumps(parts.program))
    unknown[4][0][0] = 99
    files = {
        "good": ("", good),
        "truncated-prefix": ("S1", good[:15]),
        "truncated-header": ("S1", good[: program_start - 1]),
        "truncated-program": ("S1", good[: chunks_start - 1]),
        "empty": ("S2", b""),
        "magic": ("S2", b"v" + good[1:]),
        "version": ("S3", good[:7] + b"\x01" + good[8:]),
        "header-not-cbor": ("S4", parts.file(header=b"\xff" * header_size)),
        "header-not-canonical": ("S4", parts.file(header=_spelled_long(parts.header))),
        "header-build-id-short": ("S4", with_header(0, bytes(31)).file()),
        "header-same-names": (
            "S4",
            with_header(6, [[name, dtype, shape], [name, dtype, shape]]).file(),
        ),
        "header-number": ("S4", with_header(2, 1 << 64).padded().file()),
        "header-rank": ("S4", with_header(6, [[name, dtype, [1] * 9]]).padded().file()),
        "wrong-key": ("S5", good),
        "header-build-id": ("S5", _changed(good, good.index(parts.header[0], 16))),
        "program-bit": ("S6", _changed(good, program_start + 5)),
        "program-tag": ("S6", _changed(good, chunks_start - 1)),
        "header-slot-size": (
            "S6",
            _with_public(good, cbor2.dumps(with_header(2, parts.header[2] - 64).header)),
        ),
        "header-name": ("S6", _changed(good, good.index(name.encode(), 16))),
        "mixed-builds": (
            "S6",
            good[:program_start] + other[program_start:chunks_start] + good[chunks_start:],
        ),
        "program-not-cbor": ("S7", parts.file(program=b"\xff" * len(encoded_program))),
        "program-not-canonical": (
            "S7",
            parts.file(program=_spelled_long(parts.program)),
        ),
        "program-unknown-kind": ("S7", replace(parts, program=unknown).padded().file()),
        "padding-not-zero": ("S8", _with_padding(parts, lambda p: p[:-1] + b"\x01")),
        "padding-long": ("S8", _with_padding(parts, lambda p: p + bytes(64))),
        "padding-misaligned": ("S8", _with_padding(parts, lambda p: p[1:])),
        "truncated-chunk": ("S9", good[:-1]),
        "trailing-byte": ("S9", good + b"\0"),
        "program-order-missing": ("S7", with_order([0])),
        "program-order-twice": ("S7", with_order([0, 0, 1])),
        "disagree-slot": ("S10", with_header(2, parts.header[2] + 64).padded().file()),
        "disagree-threads": ("S10", with_header(5, parts.header[5] + 1).padded().file()),
        "disagree-rung-resident": ("S10", with_rungs([none, [2, 64, 0]])),
        "disagree-rung-staging": ("S10", with_rungs([[0, 0, 64], whole])),
        "disagree-rung-count": ("S10", with_rungs([none, [3, *whole[1:]]])),
        "disagree-shape": (
            "S10",
            with_header(6, [[name, dtype, [shape[0] + 1, *shape[1:]]]]).padded().file(),
        ),
        "chunk-size-zero": ("S11", with_chunk_size(0)),
        "chunk-size-odd": ("S11", with_chunk_size(len(parts.chunks[0]) - 1)),
        "chunk-bit": ("S12", _changed(good, chunks_start)),
        "chunks-swapped": ("S12", replace(parts, chunks=swapped).file()),
        "chunk-of-other-build": (
            "S12",
            replace(parts, chunks=[others.chunks[0], *parts.chunks[1:]]).file(),
        ),
        "ladder-empty": ("S13", with_rungs([])),
        "ladder-long": ("S13", with_rungs([[n, 0, 0] for n in range(65)])),
        "ladder-default": ("S13", with_header(4, 2).padded().file()),
        "ladder-descending": ("S13", with_rungs([whole, none])),
        "ladder-odd": ("S13", with_rungs([none, [2, whole[1] + 4, 0]])),
        "ladder-absurd": ("S13", with_rungs([none, [2, 1 << 41, 0]])),
        "ladder-threads": ("S13", with_header(5, 0).padded().file()),
    }
    return {
        vector: (rule, file, OTHER_KEY if vector == "wrong-key" else KEY)
        for vector, (rule, file) in files.items()
    }


def write(folder: Path) -> None:
    """One file a vector, and ``vectors.json`` with each one's rule and key."""
    folder.mkdir(exist_ok=True)
    index = {}
    for name, (rule, file, key) in vectors().items():
        (folder / f"{name}.vessel").write_bytes(file)
        index[name] = {"rule": rule, "key": key.hex()}
    (folder / "vectors.json").write_text(json.dumps(index, indent=2) + "\n")


def _sealed(build_id: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "good.vessel"
        seal(compile_model(_model(), threads=1), KEY, path, build_id=build_id)
        return path.read_bytes()


def _model() -> onnx.ModelProto:
    """Two small fully connected layers: two chunks of one size."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((8, 8), dtype=np.float32), f"w{i}")
        for i in range(2)
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 8]) for n in ("in", "out")]
    nodes = [
        helper.make_node("MatMul", ["in", "w0"], ["hidden"]),
        helper.make_node("Tanh", ["hidden"], ["squashed"]),
        helper.make_node("MatMul", ["squashed", "w1"], ["out"]),
    ]
    graph = helper.make_graph(nodes, "vector", ports[:1], ports[1:], weights)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _aead(build_id: bytes, purpose: str) -> AESGCM:
    info = f"vessels v1 {purpose}".encode()
    return AESGCM(HKDF(hashes.SHA256(), 32, salt=build_id, info=info).derive(KEY))


def _sizes(file: bytes) -> tuple[int, int]:
    return int.from_bytes(file[8:12], "little"), int.from_bytes(file[12:16], "little")


def _changed(file: bytes, at: int) -> bytes:
    """With the lowest bit of one byte turned."""
    return file[:at] + bytes([file[at] ^ 1]) + file[at + 1 :]


def _with_public(file: bytes, header: bytes) -> bytes:
    """With another header of the same size and the old program."""
    assert len(header) == _sizes(file)[0]
    return file[:16] + header + file[16 + len(header) :]


def _with_padding(parts: Parts, change: Callable[[bytes], bytes]) -> bytes:
    assert parts.padding, "the good file must have padding to break"
    return replace(parts, padding=change(parts.padding)).file()


def _spelled_long(fields: list[Any]) -> bytes:
    """CBOR of a short array with its length in a byte of its own."""
    encoded = cbor2.dumps(fields, canonical=True)
    assert encoded[0] == 0x80 | len(fields)
    return bytes([0x98, len(fields)]) + encoded[1:]


if __name__ == "__main__":
    write(FOLDER)
