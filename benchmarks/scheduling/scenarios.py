"""What is simulated: models, traces of requests, and the policies that are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.scheduling.models import MIB, ZOO, Figures, simulated
from vessels.schedule.bound import capacity
from vessels.schedule.model import Machine, ModelSpec
from vessels.schedule.peers import FirstCome, Static
from vessels.schedule.scheduler import Scheduler
from vessels.schedule.simulated import SimulatedModel
from vessels.schedule.simulation import Policy
from vessels.schedule.traces import Trace, bursts, drifting, merged, poisson, zipf

Array = np.ndarray[Any, Any]
Arrivals = Callable[[float, Array, float, np.random.Generator], list[Array]]

MACHINE = Machine(core_count=2, epc_size=93 * MIB)
SECONDS = 180.0
LEAST_DEADLINE = 1.0
"""Seconds that any request has; one of a long run has :data:`DEADLINE_RUNS` times its length."""
DEADLINE_RUNS = 10

POLICIES: dict[str, Callable[[Machine, Sequence[ModelSpec]], Policy]] = {
    "first come": FirstCome,
    "first come, punctual": partial(FirstCome, punctual=True),
    "static, punctual": partial(Static, punctual=True),
    "ours": Scheduler,
}


def even(rate: float, shares: Array, seconds: float, random: np.random.Generator) -> list[Array]:
    """Poisson processes, one a model."""
    return [poisson(rate * share, seconds, random) for share in shares]


def uneven(rate: float, shares: Array, seconds: float, random: np.random.Generator) -> list[Array]:
    """Each model in bursts of its own."""
    return [bursts(rate * share, seconds, random) for share in shares]


@dataclass(frozen=True)
class Scenario:
    """``models`` that are asked for in ``shares``; ``arrivals`` says when.

    Without ``deadlines`` requests state none, and any answer is in time.
    """

    name: str
    title: str
    models: tuple[SimulatedModel, ...]
    shares: tuple[float, ...]
    arrivals: Arrivals
    deadlines: bool = True

    @property
    def capacity(self) -> float:
        """Requests a second of this mix that the cores can bear at best: a load of 1."""
        return capacity(MACHINE, self.models, self.shares)

    def trace(self, load: float, seconds: float, seed: int) -> Trace:
        random = np.random.default_rng(seed)
        rate = load * self.capacity
        times = self.arrivals(rate, np.array(self.shares), seconds, random)
        deadlines = [
            max(LEAST_DEADLINE, DEADLINE_RUNS * m.run_times[0].seconds(1))
            if self.deadlines
            else float("inf")
            for m in self.models
        ]
        return merged([m.spec.name for m in self.models], seconds, times, deadlines)


def _scenario(
    name: str,
    title: str,
    figures: Sequence[Figures],
    arrivals: Arrivals,
    *,
    deadlines: bool = True,
) -> Scenario:
    models = tuple(simulated(f) for f in figures)
    shares = tuple(zipf(len(models)).tolist())
    return Scenario(name, title, models, shares, arrivals, deadlines)


_BY_NAME = {f.name: f for f in ZOO}
_ONE = [_BY_NAME["resnet50"]]
_SMALL = [_BY_NAME["squeezenet"]]
_FITTING = [_BY_NAME[n] for n in ("squeezenet", "mobilenet_v2", "resnet50", "alexnet")]

SCENARIOS = (
    _scenario("one", "ResNet-50 alone", _ONE, even),
    _scenario("one-open", "ResNet-50 alone, no deadlines stated", _ONE, even, deadlines=False),
    _scenario("small-open", "SqueezeNet alone, no deadlines stated", _SMALL, even, deadlines=False),
    _scenario("one-bursts", "ResNet-50 alone, in bursts", _ONE, uneven),
    _scenario("four", "Four models that fit together", _FITTING, even),
    _scenario("four-open", "The four, no deadlines stated", _FITTING, even, deadlines=False),
    _scenario("ten", "Ten models, skewed", ZOO, even),
    _scenario("ten-bursts", "Ten models, skewed, in bursts", ZOO, uneven),
    _scenario("ten-drift", "Ten models, whose favourite changes", ZOO, drifting),
)
