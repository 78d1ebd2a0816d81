"""What an enclave process gives up: debuggers, core dumps, swapping, system calls."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import vessels
from tests.conftest import Sealed
from vessels.enclave import EnclaveProcess, find_enclave_binary
from vessels.errors import VesselsError
from vessels.sealed_messages import RequestSealer, seal_key
from vessels.secrecy import Marker, markers_of, search_memory

NOBODY = 65534
_PTRACE_ATTACH = 16


def status(pid: int) -> dict[str, str]:
    """What the kernel says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@pytest.fixture
def enclave(sealed: Sealed) -> Iterator[vessels.Enclave]:
    with vessels.Enclave(sealed.vessel, key=sealed.key) as running:
        yield running


def test_every_thread_has_given_up_system_calls(enclave: vessels.Enclave) -> None:
    tasks = [int(task.name) for task in Path(f"/proc/{enclave.pid}/task").iterdir()]
    assert len(tasks) == 2
    for task in tasks:
        found = status(task)
        assert (found["Seccomp"], found["NoNewPrivs"]) == ("2", "1")


def test_the_pool_is_locked_and_nothing_is_dumped(enclave: vessels.Enclave) -> None:
    locked = int(status(enclave.pid)["VmLck"].removesuffix("kB")) * 1024
    limits = Path(f"/proc/{enclave.pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)
    if (limit := re.search(r"Max locked memory +(\S+)", limits)) and limit[1] != "0":
        assert locked >= enclave.ready.pool_size


def as_nobody(work: Callable[[], str]) -> str:
    """What ``work`` returns in a process without privileges."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            said = work()
        except BaseException as error:
            said = repr(error)
        os.write(writing, said.encode()[:4096])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that anybody can read, and its parents too."""
    with tempfile.TemporaryDirectory(prefix="vessels-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_its_own_user_cannot_look_into_it_but_measure_it(sealed: Sealed, public: Path) -> None:
    model, binary = public / "m.vessel", public / "vessels-enclave"
    shutil.copy(sealed.vessel, model)
    shutil.copy(find_enclave_binary(), binary)
    model.chmod(0o644)
    binary.chmod(0o755)
    key = bytes.fromhex(sealed.key.read_text())
    image = np.load(sealed.image)
    libc = ctypes.CDLL(None, use_errno=True)

    def looks(pid: int) -> str:
        attached = libc.ptrace(_PTRACE_ATTACH, pid, None, None) == 0
        try:
            opened = bool(os.open(f"/proc/{pid}/mem", os.O_RDONLY))
        except PermissionError:
            opened = False
        return f"attached {attached} opened {opened}"

    def work() -> str:
        os.environ["VESSELS_ENCLAVE"] = str(binary)
        with vessels.Enclave(model, key=key) as enclave:
            enclave.run({"image": image})
            memory = enclave.memory()
            assert memory.trusted > enclave.ready.pool_size and memory.sealed_mapped > 0
            return looks(enclave.pid)

    assert as_nobody(work) == "attached False opened False"


def test_neither_the_key_nor_a_request_nor_its_outputs_stay(sealed: Sealed) -> None:
    key = bytes.fromhex(sealed.key.read_text())
    images = np.random.default_rng(5).standard_normal((3, 1, 3, 16, 16)).astype(np.float32)
    with EnclaveProcess(sealed.vessel, slots=4) as process:
        claims = process.claims(os.urandom(32))
        process.give_key(seal_key(claims.public_key, claims.model_digest, key))
        sealer = RequestSealer(claims.public_key, claims.model_digest)
        requests, openers = zip(*(sealer.seal_predict({"image": i}) for i in images), strict=True)
        altered = requests[2][:-1] + bytes([requests[2][-1] ^ 1])
        answers = process.exchange_batch([altered, *requests[:2]])
        secrets = [Marker("key", key)]
        secrets += [m for image in images for m in markers_of("input", image.tobytes())]
        for opener, answer in zip(openers[:2], answers[1:], strict=True):
            assert isinstance(answer, bytes)
            secrets += markers_of("output", opener.open(answer)["scores"].tobytes())
        try:
            found = search_memory(process.pid, [*secrets, Marker("digest", claims.model_digest)])
        except VesselsError:
            pytest.skip("only root can read an enclave's memory")
    # What is no secret is there: the search works.
    assert found.counts["digest"] > 0
    assert {k: n for k, n in found.counts.items() if k != "digest"} == {
        "key": 0, "input": 0, "output": 0,
    }  # fmt: skip
