"""The evaluation of serving as a page: tables, plots, and sentences that its figures decide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.kept import write_text
from benchmarks.markdown import table
from benchmarks.serving_evaluation.claims import expectations, verdict
from benchmarks.serving_evaluation.overload_page import ms, overload_section, simulated_section
from benchmarks.serving_evaluation.plot import draw_closed, draw_open
from benchmarks.serving_evaluation.result import ClosedPoint
from benchmarks.serving_evaluation.run import Found

NAME = "evaluation-serving"
MIB = 1 << 20


def write_page(found: Found, folder: Path) -> Path:
    """Write the page and its plots to ``folder``; gives the page's path."""
    draw_closed(found.clients, lambda p: p.clients, "clients", folder / f"{NAME}-clients.svg")
    draw_closed(found.tenants, lambda p: p.tenants, "models", folder / f"{NAME}-tenants.svg")
    one = found.overload.one
    draw_open(one.open, verdict(one), folder / f"{NAME}-overload.svg")
    sections = [
        _head(found),
        expectations(found.clients, found.tenants, found.overload),
        _clients(found.clients),
        _tenants(found.tenants, found.settings.clients_per_tenant),
        overload_section(found.overload, f"{NAME}-overload.svg"),
        simulated_section(found.overload),
        _noise(found),
    ]
    path = folder / f"{NAME}.md"
    write_text(path, "\n\n".join(s for s in sections if s) + "\n")
    return path


def _head(found: Found) -> str:
    machine, settings = found.machine, found.settings
    epc = settings.epc_size / MIB
    return f"""# Evaluation of serving

What `make evaluation-serving` measured, and its sentences: nothing here is written by hand.
Measured {machine.date[:10]} with Vessels {machine.vessels_version} on {machine.cpu},
{machine.core_count} cores, {machine.kernel}, which enclaves, server, emulator and clients share.
All enclaves have their pools in one emulated EPC of {epc:.0f} MiB, where a fault costs
{found.fault_us:.1f} µs and more; how it works and what it does not show: [the study](study.md).
How requests are scheduled: [scheduling](scheduling.md).

| system | plan | the scheduler |
| --- | --- | --- |
| ours | planned: memory is reused, parameters stream as far as they must | knows the EPC's size |
| conventional | each tensor and parameter in memory of its own | does not: all models are started |
| conventional, admitted | the same | knows the EPC's size; what never fits is refused |

A run of ours answers as many requests as there are and as pays, one of the others one.
Queues, server and clients are the same for all. The emulator's EPC holds pools alone and all of its
{epc:.0f} MiB are for them, which favours the conventional system without admission: what enclaves
hold beside their pools is in the scheduler's account, but takes nothing of the emulator's pages."""


_CLOSED_HEAD = (
    "answers/s", "p50 ms", "p99 ms", "p99 with refusals ms", "refused/s", "faults",
    "requests a run", "launches", "evictions",
)  # fmt: skip


def _closed_cells(point: ClosedPoint) -> tuple[str, ...]:
    seen = point.seen
    if seen is None:
        return ("not served", *[""] * (len(_CLOSED_HEAD) - 1))
    return (
        f"{seen.per_second:.3g}",
        ms(seen.p50_ms),
        ms(seen.p99_ms),
        ms(seen.patient_p99_ms),
        f"{sum(seen.refused.values()) / seen.seconds:.3g}",
        f"{point.faults:,.0f}",
        "" if point.batch is None else f"{point.batch:.2f}",
        str(point.launches),
        str(point.evictions),
    )


_CLOSED_WORDS = """Each client asks again as soon as it has its answer; who is refused pauses for
a second, as the server proposes, and asks again. "p99" is of the request that was answered, "with
refusals" from when the client first asked. Faults are for each answer. Launches and evictions are
those in the time of the measurement, its warm-up included."""


def _clients(points: Sequence[ClosedPoint]) -> str:
    rows = [(p.system, str(p.clients), *_closed_cells(p)) for p in points]
    return f"""## More and more clients of one model

{points[0].network}. {_CLOSED_WORDS}

{table(("system", "clients", *_CLOSED_HEAD), rows)}
{_refusals(points)}
![Throughput and p99 over clients]({NAME}-clients.svg)"""


def _tenants(points: Sequence[ClosedPoint], each: int) -> str:
    rows = [
        (
            p.system,
            str(p.tenants),
            "" if p.seen is None else str(p.seen.models),
            *_closed_cells(p),
        )
        for p in points
    ]
    return f"""## More and more models

Copies of {points[0].network}, each sealed under its own name and key, {each} clients each.
"Answered" is of how many models there was an answer at all in the time of the measurement.

{table(("system", "models", "answered", *_CLOSED_HEAD), rows)}
{_refusals(points)}
![Throughput and p99 over models]({NAME}-tenants.svg)"""


def _refusals(points: Sequence[ClosedPoint]) -> str:
    words = dict.fromkeys((p.system, p.refusal) for p in points if p.refusal is not None)
    return "".join(f"\nNot served by {system}: {why}\n" for system, why in words)


def _noise(found: Found) -> str:
    settings = found.settings
    every = [*found.clients, *found.tenants]
    loads = sorted([p.load for p in every] + [p.load for p in found.overload.one.open])
    closed = [p for p in every if p.seen is not None]
    clients = sorted(p.clients_cpu_ms for p in closed)
    servers = sorted(p.server_cpu_ms for p in closed)
    return f"""## How far to trust it

- Points in a closed loop were measured once each, for {settings.seconds:g} s or, until there were
  {settings.least_answers} answers, up to {settings.most_seconds:g} s, after {
        settings.warmup:g} s that
  do not count: a p99 of so few answers is close to the slowest. Each load was asked
  {settings.load_seconds:g} s, of which {settings.load_warmup:g} s do not count; where the table has
  more than one seed, once for each, with other arrivals.
- The machine's load average, at the start of a point, was {loads[0]:.1f} to {loads[-1]:.1f}; that
  of the point before is in it.
- Clients and server take of the same cores: the clients {clients[0]:.1f} to {
        clients[-1]:.1f} ms for
  each request, the server {servers[0]:.1f} to {servers[-1]:.1f} ms.
- The emulator answers one fault at a time, and one that crosses from core to core costs it more
  than hardware would take; all but paging is as on the machine. See [the study](study.md)."""
