"""The enclave process as the host sees it: predictions, refusals, deaths, memory."""

from __future__ import annotations

import mmap
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import vessels
from tests.conftest import Sealed
from vessels.enclave import EnclaveProcess, find_enclave_binary
from vessels.errors import EnclaveError, KeyFileError, RequestError, SealedError, UsageError
from vessels.seal import load_key
from vessels.sealed_messages import RequestSealer, seal_key


def expected(sealed: Sealed, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(sealed.onnx, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"image": image})[0]
    return result


def test_predicts_as_onnxruntime_does(sealed: Sealed) -> None:
    image = np.load(sealed.image)
    with vessels.Enclave(sealed.vessel, key=sealed.key) as enclave:
        for scale in (1, -2, 0):
            scores = enclave.run({"image": image * np.float32(scale)})["scores"]
            theirs = expected(sealed, image * np.float32(scale))
            np.testing.assert_allclose(scores, theirs, rtol=1e-4, atol=1e-5)


def test_one_thread_of_two(sealed: Sealed) -> None:
    image = np.load(sealed.image)
    with vessels.Enclave(sealed.vessel, key=sealed.key,
                         threads=1) as enclave:  # fmt: skip
        assert enclave.ready.thread_count == 1
        scores = enclave.run({"image": image})["scores"]
    np.testing.assert_allclose(scores, expected(sealed, image), rtol=1e-4, atol=1e-5)


def test_nan_is_an_ordinary_input(sealed: Sealed) -> None:
    image = np.full((1, 3, 16, 16), np.nan, np.float32)
    with vessels.Enclave(sealed.vessel, key=sealed.key) as enclave:
        assert enclave.run({"image": image})["scores"].shape == (1, 5)


def test_times_every_instruction(sealed: Sealed) -> None:
    with vessels.Enclave(sealed.vessel, key=sealed.key) as enclave:
        outputs, times = enclave.run_timed({"image": np.load(sealed.image)})
        assert len(times) == enclave.ready.instruction_count
        assert outputs["scores"].shape == (1, 5)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "'image' is missing"),
        ({"picture": np.zeros((1, 3, 16, 16), np.float32)}, "no input 'picture'"),
        ({"image": np.zeros((1, 3, 16, 16))}, "float64"),
        ({"image": np.zeros((1, 3, 16, 17), np.float32)}, "1x3x16x17"),
    ],
)
def test_refuses_requests_and_goes_on(
    sealed: Sealed, inputs: dict[str, np.ndarray], words: str
) -> None:
    with vessels.Enclave(sealed.vessel, key=sealed.key) as enclave:
        with pytest.raises(RequestError, match=words):
            enclave.run(inputs)
        enclave.run({"image": np.load(sealed.image)})


def test_refuses_a_wrong_key(sealed: Sealed) -> None:
    with pytest.raises(KeyFileError):
        vessels.Enclave(sealed.vessel, key=bytes(32))


def test_refuses_a_short_key(sealed: Sealed) -> None:
    with pytest.raises(UsageError, match="32 bytes"):
        vessels.Enclave(sealed.vessel, key=b"short")


def test_refuses_an_altered_model(sealed: Sealed, tmp_path: Path) -> None:
    content = bytearray(sealed.vessel.read_bytes())
    content[-100] ^= 1
    altered = tmp_path / "altered.vessel"
    altered.write_bytes(content)
    image = np.load(sealed.image)
    with (
        pytest.raises(SealedError, match=r"altered\.vessel"),
        vessels.Enclave(altered, key=sealed.key) as enclave,
    ):
        enclave.run({"image": image})


