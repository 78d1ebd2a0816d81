"""A run of the evaluation: what its parts share, and the results it keeps in files."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console

from benchmarks import kept, zoo
from benchmarks.serving_evaluation.models import Models
from benchmarks.serving_evaluation.served import Served, served
from benchmarks.serving_evaluation.systems import Settings, System
from vessels.binaries import find_emulator_binary, find_enclave_binary

ROOT = Path(__file__).resolve().parents[2]
SHOWING = frozenset(["__main__.py", "claims.py", "page.py", "plot.py", "overload_page.py"])
"""Files beside this one that show results, and so cannot change what is found."""

log = Console(stderr=True)


def code_digest() -> str:
    """A digest of all that decides what is found."""
    folders = [ROOT / "python" / "vessels", *(ROOT / "benchmarks" / n for n in ("zoo", "load"))]
    files = [f for folder in folders for f in sorted(folder.rglob("*.py"))]
    files += [f for f in sorted(Path(__file__).parent.glob("*.py")) if f.name not in SHOWING]
    return kept.files_digest([*files, find_enclave_binary(), find_emulator_binary()])


@dataclass(frozen=True)
class Bench:
    """``keep`` takes what other code found; ``work`` is a folder that goes with the run."""

    settings: Settings
    folder: Path
    work: Path
    keep: bool
    code: str
    models: Models

    @classmethod
    @contextlib.contextmanager
    def opened(cls, settings: Settings, folder: Path, *, keep: bool) -> Iterator[Bench]:
        """With results in ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="vessels-") as work:
            models = Models(Path(work))
            yield cls(settings, folder, Path(work), keep, code_digest(), models)

    def known(self, name: str) -> dict[str, Any] | None:
        """The result of this name, if it is there and not stale."""
        found = kept.load(self.folder / f"{name}.json", None if self.keep else self._key(name))
        return None if found is None else found.get("result")

    def store(self, name: str, result: dict[str, Any]) -> None:
        kept.keep(self.folder / f"{name}.json", self._key(name), result=result)

    def _key(self, name: str) -> str:
        return kept.key_of(name, asdict(self.settings), self.code)

    def onnx(self, network: str) -> Path:
        """The network as a file."""
        path = self.work / f"{network}.onnx"
        if not path.exists():
            onnx.save(zoo.build(network), path)
        return path

    @contextlib.contextmanager
    def server(self, system: System, network: str, tenants: int) -> Iterator[Served]:
        """``system`` serving so many copies of ``network``."""
        models = self.models.tenants(network, system.policy, tenants)
        with served(system, models, self.settings.epc_size, self.work) as found:
            yield found


def tell(text: str) -> None:
    log.print(text, highlight=False, soft_wrap=True)
