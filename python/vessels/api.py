"""The Python interface: build and inspect sealed models.

The way of a model, one line each: import, simplify, lower, plan (order, reuse, stream, place),
check, seal. The command line is a thin layer over this module and :mod:`vessels.enclave`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vessels.cost import estimated_ns
from vessels.draw import draw
from vessels.errors import UsageError
from vessels.figures import Figures, figures
from vessels.files import check_destination, is_there
from vessels.header import Header
from vessels.ladder import Ladder
from vessels.ports import Port
from vessels.program import Program
from vessels.seal import create_key, load_key, open_sealed, read_header, seal

if TYPE_CHECKING:
    import onnx

    from vessels.plan import Plan, Policy

Progress = Callable[[str, float], None]
"""Called with the name of the step at work and its part done, 0 to 1."""


@dataclass(frozen=True)
class Inspection:
    """What is known of a model: of ``figures`` and ``estimated_ms`` only with its key.

    ``figures`` are those of the default rung; ``estimated_ms`` is for each rung of ``ladder`` what
    the planner expects of a run, to compare rungs with each other: it is no promise.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    ladder: Ladder
    figures: Figures | None
    estimated_ms: tuple[float, ...] | None

    @property
    def pool_size(self) -> int:
        """Bytes of the pool at the default rung, for one slot and all threads."""
        return self.ladder.pool_size()

    @property
    def thread_count(self) -> int:
        """Most worker threads."""
        return self.ladder.thread_count

    def as_json(self) -> dict[str, Any]:
        """As ``vessels inspect --json`` prints it; sizes in bytes."""
        known = {"pool_size": self.pool_size, "thread_count": self.thread_count}
        estimated = self.estimated_ms or (None,) * len(self.ladder.rungs)
        return {
            "inputs": [p.as_json() for p in self.inputs],
            "outputs": [p.as_json() for p in self.outputs],
            **(known if self.figures is None else self.figures.as_json()),
            "slot_size": self.ladder.slot_size,
            "rung": self.ladder.default,
            "rungs": [
                {
                    **asdict(rung),
                    "pool_size": self.ladder.pool_size(number),
                    **({} if ms is None else {"estimated_ms": ms}),
                }
                for number, (rung, ms) in enumerate(zip(self.ladder.rungs, estimated, strict=True))
            ],
        }


def build(
    model: str | Path | onnx.ModelProto,
    output: str | Path,
    *,
    key: str | Path | bytes,
    shapes: Mapping[str, Sequence[int]] | None = None,
    memory: int | None = None,
    threads: int = 2,
    resident: bool = False,
    policy: Policy = "planned",
    progress: Progress | None = None,
) -> Inspection:
    """Compile ``model`` (ONNX) and seal it to ``output``.

    ``key`` is a key file, created with mode 0600 if there is none, or the 32 bytes themselves; one
    key may seal many builds. ``shapes`` fixes dynamic inputs. ``memory`` is the most bytes the
    pool may take: parameters stay resident as far as they fit; without it all of them stream,
    and with ``resident`` none does. That is the default rung; who runs the model may choose
    another, from nearly nothing resident to all of it. ``threads`` is the most worker threads the
    pool has room for. ``policy`` is ``"planned"``, or ``"conventional"`` for the memory of today's
    systems, to compare with: all parameters resident, every tensor and workspace in memory of its
    own, no budget, one rung.

    Raises :class:`~vessels.errors.ModelError` (no ONNX, shapes missing),
    :class:`~vessels.errors.UnsupportedError` (all unsupported nodes at once),
    :class:`~vessels.errors.BudgetError`, :class:`~vessels.errors.KeyFileError` and
    :class:`~vessels.errors.OutputError`; ``output`` is then unchanged.
    """
    report = progress or (lambda step, part: None)
    output = Path(output)
    key_file = None if isinstance(key, bytes) else Path(key)
    kept = [key_file] if key_file is not None else []
    if isinstance(model, str | Path):
        kept.append(Path(model))
    check_destination(output, keep=kept)
    secret = None
    if key_file is not None and is_there(key_file):
        secret = load_key(key_file)
    elif key_file is not None:
        check_destination(key_file)
    plan = compile_model(
        model, shapes=shapes, memory=memory, threads=threads, resident=resident, policy=policy,
        progress=report,
    )  # fmt: skip
    if isinstance(key, bytes):
        secret = key
    elif secret is None:
        secret = create_key(Path(key))
    seal(plan, secret, output, progress=lambda part: report("sealing", part))
    return _inspection(read_header(output), plan.program)


def compile_model(
    model: str | Path | onnx.ModelProto,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    memory: int | None = None,
    threads: int = 2,
    resident: bool = False,
    policy: Policy = "planned",
    progress: Progress | None = None,
) -> Plan:
    """The plan of ``model``, checked and not sealed; arguments and errors as :func:`build`."""
    # The compiler's libraries take a second to import: only who builds waits for them.
    from vessels import importer
    from vessels.lower import lower
    from vessels.plan import make_plan
    from vessels.simplify import simplify

    if threads < 1:
        raise UsageError(f"threads is {threads}; it must be at least 1.")
    report = progress or (lambda step, part: None)
    source = Path(model) if isinstance(model, str) else model
    report("importing", 0.0)
    graph = importer.load(source, shapes or {})
    report("simplifying", 0.0)
    graph = simplify(graph)
    report("lowering", 0.0)
    lowered = lower(graph)
    report("planning", 0.0)
    return make_plan(lowered, memory=memory, threads=threads, resident=resident, policy=policy)


def inspect(path: str | Path, *, key: str | Path | bytes | None = None) -> Inspection:
    """What the sealed model at ``path`` shows: its interface and pool size, the rest with ``key``.

    With the key every byte of the file is authenticated first. Raises
    :class:`~vessels.errors.SealedError` and :class:`~vessels.errors.KeyFileError`.
    """
    path = Path(path)
    program = None if key is None else open_sealed(path, _loaded(key))
    return _inspection(read_header(path), program)


def plot(
    path: str | Path, output: str | Path, *, key: str | Path | bytes, title: str | None = None
) -> None:
    """Draw the memory map of the sealed model at ``path`` to ``output``, ``.svg`` or ``.png``.

    Raises what :func:`inspect` does, and :class:`~vessels.errors.OutputError`.
    """
    path, output = Path(path), Path(output)
    check_destination(output, keep=[path] if isinstance(key, bytes) else [path, Path(key)])
    draw(open_sealed(path, _loaded(key)), output, title=title or path.stem)


def _loaded(key: str | Path | bytes) -> bytes:
    return key if isinstance(key, bytes) else load_key(Path(key))


def _inspection(header: Header, program: Program | None) -> Inspection:
    return Inspection(
        inputs=Port.of(header.inputs),
        outputs=Port.of(header.outputs),
        ladder=Ladder.of(header),
        figures=None if program is None else figures(program),
        estimated_ms=None
        if program is None
        else tuple(estimated_ns(program.at(k)) / 1e6 for k in range(len(program.rungs))),
    )