@pytest.mark.parametrize("cut", [False, True])
def test_a_model_changed_while_it_is_used_gives_no_output(
    sealed: Sealed, tmp_path: Path, cut: bool
) -> None:
    path = tmp_path / "m.vessel"
    path.write_bytes(sealed.vessel.read_bytes())
    size = path.stat().st_size
    image = np.load(sealed.image)
    with vessels.Enclave(path, key=sealed.key) as enclave:
        enclave.run({"image": image})
        with path.open("r+b") as file:
            if cut:
                file.truncate(size // 2 // mmap.PAGESIZE * mmap.PAGESIZE)
            else:
                file.seek(size - 100)
                (byte,) = file.read(1)
                file.seek(size - 100)
                file.write(bytes([byte ^ 1]))
        # What the system has no bytes for ends the process.
        with pytest.raises(
            EnclaveError if cut else SealedError, match="SIGBUS" if cut else "chunk"
        ):
            enclave.run({"image": image})
    with pytest.raises(SealedError):
        vessels.Enclave(path, key=sealed.key).run({"image": image})


def test_a_killed_enclave_is_noticed(sealed: Sealed) -> None:
    enclave = vessels.Enclave(sealed.vessel, key=sealed.key)
    image = np.load(sealed.image)
    threading.Timer(0.05, os.kill, (enclave.pid, signal.SIGKILL)).start()
    with pytest.raises(EnclaveError, match="SIGKILL"):
        for _ in range(1_000_000):
            enclave.run({"image": image})
    with pytest.raises(EnclaveError, match="ended"):
        enclave.run({"image": image})


def test_the_process_ends_with_the_context(sealed: Sealed) -> None:
    with vessels.Enclave(sealed.vessel, key=sealed.key) as enclave:
        process = Path(f"/proc/{enclave.pid}")
        assert process.exists()
        assert sealed.key.read_bytes().strip() not in process.joinpath("cmdline").read_bytes()
        assert sealed.key.read_bytes().strip() not in process.joinpath("environ").read_bytes()
    assert not process.exists()


def test_a_binary_that_is_missing(sealed: Sealed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VESSELS_ENCLAVE", "/nowhere/vessels-enclave")
    with pytest.raises(EnclaveError, match="VESSELS_ENCLAVE"):
        vessels.Enclave(sealed.vessel, key=sealed.key)


def test_a_binary_that_says_something_else(
    sealed: Sealed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    impostor = tmp_path / "impostor"
    impostor.write_text("#!/bin/sh\nprintf 'hello, this is no frame'\nsleep 5\n")
    impostor.chmod(impostor.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("VESSELS_ENCLAVE", str(impostor))
    with pytest.raises(EnclaveError, match="protocol"):
        vessels.Enclave(sealed.vessel, key=sealed.key)


def test_a_binary_that_knows_not_its_options_is_of_another_version(
    sealed: Sealed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = tmp_path / "vessels-enclave"
    older.write_text(f"#!/bin/sh\nexec {find_enclave_binary()} --an-option-of-later\n")
    older.chmod(0o755)
    monkeypatch.setenv("VESSELS_ENCLAVE", str(older))
    with pytest.raises(EnclaveError, match=r"code 64 .*usage: .*of the same version\?$"):
        vessels.Enclave(sealed.vessel, key=sealed.key)


def test_an_enclave_with_fewer_slots_than_asked_for(sealed: Sealed, tmp_path: Path) -> None:
    """As under a manifest that was replaced; its answers to a batch would be counted wrongly."""
    script = tmp_path / "enclave.py"
    script.write_text(
        "import os, struct, cbor2\n"
        "os.read(0, 12 + 80)\n"
        "ready = cbor2.dumps([1, 'portable', 4096, 1, 1])\n"
        "os.write(1, struct.pack('<IQ', 16, len(ready)) + ready)\n"
        "os.read(0, 1)\n"
    )
    with (
        EnclaveProcess(sealed.vessel, slots=2, command=[sys.executable, str(script)]) as process,
        pytest.raises(EnclaveError, match="1 slots where 2"),
    ):
        process.give_key(bytes(80))


def test_says_that_simulation_protects_nothing(
    sealed: Sealed, caplog: pytest.LogCaptureFixture
) -> None:
    with vessels.Enclave(sealed.vessel, key=sealed.key):
        pass
    assert sum("does NOT protect" in r.message for r in caplog.records) == 1


def test_trusted_memory_is_the_pool_and_little_more(sealed: Sealed) -> None:
    with vessels.Enclave(sealed.vessel, key=sealed.key) as enclave:
        enclave.run({"image": np.load(sealed.image)})
        memory = enclave.memory()
        assert 0 < memory.sealed_mapped <= sealed.vessel.stat().st_size + 4096
        assert memory.trusted <= enclave.ready.pool_size + (6 << 20)


def test_more_threads_than_there_is_room_for(
    sealed: Sealed, caplog: pytest.LogCaptureFixture
) -> None:
    with vessels.Enclave(sealed.vessel, key=sealed.key, threads=5) as enclave:
        assert enclave.ready.thread_count == 2
    assert any("room for 2 threads" in r.getMessage() for r in caplog.records)


def test_threads_of_the_caller_take_turns(sealed: Sealed) -> None:
    images = [np.full((1, 3, 16, 16), i, np.float32) for i in range(4)]
    results: dict[int, np.ndarray] = {}
    with vessels.Enclave(sealed.vessel, key=sealed.key) as enclave:

        def ask(index: int) -> None:
            for _ in range(20):
                results[index] = enclave.run({"image": images[index]})["scores"]

        callers = [threading.Thread(target=ask, args=(i,)) for i in range(len(images))]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    for index, image in enumerate(images):
        np.testing.assert_allclose(results[index], expected(sealed, image), rtol=1e-4, atol=1e-5)


def batch_images(sealed: Sealed, count: int) -> list[np.ndarray]:
    image = np.load(sealed.image)
    return [image * np.float32(1 - 0.3 * i) for i in range(count)]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_predicts_what_lone_requests_do(sealed: Sealed, threads: int) -> None:
    images = batch_images(sealed, 5)
    with vessels.Enclave(sealed.vessel, key=sealed.key, threads=threads) as enclave:
        alone = [enclave.run({"image": image})["scores"] for image in images]
        assert enclave.ready.slot_count == 1
        pool_size = enclave.ready.pool_size
    with vessels.Enclave(sealed.vessel, key=sealed.key, threads=threads, slots=5) as enclave:
        assert enclave.ready.slot_count == 5
        assert enclave.ready.pool_size > pool_size
        for count in (5, 2, 1, 0, 3):
            outputs = enclave.run_batch([{"image": image} for image in images[:count]])
            assert [o["scores"].tobytes() for o in outputs] == [s.tobytes() for s in alone[:count]]
        assert enclave.run({"image": images[2]})["scores"].tobytes() == alone[2].tobytes()
        assert enclave.memory().trusted <= enclave.ready.pool_size + (6 << 20)


def test_a_request_that_does_not_open_touches_no_other_of_its_batch(sealed: Sealed) -> None:
    images = batch_images(sealed, 3)
    with EnclaveProcess(sealed.vessel, slots=4) as process:
        claims = process.claims(os.urandom(32))
        process.give_key(seal_key(claims.public_key, claims.model_digest, load_key(sealed.key)))
        sealer = RequestSealer(claims.public_key, claims.model_digest)
        right = [sealer.seal_predict({"image": image}) for image in images]
        requests = [request for request, _ in right]
        altered = requests[1][:-1] + bytes([requests[1][-1] ^ 1])
        wrong = sealer.seal_predict({"image": images[0][:, :2]})
        for _ in range(2):
            answers = process.exchange_batch([requests[0], altered, wrong[0], requests[2]])
            assert isinstance(answers[1], RequestError)
            for (_, opener), answer, image in zip(
                (right[0], right[2]), (answers[0], answers[3]), (images[0], images[2]), strict=True
            ):
                assert isinstance(answer, bytes)
                scores = opener.open(answer)["scores"]
                np.testing.assert_allclose(scores, expected(sealed, image), rtol=1e-4, atol=1e-5)
            assert isinstance(answers[2], bytes)
            with pytest.raises(RequestError, match="M9"):
                wrong[1].open(answers[2])
        with pytest.raises(UsageError, match="4 slots"):
            process.exchange_batch(requests * 2)
        assert all(isinstance(a, bytes) for a in process.exchange_batch(requests))


def test_an_altered_model_ends_a_batch(sealed: Sealed, tmp_path: Path) -> None:
    content = bytearray(sealed.vessel.read_bytes())
    content[-100] ^= 1
    altered = tmp_path / "altered.vessel"
    altered.write_bytes(content)
    images = [{"image": image} for image in batch_images(sealed, 3)]
    with vessels.Enclave(altered, key=sealed.key, slots=3) as enclave:
        with pytest.raises(SealedError, match="chunk"):
            enclave.run_batch(images)
        with pytest.raises(EnclaveError, match="ended"):
            enclave.run_batch(images)


@pytest.mark.parametrize("slots", [0, 65])
def test_slots_that_cannot_be(sealed: Sealed, slots: int) -> None:
    with pytest.raises(UsageError, match="slots"):
        vessels.Enclave(sealed.vessel, key=sealed.key, slots=slots)


@pytest.mark.parametrize("slots", ["0", "65", "-1", "two", ""])
def test_the_process_refuses_slots_that_cannot_be(sealed: Sealed, slots: str) -> None:
    command = [str(find_enclave_binary()), "--model", str(sealed.vessel), "--slots", slots]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 64
