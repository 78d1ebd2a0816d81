"""What became of requests, one by one and in sum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

OK = "ok"
WRONG = "wrong"
"""Status 200 with what is not the enclave's answer, or is not the right one."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one request; times in seconds.

    ``at`` is when it was due, from the beginning; ``lag`` how much later it was sent; ``seconds``
    what passed from when it was due to when all of its answer, or no answer, was there. ``kind`` is
    :data:`OK`, :data:`WRONG`, the status and code of a refusal, or what else went wrong.
    ``renewed`` says that it had to be sealed anew, to another environment.
    """

    model: str
    at: float
    lag: float
    seconds: float
    kind: str
    checked: bool = False
    renewed: bool = False

    @property
    def accepted(self) -> bool:
        return self.kind in (OK, WRONG)


@dataclass(frozen=True)
class Summary:
    """Of the requests that were due in a window of ``seconds``, but for ``goodput``.

    ``goodput`` is how many right answers came in the window, each within the deadline of its
    request, a second; whenever they were due. Percentiles are those of accepted requests, in
    milliseconds from when they were due, and ``None`` where there are none.
    """

    seconds: float
    offered: int
    accepted: int
    checked: int
    wrong: int
    late: int
    renewed: int
    offered_per_second: float
    accepted_per_second: float
    goodput: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    outcomes: dict[str, int]


def summary(
    outcomes: Sequence[Outcome], begin: float, end: float, *, deadline: float | None = None
) -> Summary:
    """Of ``outcomes``, in the window from ``begin`` to ``end``, in seconds."""
    most = float("inf") if deadline is None else deadline
    span = end - begin
    due = [o for o in outcomes if begin <= o.at <= end]
    accepted = [o for o in due if o.accepted]
    good = [
        o
        for o in outcomes
        if o.kind == OK and o.seconds <= most and begin <= o.at + o.seconds <= end
    ]
    latencies_ms = [o.seconds * 1e3 for o in accepted]
    p50, p95, p99 = (
        (float(p) for p in np.percentile(latencies_ms, (50, 95, 99)))
        if latencies_ms
        else (None, None, None)
    )
    return Summary(
        seconds=span,
        offered=len(due),
        accepted=len(accepted),
        checked=sum(o.checked for o in due),
        wrong=sum(o.kind == WRONG for o in due),
        late=sum(o.seconds > most for o in accepted),
        renewed=sum(o.renewed for o in due),
        offered_per_second=len(due) / span,
        accepted_per_second=len(accepted) / span,
        goodput=len(good) / span,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        outcomes=dict(Counter(o.kind for o in due).most_common()),
    )


def by_model(
    outcomes: Sequence[Outcome], begin: float, end: float, *, deadline: float | None = None
) -> dict[str, Summary]:
    """The :func:`summary` of each model's requests."""
    return {
        name: summary(
            [o for o in outcomes if o.model == name], begin, end, deadline=deadline
        )
        for name in sorted({o.model for o in outcomes})
    }  # fmt: skip


def lag_ms(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """How late requests were sent: what the generator itself adds to every latency."""
    lags = np.array([o.lag * 1e3 for o in outcomes] or [0.0])
    return {"p50": float(np.median(lags)), "p99": float(np.percentile(lags, 99)),
            "max": float(lags.max())}  # fmt: skip


def as_json(found: Summary) -> dict[str, Any]:
    """Numbers to three digits after the point."""
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(found).items()}
