"""The study of one model: :func:`study` analyses its plans, then measures them.

Everything exact comes first and needs no emulator; what the emulator measures follows where it
can work. One thing runs at a time, so that nothing disturbs what is timed.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import vessels
from vessels import importer
from vessels.enclave import SIMULATION_NOTICE
from vessels.errors import EmulatorError, UsageError, VesselsError
from vessels.study import emulator, measure, peer
from vessels.study.footprint import darknet_size, footprint
from vessels.study.prepare import prepare
from vessels.study.replacement import BATCH
from vessels.study.result import (
    PAGE_SIZE,
    BudgetPoint,
    FaultCost,
    Footprint,
    LatencyPoint,
    Machine,
    PeerPoint,
    Study,
    TenantsPoint,
)

MIB = 1 << 20
DEFAULT_EPC_SIZE = 93 * MIB
"""What SGX leaves for enclaves of a 128 MiB EPC."""

Progress = Callable[[str, float], None]

_SWEEP_COUNT = 5
_PLAIN_SECONDS = 1.0
_PEER_STEPS = (1, 4, 16)
"""Limits for ONNX Runtime, in EPCs."""


@dataclass(frozen=True)
class Options:
    """What :func:`study` was asked for; its docstring says what each means."""

    epc_size: int
    tenants: tuple[int, ...]
    threads: int
    fault_cost_ns: float | None
    seconds: float
    limit_seconds: float

    def check(self) -> None:
        """Raises :class:`UsageError` for what makes no sense."""
        if self.epc_size < emulator.MINIMUM_PAGE_COUNT * PAGE_SIZE:
            raise UsageError(
                f"an EPC of {self.epc_size} bytes is too small to study; "
                f"it must have {emulator.MINIMUM_PAGE_COUNT} pages at least."
            )
        if not self.tenants or min(self.tenants) < 1:
            raise UsageError("the numbers of tenants must be at least 1.")
        if self.threads < 1:
            raise UsageError(f"threads is {self.threads}; it must be at least 1.")
        if self.fault_cost_ns is not None and self.fault_cost_ns <= 0:
            raise UsageError("the cost of a fault must be more than 0.")
        if self.seconds <= 0 or self.limit_seconds < self.seconds:
            raise UsageError("the seconds must be more than 0, and no more than the limit.")


def study(
    model: str | Path,
    *,
    epc_size: int = DEFAULT_EPC_SIZE,
    tenants: Sequence[int] = (1, 2, 4, 8),
    threads: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    fault_cost_ns: float | None = None,
    seconds: float = 2.0,
    limit_seconds: float = 60.0,
    measured: bool = True,
    with_peer: bool = False,
    progress: Progress | None = None,
) -> Study:
    """Study ``model`` (ONNX) for an EPC of ``epc_size`` bytes shared by so many ``tenants``.

    ``threads`` is that of one enclave; the analysis is of one thread. ``fault_cost_ns`` is what a
    fault shall cost in all: where the emulator's own costs less, it waits. Each measured point
    gets ``seconds`` of timed predictions, two of them at least, and is left out with a note when
    it needs more than ``limit_seconds``. Without ``measured`` nothing is run: sizes and times
    that only a process can show are 0 or missing. ``with_peer`` also runs ONNX Runtime under
    memory limits (as root only; may make a swap file for that time).

    Raises what :func:`vessels.compile_model` does, :class:`UsageError`, and
    :class:`~vessels.errors.EnclaveError` when an enclave dies.
    """
    options = Options(epc_size, tuple(tenants), threads, fault_cost_ns, seconds, limit_seconds)
    options.check()
    report = progress or (lambda step, part: None)
    path = Path(model)
    notes: list[str] = []
    with _said_once(), tempfile.TemporaryDirectory(prefix="vessels-") as folder:
        plans = prepare(
            path,
            shapes=shapes or {},
            threads=threads,
            epc_size=epc_size,
            plain_seconds=min(seconds, _PLAIN_SECONDS) if measured else None,
            folder=Path(folder),
            progress=report,
        )
        conventional, planned, *budgets = plans
        plain = planned.plain
        runtime_size = 0 if plain is None else _pages(plain.trusted_size - planned.plan.pool_size)
        cost, unmeasured = (
            _fault_cost(options, notes, report)
            if measured
            else (None, "only the analysis was asked for.")
        )
        latency: list[LatencyPoint] = []
        crowds: list[TenantsPoint] = []
        if cost is not None:
            conditions = measure.Conditions(
                runtime_size, threads, seconds, limit_seconds, cost.padding_ns
            )
            pools = planned.plan.pool_size, conventional.plan.pool_size
            sizes = epc_sweep(*pools, runtime_size, epc_size)
            for each in (planned, conventional):
                latency += measure.latency(each.subject, sizes, conditions, notes, report)
            for each in (planned, conventional):
                crowds += measure.throughput(
                    each.subject, epc_size, options.tenants, conditions, notes, report
                )
    inputs = planned.subject.inputs
    points: tuple[PeerPoint, ...] = ()
    if with_peer and measured:
        points = _peer(path, inputs, options, notes, report)
    report("other systems' memory", 0.0)
    return Study(
        model=path.stem,
        epc_size=epc_size,
        thread_count=threads,
        footprint=_footprint(path, shapes or {}, inputs, threads, runtime_size, measured, notes),
        conventional=conventional.analysis,
        planned=planned.analysis,
        budgets=tuple(b.analysis for b in budgets),
        fault_cost=cost,
        latency=tuple(latency),
        tenants=tuple(crowds),
        budget_latency=tuple(
            BudgetPoint(
                p.analysis.budget or p.plan.pool_size,
                p.plan.pool_size,
                p.plan.resident_size,
                p.plain.median_ms,
            )
            for p in (planned, *budgets)
            if p.plain is not None
        ),
        peer=points,
        machine=machine("" if plain is None else plain.isa),
        unmeasured=unmeasured,
        notes=tuple(notes),
    )


def epc_sweep(
    planned_pool: int, conventional_pool: int, runtime_size: int, epc_size: int
) -> list[int]:
    """EPC sizes to measure at, ascending.

    From half of what the plan needs, over what it needs and ``epc_size``, in even ratios, to where
    the conventional plan fits.
    """

    # With a batch of pages to spare the emulator has no cause to unmap any.
    beside = runtime_size + BATCH * PAGE_SIZE
    fits, everything = (beside + _pages(p) for p in (planned_pool, conventional_pool))
    sizes = {runtime_size + _pages(planned_pool / 2), fits, everything, epc_size}
    ratio = everything / fits
    for step in range(1, _SWEEP_COUNT):
        size = _pages(fits * ratio ** (step / _SWEEP_COUNT))
        # Hardly different from one that is there already.
        if all(max(size, other) > 1.1 * min(size, other) for other in sizes):
            sizes.add(size)
    return sorted(sizes)


def machine(isa: str) -> Machine:
    """On what this runs."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return Machine(
        cpu=names[0] if names else platform.processor() or platform.machine(),
        core_count=len(os.sched_getaffinity(0)),
        kernel=f"{platform.system()} {platform.release()}",
        isa=isa,
        vessels_version=vessels.__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _pages(size: float) -> int:
    """``size`` in whole pages, as bytes."""
    return max(0, math.ceil(size / PAGE_SIZE)) * PAGE_SIZE


