"""The command line: what it prints, where, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import typer
from onnx import helper

from tests.conftest import ROOT, Sealed, small_model
from vessels.api import compile_model
from vessels.cli import main
from vessels.cli.common import parse_shapes, parse_size
from vessels.figures import figures

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def vessels(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process; gives exit code, standard output and error."""
    # Rich cuts tables to the width of a terminal.
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vessels", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        code = end.value.code
        captured = capfd.readouterr()
        return (code if isinstance(code, int) else 0), captured.out, captured.err

    return run


@pytest.mark.parametrize(
    "command",
    [
        "", "build", "inspect", "run", "bench", "plot", "study", "attest", "gramine", "kubernetes",
        "serve", "top", "proxy", "keys", "keys serve", "policy new", "cluster need",
    ],
)  # fmt: skip
def test_help_everywhere(vessels: Run, command: str) -> None:
    code, out, _ = vessels(*command.split(), "--help")
    assert code == 0
    assert "Usage" in out


@pytest.mark.parametrize(
    ("text", "size"),
    [("65536", 65536), ("16MiB", 16 << 20), ("4MB", 4_000_000), ("1.5 GiB", 3 << 29), ("8k", 8192)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1e9", "nan", "16 MiBs", "0.4", "9" * 400, "8GB8"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no size"):
        parse_size(text)


def test_shapes() -> None:
    assert parse_shapes(["x=1,3,48,320", "a=b=2"]) == {"x": [1, 3, 48, 320], "a=b": [2]}


def test_build_makes_a_private_key_and_keeps_it(vessels: Run, tmp_path: Path) -> None:
    model, sealed, key = tmp_path / "m.onnx", tmp_path / "m.vessel", tmp_path / "m.key"
    onnx.save(small_model(), model)
    code, out, err = vessels("build", model, "-o", sealed, "--key", key)
    assert (code, err) == (0, "")
    assert "pool" in out and "made key" in out
    assert key.stat().st_mode & 0o777 == 0o600
    before, first = key.read_bytes(), sealed.read_bytes()
    code, out, _ = vessels("build", model, "-o", sealed, "--key", key)
    assert code == 0 and "used key" in out
    assert key.read_bytes() == before
    assert sealed.read_bytes() != first


def test_build_prints_what_inspect_does_for_machines(
    vessels: Run, sealed: Sealed, tmp_path: Path
) -> None:
    output = tmp_path / "m.vessel"
    code, out, _ = vessels("build", sealed.onnx, "-o", output, "--key", sealed.key, "--json")
    built = json.loads(out)
    assert code == 0
    assert (built.pop("model"), built.pop("key")) == (str(output), str(sealed.key))
    _, out, _ = vessels("inspect", output, "--key", sealed.key, "--json")
    assert built == json.loads(out)


def test_inspect_shows_more_with_the_key(vessels: Run, sealed: Sealed) -> None:
    code, out, _ = vessels("inspect", sealed.vessel, "--json")
    public = json.loads(out)
    assert code == 0
    assert public["inputs"] == [{"name": "image", "dtype": "float32", "shape": [1, 3, 16, 16]}]
    assert "chunk_count" not in public
    code, out, _ = vessels("inspect", sealed.vessel, "--key", sealed.key, "--json")
    known = json.loads(out)
    assert code == 0
    assert known["pool_size"] == public["pool_size"]
    assert known["pool_size"] == (
        known["io_size"] + known["activation_size"] + known["resident_size"] + known["staging_size"]
    )
    assert 0 < known["activation_lower_bound"] <= known["activation_size"]
    assert known["instruction_count"] > 0 and known["chunk_count"] > 0
    assert known["parameter_size"] > 0 and known["resident_size"] == 0


def test_run_writes_outputs_and_figures(vessels: Run, sealed: Sealed, tmp_path: Path) -> None:
    output = tmp_path / "out.npz"
    code, out, err = vessels(
        "run", sealed.vessel, "--key", sealed.key, "--input", f"image={sealed.image}",
        "-o", output, "--repeat", 3, "--json",
    )  # fmt: skip
    assert code == 0
    assert "does NOT protect" in err
    report = json.loads(out)
    assert set(report["latency_ms"]) == {"median", "min", "p99"}
    assert report["threads"] == 2
    assert report["enclave_trusted_memory"] > report["pool_size"] / 2
    with np.load(output) as stored:
        assert stored["scores"].shape == (1, 5)
        assert abs(float(stored["scores"].sum()) - 1) < 1e-5


def test_plot_draws_svg_and_png(vessels: Run, sealed: Sealed, tmp_path: Path) -> None:
    svg, png = tmp_path / "map.svg", tmp_path / "map.png"
    assert vessels("plot", sealed.vessel, "--key", sealed.key, "-o", svg)[0] == 0
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert vessels("plot", sealed.vessel, "--key", sealed.key, "-o", png)[0] == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    assert vessels("plot", sealed.vessel, "--key", sealed.key, "-o", tmp_path / "map.gif")[0] == 2


def test_bench_has_a_row_for_each_mode_and_thread_count(vessels: Run, sealed: Sealed) -> None:
    code, out, _ = vessels("bench", sealed.onnx, "--threads", "1,2", "--seconds", 0.1, "--json")
    rows = json.loads(out)
    assert code == 0
    assert [(r["threads"], r["mode"]) for r in rows] == [
        (1, "streamed"), (1, "resident"), (2, "streamed"), (2, "resident"),
    ]  # fmt: skip
    for row in rows:
        assert row["ratio"] == pytest.approx(row["vessels_ms"] / row["onnxruntime_ms"])
        # The parts of a whole, but for the opening of the answer and the clock's noise.
        assert 0 < row["enclave_ms"] < 2 * row["vessels_ms"]
        assert 0 < row["sealing_ms"] < 2 * row["vessels_ms"]
        assert row["pool_size"] > 0 and row["enclave_trusted_memory"] > 0
        assert row["onnxruntime_memory"] > 0


def test_bench_layers(vessels: Run, sealed: Sealed) -> None:
    code, out, _ = vessels("bench", sealed.onnx, "--threads", "1", "--layers", "--json")
    assert code == 0
    layers = json.loads(out)[0]["layers"]
    assert any(layer["gflops"] > 0 for layer in layers)


def test_usage_errors(vessels: Run, sealed: Sealed, tmp_path: Path) -> None:
    output = tmp_path / "m.vessel"
    assert vessels("build", sealed.onnx)[0] == 2
    assert vessels("build", sealed.onnx, "-o", output, "--memory", "lots")[0] == 2
    assert vessels("build", sealed.onnx, "-o", output, "--shape", "image")[0] == 2
    assert vessels("build", sealed.onnx, "-o", output, "--shape", "picture=1,2")[0] == 2
    assert vessels("bench", sealed.onnx, "--threads", "0")[0] == 2
    assert not output.exists()


def test_model_errors(vessels: Run, tmp_path: Path) -> None:
    output = tmp_path / "m.vessel"
    code, _, err = vessels("build", tmp_path / "missing.onnx", "-o", output)
    assert code == 3 and "missing.onnx" in err and "Traceback" not in err
    text = tmp_path / "text.onnx"
    text.write_text("This is no model at all, just a text.")
    code, _, err = vessels("build", text, "-o", output)
    assert code == 3 and "text.onnx" in err
    assert not output.exists() and not output.with_suffix(".key").exists()


def test_unsupported_nodes_are_listed_together(vessels: Run, tmp_path: Path) -> None:
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Det", ["x"], ["a"], "first_det"),
            helper.make_node("Det", ["y"], ["b"], "second_det"),
        ],
        "unsupported",
        [helper.make_tensor_value_info(n, kind, [1, 4, 4]) for n in ("x", "y")],
        [helper.make_tensor_value_info(n, kind, [1]) for n in ("a", "b")],
    )
    model = tmp_path / "u.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model
    )
    code, _, err = vessels("build", model, "-o", tmp_path / "u.vessel")
    assert code == 3
    assert "first_det" in err and "second_det" in err


