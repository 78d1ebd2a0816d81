"""What runs and starts of a model are expected to take, learned from those that were seen.

Each figure is a moving average. A single observation far off, as when the machine stood still for
a moment, moves it by a fifth at most; a lasting change is followed within some twenty.
"""

from __future__ import annotations

from dataclasses import dataclass

from vessels.schedule.model import ModelSpec, Shape

GAIN = 0.2
ADDED_SPEED = 0.8
"""What each thread after the first is taken to add, until it is seen."""
TRUSTED_COUNT = 3
"""After so many observations, one more counts as at most twice and at least half the average."""


@dataclass(slots=True)
class Average:
    """A moving average, of which ``value`` is a guess until something is observed."""

    value: float
    count: int = 0

    def add(self, observed: float, doubted: bool = False) -> None:
        """Take one observation in; the first replaces the guess.

        If it is ``doubted`` that the average is still so high, a lower one counts as much.
        """
        if doubted and observed < self.value:
            self.count = min(self.count, 1)
        if self.count >= TRUSTED_COUNT:
            observed = min(max(observed, self.value / 2), self.value * 2)
        self.value += max(GAIN, 1 / (self.count + 1)) * (observed - self.value)
        self.count += 1


class Estimates:
    """Of one model, by shape and, for runs, by how many requests are in one.

    What was never seen is what the model's figures say, scaled as the nearest that was seen. The
    fixed part of a run shrinks with the parameters that need not be streamed.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.version = 0
        """How many runs and starts have been seen."""
        self._spec = spec
        self._ratio = Average(1.0)
        self._ratios: dict[Shape, dict[int, Average]] = {shape: {} for shape in spec.shapes}
        self._starts = {shape: Average(spec.start_seconds) for shape in spec.shapes}
        self._start = Average(spec.start_seconds)
        self._seconds: dict[Shape, list[float]] = {}

    def run_seconds(self, shape: Shape, count: int) -> float:
        """Of a run of ``count`` requests: more requests never take less."""
        return self.table(shape)[count]

    def table(self, shape: Shape) -> list[float]:
        """The seconds of runs by how many requests are in one, from none to all slots."""
        seconds = self._seconds.get(shape)
        if seconds is None:
            seconds = self._seconds[shape] = self._table(shape)
        return seconds

    def start_seconds(self, shape: Shape) -> float:
        """From the launch of an environment until it is ready."""
        seen = self._starts[shape]
        return seen.value if seen.count else self._start.value

    def add_run(self, shape: Shape, count: int, seconds: float, *, doubted: bool = False) -> None:
        """A run of ``count`` requests took ``seconds``.

        What was seen before counts for less if it is ``doubted`` that it takes so long.
        """
        self.version += 1
        ratio = seconds / self._guess(shape, count)
        self._ratio.add(ratio, doubted)
        self._ratios[shape].setdefault(count, Average(ratio)).add(ratio, doubted)
        # Other shapes are scaled by this one only as long as they have not been seen themselves.
        self._seconds = {
            other: table
            for other, table in self._seconds.items()
            if other != shape and self._ratios[other]
        }

    def add_start(self, shape: Shape, seconds: float) -> None:
        """A start took ``seconds``."""
        self.version += 1
        self._start.add(seconds)
        self._starts[shape].add(seconds)

    def _guess(self, shape: Shape, count: int) -> float:
        first, run = self._spec.shapes[0], self._spec.run_time
        seconds = run.fixed * self._streamed(shape) + run.each * count
        return max(1e-6, seconds * _speed(first.threads) / _speed(shape.threads))

    def _streamed(self, shape: Shape) -> float:
        """The part of the optional parameters that is streamed, as the sizes tell: 0 to 1."""
        alike = [
            s for s in self._spec.shapes if (s.slots, s.threads) == (shape.slots, shape.threads)
        ]
        sizes = {each.rung: each.size for each in alike}
        least, most = sizes[min(sizes)], sizes[max(sizes)]
        if min(sizes) > 0 or least >= most:
            return 1.0
        return 1 - (shape.size - least) / (most - least)

    def _table(self, shape: Shape) -> list[float]:
        ratios = self._ratios[shape]
        seconds = [0.0]
        for count in range(1, shape.slots + 1):
            ratio = self._ratio
            if ratios:
                ratio = ratios[min(ratios, key=lambda seen: (abs(seen - count), seen))]
            seconds.append(max(seconds[-1], ratio.value * self._guess(shape, count)))
        return seconds


def _speed(threads: int) -> float:
    return 1 + (threads - 1) * ADDED_SPEED
