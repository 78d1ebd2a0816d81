"""``vessels run``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from vessels.cli.common import AsJson, mib, out, print_json, progress, sizes_table
from vessels.cli.inspect import Sealed
from vessels.enclave import Enclave
from vessels.errors import RequestError
from vessels.files import check_destination, write_arrays, write_whole
from vessels.ladder import Ladder
from vessels.seal import read_header


def run(
    model: Sealed,
    key: Annotated[Path, typer.Option(metavar="MODEL.key", help="Key file.")],
    inputs: Annotated[
        list[str],
        typer.Option("--input", "-i", metavar="NAME=FILE.npy", help="An input; for each of them."),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="OUT.npz", help="All outputs, by name."),
    ],
    threads: Annotated[
        int | None, typer.Option(min=1, help="Worker threads; at most those it was built for.")
    ] = None,
    rung: Annotated[
        int | None,
        typer.Option(min=0, help="How much stays resident; `vessels inspect` lists the rungs."),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Predictions to time.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Predict in an enclave process and write all outputs to a file."""
    check_destination(output, keep=[model, key])
    Ladder.of(read_header(model)).pool_size(rung)  # Refuses a rung that the model does not have.
    arrays = _read_inputs(inputs)
    milliseconds: list[float] = []
    outputs: dict[str, np.ndarray[Any, Any]] = {}
    with (
        progress("running") as report,
        Enclave(model, key=key, threads=threads, rung=rung) as enclave,
    ):
        for index in range(repeat):
            start = time.perf_counter()
            outputs = enclave.run(arrays)
            milliseconds.append((time.perf_counter() - start) * 1e3)
            report(f"prediction {index + 1} of {repeat}", (index + 1) / repeat)
        memory = enclave.memory()
        ready = enclave.ready
    write_whole(output, lambda path: write_arrays(path, outputs))
    latency = {
        "median": float(np.median(milliseconds)),
        "min": min(milliseconds),
        "p99": float(np.percentile(milliseconds, 99)),
    }
    if as_json:
        print_json(
            {
                "latency_ms": latency,
                "pool_size": ready.pool_size,
                "enclave_trusted_memory": memory.trusted,
                "sealed_mapped": memory.sealed_mapped,
                "threads": ready.thread_count,
                "isa": ready.isa,
            }
        )
        return
    rows = [
        ("latency", f"{latency['median']:.2f} ms (min {latency['min']:.2f}, "
                    f"p99 {latency['p99']:.2f}, {repeat} runs)"),
        ("pool", mib(ready.pool_size)),
        ("trusted memory held by the process", mib(memory.trusted)),
        ("sealed model mapped (untrusted memory)", mib(memory.sealed_mapped)),
        ("threads", str(ready.thread_count)),
        ("instruction set", ready.isa),
    ]  # fmt: skip
    out.print(sizes_table(rows, str(output)))


def _read_inputs(texts: list[str]) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of ``NAME=FILE.npy`` arguments by name."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        # Some exporters put `=` into names; the file is what exists.
        while equals and not Path(file).exists() and "=" in file:
            more, equals, file = file.partition("=")
            name = f"{name}={more}"
        if not equals or not name:
            raise typer.BadParameter(f"{text!r} is no input; write one like image=image.npy.")
        if name in arrays:
            raise typer.BadParameter(f"input {name!r} is given twice.")
        try:
            array = np.load(file, allow_pickle=False)
        except FileNotFoundError:
            raise RequestError(f"input {name!r}: there is no file {file}.") from None
        except OSError as error:
            raise RequestError(
                f"input {name!r}: cannot read {file}: {error.strerror or error}."
            ) from error
        except (ValueError, EOFError) as error:
            raise RequestError(
                f"input {name!r}: {file} is no .npy file of numbers, or it is cut short; "
                "write one with numpy.save."
            ) from error
        if not isinstance(array, np.ndarray):
            raise RequestError(f"input {name!r}: {file} is an archive; give one .npy file.")
        arrays[name] = array
    return arrays
