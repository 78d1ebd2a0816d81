"""The evaluation as a page: tables, plots, and sentences that its figures decide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.evaluation.claims import expectations
from benchmarks.evaluation.result import Result
from benchmarks.kept import write_text
from benchmarks.markdown import table
from vessels.study import network_plots
from vessels.study.result import LatencyPoint, Policy
from vessels.study.svg import save
from vessels.study.wording import beyond_agreement

MIB = 1 << 20
HARDWARE_FAULT_NS = 12_000
"""40,000 cycles at 3.3 GHz."""
POLICIES: tuple[Policy, ...] = ("conventional", "planned")


def write_page(results: Sequence[Result], folder: Path) -> Path:
    """Write ``evaluation.md`` and its plots to ``folder``; gives the page's path."""
    names = [r.network for r in results]
    save(
        network_plots.network_bars(
            names,
            {
                "conventional": [r.conventional_size / MIB for r in results],
                "planned": [r.planned_size / MIB for r in results],
            },
            label="pool (MiB)",
            text=lambda value: f"{value:.3g}",
            reference=(results[0].epc_size / MIB, f"EPC {results[0].epc_size / MIB:.0f} MiB"),
            logarithmic=True,
        ),
        folder / "evaluation-footprint.svg",
    )
    measured = [r for r in results if r.speedup is not None]
    if measured:
        save(
            network_plots.network_bars(
                [r.network for r in measured],
                {"planned": [r.speedup for r in measured]},
                label=f"times as fast as the conventional plan, EPC of "
                f"{results[0].epc_size / MIB:.0f} MiB",
                text=lambda value: f"{value:.1f}",
                reference=(1.0, ""),
            ),
            folder / "evaluation-speed.svg",
        )
    shared = [r for r in results if r.tenants]
    if shared:
        save(
            network_plots.network_scaling([(r.network, r.tenants) for r in shared]),
            folder / "evaluation-tenants.svg",
        )
    sections = [
        _head(results),
        expectations(results),
        _footprint(results),
        _speed(measured),
        _tenants(shared),
        _faults(results),
        _peer(results),
        _notes(results),
    ]
    path = folder / "evaluation.md"
    write_text(path, "\n\n".join(s for s in sections if s) + "\n")
    return path


def _head(results: Sequence[Result]) -> str:
    first = results[0]
    machine = first.machine
    dates = sorted(r.machine.date[:10] for r in results)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return f"""# Evaluation

What `make evaluation` measured, and its sentences: nothing here is written by hand. Measured {when}
with Vessels {machine.vessels_version} on {machine.cpu}, {machine.core_count} cores ({machine.isa}),
{machine.kernel}. Each network of the zoo at batch 1, one thread for each enclave, in an EPC of
{first.epc_size / MIB:.0f} MiB. How to read it, and what it does not show: [the study](study.md).

{_cost(results)}"""


def _cost(results: Sequence[Result]) -> str:
    costs = [r.fault_cost for r in results if r.fault_cost is not None]
    if not costs:
        why = next((r.unmeasured for r in results if r.unmeasured), "")
        return f"There was no emulator, so nothing was measured in it: {why}"
    faults = sorted(c.fault_ns / 1e3 for c in costs)
    softs = sorted(c.soft_fault_ns / 1e3 for c in costs)
    added = sorted({round(c.padding_ns / 1e3, 1) for c in costs})
    padding = "nothing was added to it" if added == [0.0] else f"{added[-1]} µs were added to it"
    return (
        f"A fault of the emulator costs {_range(faults)} µs (one on a page that was only unmapped "
        f"{_range(softs)} µs); {padding}. On SGX hardware it is some 40,000 cycles, 10 to 13 µs "
        "at 3 to 4 GHz (Taassori, Shafiee, Balasubramonian, VAULT, ASPLOS 2018)."
    )


def _footprint(results: Sequence[Result]) -> str:
    rows = [
        (
            r.network,
            _mib(r.conventional_size),
            _mib(r.planned_size),
            f"{r.reduction:.1f}",
            "" if r.footprint.onnxruntime_size is None else _mib(r.footprint.onnxruntime_size),
            _mib(r.footprint.darknet_size),
            _mib(r.footprint.runtime_size),
        )
        for r in results
    ]
    return f"""## Footprint

Pools in MiB, and the memory of other systems: ONNX Runtime's as its process grows, Darknet's by its
allocation rule on paper. An enclave holds its own part beside its pool, whichever the plan.

{
        table(
            (
                "network",
                "conventional",
                "planned",
                "times smaller",
                "ONNX Runtime",
                "Darknet's rule",
                "beside the pool",
            ),
            rows,
        )
    }

![Pools of both plans](evaluation-footprint.svg)"""


