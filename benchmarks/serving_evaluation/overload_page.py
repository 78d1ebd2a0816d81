"""What overload came to, as sections of the page: the limits, and served against simulated."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.load.outcomes import Summary
from benchmarks.markdown import table
from benchmarks.serving_evaluation.claims import LEAST_GOODPUT, MOST_P99, verdict
from benchmarks.serving_evaluation.overload import Loaded, Overload
from benchmarks.serving_evaluation.replay import efficiency
from benchmarks.serving_evaluation.result import ClosedPoint, OpenPoint, Timing
from benchmarks.serving_evaluation.systems import DOUBLE


def overload_section(found: Overload, plot: str) -> str:
    """Loads of one model and of a small one, and whether the limits are kept."""
    one, small = found.one, found.small
    return f"""## Overload

{found.search.network}, ours, in an open loop: requests come at random (Poisson) whatever becomes
of those before them, and state no deadline. The load is in times of the capacity,
{found.capacity:.1f} a second: the most that clients in a closed loop were answered (above), or that
was answered of {found.search.rate:.1f} requests a second, {found.search.served.goodput:.1f}. Loads
that limits are for were asked in turn with {_crowd(one.beside)} clients in a closed loop for as
long, once for each seed, and are in times of what these were answered: {_rates(one.beside)}.
Percentiles are of accepted requests; "late" is how much later than due the generator sent (p99).

{_loads(one.open)}

{_judged(one)}

![Goodput and p99 over the load]({plot})

{small.open[0].network}, as a small model, at the loads that limits are for, in turn with
{_crowd(small.beside)} clients, who were answered {_rates(small.beside)}. What a refusal costs
server and generator is more, the shorter the runs are that it is compared with.

{_loads(small.open)}

{_judged(small)}"""


def _loads(points: Sequence[OpenPoint]) -> str:
    rows = [
        (
            f"{p.factor:g}",
            str(p.seed),
            f"{p.served.offered_per_second:.1f}",
            f"{p.served.goodput:.1f}",
            ms(p.served.p50_ms),
            ms(p.served.p99_ms),
            _share(p.served),
            f"{p.served.wrong}/{p.served.checked}",
            "" if p.batch is None else f"{p.batch:.2f}",
            f"{p.lag_p99_ms:.1f}",
        )
        for p in points
    ]
    head = (
        "load", "seed", "offered/s", "goodput/s", "p50 ms", "p99 ms", "refused", "wrong/checked",
        "requests a run", "late ms",
    )  # fmt: skip
    return table(head, rows)


def _judged(found: Loaded) -> str:
    judged = verdict(found)
    if judged is None:
        return "No limit is for these loads."
    limits = [
        (
            f"p99 at 2.0 at most {MOST_P99:g} times that at 0.9",
            f"{judged.p99_ratio:.2f}",
            _kept(judged.p99_kept),
        ),
        (
            f"goodput at 2.0 at least {LEAST_GOODPUT:.0%} of capacity",
            f"{judged.goodput_share:.1%}",
            _kept(judged.goodput_kept),
        ),
    ]
    double = [p for p in found.open if p.factor == DOUBLE]
    server = 1e3 * statistics.mean(p.server_cpu_seconds / p.requests for p in double)
    generator = 1e3 * statistics.mean(p.generator_cpu_seconds / p.requests for p in double)
    refused = statistics.mean(
        p.served.offered_per_second * (1 - p.served.accepted / p.served.offered) for p in double
    )
    return f"""{table(("limit", "found", "kept"), limits)}

Figures are means over the repeats. The capacity of the second limit is what clients in the closed
loop were answered, or what was answered of 0.9 or 2.0 if that is more on average:
{judged.capacity:.1f} a second. At 2.0 each request, refused or not, took {server:.1f} ms of a core
in the server and {generator:.1f} ms in the generator: those that were refused
{refused * (server + generator) / 10:.0f} % of one core, {refused * generator / 10:.0f} % in the
generator."""


def simulated_section(found: Overload) -> str:
    """The same arrivals served and simulated."""
    return f"""## Served and simulated

The same arrivals in [the simulator](scheduling.md), with the same scheduler. It is told what runs,
starts and evidence take on the machine when nothing else is asked of it (below), and what server
and generator took of the processor for each request in the search for the capacity, refused ones
alike; nothing of what it is compared with. In each pair the first figure is the served one.

{found.search.network}, the loads from above:

{_pairs(found.one.open)}

{found.mixed_timing.network}, {_copies(found.mixed)} models of which the n-th is asked for in
proportion to 1/n. They do not fit into the EPC together, so that environments end for others'
sake. The load is in parts of what such models were answered at best in a closed loop (above):

{_pairs(found.mixed)}

What the simulator was told; a renewal is a client's, after each start, with a request to seal:

{_timings([found.timing, found.mixed_timing])}

{_beside(found.timing)}"""


def _pairs(points: Sequence[OpenPoint]) -> str:
    head = (
        "load", "seed", "offered/s", "goodput/s", "simulated", "p50 ms", "simulated", "p99 ms",
        "simulated", "refused", "simulated", "launches", "simulated",
    )  # fmt: skip
    rows = [
        (
            f"{p.factor:g}",
            str(p.seed),
            f"{p.served.offered_per_second:.1f}",
            f"{p.served.goodput:.1f}",
            f"{again.goodput:.1f}",
            ms(p.served.p50_ms),
            ms(again.p50_ms),
            ms(p.served.p99_ms),
            ms(again.p99_ms),
            _share(p.served),
            _share(again),
            str(p.launches),
            str(p.simulated_launches),
        )
        for p in points
        if (again := p.simulated) is not None
    ]
    return table(head, rows)


def _copies(points: Sequence[OpenPoint]) -> int:
    return max(p.tenants for p in points)


def _timings(timings: Sequence[Timing]) -> str:
    rows = []
    for timing in {t.network: t for t in timings}.values():
        for rung in timing.rungs:
            few, many = min(rung.seconds), max(rung.seconds)
            rows.append(
                (
                    timing.network,
                    str(rung.rung),
                    f"{rung.seconds[few] * 1e3:.1f}",
                    f"{rung.seconds[many] * 1e3:.1f} ({many})",
                    "" if rung.wide_seconds is None else f"{rung.wide_seconds * 1e3:.1f}",
                    f"{efficiency(timing):.2f}",
                    f"{rung.start_seconds * 1e3:.0f}",
                    f"{rung.start_core_seconds * 1e3:.0f}",
                    f"{timing.evidence * 1e3:.1f}",
                    f"{timing.renewal * 1e3:.1f}",
                )
            )
    head = (
        "network", "rung", "run of one, ms", "of most (how many), ms", "of most on all threads, ms",
        "a thread adds", "start ms", "of a core, ms", "evidence ms",
        "renewal, of a core, ms",
    )  # fmt: skip
    return table(head, rows)


def _beside(timing: Timing) -> str:
    return (
        f"A message travels {timing.travel * 1e3:.1f} ms one way. Server and generator take "
        f"{timing.server_cpu * 1e3:.1f} and {timing.generator_cpu * 1e3:.1f} ms of a core for "
        "each request."
    )


def _crowd(beside: Sequence[ClosedPoint]) -> int:
    return max(p.clients for p in beside)


def _rates(beside: Sequence[ClosedPoint]) -> str:
    return ", ".join(f"{p.seen.per_second:.1f}" for p in beside if p.seen is not None)


def _kept(kept: bool) -> str:
    return "kept" if kept else "**missed**"


def _share(found: Summary) -> str:
    return f"{1 - found.accepted / found.offered:.1%}" if found.offered else ""


def ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
