"""What was expected of the evaluation, and what came: sentences that the figures decide."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.evaluation.result import Result
from vessels.study.result import Policy
from vessels.study.wording import times_text

MIB = 1 << 20

FOOTPRINT_BAND = (5.0, 60.0)
SPEEDUP_LIMIT = 3.0
"""At least, where the conventional footprint exceeds twice the EPC."""
FLAT = 0.85
"""Throughput with most tenants, of the best: from here on it is called flat."""
COLLAPSED = 0.5
"""Conventional throughput with the most tenants, of the plan's: below it is called collapsed."""


def expectations(results: Sequence[Result]) -> str:
    """A section of the page: each expectation, where it holds, and where not and why."""
    lines = [_expected_footprint(results)]
    if any(r.latency for r in results):
        lines += [_expected_silence(results), _expected_speed(results)]
    if any(r.tenants for r in results):
        lines += [_expected_scaling(results), _expected_collapse(results)]
    return "## What was expected, and what came\n\n" + "\n".join(f"- {line}" for line in lines)


def _expected_footprint(results: Sequence[Result]) -> str:
    low, high = FOOTPRINT_BAND
    values = sorted(r.reduction for r in results)
    text = f"**Footprint {low:.0f} to {high:.0f} times smaller**: {_range(values)} times. "
    beyond = [r for r in results if not low <= r.reduction <= high]
    if not beyond:
        return text + "Holds for all."
    why = [
        f"{r.network} {times_text(r.reduction)} ("
        + (
            f"the conventional way takes {_mib(r.conventional_size)} MiB, of which the plan's "
            f"live activations and workspaces alone need {_mib(r.planned_size)}"
            if r.reduction < low
            else f"nearly all of its {_mib(r.conventional_size)} MiB are parameters, which stream"
        )
        + ")"
        for r in beyond
    ]
    return f"{text}Outside: {'; '.join(why)}."


def _expected_silence(results: Sequence[Result]) -> str:
    points = [
        (r, p)
        for r in results
        for p in r.latency
        if p.policy == "planned" and r.capacity(p.epc_size) >= r.planned_size
    ]
    loud = [(r, p) for r, p in points if p.faults > 0]
    text = "**No faults after the first prediction where the pool fits**: "
    if not loud:
        return f"{text}none in {len(points)} measured points. Holds."
    which = "; ".join(f"{r.network} {p.faults:.1f} in {_mib(p.epc_size)} MiB" for r, p in loud)
    return f"{text}does not hold: {which}."


def _expected_speed(results: Sequence[Result]) -> str:
    due = [r for r in results if r.conventional_size > 2 * r.epc_size and r.speedup is not None]
    text = (
        f"**At least {SPEEDUP_LIMIT:.0f} times as fast where the conventional footprint exceeds "
        "twice the EPC**: "
    )
    if not due:
        return text + "no such network was measured."
    slow = [r for r in due if (r.speedup or 0) < SPEEDUP_LIMIT]
    held = [r for r in due if r not in slow]
    if held:
        text += f"holds for {', '.join(f'{r.network} ({r.speedup:.1f})' for r in held)}. "
    text += " ".join(f"Not for {r.network} ({r.speedup:.1f}): {_why(r)}." for r in slow)
    return text.strip()


def _why(result: Result) -> str:
    """Where the time of both plans goes."""
    paged, still = result.at_epc("conventional"), result.unpaged("conventional")
    fast = result.at_epc("planned")
    if paged is None or still is None or fast is None:
        return "its parts were not measured"
    added = paged.median_ms - still.median_ms
    return (
        f"without paging the conventional plan computes for {still.median_ms:.0f} ms already and "
        f"the planned one, which decrypts its parameters meanwhile, takes {fast.median_ms:.0f} ms; "
        f"{paged.faults:,.0f} faults add {added:.0f} ms, so that "
        f"{paged.median_ms:.0f} ms stand against {fast.median_ms:.0f}"
    )


def _expected_scaling(results: Sequence[Result]) -> str:
    text = "**Throughput of the plan flat over tenants once the cores are full**"
    flat: list[str] = []
    falling: list[str] = []
    for r in results:
        rates = _rates(r, "planned")
        if len(rates) < 2:
            continue
        most = max(rates)
        share = rates[most] / max(rates.values())
        room = "" if r.fitting("planned") >= most else f", but only {r.fitting('planned')} fit"
        words = f"{r.network} ({share:.0%}{room})"
        (flat if share >= FLAT else falling).append(words)
    if not flat and not falling:
        return f"{text}: not measured."
    text += ", its rate with the most tenants of its best rate"
    if flat:
        text += f": holds for {', '.join(flat)}"
    if falling:
        text += f"{'; ' if flat else ': '}does not for {', '.join(falling)}"
    return f"{text}."


def _expected_collapse(results: Sequence[Result]) -> str:
    text = "**Throughput of the conventional plan collapses over tenants**: "
    collapsed: list[str] = []
    standing: list[str] = []
    for r in results:
        slow, fast = _rates(r, "conventional"), _rates(r, "planned")
        counts = slow.keys() & fast.keys()
        if not counts:
            continue
        most = max(counts)
        ratio = slow[most] / fast[most]
        words = (
            f"{r.network} (with {most} tenants {_per_second(slow[most])}, the plan "
            f"{_per_second(fast[most])}"
        )
        if ratio < COLLAPSED:
            collapsed.append(f"{words})")
        else:
            standing.append(f"{words}; {r.fitting('conventional')} fit)")
    if collapsed:
        text += f"below half of the plan's are {', '.join(collapsed)}. "
    if standing:
        text += f"{'Not' if collapsed else 'not'} {', '.join(standing)}."
    return text.strip()


def _rates(result: Result, policy: Policy) -> dict[int, float]:
    """Predictions per second by number of tenants."""
    return {p.tenant_count: p.predictions_per_second for p in result.tenants if p.policy == policy}


def _per_second(rate: float) -> str:
    return f"{rate:.3g}/s"


def _mib(size: float) -> str:
    return f"{size / MIB:.1f}"


def _range(values: Sequence[float]) -> str:
    low, high = f"{values[0]:.1f}", f"{values[-1]:.1f}"
    return low if low == high else f"{low} to {high}"
