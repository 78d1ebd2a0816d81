"""Gramine: the folder that an enclave is signed in and started from, with its manifest.

The manifest is made from the plan and is one of Gramine 1.8 or newer. It allows the enclave
program, the C library that Gramine brings along, and the sealed model, which the enclave reads as
ciphertext from untrusted memory; nothing else of the host's files exists for it.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from vessels.binaries import find_enclave_binary
from vessels.errors import EnclaveError, OutputError
from vessels.files import write_text, write_whole
from vessels.gramine import GRAMINE_THREADS, SHARED_MEMORY, STACK_SIZE, EnclavePlan
from vessels.ladder import KIB, MIB

PROGRAM = "vessels-enclave"
"""The enclave program's name in the folder; Gramine's own files are named after it."""

TEMPLATE = f"{PROGRAM}.manifest.template"
SIGNED_MANIFEST = f"{PROGRAM}.manifest.sgx"
MODEL_PATH = "/model.vessel"


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
    write_text(folder / TEMPLATE, text)


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


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


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
