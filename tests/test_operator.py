"""What a hurried operator does to the command line: every case a clear message and an exit code.

The command line runs in processes of its own here, as an operator runs it: what is under test are
signals, full disks and what Python says at its end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.machine import core_seconds
from tests.conftest import ROOT, Sealed
from tests.serving import state_of, until
from vessels.errors import OutputError, UsageError
from vessels.files import check_destination, write_whole

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "python"), "COLUMNS": "200"}


def vessels(
    *arguments: object, stdout: int = subprocess.PIPE, before: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """``vessels ARGUMENTS``, perhaps under another command; there is never a traceback."""
    done = subprocess.run(
        [*before, sys.executable, "-m", "vessels", *map(str, arguments)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=180,
        env=ENVIRONMENT,
    )
    assert "Traceback" not in done.stderr
    return done


def run_arguments(sealed: Sealed, output: Path) -> list[object]:
    return [
        "run", sealed.vessel, "--key", sealed.key, "--input", f"image={sealed.image}",
        "-o", output,
    ]  # fmt: skip


class Running:
    """``vessels run`` with very many predictions, and the enclave process it started."""

    def __init__(self, sealed: Sealed, output: Path) -> None:
        arguments = [*run_arguments(sealed, output), "--repeat", 1_000_000]
        # A session of its own, as a terminal gives one: Ctrl-C goes to all of it.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vessels", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=ENVIRONMENT,
        )
        assert self.process.stderr is not None
        # The first line is the notice about simulation: the enclave has been launched.
        self.said = self.process.stderr.readline()
        assert "does NOT protect" in self.said
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        [self.enclave] = map(int, children.read_text().split())
        # More than opening the model takes.
        until(lambda: core_seconds(self.enclave) > 0.2, "predictions")

    def end(self) -> tuple[int, str]:
        """Exit code and standard error."""
        _, said = self.process.communicate(timeout=120)
        assert "Traceback" not in said
        return self.process.returncode, said

    def await_end_of_enclave(self) -> None:
        """A process that nobody has waited for yet counts as ended."""
        until(lambda: state_of(self.enclave) in ("Z", None), "the end of the enclave")


def test_an_enclave_killed_in_mid_run(sealed: Sealed, tmp_path: Path) -> None:
    running = Running(sealed, tmp_path / "out.npz")
    os.kill(running.enclave, signal.SIGKILL)
    code, said = running.end()
    assert code == 7
    assert "SIGKILL" in said and "there is no result" in said
    assert not list(tmp_path.iterdir())


def test_control_c(sealed: Sealed, tmp_path: Path) -> None:
    running = Running(sealed, tmp_path / "out.npz")
    os.killpg(running.process.pid, signal.SIGINT)
    code, _ = running.end()
    assert code == 130
    running.await_end_of_enclave()
    assert not list(tmp_path.iterdir())


def test_no_enclave_outlives_its_host(sealed: Sealed, tmp_path: Path) -> None:
    running = Running(sealed, tmp_path / "out.npz")
    running.process.kill()
    assert running.end()[0] == -signal.SIGKILL
    running.await_end_of_enclave()
    assert not list(tmp_path.iterdir())


def test_no_space_for_the_outputs(sealed: Sealed, tmp_path: Path) -> None:
    """No file may grow beyond a hundred bytes: as a full disk, and without mounting one."""
    limited = ("prlimit", "--fsize=100")
    done = vessels(*run_arguments(sealed, tmp_path / "out.npz"), before=limited)
    assert done.returncode == 8
    assert "cannot write" in done.stderr and "Nothing was written" in done.stderr
    done = vessels("build", sealed.onnx, "-o", tmp_path / "m.vessel", "--key", sealed.key,
                   before=limited)  # fmt: skip
    assert done.returncode == 8
    done = vessels("plot", sealed.vessel, "--key", sealed.key, "-o", tmp_path / "m.svg",
                   before=limited)  # fmt: skip
    assert done.returncode == 8
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_no_space_for_standard_output(sealed: Sealed, more: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = vessels("inspect", sealed.vessel, *more, stdout=full.fileno())
    assert done.returncode == 8
    assert "No space left" in done.stderr


def test_devices_and_folders_are_not_replaced(sealed: Sealed, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.npz"
    os.mkfifo(pipe)
    done = vessels(*run_arguments(sealed, pipe))
    assert done.returncode == 8 and "pipe" in done.stderr
    assert pipe.is_fifo()
    with pytest.raises(OutputError, match="folder"):
        check_destination(tmp_path)
    with pytest.raises(OutputError, match="device"):
        write_whole(Path("/dev/null"), lambda path: None)


def test_what_is_read_is_not_replaced(sealed: Sealed, tmp_path: Path) -> None:
    files = (sealed.onnx, sealed.vessel, sealed.key)
    before = [f.read_bytes() for f in files]
    new = tmp_path / "new"
    for arguments in (
        ["build", sealed.onnx, "-o", sealed.onnx, "--key", new],
        ["build", sealed.onnx, "-o", sealed.key, "--key", sealed.key],
        ["build", sealed.onnx, "-o", new, "--key", new],
        run_arguments(sealed, sealed.vessel),
        run_arguments(sealed, sealed.key),
    ):
        done = vessels(*arguments)
        assert done.returncode == 2 and "choose another name" in done.stderr
    assert [f.read_bytes() for f in files] == before
    assert not list(tmp_path.iterdir())


def test_links_are_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("before")
    link.symlink_to(target)

    def write(path: Path) -> None:
        path.write_text("after")

    write_whole(link, write)
    assert link.is_symlink() and target.read_text() == "after"
    with pytest.raises(UsageError, match="would replace"):
        check_destination(link, keep=[target])


@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_a_folder_that_may_not_be_written_to(sealed: Sealed, tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    # Root may write everywhere, until it gives that up.
    bound = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    before = bound if os.geteuid() == 0 else ()
    for arguments in (
        run_arguments(sealed, tmp_path / "out.npz"),
        ["build", sealed.onnx, "-o", tmp_path / "m.vessel"],
        ["keys", "new", tmp_path / "m.key"],
        ["keys", "init", "--store", tmp_path / "keys.age", "--passphrase-file", sealed.key],
    ):
        done = vessels(*arguments, before=before)
        assert done.returncode == 8 and "Permission denied" in done.stderr
        assert str(tmp_path) in done.stderr
    tmp_path.chmod(0o700)
    assert not list(tmp_path.iterdir())


def test_truncated_sealed_files(sealed: Sealed, tmp_path: Path) -> None:
    whole = sealed.vessel.read_bytes()
    cut = tmp_path / "cut.vessel"
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:size])
        done = vessels(
            "run", cut, "--key", sealed.key, "--input", f"image={sealed.image}",
            "-o", tmp_path / "out.npz",
        )  # fmt: skip
        assert done.returncode == 5 and "cut.vessel" in done.stderr
    assert list(tmp_path.iterdir()) == [cut]


def test_what_is_no_file_is_no_sealed_model(sealed: Sealed, tmp_path: Path) -> None:
    """Nobody waits for who may write to a pipe."""
    pipe = tmp_path / "pipe.vessel"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        done = vessels("inspect", path, "--key", sealed.key)
        assert done.returncode == 5
        assert str(path) in done.stderr and "no regular file" in done.stderr


def test_the_key_of_another_model(sealed: Sealed, tmp_path: Path) -> None:
    key = tmp_path / "other.key"
    key.write_text("0" * 64 + "\n")
    key.chmod(0o600)
    done = vessels(
        "run", sealed.vessel, "--key", key, "--input", f"image={sealed.image}",
        "-o", tmp_path / "out.npz",
    )  # fmt: skip
    assert done.returncode == 5 and "key" in done.stderr
    assert list(tmp_path.iterdir()) == [key]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((1, 3, 16, 16)), "float64"),
        (np.zeros((1, 3, 16, 17), np.float32), "1x3x16x17"),
        (np.array([{}], object), "no .npy file of numbers"),
    ],
)
def test_inputs_that_do_not_fit(
    sealed: Sealed, tmp_path: Path, array: np.ndarray, words: str
) -> None:
    wrong = tmp_path / "wrong.npy"
    np.save(wrong, array, allow_pickle=True)
    done = vessels(
        "run", sealed.vessel, "--key", sealed.key, "--input", f"image={wrong}",
        "-o", tmp_path / "out.npz",
    )  # fmt: skip
    assert done.returncode == 6 and words in done.stderr
    assert list(tmp_path.iterdir()) == [wrong]


@pytest.mark.parametrize("shape", ["1,3,17,17", "0,3,16,16", "-1,3,16,16", "", "1,3", "9" * 30])
def test_shapes_that_do_not_fit(sealed: Sealed, tmp_path: Path, shape: str) -> None:
    done = vessels("build", sealed.onnx, "-o", tmp_path / "m.vessel", "--shape", f"image={shape}")
    assert done.returncode == 2 and "shape" in done.stderr
    assert not list(tmp_path.iterdir())


def test_not_a_number_is_an_ordinary_input(sealed: Sealed, tmp_path: Path) -> None:
    wrong, output = tmp_path / "nan.npy", tmp_path / "out.npz"
    np.save(wrong, np.full((1, 3, 16, 16), np.nan, np.float32))
    done = vessels(
        "run", sealed.vessel, "--key", sealed.key, "--input", f"image={wrong}", "-o", output
    )
    assert done.returncode == 0 and output.exists()
