"""Traces have the rates, bursts and shares that they are asked for."""

from __future__ import annotations

import numpy as np
import pytest

from vessels.schedule.traces import Array, bursts, drifting, merged, poisson, zipf


def dispersion(times: Array, seconds: float) -> float:
    """Variance over mean of the requests in a second: 1 of a Poisson process."""
    counts, _ = np.histogram(times, bins=int(seconds), range=(0, seconds))
    return float(counts.var() / counts.mean())


def test_poisson() -> None:
    times = poisson(50.0, 1000.0, np.random.default_rng(0))
    assert len(times) == pytest.approx(50_000, rel=0.02)
    assert (np.diff(times) >= 0).all()
    assert times.min() >= 0 and times.max() < 1000
    assert dispersion(times, 1000.0) == pytest.approx(1.0, abs=0.15)


def test_bursts_are_as_many_but_not_as_even() -> None:
    times = bursts(50.0, 5000.0, np.random.default_rng(0))
    assert len(times) == pytest.approx(250_000, rel=0.1)
    assert (np.diff(times) >= 0).all()
    assert times.max() < 5000
    assert dispersion(times, 5000.0) > 20


def test_bursts_cannot_be_more_than_all() -> None:
    with pytest.raises(ValueError, match="average"):
        bursts(1.0, 10.0, np.random.default_rng(0), factor=6.0)


def test_zipf() -> None:
    assert zipf(4).sum() == pytest.approx(1.0)
    assert zipf(3).tolist() == pytest.approx([6 / 11, 3 / 11, 2 / 11])


def test_merged_keeps_each_models_own() -> None:
    trace = merged(["a", "b"], 10.0, [np.array([1.0, 5.0]), np.array([0.5, 5.0])], [0.1, 0.2])
    assert trace.times.tolist() == [0.5, 1.0, 5.0, 5.0]
    assert trace.models.tolist() == [1, 0, 0, 1]
    assert trace.deadlines.tolist() == [0.2, 0.1, 0.1, 0.2]


def test_the_favourite_drifts() -> None:
    shares = zipf(4)
    random = np.random.default_rng(0)
    times = drifting(100.0, shares, 120.0, random, stay_seconds=30.0)
    for turn in range(4):
        begin = 30.0 * turn
        counts = [int(((t >= begin) & (t < begin + 30)).sum()) for t in times]
        assert counts[turn] == max(counts)
        assert sum(counts) == pytest.approx(3000, rel=0.1)
