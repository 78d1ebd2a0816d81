"""Decode: the encrypted program's bytes back to a :class:`Program`.

Strict in form, so that what was accepted encodes to identical bytes; whether the program makes
sense is for :mod:`vessels.check`.
"""

from __future__ import annotations

import dataclasses
import struct
import types
import typing
from io import BytesIO
from typing import Any

import cbor2

from vessels.errors import SealedError
from vessels.program import (
    ALIGNMENT,
    INSTRUCTIONS,
    Activation,
    ActivationKind,
    Buffer,
    Chunk,
    Cut,
    DType,
    Instruction,
    MapCode,
    MapOp,
    PoolLayout,
    Port,
    Program,
    View,
)

TAG_SIZE = 16


def encode_program(program: Program) -> bytes:
    """The program's CBOR, without padding."""
    return cbor2.dumps(program.encoded(), canonical=True)


def decode_program(plain: bytes, where: str) -> Program:
    """The program in ``plain``, CBOR and padding; all its views are of one buffer, the pool.

    Raises :class:`SealedError`, naming ``where`` and the rule of ``docs/format.md`` broken.
    """
    stream = BytesIO(plain)
    try:
        fields = cbor2.CBORDecoder(stream, read_size=1).decode()
        used = stream.tell()
        program = _program(fields)
        encoded = encode_program(program)
    except Exception as error:  # Whatever a decoder may raise on foreign bytes.
        raise SealedError(f"S7 {where}: the program is malformed.") from error
    if encoded != plain[:used]:
        raise SealedError(f"S7 {where}: the program is not in canonical form.")
    padding = plain[used:]
    if len(padding) >= ALIGNMENT or any(padding):
        raise SealedError(f"S8 {where}: the program's padding is not up to 63 zero bytes.")
    if any(c.size <= 0 or c.size % ALIGNMENT for c in program.chunks):
        raise SealedError(f"S11 {where}: a chunk's size is no positive multiple of {ALIGNMENT}.")
    return program


def _program(fields: Any) -> Program:
    layout, inputs, outputs, chunks, instructions, order = fields
    if any(type(n) is not int for n in (*layout, *order)):
        raise ValueError("layout")
    listed = tuple(_chunk(*c) for c in chunks)
    if sorted(order) != [i for i, c in enumerate(listed) if c.resident_offset is None]:
        raise ValueError("order")
    io_size, arena_size, fixed_size, thread_count = layout
    sizes = PoolLayout(io_size, arena_size, fixed_size, 0, thread_count)
    pool = Buffer("pool", sizes.staging_offset)
    return Program(
        sizes,
        tuple(Port("", _view(v, pool)) for v in inputs),
        tuple(Port("", _view(v, pool)) for v in outputs),
        listed,
        tuple(_instruction(i, pool) for i in instructions),
        {pool: 0},
        tuple(order),
        (),
    )


def _chunk(size: int, resident_offset: int | None, tag: bytes) -> Chunk:
    if type(size) is not int or not isinstance(resident_offset, int | None):
        raise ValueError("chunk")
    if type(tag) is not bytes or len(tag) != TAG_SIZE:
        raise ValueError("tag")
    return Chunk(size, resident_offset, tag)


def _view(fields: Any, pool: Buffer) -> View:
    offset, dtype, shape, strides = fields
    if any(type(n) is not int for n in (offset, *shape, *strides)):
        raise ValueError("view")
    return View(pool, offset, DType(dtype), tuple(shape), tuple(strides))


def _instruction(fields: Any, pool: Buffer) -> Instruction:
    kind, values = fields
    instruction = INSTRUCTIONS[kind]
    if instruction.kind != kind:
        raise ValueError("kind")
    hints = typing.get_type_hints(instruction)
    names = [f.name for f in dataclasses.fields(instruction) if f.name != "parameters"]
    decoded = {
        name: _field(hints[name], name, value, pool)
        for name, value in zip(names, values, strict=True)
    }
    made: Instruction = instruction(**decoded)
    return made


def _field(hint: Any, name: str, value: Any, pool: Buffer) -> Any:
    """One field by its declared type, the inverse of how ``Program.encoded`` writes it."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(h for h in hint.__args__ if h is not types.NoneType)
    if hint is View:
        return _view(value, pool)
    if hint is Activation:
        kind, a, b = value
        return Activation(ActivationKind(kind), _float(a), _float(b))
    if hint is Cut:
        return Cut(*value)
    if hint is float:
        return _float(value)
    if name == "inputs":
        return tuple(_view(v, pool) for v in value)
    if name == "ops":
        return tuple(MapOp(MapCode(code), x, y, z) for code, x, y, z in value)
    if isinstance(value, list):
        return tuple(value)
    return hint(value)


def _float(bits: int) -> float:
    value: float = struct.unpack("<f", struct.pack("<I", bits))[0]
    return value