def test_a_budget_too_small_names_the_smallest(
    vessels: Run, sealed: Sealed, tmp_path: Path
) -> None:
    output = tmp_path / "m.vessel"
    code, _, err = vessels("build", sealed.onnx, "-o", output, "--memory", "1KiB")
    assert code == 4
    assert "MiB" in err or "bytes" in err
    assert not output.exists()


def test_a_refused_model(vessels: Run, sealed: Sealed, tmp_path: Path) -> None:
    altered, output = tmp_path / "altered.vessel", tmp_path / "out.npz"
    content = bytearray(sealed.vessel.read_bytes())
    content[-1] ^= 128
    altered.write_bytes(content)
    code, out, err = vessels("inspect", altered, "--key", sealed.key, "--json")
    assert code == 5
    assert json.loads(out)["error"]["exit_code"] == 5
    code, _, err = vessels(
        "run", altered, "--key", sealed.key, "--input", f"image={sealed.image}", "-o", output
    )
    assert code == 5 and "error:" in err
    assert not output.exists()


def test_refused_requests(vessels: Run, sealed: Sealed, tmp_path: Path) -> None:
    output, wrong = tmp_path / "out.npz", tmp_path / "wrong.npy"
    run = ("run", sealed.vessel, "--key", sealed.key, "-o", output, "--input")
    np.save(wrong, np.zeros((2, 3, 16, 16), np.float32))
    assert vessels(*run, f"image={wrong}")[0] == 6
    assert vessels(*run, f"picture={sealed.image}")[0] == 6
    assert vessels(*run, f"image={tmp_path / 'missing.npy'}")[0] == 6
    assert vessels(*run, f"image={sealed.onnx}")[0] == 6
    assert vessels(*run, "image")[0] == 2
    assert not output.exists()


