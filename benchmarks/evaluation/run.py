"""Studying the zoo's networks one after another, and keeping what was found.

Each network's study is kept in a folder beside its report, so that a run that was broken off goes
on where it was. What another version of the code or other options found is measured again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import kept, zoo
from benchmarks.evaluation.result import Result
from vessels.binaries import find_emulator_binary, find_enclave_binary
from vessels.errors import EmulatorError
from vessels.study.report import write as write_report
from vessels.study.study import DEFAULT_EPC_SIZE, study

ROOT = Path(__file__).parent.parent.parent
NETWORKS = (
    "alexnet", "vgg16", "resnet50", "resnet152", "densenet201", "darknet53", "yolov3",
    "inception_v3", "mobilenet_v2", "squeezenet",
)  # fmt: skip

_UNRELATED = frozenset(
    [
        "attestation", "cli", "client.py", "client_exchange.py", "client_http.py", "cluster",
        "demo.py", "demo_serving.py", "draw.py", "drawing.py", "elf.py", "gramine.py",
        "gramine_folder.py", "keys", "kubernetes", "listening.py", "listening_protocol.py",
        "maps.py", "network_plots.py", "plots.py", "predict_headers.py", "proxy", "report.py",
        "schedule", "secrecy.py", "serve", "svg.py", "tables.py", "top.py", "wording.py",
    ]
)  # fmt: skip
"""Code that shows results, or is not run by a study, and so cannot change what it finds."""

log = Console(stderr=True)


@dataclass(frozen=True)
class Settings:
    """How each network is studied."""

    epc_size: int = DEFAULT_EPC_SIZE
    tenants: tuple[int, ...] = (1, 2, 4, 8)
    seconds: float = 2.0
    limit_seconds: float = 90.0
    with_peer: bool = True


QUICK = Settings(tenants=(1, 2), seconds=0.3, limit_seconds=30.0, with_peer=False)


def code_digest() -> str:
    """A digest of all that decides what a study finds: package, zoo, both binaries."""
    package, networks = ROOT / "python" / "vessels", ROOT / "benchmarks" / "zoo"
    files = [*sorted(package.rglob("*.py")), *sorted(networks.rglob("*.py"))]
    files = [f for f in files if not _UNRELATED & set(f.relative_to(ROOT).parts)]
    files.append(find_enclave_binary())
    try:
        files.append(find_emulator_binary())
    except EmulatorError:
        # The study says so itself.
        log.print("no EPC emulator: analysis only", style="yellow")
    return kept.files_digest(files)


def evaluate(
    network: str, folder: Path, settings: Settings, code: str, progress: Callable[[str], None]
) -> Result:
    """The study of ``network``, from ``folder`` if it is there and not stale."""
    key = kept.key_of(network, asdict(settings), code)
    stored = folder / f"{network}.json"
    if (found := _stored(stored, key)) is not None:
        return found
    with tempfile.TemporaryDirectory(prefix="vessels-") as temporary:
        model = Path(temporary) / f"{network}.onnx"
        onnx.save(zoo.build(network), model)
        done = study(
            model,
            epc_size=settings.epc_size,
            tenants=settings.tenants,
            seconds=settings.seconds,
            limit_seconds=settings.limit_seconds,
            with_peer=settings.with_peer,
            progress=lambda step, part: progress(step),
        )
    write_report(done, folder / f"{network}.html")
    kept.keep(stored, key, study=done.as_json())
    return Result.of(done.as_json())


def _stored(path: Path, key: str | None) -> Result | None:
    """The result at ``path`` if it was found under ``key``; under any, if that is ``None``."""
    found = kept.load(path, key)
    try:
        return None if found is None else Result.of(found["study"])
    except (KeyError, TypeError):
        return None


def run(
    networks: Sequence[str], folder: Path, settings: Settings, *, keep: bool = False
) -> list[Result]:
    """The results of ``networks``, measured where they are missing or stale.

    With ``keep`` what another version of the code found counts as well.
    """
    folder.mkdir(parents=True, exist_ok=True)
    code = code_digest()
    results: list[Result] = []
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=log, disable=not log.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("evaluation", total=len(networks))
        for network in networks:

            def tell(step: str, network: str = network) -> None:
                bar.update(task, description=f"{network}: {step}")

            start = time.perf_counter()
            known = _stored(folder / f"{network}.json", None) if keep else None
            results.append(known or evaluate(network, folder, settings, code, tell))
            bar.advance(task)
            log.print(f"{network}: {time.perf_counter() - start:.0f} s", highlight=False)
    return results
