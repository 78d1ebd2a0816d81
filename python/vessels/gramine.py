"""Gramine: a sealed model's plan becomes the manifest of the SGX enclave that runs it.

The size of the enclave is computed, not guessed: an enclave of SGX has a fixed size, a power of
two, and without dynamic memory management all of it is committed when it is created. What it
must hold is listed part by part by :func:`enclave_parts`; ``docs/gramine.md`` says where each
figure is from.

The manifest is one of Gramine 1.8 or newer. It allows the enclave program, the C library that
Gramine brings along, and the sealed model, which the enclave reads as ciphertext from untrusted
memory; nothing else of the host's files exists for it.
"""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vessels.elf import linked_libraries, loaded_size
from vessels.enclave import find_enclave_binary
from vessels.errors import EnclaveError, OutputError, UsageError
from vessels.files import write_whole
from vessels.ladder import Ladder
from vessels.seal import read_header

PROGRAM = "vessels-enclave"
"""The enclave program's name in the folder; Gramine's own files are named after it."""

TEMPLATE = f"{PROGRAM}.manifest.template"
SIGNED_MANIFEST = f"{PROGRAM}.manifest.sgx"
MODEL_PATH = "/model.vessel"
SHARED_MEMORY = Path("/dev/shm")
"""Where Linux keeps shared memory: files here are what Gramine maps from outside the enclave."""

KIB, MIB = 1 << 10, 1 << 20
PAGE_SIZE = 4 * KIB
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
        """Where the host puts the sealed model: see :func:`launch_command`."""
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
        heap_size=_pages(HEAP_SIZE + PROGRAM_FACTOR * program_size),
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
        Part(name, _pages(size))
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


def manifest_template(plan: EnclavePlan) -> str:
    """The manifest, for ``gramine-manifest`` to fill in where Gramine is installed."""
    model_uri = f"dev:{plan.model_place}"
    libraries = {f"/usr/lib/{path.name}": f"file:lib/{path.name}" for path in plan.libraries}
    mounts = [
        {"path": "/lib", "uri": "file:{{ gramine.runtimedir() }}"},
        *({"path": path, "uri": uri} for path, uri in libraries.items()),
        {"path": f"/{PROGRAM}", "uri": f"file:{PROGRAM}"},
        {"type": "untrusted_shm", "path": MODEL_PATH, "uri": model_uri},
    ]
    trusted = ["file:{{ gramine.runtimedir() }}/", f"file:{PROGRAM}", *libraries.values()]
    arguments = [PROGRAM, "--model", MODEL_PATH, "--backend", "gramine"]
    if plan.slots > 1:
        arguments += ["--slots", str(plan.slots)]
    arguments += ["--rung", str(plan.rung), "--threads", str(plan.thread_count)]
    return _TEXT.format(
        arguments=_listed(arguments),
        mounts=_lines(_inline(m) for m in mounts),
        trusted=_lines(_quoted(uri) for uri in trusted),
        allowed=_lines([_quoted(model_uri)]),
        stack_size=_size(STACK_SIZE),
        heap_size=_size(plan.heap_size),
        enclave_size=_size(plan.enclave_size),
        parts="\n".join(f"#   {p.size / MIB:8.2f} MiB  {p.name}" for p in plan.parts),
        needed=f"{plan.needed_size / MIB:.2f}",
        max_threads=plan.max_threads,
        threads=plan.thread_count,
        own_threads=GRAMINE_THREADS,
        isv_prod_id=plan.isv_prod_id,
        isv_svn=plan.isv_svn,
    )


def write_folder(plan: EnclavePlan, folder: Path) -> None:
    """Write what ``gramine-manifest`` and ``gramine-sgx-sign`` need to ``folder``.

    The folder is made if there is none. Each file is written whole or not at all. Raises
    :class:`~vessels.errors.OutputError`.
    """
    files: dict[Path, Path] = {folder / PROGRAM: find_enclave_binary()}
    files |= {folder / "lib" / path.name: path for path in plan.libraries}
    try:
        folder.mkdir(exist_ok=True)
        if plan.libraries:
            (folder / "lib").mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {error.filename}: {error.strerror}.") from error
    for target, source in files.items():
        write_whole(target, partial(_copy, source))
        target.chmod(0o755)
    text = manifest_template(plan)
    write_whole(folder / TEMPLATE, partial(_write, text))


