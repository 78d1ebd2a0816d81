"""``make demo-serving``: confidential serving with all its parties, on one machine.

A model owner's key service, a host, somebody who asks what runs there, and a client are processes
of their own. The client's real answer is compared with ONNX Runtime's, and all that the host has
is searched for what it must not have: the model key, parameters, the input, the output.

The model is that of ``make demo``; the enclave is a simulated one. Not a medical device.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from vessels import api
from vessels.bench import onnxruntime_session
from vessels.cli.common import mib, out, progress, run_app
from vessels.demo import classifier, mri_slice, probabilities
from vessels.enclave import SIMULATION_NOTICE
from vessels.errors import VesselsError
from vessels.seal import create_key, seal
from vessels.secrecy import (
    Found,
    Marker,
    Relay,
    markers_of,
    search_files,
    search_memory,
    search_open_files,
)

Array = np.ndarray[Any, Any]

MODEL = "brain-mri"
START_SECONDS = 60.0

_KEY, _PARAMETERS, _INPUT, _OUTPUT = KINDS = ("model key", "parameters", "input", "output")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Option(help="Where the parties have their files; it is emptied first.")
    ] = Path("build/demo-serving"),
    threads: Annotated[int, typer.Option(min=1, help="Worker threads.")] = 2,
) -> None:
    """Serve a trained classifier confidentially, and look for what must not be seen."""
    for party in ("owner", "host", "client"):
        shutil.rmtree(folder / party, ignore_errors=True)
        (folder / party).mkdir(parents=True)
    owner, host, client = (folder / party for party in ("owner", "host", "client"))
    model, labels = classifier()
    image = mri_slice()
    np.save(client / "image.npy", image)
    sealed, key_file, policy = (
        host / f"{MODEL}.vessel", owner / f"{MODEL}.key", folder / "policy.toml"
    )  # fmt: skip

    _title("The model owner seals the model and says which enclave may have its key")
    markers = _build(model, sealed, key_file, threads)
    _show(_run(["policy", "new", sealed, "--insecure-simulation", "-o", policy], owner))

    with contextlib.ExitStack() as parties:
        _title("The model owner runs the key service, the host serves the sealed model")
        out.print("Relays between the parties record what a network sees of them.", style="dim")
        keys = parties.enter_context(
            _started(
                ["keys", "serve", "--policy", policy, "--key", f"{MODEL}={key_file}",
                 "--listen", "127.0.0.1:0", "--log", "json"],
                owner,
            )
        )  # fmt: skip
        to_keys = parties.enter_context(_relay(keys.url))
        server = parties.enter_context(
            _started(
                ["serve", sealed, "--keys", to_keys.url, "--listen", "127.0.0.1:0",
                 "--log", "json"],
                host,
            )
        )  # fmt: skip
        wait_until(lambda: is_ready(server.url), server, "ready")
        to_host = parties.enter_context(_relay(server.url))

        _title("Anyone asks what runs there")
        _show(_run(["attest", to_host.url, "--model", MODEL, "--policy", policy], folder))

        _title("The client verifies, encrypts, and gets its prediction")
        asking = parties.enter_context(
            Party.start(
                [sys.executable, "-m", "vessels.demo_serving", "client", to_host.url, str(policy),
                 str(client / "image.npy"), str(client / "outputs.npz")],
                client,
            )
        )  # fmt: skip
        wait_until((client / "outputs.npz").is_file, asking, "done")
        with np.load(client / "outputs.npz") as answer:
            [ours] = (answer[name] for name in answer.files)
        [theirs] = _onnxruntime(model, threads, image)
        out.print(probabilities(labels, ours[0], theirs[0]))
        difference = float(np.max(np.abs(ours - theirs)))
        out.print(f"largest difference {difference:.2e}", highlight=False)

        _title("What the host has of it")
        markers += [*markers_of(_INPUT, image.tobytes()), Marker(_OUTPUT, ours.tobytes())]
        with progress("searching"):
            controls = {
                "the client's memory": search_memory(asking.pid, markers),
                "the owner's files": search_files([owner], markers),
            }
            looked = {
                "the host's memory": search_memory(server.pid, markers),
                "the host's files and logs": _host_files(host, server.pid, markers),
                "traffic, client and host": to_host.search(markers),
                "traffic, host and key service": to_keys.search(markers),
            }
            trusted = _of_enclave(server.pid, markers)
    out.print(_table(controls | looked | trusted))
    out.print(f"Note: {SIMULATION_NOTICE}.", highlight=False, style="yellow")
    _judge(controls, looked, difference)


@app.command()
def client(url: str, policy: Path, image: Path, outputs: Path) -> None:
    """The client's process: one prediction; then it waits, so that its memory can be searched."""
    from vessels.client import Client
    from vessels.files import write_arrays, write_whole

    with Client(url, policy=policy) as connection:
        [port] = connection.describe(MODEL).inputs
        inputs = {port.name: np.load(image)}
        answer = connection.predict(MODEL, inputs)
        write_whole(outputs, lambda path: write_arrays(path, answer))
        # Inputs and outputs are kept until the search is over.
        sys.stdin.read()


