"""Gramine: how large the SGX enclave of a sealed model is.

It is computed, not guessed: an enclave of SGX has a fixed size, a power of two, and without dynamic
memory management all of it is committed when it is created. What it must hold is listed part by
part by :func:`enclave_parts`; ``docs/gramine.md`` says where each figure is from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vessels.binaries import find_enclave_binary
from vessels.elf import linked_libraries, loaded_size
from vessels.errors import UsageError
from vessels.ladder import KIB, MIB, PAGE_SIZE, Ladder
from vessels.program import align
from vessels.seal import read_header

SHARED_MEMORY = Path("/dev/shm")
"""Where Linux keeps shared memory: files here are what Gramine maps from outside the enclave."""

VERSION_ARRAY_COUNT = 512
"""Pages whose versions one page of the EPC holds, for when they are written out."""

GRAMINE_THREADS = 3
"""Threads that Gramine itself may start: for IPC, for asynchronous events, for TLS handshakes."""

THREAD_SIZE = 360 * KIB
"""What Gramine lays out for each of ``sgx.max_threads``: two save areas of 16 KiB, a control
structure and thread-local storage of a page each, stacks of 256 and 64 KiB."""

STACK_SIZE = 512 * KIB
"""Stack of each thread of the enclave program; its first thread's is set in the manifest."""

GRAMINE_SIZE = 8 * MIB
"""For Gramine itself, its loader, its library OS and their tables: an allowance."""

ALIGNMENT_SLACK = 2 * MIB
"""A pool as large as this is mapped with as much in excess, to align it to a huge page."""

PROGRAM_FACTOR = 16
"""Most bytes that a decoded program takes for each byte that it has in the sealed model, its
encoded copies included."""

HEAP_SIZE = 1 * MIB
"""Heap of the enclave program beside program and messages."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_GLIBC = re.compile(r"(ld-linux-x86-64|lib(c|m|pthread|dl|rt))\.so\.\d+")
"""Libraries that Gramine brings in a version of its own, of about the same size."""


@dataclass(frozen=True)
class Part:
    """Something an enclave holds; ``size`` in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class EnclavePlan:
    """What a manifest is made from.

    ``thread_count`` is the enclave program's; ``max_threads`` counts Gramine's own as well.
    ``rung`` is how much of the model is resident, ``slots`` how many requests may be in work.
    ``libraries`` are the shared libraries that the program needs and Gramine does not bring.
    """

    name: str
    thread_count: int
    parts: tuple[Part, ...]
    heap_size: int
    libraries: tuple[Path, ...]
    isv_prod_id: int = 0
    isv_svn: int = 0
    rung: int = 0
    slots: int = 1

    @property
    def needed_size(self) -> int:
        """Bytes of all parts."""
        return sum(p.size for p in self.parts)

    @property
    def enclave_size(self) -> int:
        """The smallest power of two that holds all parts; SGX allows no other sizes."""
        return 1 << (self.needed_size - 1).bit_length()

    @property
    def max_threads(self) -> int:
        return self.thread_count + GRAMINE_THREADS

    @property
    def model_place(self) -> Path:
        """Where the host puts the sealed model before it starts the enclave."""
        return SHARED_MEMORY / f"vessels-{self.name}.vessel"


def epc_size(enclave_size: int) -> int:
    """Bytes of the EPC that an enclave takes: its own pages, and those the kernel adds.

    These are a control structure, and a version array for each 512 pages, the control structure
    among them: Linux reserves where a page's version goes when it adds the page.
    """
    pages = enclave_size // PAGE_SIZE + 1
    return PAGE_SIZE * (pages + -(-pages // VERSION_ARRAY_COUNT))


def plan_enclave(
    model: Path,
    *,
    name: str | None = None,
    threads: int | None = None,
    rung: int | None = None,
    slots: int = 1,
    isv_prod_id: int = 0,
    isv_svn: int = 0,
) -> EnclavePlan:
    """What the SGX enclave of a sealed model takes; its key is not needed.

    ``name`` is the model's, by default its file's. ``threads`` may be fewer than it was planned
    for. ``rung`` is one of the model's, its default one where none is given. ``isv_prod_id`` and
    ``isv_svn`` are for policies that go by signer. Raises :class:`~vessels.errors.SealedError`,
    :class:`~vessels.errors.UsageError`, and :class:`~vessels.errors.EnclaveError` where the enclave
    program cannot run in SGX.
    """
    known = model.stem if name is None else name
    if not _NAME.fullmatch(known):
        raise UsageError(
            f"{known!r} is no name for a model under Gramine: it takes letters, digits, '.', '_' "
            "and '-'; give another with --name."
        )
    for what, number in (("--isv-prod-id", isv_prod_id), ("--isv-svn", isv_svn)):
        if not 0 <= number < 1 << 16:
            raise UsageError(f"{what} is {number}; it must be 0 to 65535.")
    header = read_header(model)
    most = header.thread_count
    if threads is not None and not 1 <= threads <= most:
        raise UsageError(f"--threads is {threads}; {model} was built for 1 to {most}.")
    count = most if threads is None else threads
    ladder = Ladder.of(header)
    chosen = ladder.default if rung is None else rung
    pool_size = ladder.pool_size(chosen, slots, count)
    binary = find_enclave_binary()
    linked = linked_libraries(binary)
    program_size = header.program_size
    return EnclavePlan(
        name=known,
        thread_count=count,
        parts=enclave_parts(
            pool_size=pool_size,
            thread_count=count,
            code_size=sum(loaded_size(file) for file in (binary, *linked)),
            program_size=program_size,
            message_size=slots * ladder.message_size,
        ),
        heap_size=align(HEAP_SIZE + PROGRAM_FACTOR * program_size, PAGE_SIZE),
        libraries=tuple(p for p in linked if not _GLIBC.fullmatch(p.name)),
        isv_prod_id=isv_prod_id,
        isv_svn=isv_svn,
        rung=chosen,
        slots=slots,
    )


def enclave_parts(
    *, pool_size: int, thread_count: int, code_size: int, program_size: int, message_size: int
) -> tuple[Part, ...]:
    """All that an enclave holds, each part in whole pages.

    ``code_size`` is what the program and its libraries take when loaded, ``program_size`` the
    encrypted program's, ``message_size`` what messages take beside the pool.
    """
    slack = ALIGNMENT_SLACK if pool_size + message_size >= ALIGNMENT_SLACK else 0
    return tuple(
        Part(name, align(size, PAGE_SIZE))
        for name, size in (
            ("pool", pool_size),
            ("alignment of the pool", slack),
            ("enclave program, shared libraries", code_size),
            ("heap, decoded program", HEAP_SIZE + PROGRAM_FACTOR * program_size),
            ("requests or responses", message_size),
            ("stacks", thread_count * (STACK_SIZE + PAGE_SIZE)),
            ("Gramine's part of each thread", (thread_count + GRAMINE_THREADS) * THREAD_SIZE),
            ("Gramine's loader and library OS", GRAMINE_SIZE),
        )
        if size
    )  # fmt: skip
