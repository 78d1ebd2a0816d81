"""When an environment is worth another shape, for what its model is asked for now.

More memory makes predictions cheaper. An environment has a successor in the shape of its model's
allotment when that saves several times what the start of one takes, within a time that demand may
be expected to last. Where there is no room for both at once, first those that have more than their
allotment and nothing to do make room, else the environment itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vessels.schedule.allotment import cost
from vessels.schedule.eviction import is_idle, spared_until
from vessels.schedule.model import Shape
from vessels.schedule.state import Environment, Fleet, Model, State

EVERY_SECONDS = 5.0
"""So often it is considered at most."""
LASTING_SECONDS = 30.0
"""So long demand is expected to last."""
GAIN = 5.0
"""A successor saves so many times its start at least."""
GAIN_IN_PLACE = 20.0
"""It saves so many times its start if there is none to answer meanwhile."""


@dataclass(frozen=True)
class Wish:
    """A more generous shape for ``environment``, and how many times its start that saves."""

    environment: Environment
    shape: Shape
    gain: float


def wish(fleet: Fleet, allotted: Mapping[Model, Shape], now: float) -> Wish | None:
    """The shape that is wished for most, if any is worth it."""
    wishes = []
    for model, shape in allotted.items():
        if len(model.environments) != 1:
            continue
        environment = model.environments[0]
        serves = environment.live and environment.state is not State.STARTING
        if not serves or shape.size <= environment.shape.size or now < _settled(environment, now):
            continue
        saved = model.demand(now) * (cost(model, environment.shape) - cost(model, shape))
        gain = saved * LASTING_SECONDS / max(1e-3, model.estimates.start_seconds(shape))
        if gain >= GAIN:
            wishes.append(Wish(environment, shape, gain))
    return max(wishes, key=lambda each: each.gain, default=None)


def spacious(fleet: Fleet, allotted: Mapping[Model, Shape], now: float) -> Environment | None:
    """The idle environment that has most above its model's allotment."""

    def above(environment: Environment) -> int:
        return environment.shape.size - allotted[environment.model].size

    idle = [
        each
        for each in fleet.environments.values()
        if each.live and is_idle(each, now) and now >= _settled(each, now) and above(each) > 0
    ]
    return max(idle, key=above, default=None)


def _settled(environment: Environment, now: float) -> float:
    return max(spared_until(environment, now), environment.ready_at + EVERY_SECONDS)