@contextlib.contextmanager
def _said_once() -> Iterator[None]:
    """Lets the notice of the simulation backend through once, not for each of many enclaves."""
    log = logging.getLogger("vessels")
    said = False

    def first(record: logging.LogRecord) -> bool:
        nonlocal said
        if record.getMessage() != SIMULATION_NOTICE:
            return True
        said, before = True, said
        return not before

    log.addFilter(first)
    try:
        yield
    finally:
        log.removeFilter(first)


def _fault_cost(
    options: Options, notes: list[str], report: Progress
) -> tuple[FaultCost | None, str | None]:
    """The emulator's cost of a fault, padded as asked; or why there is no emulator."""
    report("the cost of a fault", 0.0)
    try:
        cost = emulator.fault_cost()
    except EmulatorError as error:
        return None, str(error)
    if (wanted := options.fault_cost_ns) is None:
        return cost, None
    if wanted < cost.fault_ns:
        notes.append(
            f"A fault of the emulator costs {cost.fault_ns / 1e3:.1f} µs here, more "
            f"than the {wanted / 1e3:.1f} µs asked for: nothing was added."
        )
    return replace(cost, padding_ns=max(0.0, wanted - cost.fault_ns)), None


def _footprint(
    model: Path,
    shapes: Mapping[str, Sequence[int]],
    inputs: Mapping[str, Any],
    threads: int,
    runtime_size: int,
    measured: bool,
    notes: list[str],
) -> Footprint:
    if measured:
        try:
            return footprint(
                model, inputs, runtime_size=runtime_size, shapes=shapes, threads=threads
            )
        except VesselsError as error:
            notes.append(f"The memory of ONNX Runtime was not measured: {error}")
    return Footprint(None, darknet_size(importer.load(model, shapes)), runtime_size)


def _peer(
    model: Path, inputs: Mapping[str, Any], options: Options, notes: list[str], report: Progress
) -> tuple[PeerPoint, ...]:
    """ONNX Runtime under limits from the EPC's size up."""
    what = "ONNX Runtime was not measured under a memory limit"
    if (why := peer.unavailable()) is not None:
        notes.append(f"{what}: {why}.")
        return ()
    try:
        return peer.peer_latency(
            model,
            inputs,
            [step * options.epc_size for step in _PEER_STEPS],
            options.threads,
            seconds=options.seconds,
            patience=options.limit_seconds,
            missed=lambda limit, why: notes.append(f"{what} of {limit / MIB:.0f} MiB: {why}."),
            progress=report,
        )
    except VesselsError as error:
        notes.append(f"{what}: {error}")
        return ()
