"""Traces: which requests come when, for which model, and until when their answer is of use.

All are open-loop: who sends does not wait for answers. A trace follows from its parameters and
the state of the random generator alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Trace:
    """Requests in order of time, over ``seconds``.

    Request i is made at ``times[i]`` for the model at place ``models[i]`` of ``names``, and is
    answered in time before ``times[i] + deadlines[i]``; infinity where it states no deadline.
    """

    names: tuple[str, ...]
    seconds: float
    times: Array
    models: Array
    deadlines: Array

    def __len__(self) -> int:
        return len(self.times)


def merged(
    names: Sequence[str], seconds: float, times: Sequence[Array], deadlines: Sequence[float]
) -> Trace:
    """One trace of the requests for each model: their times, and the seconds each one has."""
    flat = np.concatenate(times)
    models = np.repeat(np.arange(len(names)), [len(t) for t in times])
    order = np.argsort(flat, kind="stable")
    models = models[order]
    return Trace(tuple(names), seconds, flat[order], models, np.asarray(deadlines)[models])


def poisson(rate: float, seconds: float, random: np.random.Generator) -> Array:
    """Times of requests that know nothing of each other, ``rate`` a second."""
    count = random.poisson(rate * seconds)
    return np.sort(random.uniform(0.0, seconds, count))


def bursts(
    rate: float,
    seconds: float,
    random: np.random.Generator,
    *,
    factor: float = 4.0,
    burst_seconds: float = 2.0,
    calm_seconds: float = 8.0,
) -> Array:
    """Times of a Poisson process whose rate goes up and down (a two-state MMPP).

    It is ``rate`` on average, and ``factor`` times that in bursts. These last ``burst_seconds`` on
    average, the calm between them ``calm_seconds``; both are exponential.
    """
    share = burst_seconds / (burst_seconds + calm_seconds)
    if factor * share > 1:
        raise ValueError("the bursts alone are more than the average")
    rates = (rate * factor, rate * (1 - factor * share) / (1 - share))
    lengths = (burst_seconds, calm_seconds)
    state = 0 if random.random() < share else 1
    now, parts = 0.0, []
    while now < seconds:
        length = min(random.exponential(lengths[state]), seconds - now)
        parts.append(now + poisson(rates[state], length, random))
        now += length
        state = 1 - state
    return np.concatenate(parts)


def zipf(count: int, exponent: float = 1.0) -> Array:
    """Shares of ``count`` models: that of the n-th is in proportion to 1 / n**exponent."""
    shares = 1.0 / np.arange(1, count + 1) ** exponent
    normal: Array = shares / shares.sum()
    return normal


def drifting(
    rate: float,
    shares: Array,
    seconds: float,
    random: np.random.Generator,
    *,
    stay_seconds: float = 30.0,
) -> list[Array]:
    """Times for each model where the ``shares`` move on by one model every ``stay_seconds``.

    Yesterday's favourite is asked for least, the others each take the next better place.
    """
    parts: list[list[Array]] = [[] for _ in shares]
    begin, turn = 0.0, 0
    while begin < seconds:
        length = min(stay_seconds, seconds - begin)
        for place, times in enumerate(parts):
            share = float(shares[(place - turn) % len(shares)])
            times.append(begin + poisson(rate * share, length, random))
        begin += length
        turn += 1
    return [np.concatenate(times) for times in parts]
