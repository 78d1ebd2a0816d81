"""Figures as people read them, and the sentences that say what follows from a study.

Everything is computed from the study; nothing is said that it does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

from vessels.study.distances import misses
from vessels.study.result import (
    LatencyPoint,
    PlanAnalysis,
    Policy,
    Study,
    TenantsPoint,
)

_MIB = 1 << 20
_THIN = "\N{NARROW NO-BREAK SPACE}"
_SPACE = "\N{NO-BREAK SPACE}"
NONE = "\N{EN DASH}"
"""What stands in a table where there is nothing."""
AGREEMENT = 0.10
"""Measured and predicted faults are to agree within this share."""
BATCH = 16
"""Pages the emulator reclaims at once: a smaller difference than that is no disagreement."""


class _AtSize(Protocol):
    @property
    def policy(self) -> Policy: ...
    @property
    def epc_size(self) -> int: ...


_Point = TypeVar("_Point", bound=_AtSize)


def count_text(value: float) -> str:
    """``45 012``, rounded to a whole number."""
    return f"{round(value):,}".replace(",", _THIN)


def about_text(value: float) -> str:
    """``45 000``: three digits, for prose."""
    if value < 1000:
        return f"{value:.3g}" if value < 10 else f"{value:.0f}"
    step = 10 ** (math.floor(math.log10(value)) - 2)
    return count_text(round(value / step) * step)


def mib_number(size: float) -> str:
    """``198``, ``6.7``, ``0.42``; ``93`` where it is whole: MiB without the unit, for prose."""
    value = size / _MIB
    digits = 0 if value >= 99.95 or value == round(value) else 1 if value >= 0.95 else 2
    return f"{value:.{digits}f}"


def mib_cell(size: float) -> str:
    """``198.04``, ``0.42``, a dash for none: MiB to stand one below the other."""
    if 0 < size < _MIB / 200:
        return "<0.01"
    return f"{size / _MIB:.2f}" if size else NONE


def size_text(size: float) -> str:
    """``198 MiB``; below a tenth of that, KiB."""
    if 0 < size < _MIB / 10:
        return f"{size / 1024:.0f}{_SPACE}KiB"
    return f"{mib_number(size)}{_SPACE}MiB"


def time_text(milliseconds: float) -> str:
    """``812 ms``, ``6.3 ms``, ``1.24 s``."""
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.3g}{_SPACE}s"
    digits = 0 if milliseconds >= 20 else 1 if milliseconds >= 1 else 2
    return f"{milliseconds:.{digits}f}{_SPACE}ms"


def rate_text(per_second: float) -> str:
    """``14.2``, ``4.70``, ``0.061``: three digits."""
    digits = 2 - math.floor(math.log10(per_second)) if per_second > 0 else 0
    return f"{per_second:.{max(0, digits)}f}"


def micro_text(nanoseconds: float) -> str:
    """``11.8 µs``."""
    return f"{nanoseconds / 1000:.3g}{_SPACE}µs"


def times_text(ratio: float) -> str:
    """``11.8 times``; ``212 times``."""
    return f"{ratio:.0f} times" if ratio >= 99.5 else f"{ratio:.1f} times"


def predicted(study: Study, plan: PlanAnalysis) -> int:
    """Faults per prediction of ``plan`` in the study's EPC, by exact LRU."""
    return misses(plan.curve, max(0, study.epc_size - study.footprint.runtime_size))


def fits(study: Study, plan: PlanAnalysis) -> bool:
    """Whether the pool and the enclave's own memory fit the study's EPC together."""
    return plan.pool_size + study.footprint.runtime_size <= study.epc_size


def tenants_that_fit(study: Study, plan: PlanAnalysis) -> int:
    """How many enclaves of ``plan`` the study's EPC holds at once without paging."""
    return study.epc_size // (plan.pool_size + study.footprint.runtime_size)


def at_epc(points: Sequence[_Point], policy: Policy, epc_size: int) -> _Point | None:
    """The point of ``policy`` at exactly ``epc_size``."""
    return next((p for p in points if p.policy == policy and p.epc_size == epc_size), None)


