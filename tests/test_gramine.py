"""``vessels gramine``: the manifest against Gramine's documentation, and the enclave's size.

Gramine itself is not here: nothing of this has been run in an SGX enclave.
"""

from __future__ import annotations

import json
import stat
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.conftest import Sealed
from vessels import gramine, gramine_folder
from vessels.cli.gramine import gramine as command
from vessels.elf import linked_libraries, loaded_size
from vessels.enclave import find_enclave_binary
from vessels.errors import EnclaveError, OutputError, SealedError, UsageError
from vessels.gramine import (
    GRAMINE_THREADS,
    EnclavePlan,
    Part,
    enclave_parts,
    plan_enclave,
)
from vessels.gramine_folder import (
    PROGRAM,
    SIGNED_MANIFEST,
    TEMPLATE,
    launch_command,
    manifest_template,
    write_folder,
)
from vessels.ladder import MIB, PAGE_SIZE
from vessels.seal import read_header

RUNTIME = "/usr/lib/x86_64-linux-gnu/gramine/runtime/glibc"
LIBOS = "/usr/lib/x86_64-linux-gnu/gramine/libsysdb.so"

Check = Callable[[Any], bool]


def one_of(*values: str) -> Check:
    return lambda value: value in values


def a(kind: type) -> Check:
    return lambda value: type(value) is kind


def size(value: object) -> bool:
    """A number with Gramine's suffixes."""
    return isinstance(value, str) and value.rstrip("KMG").isdigit() and len(value) > 1


def list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(check(v) for v in value)


def mount(value: dict[str, str]) -> bool:
    kinds = {"chroot", "encrypted", "tmpfs", "untrusted_shm"}
    prefix = "dev:" if value.get("type") == "untrusted_shm" else "file:"
    return (
        set(value) <= {"type", "path", "uri", "key_name"}
        and value.get("type", "chroot") in kinds
        and value["path"].startswith("/")
        and value["uri"].startswith(prefix)
    )


def uri(value: object) -> bool:
    return isinstance(value, str) and value.startswith(("file:", "dev:"))


DOCUMENTED: dict[str, Check] = {
    "loader.entrypoint.uri": uri,
    "loader.entrypoint.sha256": a(str),
    "loader.log_level": one_of("none", "error", "warning", "debug", "trace", "all"),
    "loader.log_file": a(str),
    "loader.argv": list_of(a(str)),
    "loader.argv_src_file": uri,
    "loader.env.*": a(str),
    "loader.env_src_file": uri,
    "loader.uid": a(int),
    "loader.gid": a(int),
    "libos.entrypoint": lambda v: v.startswith("/"),
    "libos.check_invalid_pointers": a(bool),
    "sys.stack.size": size,
    "sys.brk.max_size": size,
    "sys.fds.limit": a(int),
    "sys.enable_extra_runtime_domain_names_conf": a(bool),
    "sys.enable_sigterm_injection": a(bool),
    "sys.disallow_subprocesses": a(bool),
    "fs.root.type": one_of("chroot", "encrypted", "tmpfs", "untrusted_shm"),
    "fs.root.uri": uri,
    "fs.mounts": list_of(mount),
    "fs.start_dir": a(str),
    "sgx.debug": a(bool),
    "sgx.edmm_enable": a(bool),
    "sgx.enclave_size": size,
    "sgx.max_threads": a(int),
    "sgx.use_exinfo": a(bool),
    "sgx.cpu_features.avx": one_of("unspecified", "disabled", "required"),
    "sgx.cpu_features.avx512": one_of("unspecified", "disabled", "required"),
    "sgx.cpu_features.amx": one_of("unspecified", "disabled", "required"),
    "sgx.cpu_features.mpx": one_of("disabled", "required"),
    "sgx.cpu_features.pkru": one_of("disabled", "required"),
    "sgx.isvprodid": a(int),
    "sgx.isvsvn": a(int),
    "sgx.allowed_files": list_of(uri),
    "sgx.trusted_files": list_of(uri),
    "sgx.file_check_policy": one_of("strict", "allow_all_but_log"),
    "sgx.remote_attestation": one_of("none", "dcap"),
    "sgx.preheat_enclave": a(bool),
    "sgx.enable_stats": a(bool),
}
"""Keys of https://gramine.readthedocs.io/en/stable/manifest-syntax.html (Gramine 1.9) but for
those of system calls for devices, profiling, sealing keys, and all with ``insecure`` in their
name; what each takes."""