def test_outputs_that_cannot_be_written(vessels: Run, sealed: Sealed, tmp_path: Path) -> None:
    missing = tmp_path / "no" / "out.npz"
    run = ("run", sealed.vessel, "--key", sealed.key, "--input", f"image={sealed.image}")
    code, _, err = vessels(*run, "-o", missing)
    assert code == 8 and "no" in err
    folder = tmp_path / "folder.npz"
    folder.mkdir()
    assert vessels(*run, "-o", folder)[0] == 8
    assert list(tmp_path.iterdir()) == [folder]


def test_no_space_left(vessels: Run, sealed: Sealed) -> None:
    run = ("run", sealed.vessel, "--key", sealed.key, "--input", f"image={sealed.image}")
    with pytest.MonkeyPatch.context() as patch:

        def write(path: Path, arrays: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr("vessels.cli.run.write_arrays", write)
        folder = sealed.image.parent
        before = sorted(folder.iterdir())
        code, _, err = vessels(*run, "-o", folder / "out.npz")
    assert code == 8 and "No space left" in err
    assert sorted(folder.iterdir()) == before


def test_a_key_readable_by_others_is_warned_about(
    vessels: Run, sealed: Sealed, tmp_path: Path
) -> None:
    key = tmp_path / "open.key"
    key.write_bytes(sealed.key.read_bytes())
    key.chmod(0o644)
    code, _, err = vessels("inspect", sealed.vessel, "--key", key)
    assert code == 0
    assert "warning" in err and "open.key" in err


def test_an_enclave_that_cannot_start(
    vessels: Run, sealed: Sealed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.npz"
    run = ("run", sealed.vessel, "--key", sealed.key, "--input", f"image={sealed.image}")
    monkeypatch.setenv("VESSELS_ENCLAVE", "/nowhere/vessels-enclave")
    assert vessels(*run, "-o", output)[0] == 7
    monkeypatch.setenv("VESSELS_ENCLAVE", "/bin/false")
    code, _, err = vessels(*run, "-o", output)
    assert code == 7 and "exit code 1" in err
    assert not output.exists()


def test_figures_are_those_of_the_planner(sealed: Sealed) -> None:
    plan = compile_model(sealed.onnx)
    found = figures(plan.program)
    assert found.activation_lower_bound == plan.activation_lower_bound
    assert found.scratch_size == plan.scratch_size
    assert found.pool_size == plan.pool_size


@pytest.mark.heavy
def test_the_demo(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vessels.demo", "--folder", tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "python"), "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    assert "notumor" in done.stdout and "largest difference" in done.stdout
    assert "does NOT protect" in done.stdout
    assert (tmp_path / "map.svg").stat().st_size < 300_000