def launch_command(folder: Path, model: Path) -> list[str]:
    """What starts the enclave of a signed ``folder``, once ``model`` is where it looks for it.

    The sealed model is copied to shared memory, to the place that the manifest names. One that
    is there is replaced whole: an enclave that has it open keeps what it has. Arguments of the
    enclave program are those of the manifest, whatever follows the command. Raises
    :class:`~vessels.errors.EnclaveError` where something is missing.
    """
    missing = [
        name
        for name in (PROGRAM, SIGNED_MANIFEST, f"{PROGRAM}.sig")
        if not (folder / name).is_file()
    ]
    if missing:
        raise EnclaveError(
            f"{folder} is no signed enclave: {', '.join(missing)} is missing. "
            "See docs/gramine.md for gramine-manifest and gramine-sgx-sign."
        )
    if shutil.which("gramine-sgx") is None:
        raise EnclaveError("gramine-sgx was not found: install Gramine 1.8 or newer.")
    write_whole(_model_place(folder / SIGNED_MANIFEST), partial(_copy, model))
    # A manifest's paths are relative to its folder.
    return ["env", f"--chdir={folder.resolve()}", "gramine-sgx", PROGRAM]


def _model_place(manifest: Path) -> Path:
    """Where the enclave of a signed manifest has its model."""
    try:
        allowed = tomllib.loads(manifest.read_text(encoding="utf-8"))["sgx"]["allowed_files"]
        [place] = [Path(uri.removeprefix("dev:")) for uri in allowed]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EnclaveError(f"{manifest} is no manifest that `vessels gramine` wrote.") from error
    if place.parent != SHARED_MEMORY:
        raise EnclaveError(f"{manifest} has its model at {place}, not in {SHARED_MEMORY}.")
    return place


def _pages(size: int) -> int:
    return -(-size // PAGE_SIZE) * PAGE_SIZE


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def _size(size: int) -> str:
    """Bytes as Gramine writes them, in the largest unit that fits."""
    for unit, factor in (("G", 1 << 30), ("M", MIB), ("K", KIB)):
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def _quoted(text: str) -> str:
    # A text of TOML is written as one of JSON is.
    return json.dumps(text, ensure_ascii=False)


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(_quoted(t) for t in texts)


def _inline(table: Mapping[str, str]) -> str:
    return "{ " + ", ".join(f"{key} = {_quoted(value)}" for key, value in table.items()) + " }"


def _lines(items: Iterable[str]) -> str:
    return "\n".join(f"  {item}," for item in items)


_TEXT = """\
# The SGX enclave of one sealed model. Made by `vessels gramine` from the model's plan: make it
# anew rather than edit it. docs/gramine.md explains every line.

loader.entrypoint.uri = "file:{{{{ gramine.libos }}}}"
loader.log_level = "error"
loader.argv = [{arguments}]
loader.env.LD_LIBRARY_PATH = "/lib:/usr/lib"
# One heap: further ones of the C library would each reserve 128 MiB of the enclave.
loader.env.MALLOC_ARENA_MAX = "1"

libos.entrypoint = "/vessels-enclave"

sys.stack.size = "{stack_size}"
sys.brk.max_size = "{heap_size}"
sys.disallow_subprocesses = true

# No file of the host is there but these.
fs.root = {{ type = "tmpfs" }}
fs.mounts = [
{mounts}
]

sgx.debug = false
sgx.edmm_enable = false
sgx.remote_attestation = "dcap"
sgx.isvprodid = {isv_prod_id}
sgx.isvsvn = {isv_svn}

# The smallest power of two that holds
{parts}
#   {needed:>8} MiB  in all.
sgx.enclave_size = "{enclave_size}"

# {threads} of the enclave program, {own_threads} of Gramine.
sgx.max_threads = {max_threads}

sgx.file_check_policy = "strict"
sgx.trusted_files = [
{trusted}
]

# The sealed model: ciphertext in the host's memory. The enclave copies and authenticates every
# piece of it before use.
sgx.allowed_files = [
{allowed}
]
"""