def _build(model: Path, sealed: Path, key_file: Path, threads: int) -> list[Marker]:
    """Seal ``model``; gives markers of its key and of its parameters as the enclave has them."""
    with progress("building") as report:
        plan = api.compile_model(model, threads=threads, progress=report)
        key = create_key(key_file)
        seal(plan, key, sealed, progress=lambda part: report("sealing", part))
    out.print(
        f"sealed {model.name} to {sealed} ({mib(sealed.stat().st_size)}), its key in {key_file}",
        highlight=False,
        soft_wrap=True,
    )
    found = [Marker(_KEY, key), Marker(_KEY, key.hex().encode())]
    chunks = plan.program.chunks
    largest = max(range(len(chunks)), key=lambda i: chunks[i].size)
    resident = [i for i, c in enumerate(chunks) if c.resident_offset is not None]
    for index in dict.fromkeys((largest, len(chunks) - 1, *resident[-1:])):
        with contextlib.suppress(VesselsError):
            found += markers_of(_PARAMETERS, plan.chunk(index), 4)
    return found


class Party(contextlib.AbstractContextManager["Party"]):
    """A process of one of the parties, with a log of its own; ended with the context."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self.log = log

    @classmethod
    def start(cls, command: list[str], folder: Path) -> Party:
        """Start ``command``; its log is in ``folder``."""
        log = folder / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=file, stderr=file, env=_environment(folder)
            )
        return cls(process, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def url(self) -> str:
        """Where it listens, once it has said so in its log."""
        found: list[str] = []

        def said() -> bool:
            for line in self.log.read_text().splitlines():
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    event = json.loads(line)
                    if event["event"] == "serving":
                        found.append(event["url"])
            return bool(found)

        wait_until(said, self, "listening")
        return found[0]

    @property
    def ended(self) -> bool:
        """Whether the process is over."""
        return self._process.poll() is not None

    def check(self) -> None:
        """Raises :class:`VesselsError` where it has failed."""
        code = self._process.poll()
        if code:
            last = "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])
            raise VesselsError(f"{shlex.join(self._process.args)} ended with {code}:\n{last}")  # type: ignore[arg-type]

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


@contextlib.contextmanager
def _started(arguments: list[str | Path], folder: Path) -> Iterator[Party]:
    out.print(_shown(arguments), style="dim", highlight=False, markup=False, soft_wrap=True)
    with Party.start(vessels_command(arguments), folder) as party:
        yield party


def _run(arguments: list[str | Path], folder: Path) -> str:
    """What a command of ``vessels`` prints."""
    out.print(_shown(arguments), style="dim", highlight=False, markup=False, soft_wrap=True)
    done = subprocess.run(
        vessels_command(arguments),
        capture_output=True,
        text=True,
        env=_environment(folder),
        check=False,
    )
    if done.returncode:
        raise VesselsError(done.stderr.strip())
    return done.stdout


def vessels_command(arguments: Sequence[str | Path]) -> list[str]:
    return [sys.executable, "-m", "vessels", *map(str, arguments)]


def _shown(arguments: list[str | Path]) -> str:
    return "$ " + shlex.join(["vessels", *map(str, arguments)])


def _environment(folder: Path) -> dict[str, str]:
    """Temporary files of a party are among its own; the simulation's root is this machine's."""
    return {**os.environ, "TMPDIR": str(folder.resolve())}


@contextlib.contextmanager
def _relay(url: str) -> Iterator[Relay]:
    parts = urllib.parse.urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    with Relay(parts.hostname, parts.port) as relay:
        yield relay


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def wait_until(holds: Callable[[], bool], party: Party, what: str) -> None:
    end = time.monotonic() + START_SECONDS
    while not holds():
        party.check()
        if time.monotonic() > end:
            raise VesselsError(f"a process was not {what} in time; its log is {party.log}.")
        time.sleep(0.05)


def _onnxruntime(model: Path, threads: int, image: Array) -> list[Array]:
    session = onnxruntime_session(model, threads)
    found: list[Array] = session.run(None, {session.get_inputs()[0].name: image})
    return found


def _host_files(folder: Path, pid: int, markers: list[Marker]) -> Found:
    found = search_files([folder], markers)
    found.add(search_open_files(pid, markers))
    return found


def _of_enclave(host: int, markers: list[Marker]) -> dict[str, Found]:
    """What is left in the enclave, the host's child process; empty where nobody may look."""
    tasks = Path(f"/proc/{host}/task").glob("*/children")
    found = Found()
    try:
        for child in [int(c) for task in tasks for c in task.read_text().split()]:
            found.add(search_memory(child, markers))
    except VesselsError:
        return {}
    return {"the enclave's memory: trusted": found}


def _table(searched: dict[str, Found]) -> Table:
    table = Table(title="occurrences of what is secret", title_justify="left")
    table.add_column("")
    table.add_column("searched", justify="right")
    for kind in KINDS:
        table.add_column(kind, justify="right")
    for where, found in searched.items():
        counts = (str(found.counts[kind]) for kind in KINDS)
        table.add_row(where, mib(found.size), *counts)
    return table


def _judge(controls: dict[str, Found], looked: dict[str, Found], difference: float) -> None:
    """Raises :class:`VesselsError` unless the secrets were found where they belong, alone."""
    at_client, at_owner = controls.values()
    if not (at_client.counts[_INPUT] and at_client.counts[_OUTPUT] and at_owner.counts[_KEY]):
        raise VesselsError("the search is no good: it does not find what is there.")
    leaks = [where for where, found in looked.items() if found.total]
    if leaks:
        raise VesselsError(f"something secret was found in {' and in '.join(leaks)}.")
    if difference > 1e-4:
        raise VesselsError("the answer is not ONNX Runtime's.")
    out.print("The host has seen none of it.", style="green", highlight=False)


def _title(text: str) -> None:
    out.print(f"\n{text}", style="bold", highlight=False)


def _show(text: str) -> None:
    out.print(text.rstrip(), highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    run_app(app)
