"""What a server does at the moment, from its metrics: the numbers behind ``vessels top``.

``/metrics`` has totals since the server's start. Two readings (:class:`Reading`) make a view
(:class:`View`): rates and latencies of the time between them, and what holds at the second.

Latencies are known by bucket only. A percentile is interpolated in the bucket it lies in, as
Prometheus does it: as if the bucket's requests were spread evenly over it. So it is right to the
width of a bucket, and of one beyond the last bound only that bound is known.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from vessels.errors import ServerError

_LATENCY = "vessels_predict_seconds"
_BATCH = "vessels_batch_size"
_PERCENTILES = (0.50, 0.95, 0.99)

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Reading:
    """All samples of ``/metrics`` at one time, by name and labels."""

    at: float
    samples: Mapping[str, Mapping[Labels, float]]

    @classmethod
    def parse(cls, text: str, *, at: float | None = None) -> Reading:
        """Of the text format. Raises :class:`ServerError` for anything else."""
        samples: dict[str, dict[Labels, float]] = {}
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    by_labels = samples.setdefault(sample.name, {})
                    # What is not a number is not known.
                    if math.isfinite(value := float(sample.value)):
                        by_labels[frozenset(sample.labels.items())] = value
        except (ValueError, KeyError, IndexError) as error:
            raise ServerError(f"these are no metrics: {error}") from error
        if not any(name.startswith("vessels_") for name in samples):
            raise ServerError("these are not the metrics of a Vessels server.")
        return cls(time.monotonic() if at is None else at, samples)

    def get(self, name: str, **labels: str) -> float | None:
        """The sample with exactly these labels, if there is one."""
        return self.samples.get(name, {}).get(frozenset(labels.items()))

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """The samples that have ``labels`` and another ``label``, by its value."""
        found: dict[str, float] = {}
        for key, value in self.samples.get(name, {}).items():
            every = dict(key)
            if label in every and labels.items() <= every.items():
                found[every[label]] = found.get(every[label], 0.0) + value
        return found


@dataclass(frozen=True)
class Histogram:
    """``counts`` of what is above the bound before and at most ``bounds``, the last infinite."""

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    total: float

    @classmethod
    def of(cls, reading: Reading, name: str, **labels: str) -> Histogram | None:
        """The histogram ``name`` with these labels, if there is one that is sound."""
        try:
            cumulative = sorted(
                (float(bound), count)
                for bound, count in reading.by("le", f"{name}_bucket", **labels).items()
            )
        except ValueError:
            return None
        if not cumulative or not math.isinf(cumulative[-1][0]):
            return None
        counts = [b - a for (_, a), (_, b) in pairwise([(0.0, 0.0), *cumulative])]
        total = reading.get(f"{name}_sum", **labels)
        if min(counts) < 0 or total is None:
            return None
        return cls(tuple(b for b, _ in cumulative), tuple(counts), total)

    def since(self, earlier: Histogram | None) -> Histogram:
        """What was added after ``earlier``; all of it, if the server has begun anew."""
        if earlier is None or earlier.bounds != self.bounds:
            return self
        counts = tuple(b - a for a, b in zip(earlier.counts, self.counts, strict=True))
        if min(counts) < 0:
            return self
        return Histogram(self.bounds, counts, self.total - earlier.total)

    @property
    def count(self) -> float:
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    def percentile(self, part: float) -> float | None:
        """Where ``part`` of all are at most, interpolated; the last finite bound if beyond it."""
        if not self.count:
            return None
        rank, below, before = part * self.count, 0.0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=True):
            if count and before + count >= rank:
                if math.isinf(bound):
                    return below
                return below + (bound - below) * (rank - before) / count
            below, before = bound if not math.isinf(bound) else below, before + count
        return below


@dataclass(frozen=True)
class ModelView:
    """One model. ``None`` stands for what the server does not tell, or what did not happen."""

    name: str
    environments: dict[str, int]
    environment_size: int | None
    queue_length: int | None
    answered_per_second: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    batch_mean: float | None
    refused_per_second: dict[str, float]
    """What was not answered, by the code that its client was told."""
    launches: int
    evictions: int


@dataclass(frozen=True)
class View:
    """A server, in the ``seconds`` before its second reading."""

    seconds: float
    restarted: bool
    epc_capacity: int | None
    epc_used: int | None
    longest_ms: float | None
    """The last bound of latencies: a percentile that is this much may be more."""
    models: tuple[ModelView, ...]

    @property
    def epc_free(self) -> int | None:
        if self.epc_capacity is None or self.epc_used is None:
            return None
        return self.epc_capacity - self.epc_used

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "epc_free": self.epc_free}


def view(earlier: Reading, later: Reading) -> View:
    """What happened between two readings of the same server, and what holds at the later."""
    seconds = later.at - earlier.at
    started = [r.get("process_start_time_seconds") for r in (earlier, later)]
    restarted = started[0] != started[1]
    base = Reading(earlier.at, {}) if restarted else earlier
    names = sorted(
        {n for name in _OF_MODELS for n in later.by("model", name) if n}
    )  # fmt: skip
    latency = next(
        (h for n in names if (h := Histogram.of(later, _LATENCY, model=n)) is not None), None
    )
    capacity = later.get("vessels_epc_capacity_bytes")
    return View(
        seconds=seconds,
        restarted=restarted,
        epc_capacity=_whole(capacity) or None,
        epc_used=_whole(later.get("vessels_epc_used_bytes")),
        longest_ms=None if latency is None or len(latency.bounds) < 2 else latency.bounds[-2] * 1e3,
        models=tuple(_model(name, base, later, seconds) for name in names),
    )


_OF_MODELS = (
    "vessels_environments", "vessels_queue_length", "vessels_model_ready",
    "vessels_predict_seconds_count",
)  # fmt: skip


def _model(name: str, earlier: Reading, later: Reading, seconds: float) -> ModelView:
    latency = _between(earlier, later, _LATENCY, name)
    batch = _between(earlier, later, _BATCH, name)
    before = earlier.by("outcome", "vessels_requests_total", model=name)
    outcomes = later.by("outcome", "vessels_requests_total", model=name)
    added = {code: _added(before.get(code), now) for code, now in outcomes.items() if code != "ok"}
    p50, p95, p99 = _percentiles_ms(latency)
    return ModelView(
        name=name,
        environments={
            state: int(count)
            for state, count in sorted(
                later.by("state", "vessels_environments", model=name).items()
            )
            if count
        },
        environment_size=_whole(later.get("vessels_environment_bytes", model=name)),
        queue_length=_whole(later.get("vessels_queue_length", model=name)),
        answered_per_second=(latency.count if latency else 0.0) / seconds,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        batch_mean=batch.mean if batch else None,
        refused_per_second={code: n / seconds for code, n in sorted(added.items()) if n},
        launches=_whole(later.get("vessels_launches_total", model=name)) or 0,
        evictions=_whole(later.get("vessels_evictions_total", model=name)) or 0,
    )


def _between(earlier: Reading, later: Reading, name: str, model: str) -> Histogram | None:
    found = Histogram.of(later, name, model=model)
    return found and found.since(Histogram.of(earlier, name, model=model))


def _percentiles_ms(latency: Histogram | None) -> Sequence[float | None]:
    found = [latency.percentile(p) if latency else None for p in _PERCENTILES]
    return [None if p is None else p * 1e3 for p in found]


def _added(before: float | None, now: float) -> float:
    """What a counter grew by; all of it, if it has begun anew."""
    return now if before is None or now < before else now - before


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
