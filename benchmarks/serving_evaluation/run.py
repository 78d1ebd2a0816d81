"""All of the evaluation, measured where it is missing or stale."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.serving_evaluation.bench import Bench, tell
from benchmarks.serving_evaluation.crowds import over_clients, over_tenants
from benchmarks.serving_evaluation.overload import Overload, overload
from benchmarks.serving_evaluation.result import ClosedPoint
from benchmarks.serving_evaluation.systems import Settings
from vessels.study.emulator import fault_cost
from vessels.study.result import Machine
from vessels.study.study import machine


@dataclass(frozen=True)
class Found:
    """All results. ``fault_us`` is what a fault of the emulator costs here, in microseconds."""

    machine: Machine
    fault_us: float
    settings: Settings
    clients: tuple[ClosedPoint, ...]
    tenants: tuple[ClosedPoint, ...]
    overload: Overload


def run(settings: Settings, folder: Path, *, keep: bool = False) -> Found:
    """All results, kept in ``folder``; with ``keep`` what other code found counts as well."""
    begin = time.perf_counter()
    with Bench.opened(settings, folder, keep=keep) as bench:
        # A simulation root of its own, for servers and clients.
        os.environ["XDG_STATE_HOME"] = str(bench.work)
        about = bench.known("machine")
        if about is None:
            about = {"machine": asdict(machine("")), "fault_us": fault_cost().fault_ns / 1e3}
            bench.store("machine", about)
        clients, tenants = over_clients(bench), over_tenants(bench)
        found = Found(
            Machine(**about["machine"]),
            about["fault_us"],
            settings,
            tuple(clients),
            tuple(tenants),
            overload(bench, clients, tenants),
        )
    tell(f"{time.perf_counter() - begin:.0f} s")
    return found
