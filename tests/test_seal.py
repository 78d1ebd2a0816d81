"""Sealed files: they open as sealed, and every vector of docs/format.md is refused by its rule."""

from __future__ import annotations

import stat
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tests.networks import Net
from vessels.check import check
from vessels.errors import KeyFileError, OutputError, SealedError, VesselsError
from vessels.plan import Plan, make_plan
from vessels.seal import create_key, load_key, open_sealed, read_header, seal

KEY = bytes(range(32))
BUILD = bytes(range(100, 132))
OTHER_BUILD = bytes(range(50, 82))


@pytest.fixture(scope="module")
def plan() -> Plan:
    net = Net(size=4)
    x = net.input(8)
    # Small layers have a chunk each; two of them are of one size.
    for channels in (32, 32, 32, 40):
        x = net.conv(x, channels, 1)
    made = make_plan(net.finish(x))
    assert made.chunk_count >= 4
    return made


@pytest.fixture(scope="module")
def whole(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sealed") / "good.vessel"
    seal(plan, KEY, path, build_id=BUILD)
    return path.read_bytes()


@pytest.fixture(scope="module")
def other(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sealed") / "other.vessel"
    seal(plan, KEY, path, build_id=OTHER_BUILD)
    return path.read_bytes()


def derived(info: str, size: int) -> bytes:
    return HKDF(SHA256(), size, salt=BUILD, info=info.encode()).derive(KEY)


@dataclass
class Parts:
    """A sealed file taken apart by the specification, to be put together otherwise."""

    header: list[Any]
    program: list[Any]
    chunks: list[bytes]
    header_bytes: bytes | None = None
    program_bytes: bytes | None = None
    padding: bytes | None = None
    prefix: bytes = field(default=b"VESSEL\0\x02")

    @classmethod
    def of(cls, file: bytes) -> Parts:
        header_size, program_size = struct.unpack_from("<II", file, 8)
        start = 16 + header_size
        public, sealed = file[:start], file[start : start + program_size + 16]
        plain = AESGCM(derived("vessels v1 program", 32)).decrypt(bytes(12), sealed, public)
        program = cbor2.loads(plain)
        at = start + program_size + 16
        aead = AESGCM(derived("vessels v1 parameters", 32))
        chunks = []
        for index, (size, _, tag) in enumerate(program[3]):
            nonce = index.to_bytes(12, "big")
            chunks.append(aead.decrypt(nonce, file[at : at + size] + tag, None))
            at += size
        assert at == len(file)
        return cls(cbor2.loads(file[16:start]), program, chunks)

    def join(self) -> bytes:
        header = self.header_bytes or cbor2.dumps(self.header, canonical=True)
        aead = AESGCM(derived("vessels v1 parameters", 32))
        body = b""
        for index, chunk in enumerate(self.chunks):
            sealed = aead.encrypt(index.to_bytes(12, "big"), chunk, None)
            body += sealed[:-16]
            self.program[3][index][2] = sealed[-16:]
        plain = self.program_bytes or cbor2.dumps(self.program, canonical=True)
        if self.padding is None:
            self.padding = bytes(-(32 + len(header) + len(plain)) % 64)
        plain += self.padding
        public = self.prefix + struct.pack("<II", len(header), len(plain)) + header
        key = AESGCM(derived("vessels v1 program", 32))
        return public + key.encrypt(bytes(12), plain, public) + body


def test_the_specification_makes_the_same_bytes(whole: bytes) -> None:
    assert Parts.of(whole).join() == whole


def test_opens(plan: Plan, whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.vessel"
    path.write_bytes(whole)
    program = open_sealed(path, KEY)
    check(program)
    sealed = program.encoded()
    planned = plan.program.encoded()
    for chunk in (*sealed[3], *planned[3]):
        chunk[2] = b""
    assert sealed == planned
    assert [p.name for p in program.inputs] == ["in0"]
    header = read_header(path)
    assert header.pool_size == plan.pool_size and header.inputs[0].shape == (1, 4, 4, 8)
    for i in range(plan.chunk_count):
        assert Parts.of(whole).chunks[i] == plan.chunk(i)


def edit(change: Callable[[Parts], None]) -> Callable[[bytes, bytes], bytes]:
    def apply(good: bytes, other: bytes) -> bytes:
        parts = Parts.of(good)
        change(parts)
        return parts.join()

    return apply


def put(where: list[Any], index: int, value: Any) -> None:
    where[index] = value


def flip(at: Callable[[bytes], int]) -> Callable[[bytes, bytes], bytes]:
    def apply(good: bytes, other: bytes) -> bytes:
        altered = bytearray(good)
        altered[at(good)] ^= 1
        return bytes(altered)

    return apply


def program_at(file: bytes) -> int:
    return 16 + int(struct.unpack_from("<I", file, 8)[0])


def chunks_at(file: bytes) -> int:
    return program_at(file) + int(struct.unpack_from("<I", file, 12)[0]) + 16


def swapped(good: bytes, other: bytes) -> bytes:
    """Two chunks of one size change places."""
    sizes = [c[0] for c in Parts.of(good).program[3]]
    a, b = next((i, j) for i in range(len(sizes)) for j in range(i) if sizes[i] == sizes[j])
    low, high = sorted((chunks_at(good) + sum(sizes[:a]), chunks_at(good) + sum(sizes[:b])))
    size = sizes[a]
    return (
        good[:low] + good[high : high + size] + good[low + size : high]
        + good[low : low + size] + good[high + size :]
    )  # fmt: skip


def not_canonical(encoded: bytes) -> bytes:
    """The array's length in two bytes where one does."""
    return bytes([0x98, encoded[0] & 0x1F]) + encoded[1:]


VECTORS: dict[str, tuple[str, Callable[[bytes, bytes], bytes]]] = {
    "truncated-prefix": ("S1", lambda g, o: g[:12]),
    "truncated-header": ("S1", lambda g, o: g[:40]),
    "truncated-program": ("S1", lambda g, o: g[: chunks_at(g) - 1]),
    "magic": ("S2", flip(lambda g: 0)),
    "empty": ("S2", lambda g, o: b""),
    "version": ("S3", flip(lambda g: 7)),
    "header-not-cbor": ("S4", edit(lambda p: setattr(p, "header_bytes", b"\xff" * 40))),
    "header-not-canonical": (
        "S4",
        edit(lambda p: setattr(p, "header_bytes", not_canonical(cbor2.dumps(p.header)))),
    ),
    "header-build-id-short": ("S4", edit(lambda p: put(p.header, 0, BUILD[:31]))),
    "header-same-names": ("S4", edit(lambda p: put(p.header, 6, p.header[6] * 2))),
    "header-number": ("S4", edit(lambda p: put(p.header, 2, 1 << 64))),
    "header-rank": ("S4", edit(lambda p: put(p.header[6][0], 2, [1] * 9))),
    "wrong-key": ("S5", lambda g, o: g),
    "header-build-id": ("S5", flip(lambda g: 16 + 10)),
    "program-bit": ("S6", flip(lambda g: program_at(g) + 5)),
    "program-tag": ("S6", flip(lambda g: chunks_at(g) - 1)),
    "header-slot-size": ("S6", lambda g, o: _with_header(g, 2, 64)),
    "header-name": ("S6", flip(lambda g: g.index(b"in0"))),
    "mixed-builds": (
        "S6",
        lambda g, o: g[: program_at(g)] + o[program_at(o) : chunks_at(o)] + g[chunks_at(g) :],
    ),
    "program-not-cbor": ("S7", edit(lambda p: setattr(p, "program_bytes", b"\xff" * 64))),
    "program-not-canonical": (
        "S7",
        edit(lambda p: setattr(p, "program_bytes", not_canonical(cbor2.dumps(p.program)))),
    ),
    "program-unknown-kind": ("S7", edit(lambda p: put(p.program[4][0], 0, 99))),
    "padding-not-zero": ("S8", edit(lambda p: setattr(p, "padding", _padding(p, b"\x01")))),
    "padding-long": ("S8", edit(lambda p: setattr(p, "padding", _padding(p, b"\0") + bytes(64)))),
    "padding-misaligned": (
        "S8",
        edit(lambda p: setattr(p, "padding", bytes((len(_padding(p, b"")) + 1) % 64))),
    ),
    "truncated-chunk": ("S9", lambda g, o: g[:-1]),
    "trailing-byte": ("S9", lambda g, o: g + b"\0"),
    "program-order-missing": ("S7", edit(lambda p: put(p.program, 5, p.program[5][1:]))),
    "program-order-twice": ("S7", edit(lambda p: put(p.program[5], 0, p.program[5][1]))),
    "disagree-slot": ("S10", edit(lambda p: put(p.header, 2, p.header[2] + 64))),
    "disagree-threads": ("S10", edit(lambda p: put(p.header, 5, p.header[5] + 1))),
    "disagree-rung-resident": ("S10", edit(lambda p: put(p.header[3][-1], 1, 64))),
    "disagree-rung-staging": ("S10", edit(lambda p: put(p.header[3][0], 2, 64))),
    "disagree-rung-count": ("S10", edit(lambda p: put(p.header[3][-1], 0, 100))),
    "disagree-shape": ("S10", edit(lambda p: put(p.header[6][0], 2, [1, 4, 8, 4]))),
    "chunk-size-zero": ("S11", edit(lambda p: put(p.program[3][0], 0, 0))),
    "chunk-size-odd": ("S11", edit(lambda p: put(p.program[3][0], 0, 100))),
    "chunk-bit": ("S12", flip(lambda g: chunks_at(g) + 3)),
    "chunks-swapped": ("S12", swapped),
    "chunk-of-other-build": ("S12", lambda g, o: g[: chunks_at(g)] + o[chunks_at(o) :]),
    "ladder-empty": ("S13", edit(lambda p: put(p.header, 3, []))),
    "ladder-long": ("S13", edit(lambda p: put(p.header, 3, [[n, 0, 0] for n in range(65)]))),
    "ladder-default": ("S13", edit(lambda p: put(p.header, 4, len(p.header[3])))),
    "ladder-descending": ("S13", edit(lambda p: p.header[3].reverse())),
    "ladder-odd": ("S13", edit(lambda p: put(p.header[3][0], 2, 100))),
    "ladder-absurd": ("S13", edit(lambda p: put(p.header[3][0], 2, 1 << 41))),
    "ladder-threads": ("S13", edit(lambda p: put(p.header, 5, 0))),
}


def _with_header(good: bytes, index: int, value: Any) -> bytes:
    """The file with another header field in as many bytes, and nothing sealed anew."""
    header = cbor2.loads(good[16 : program_at(good)])
    header[index] += value
    encoded = cbor2.dumps(header, canonical=True)
    assert len(encoded) == program_at(good) - 16
    return good[:16] + encoded + good[program_at(good) :]


def _padding(parts: Parts, last: bytes) -> bytes:
    """The padding due, ending in ``last``; a whole 64 bytes are never due."""
    size = -(
        32 + len(cbor2.dumps(parts.header, canonical=True))
        + len(cbor2.dumps(parts.program, canonical=True))
    ) % 64  # fmt: skip
    return bytes(size)[: max(size - len(last), 0)] + last if size else last + bytes(63)


@pytest.mark.parametrize("name", VECTORS)
def test_vector(name: str, whole: bytes, other: bytes, tmp_path: Path) -> None:
    rule, make = VECTORS[name]
    path = tmp_path / "bad.vessel"
    path.write_bytes(make(whole, other))
    key = bytes(32) if name == "wrong-key" else KEY
    with pytest.raises((SealedError, KeyFileError), match=rf"^{rule} "):
        open_sealed(path, key)


def test_all_vectors_are_documented() -> None:
    text = (Path(__file__).parent.parent / "docs" / "format.md").read_text()
    for name, (rule, _) in VECTORS.items():
        line = next(row for row in text.splitlines() if f"`{name}`" in row)
        assert line.startswith(f"| {rule} |")


def test_any_byte(whole: bytes, tmp_path: Path) -> None:
    """Every byte of the head, a spread of the chunks."""
    path = tmp_path / "bad.vessel"
    head = chunks_at(whole)
    for at in (*range(head), *range(head, len(whole), 97), len(whole) - 1):
        altered = bytearray(whole)
        altered[at] ^= 0x40
        path.write_bytes(altered)
        with pytest.raises(VesselsError):
            open_sealed(path, KEY)


def test_nothing_in_plain(plan: Plan, whole: bytes) -> None:
    for i in range(plan.chunk_count):
        chunk = plan.chunk(i)
        pieces = {chunk[at : at + 16] for at in range(0, len(chunk), 16)}
        assert not any(p in whole for p in pieces if len(set(p)) > 4)


def test_two_builds_differ(plan: Plan, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    seal(plan, KEY, a)
    seal(plan, KEY, b)
    assert (
        a.read_bytes()[chunks_at(a.read_bytes()) :] != b.read_bytes()[chunks_at(b.read_bytes()) :]
    )


def test_failure_leaves_nothing(plan: Plan, tmp_path: Path) -> None:
    out = tmp_path / "m.vessel"
    out.write_bytes(b"before")

    def fail(part: float) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        seal(plan, KEY, out, fail)
    assert out.read_bytes() == b"before" and list(tmp_path.iterdir()) == [out]
    with pytest.raises(OutputError):
        seal(plan, KEY, tmp_path / "missing" / "m.vessel")


def test_progress(plan: Plan, tmp_path: Path) -> None:
    parts: list[float] = []
    seal(plan, KEY, tmp_path / "m.vessel", parts.append)
    assert parts == sorted(parts) and parts[-1] == 1.0


def test_key_file(tmp_path: Path) -> None:
    path = tmp_path / "m.key"
    key = create_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == key.hex() + "\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_key(path) == key
    with pytest.raises(KeyFileError, match="never overwritten"):
        create_key(path)
    path.chmod(0o644)
    with pytest.warns(UserWarning, match="read by others"):
        assert load_key(path) == key


@pytest.mark.parametrize("text", ["", "ab", "G" * 64, "AB" * 32, "ab" * 32 + "\n\n", "ab" * 33])
def test_bad_key_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "m.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(KeyFileError):
        load_key(path)
    with pytest.raises(KeyFileError):
        load_key(tmp_path / "none")