def _speed(results: Sequence[Result]) -> str:
    if not results:
        return ""
    rows = []
    for r in results:
        slow, fast, still = r.at_epc("conventional"), r.at_epc("planned"), r.unpaged("conventional")
        assert slow is not None and fast is not None
        rows.append(
            (
                r.network,
                f"{slow.faults:,.0f}",
                f"{slow.median_ms:.1f}",
                "" if still is None else f"{still.median_ms:.1f}",
                f"{fast.faults:,.0f}",
                f"{fast.median_ms:.1f}",
                f"{r.speedup:.1f}",
                "" if (real := r.speedup_at(HARDWARE_FAULT_NS)) is None else f"{real:.1f}",
            )
        )
    return f"""## Speed in an EPC of {results[0].epc_size / MIB:.0f} MiB

Medians in milliseconds, one enclave alone; faults are for each prediction. "All fits" is the
conventional plan in an EPC that holds all of it. The last column is an estimate: "all fits" and
{HARDWARE_FAULT_NS / 1e3:.0f} µs for each fault, as on hardware of 3.3 GHz, over the planned time.

{
        table(
            (
                "network",
                "conventional faults",
                "conventional ms",
                "all fits ms",
                "planned faults",
                "planned ms",
                "times as fast",
                f"at {HARDWARE_FAULT_NS / 1e3:.0f} µs a fault",
            ),
            rows,
        )
    }

![Speed-up of the plan](evaluation-speed.svg)"""


def _tenants(results: Sequence[Result]) -> str:
    if not results:
        return ""
    counts = sorted({p.tenant_count for r in results for p in r.tenants})
    rows = [
        (
            r.network,
            policy,
            *(_rate(r.rate(policy, c)) for c in counts),
            str(r.fitting(policy)),
            _rate(r.rate_at(HARDWARE_FAULT_NS)) if policy == "conventional" else "",
        )
        for r in results
        for policy in POLICIES
    ]
    return f"""## Tenants in one EPC

Predictions per second of all tenants together, each an enclave of one thread in a closed loop;
"fit" is how many fit without paging. The emulator answers one fault at a time, and one that crosses
from core to core costs it twice as much and more. The last column bounds what that takes from the
conventional plan: by the counts, all cores paging at once at {
        HARDWARE_FAULT_NS / 1e3:.0f} µs a fault.

{
        table(
            (
                "network",
                "plan",
                *(str(c) for c in counts),
                "fit",
                f"at most, {HARDWARE_FAULT_NS / 1e3:.0f} µs a fault",
            ),
            rows,
            left=2,
        )
    }

![Throughput over tenants](evaluation-tenants.svg)"""


def _faults(results: Sequence[Result]) -> str:
    paging = [(r, p) for r in results for p in r.latency if p.predicted_policy or p.faults]
    if not paging:
        return ""
    rows = []
    for r in results:
        own = [p for network, p in paging if network is r]
        if not own:
            continue
        apart = [_apart(p) for p in own]
        rows.append(
            (
                r.network,
                str(len(own)),
                str(sum(not beyond_agreement(p) for p in own)),
                f"{sorted(apart)[len(apart) // 2]:.1%}",
                f"{max(apart):.1%}",
            )
        )
    listed = [
        (
            r.network,
            p.policy,
            _mib(p.epc_size),
            f"{p.faults:,.0f}",
            f"{p.predicted_policy:,}",
            f"{p.predicted_lru:,}",
        )
        for r, p in paging
        if beyond_agreement(p)
    ]
    text = f"""## Faults: measured against predicted

Faults for each prediction as the emulator counted them, against the analysis under the emulator's
own policy, at all EPC sizes where either is not 0; they are to agree within 10 %.

{table(("network", "points", "within 10 %", "median apart", "most apart"), rows)}"""
    if not listed:
        return f"{text}\n\nAll agree."
    return f"""{text}

Those that do not:

{table(("network", "plan", "EPC MiB", "measured", "predicted", "by exact LRU"), listed, left=2)}"""


def _peer(results: Sequence[Result]) -> str:
    known = [r for r in results if r.peer]
    if not known:
        return ""
    limits = sorted({p.limit_size for r in known for p in r.peer})
    rows = []
    for r in known:
        times = {p.limit_size: f"{p.median_ms:.1f}" for p in r.peer}
        fast = r.at_epc("planned")
        rows.append(
            (
                r.network,
                *(times.get(limit, "not reached") for limit in limits),
                "" if fast is None else f"{fast.median_ms:.1f}",
            )
        )
    return f"""## An outside peer: ONNX Runtime under a memory limit

Milliseconds of ONNX Runtime itself, one thread, in a process whose memory is limited and whose rest
goes to a swap file; no encryption. The machine's disk decides as much as the network. Last, the
plan in its EPC.

{table(("network", *(f"{limit / MIB:.0f} MiB" for limit in limits), "planned"), rows)}"""


def _notes(results: Sequence[Result]) -> str:
    lines = [f"- {r.network}: {note}" for r in results for note in r.notes]
    return "## Left out\n\n" + "\n".join(lines) if lines else ""


def _apart(point: LatencyPoint) -> float:
    return abs(point.faults - point.predicted_policy) / max(1.0, float(point.predicted_policy))


def _range(values: Sequence[float], digits: int = 1) -> str:
    low, high = f"{values[0]:.{digits}f}", f"{values[-1]:.{digits}f}"
    return low if low == high else f"{low} to {high}"


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _mib(size: float) -> str:
    return f"{size / MIB:.1f}"