def speedup(study: Study) -> float | None:
    """Conventional over planned latency in the study's EPC, where both were measured."""
    slow = at_epc(study.latency, "conventional", study.epc_size)
    fast = at_epc(study.latency, "planned", study.epc_size)
    return None if slow is None or fast is None else slow.median_ms / fast.median_ms


def verdict(study: Study) -> str:
    """One plain sentence of what follows for this model."""
    return f"{_conventional(study)}; {_planned(study)}{_comparison(study)}."


def consequence(study: Study) -> str:
    """A second sentence: how many environments one EPC holds."""
    old, new = (tenants_that_fit(study, p) for p in (study.conventional, study.planned))
    epc = size_text(study.epc_size)
    if new == 0:
        return (
            f"Not one environment of either plan fits {epc}: a larger EPC is needed to stop paging."
        )
    held = "none" if old == 0 else str(old)
    alone = "" if study.footprint.runtime_size else ", by their pools alone"
    return (
        f"An EPC of {epc} holds {new} such environment{'s' if new > 1 else ''} at once without "
        f"paging{alone}; of conventional ones it holds {held}."
    )


def _conventional(study: Study) -> str:
    plan = study.conventional
    need = f"{study.model} needs {size_text(plan.pool_size)} the conventional way"
    measured = at_epc(study.latency, "conventional", study.epc_size)
    epc = size_text(study.epc_size)
    if fits(study, plan):
        need += f", which fits the {epc} of this EPC"
        return need if measured is None else f"{need}, and takes {time_text(measured.median_ms)}"
    ratio = plan.pool_size / study.epc_size
    if ratio >= 1.05:
        need += f", {times_text(ratio)} the {epc} of this EPC"
    else:
        own = size_text(study.footprint.runtime_size)
        need += f", too much for this EPC of {epc} with the {own} that the enclave itself takes"
    return f"{need}: {_paging('each prediction', study, plan, measured)}"


def _planned(study: Study) -> str:
    plan = study.planned
    need = f"planned by Vessels it needs {size_text(plan.pool_size)}"
    measured = at_epc(study.latency, "planned", study.epc_size)
    if not fits(study, plan):
        either = "" if fits(study, study.conventional) else " either"
        return f"{need}, which does not fit{either}: {_paging('it', study, plan, measured)}"
    if measured is None:
        return f"{need} and does not page"
    if measured.faults < 0.5:
        return f"{need}, does not page, and takes {time_text(measured.median_ms)}"
    return f"{need}, {_paging('', study, plan, measured)}"


def _paging(subject: str, study: Study, plan: PlanAnalysis, measured: LatencyPoint | None) -> str:
    """``each prediction pages 45 000 times and takes 812 ms``."""
    faults = predicted(study, plan) if measured is None else measured.faults
    words = f"{subject} pages {about_text(faults)} times".strip()
    if measured is None:
        return f"{words} by the analysis"
    return f"{words} and takes {time_text(measured.median_ms)}"


def _comparison(study: Study) -> str:
    ratio = speedup(study)
    if ratio is None:
        less = study.conventional.pool_size / max(1, study.planned.pool_size)
        saved = f": {times_text(less)} less memory" if less >= 1.05 else ""
        return f"{saved} (times were not measured)"
    if ratio >= 1.05:
        return f": {times_text(ratio)} as fast"
    if ratio > 0.95:
        return ": as fast"
    return f": {times_text(1 / ratio)} as long, the price of decrypting parameters every time"


def beyond_agreement(point: LatencyPoint) -> bool:
    """Whether measured faults differ from those predicted by more than is agreed."""
    apart = abs(point.faults - point.predicted_policy)
    return apart > BATCH and apart > AGREEMENT * point.predicted_policy


def collapse(points: Sequence[TenantsPoint], policy: Policy) -> float | None:
    """Throughput with the most tenants over that with one."""
    own = sorted((p for p in points if p.policy == policy), key=lambda p: p.tenant_count)
    if len(own) < 2 or own[0].tenant_count != 1 or own[0].predictions_per_second <= 0:
        return None
    return own[-1].predictions_per_second / own[0].predictions_per_second
