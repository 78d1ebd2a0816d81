"""When requests come: times from the beginning, in order, each with the model it is for."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vessels.errors import UsageError


@dataclass(frozen=True)
class Arrival:
    """A request for ``model``, due ``at`` seconds from the beginning."""

    at: float
    model: str


def poisson(
    rate: float, seconds: float, mix: Mapping[str, float], *, seed: int = 0
) -> list[Arrival]:
    """Independent arrivals, ``rate`` a second on average, models drawn by their weight in ``mix``.

    The same ``seed`` gives the same arrivals.
    """
    random = np.random.default_rng(seed)
    names, weights = list(mix), np.fromiter(mix.values(), float)
    # Given how many there are, the times of a Poisson process are independent and uniform.
    times = np.sort(random.uniform(0.0, seconds, random.poisson(rate * seconds)))
    drawn = random.choice(len(names), len(times), p=weights / weights.sum())
    return [Arrival(float(t), names[i]) for t, i in zip(times, drawn, strict=True)]


def parse_mix(texts: Sequence[str]) -> dict[str, float]:
    """``NAME`` or ``NAME=WEIGHT`` each, to weights by name. Raises :class:`UsageError`."""
    mix: dict[str, float] = {}
    for text in texts:
        name, equals, weight = text.partition("=")
        try:
            mix[name] = float(weight) if equals else 1.0
        except ValueError:
            mix[name] = math.nan
        if not 0 < mix[name] < math.inf:
            raise UsageError(f"{text!r}: write NAME=WEIGHT, with a weight above 0.")
    return mix


def read_trace(path: Path) -> list[Arrival]:
    """Lines of ``seconds,model``, in any order. Raises :class:`UsageError` for any other."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return sorted(_rows(path, file), key=lambda a: a.at)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}.") from error


def _rows(path: Path, lines: Iterator[str]) -> Iterator[Arrival]:
    reader = csv.reader(lines)
    for row in reader:
        try:
            time, model = row
            at = float(time)
        except ValueError:
            at, model = -1.0, ""
        if not 0 <= at < math.inf or not model:
            raise UsageError(f"{path}, line {reader.line_num}: write seconds,model.")
        yield Arrival(at, model)