def rendered(template: str) -> dict[str, Any]:
    """What ``gramine-manifest`` makes of a template: Jinja, then TOML."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    place = SimpleNamespace(libos=LIBOS, runtimedir=lambda libc="glibc": RUNTIME)
    return tomllib.loads(environment.from_string(template).render(gramine=place))


def flat(value: object, path: str = "") -> dict[str, Any]:
    """Values by their dotted key; environment variables under one."""
    if path == "loader.env":
        assert isinstance(value, dict)
        return {f"loader.env.{name}": v for name, v in value.items()}
    if not isinstance(value, dict):
        return {path: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{path}.{key}" if path else key)
    return found


@pytest.fixture(scope="module")
def plan(sealed: Sealed) -> EnclavePlan:
    return plan_enclave(sealed.vessel)


@pytest.fixture(scope="module")
def manifest(plan: EnclavePlan) -> dict[str, Any]:
    return rendered(manifest_template(plan))


def test_every_key_is_documented_and_has_a_documented_value(manifest: dict[str, Any]) -> None:
    keys = flat(manifest)
    for key, value in keys.items():
        known = "loader.env.*" if key.startswith("loader.env.") else key
        assert known in DOCUMENTED, f"Gramine documents no {key}"
        assert DOCUMENTED[known](value), f"{key} = {value!r}"
    # What Gramine needs, and what this enclave is nothing without.
    assert {
        "libos.entrypoint", "fs.mounts", "sgx.enclave_size", "sgx.max_threads",
        "sgx.remote_attestation", "sgx.trusted_files", "sgx.allowed_files",
    } <= set(keys)  # fmt: skip


def test_nothing_is_weakened(manifest: dict[str, Any], plan: EnclavePlan) -> None:
    text = manifest_template(plan)
    assert "insecure" not in text and "passthrough" not in text
    sgx = manifest["sgx"]
    assert sgx["debug"] is False and sgx["remote_attestation"] == "dcap"
    assert sgx["file_check_policy"] == "strict"
    assert manifest["loader"]["log_level"] == "error"
    assert manifest["sys"]["disallow_subprocesses"] is True
    assert manifest["fs"]["root"] == {"type": "tmpfs"}


def test_only_the_sealed_model_is_read_unverified(
    manifest: dict[str, Any], plan: EnclavePlan
) -> None:
    assert manifest["sgx"]["allowed_files"] == [f"dev:{plan.model_place}"]
    shared = [m for m in manifest["fs"]["mounts"] if m.get("type") == "untrusted_shm"]
    assert shared == [
        {"type": "untrusted_shm", "path": "/model.vessel", "uri": f"dev:{plan.model_place}"}
    ]
    # Every other file that is mounted is measured, and nothing is measured that is not mounted.
    mounted = {m["uri"] for m in manifest["fs"]["mounts"] if m not in shared}
    assert {u.rstrip("/") for u in manifest["sgx"]["trusted_files"]} == mounted


def test_the_program_takes_the_arguments(manifest: dict[str, Any], sealed: Sealed) -> None:
    program, *arguments = manifest["loader"]["argv"]
    assert manifest["libos"]["entrypoint"] == f"/{program}"
    given = [str(sealed.vessel) if x == "/model.vessel" else x for x in arguments]
    assert str(sealed.vessel) in given
    run = [str(find_enclave_binary()), *given]
    done = subprocess.run(run, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    wrong = subprocess.run([*run, "--other"], stdin=subprocess.DEVNULL, capture_output=True)
    assert wrong.returncode == 64


def test_all_libraries_are_there(
    manifest: dict[str, Any], plan: EnclavePlan, tmp_path: Path
) -> None:
    write_folder(plan, tmp_path / "enclave")
    mounts = {m["path"]: m["uri"] for m in manifest["fs"]["mounts"]}
    assert mounts["/lib"] == f"file:{RUNTIME}"
    searched = manifest["loader"]["env"]["LD_LIBRARY_PATH"].split(":")
    brought = {"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2"}
    for path in linked_libraries(find_enclave_binary()):
        if path.name in brought:
            continue
        at = [f"{folder}/{path.name}" for folder in searched]
        [place] = [p for p in at if p in mounts]
        copy = tmp_path / "enclave" / mounts[place].removeprefix("file:")
        assert copy.read_bytes() == path.read_bytes()
        brought.add(path.name)
    assert "libc.so.6" in brought


def test_the_folder_is_complete_and_is_made_anew(plan: EnclavePlan, tmp_path: Path) -> None:
    folder = tmp_path / "enclave"
    write_folder(plan, folder)
    assert (folder / TEMPLATE).read_text() == manifest_template(plan)
    program = folder / PROGRAM
    assert program.read_bytes() == find_enclave_binary().read_bytes()
    assert program.stat().st_mode & stat.S_IXUSR
    program.write_bytes(b"old")
    write_folder(plan, folder)
    assert program.read_bytes() == find_enclave_binary().read_bytes()
    with pytest.raises(OutputError, match="cannot make the folder"):
        write_folder(plan, tmp_path / "none" / "enclave")


def test_size_and_threads_of_the_manifest(
    manifest: dict[str, Any], plan: EnclavePlan, sealed: Sealed
) -> None:
    written = manifest["sgx"]["enclave_size"]
    assert written == f"{plan.enclave_size // MIB}M"
    assert plan.enclave_size // 2 < plan.needed_size <= plan.enclave_size
    header = read_header(sealed.vessel)
    assert manifest["sgx"]["max_threads"] == header.thread_count + GRAMINE_THREADS
    parts = {p.name: p.size for p in plan.parts}
    assert parts["pool"] >= header.pool_size
    assert parts["enclave program, shared libraries"] >= loaded_size(find_enclave_binary())


def test_gramine_requires_four_threads(sealed: Sealed) -> None:
    plan = plan_enclave(sealed.vessel, threads=1)
    assert plan.max_threads == 4
    assert rendered(manifest_template(plan))["loader"]["argv"][-2:] == ["--threads", "1"]


@given(
    pool=st.integers(0, 1 << 40),
    threads=st.integers(1, 64),
    code=st.integers(1, 1 << 30),
    program=st.integers(16, 1 << 28),
    message=st.integers(0, 1 << 32),
)
def test_the_size_is_the_smallest_valid_one(
    pool: int, threads: int, code: int, program: int, message: int
) -> None:
    parts = enclave_parts(
        pool_size=pool, thread_count=threads, code_size=code, program_size=program,
        message_size=message,
    )  # fmt: skip
    assert all(p.size > 0 and p.size % PAGE_SIZE == 0 for p in parts)
    plan = EnclavePlan("m", threads, parts, 1 << 20, ())
    size = plan.enclave_size
    assert size & (size - 1) == 0
    assert size // 2 < sum(p.size for p in parts) <= size
    assert plan.needed_size > pool + code + message + 16 * program


def test_an_exact_fit_is_not_doubled() -> None:
    assert EnclavePlan("m", 1, (Part("all", 32 * MIB),), 4096, ()).enclave_size == 32 * MIB
    assert EnclavePlan("m", 1, (Part("all", 32 * MIB + 4096),), 4096, ()).enclave_size == 64 * MIB


def test_a_larger_pool_gives_a_larger_part() -> None:
    def of(pool: int) -> int:
        parts = enclave_parts(
            pool_size=pool, thread_count=1, code_size=1, program_size=16, message_size=1
        )
        return sum(p.size for p in parts)

    assert of(1 << 30) - of(1 << 29) == 1 << 29


def test_loaded_size_is_what_the_kernel_maps() -> None:
    [path] = {
        line.split()[-1]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.split()[-1].endswith("/libc.so.6")
    }
    ends = [
        [int(x, 16) for x in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(path)
    ]
    mapped = max(e for _, e in ends) - min(s for s, _ in ends)
    # What is zero at first follows in a mapping without a name.
    assert mapped <= loaded_size(Path(path)) <= mapped + 256 * 1024


def test_refuses_what_cannot_be_an_enclave(sealed: Sealed, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no name for a model"):
        plan_enclave(sealed.vessel, name='a"b')
    with pytest.raises(UsageError, match="built for 1 to 2"):
        plan_enclave(sealed.vessel, threads=3)
    with pytest.raises(UsageError, match="--isv-svn is 65536"):
        plan_enclave(sealed.vessel, isv_svn=1 << 16)
    with pytest.raises(SealedError, match="S2"):
        plan_enclave(sealed.onnx)
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(EnclaveError, match="no 64-bit ELF"):
        loaded_size(script)
    other = bytearray(find_enclave_binary().read_bytes()[:4096])
    with pytest.raises(EnclaveError, match="truncated"):
        script.write_bytes(bytes(other[:100]))
        loaded_size(script)
    other[18] = 183  # AArch64
    script.write_bytes(bytes(other))
    with pytest.raises(EnclaveError, match="not for x86-64"):
        loaded_size(script)


def test_an_enclave_is_started_in_its_folder_with_its_model(
    sealed: Sealed, plan: EnclavePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, folder, tools = (tmp_path / n for n in ("shared", "enclave", "tools"))
    shared.mkdir()
    tools.mkdir()
    for module in (gramine, gramine_folder):
        monkeypatch.setattr(module, "SHARED_MEMORY", shared)
    write_folder(plan, folder)
    with pytest.raises(EnclaveError, match=r"manifest\.sgx, .*\.sig is missing"):
        launch_command(folder, sealed.vessel)
    # Signing fills in hashes and writes the manifest anew; what is read of it stays.
    (folder / SIGNED_MANIFEST).write_text(manifest_template(plan))
    (folder / f"{PROGRAM}.sig").touch()
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(EnclaveError, match="gramine-sgx was not found"):
        launch_command(folder, sealed.vessel)
    fake = tools / "gramine-sgx"
    fake.write_text('#!/bin/sh\necho "$PWD $*"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    run = launch_command(folder, sealed.vessel)
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(folder.resolve()), PROGRAM]
    assert [p.read_bytes() for p in shared.iterdir()] == [sealed.vessel.read_bytes()]
    assert plan.model_place.read_bytes() == sealed.vessel.read_bytes()
    with plan.model_place.open("rb") as held:
        launch_command(folder, sealed.onnx)
        assert held.read() == sealed.vessel.read_bytes()
    assert plan.model_place.read_bytes() == sealed.onnx.read_bytes()


@pytest.mark.parametrize(
    "text", ["", "[sgx", 'sgx.allowed_files = ["dev:/etc/passwd"]', "sgx.allowed_files = []"]
)
def test_a_strange_manifest_moves_no_file(
    text: str, sealed: Sealed, plan: EnclavePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(plan, tmp_path)
    (tmp_path / SIGNED_MANIFEST).write_text(text)
    (tmp_path / f"{PROGRAM}.sig").touch()
    (tmp_path / "gramine-sgx").touch(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(EnclaveError, match="manifest"):
        launch_command(tmp_path, sealed.vessel)


def test_command_line(sealed: Sealed, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    folder = tmp_path / "enclave"
    arguments = [str(sealed.vessel), "-o", str(folder), "--isv-prod-id", "7", "--isv-svn", "2"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    written = rendered((folder / TEMPLATE).read_text())
    assert found["enclave_size"] == int(written["sgx"]["enclave_size"][:-1]) * MIB
    assert sum(found["parts"].values()) == found["needed_size"] <= found["enclave_size"]
    assert (written["sgx"]["isvprodid"], written["sgx"]["isvsvn"]) == (7, 2)
    assert f"dev:{found['model_place']}" in written["sgx"]["allowed_files"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0 and "docs/gramine.md" in done.output
