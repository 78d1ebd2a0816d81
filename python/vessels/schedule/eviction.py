"""Which environments make room for a model that has none and is asked for, and when.

What an environment is worth is how many requests would miss it: those in its queue, and those
that its model is asked for in a second. Environments worth least for their size go first, and the
model that waits for their room has to wait the longer, the more they are worth compared to what it
is asked for; in the end, though, its turn comes. A popular small model is thus hardly ever evicted
for the sake of a large one that is seldom asked for, which still has its turns.

No environment goes before it has been of use for a multiple of the time that its start took, so
that starting never becomes what a machine does.
"""

from __future__ import annotations

from collections.abc import Iterable

from vessels.schedule.state import Environment, Fleet, Model, State

EXPECTED_SECONDS = 1.0
"""So long the request of somebody to whom an environment was assigned is awaited."""
PAUSE_COUNT = 3.0
"""An environment is not idle until so many requests failed to come that came at its recent rate."""
MOST_PAUSE_SECONDS = 0.2
"""It is idle after this, however seldom they come."""
RESIDENCE = 0.5
"""How many times its start an environment stays when unused."""
RESIDENCE_IN_USE = 4.0
"""How many times its start an environment stays when in use."""
LEAST_RESIDENCE_IN_USE = 2.0
"""Seconds that it stays at least then."""
HANGING = 10.0
"""After how many times the expected time a start seems to hang, and may be given up."""
LEAST_HANGING_SECONDS = 5.0
MOST_START_SECONDS = 5.0
"""A start that took longer counts as this: what kept it may not be there the next time."""
PATIENCE_SECONDS = 0.1
"""So long a model waits for the room of unused environments worth as much as itself."""
PATIENCE_IN_USE_SECONDS = 1.0
"""So long it waits if some of them are in use."""
PATIENCE_IF_BUSY = 8.0
"""So many times longer it waits when the cores are saturated."""
TURN_SECONDS = 10.0
"""After so long its turn comes whatever the others are worth."""


def asked(model: Model, now: float) -> float:
    """How many requests would be served by an environment of ``model`` at once, or in a second."""
    return len(model.wants) + model.demand(now)


def missed(environment: Environment, now: float) -> float:
    """How many requests would miss ``environment`` if it went."""
    model = environment.model
    return len(environment.queue) + model.demand(now) / max(1, len(model.live()))


def idle_from(environment: Environment, now: float) -> float:
    """Since when, or from when on, nobody uses ``environment`` nor is expected to."""
    if environment.state is not State.READY or environment.queue:
        return float("inf")
    if environment.expected_count:
        return environment.used_at + EXPECTED_SECONDS
    # Clients that ask one request after another pause between two of them.
    pause = PAUSE_COUNT * max(1, len(environment.model.live())) / environment.model.demand(now)
    return environment.used_at + min(pause, MOST_PAUSE_SECONDS)


def is_idle(environment: Environment, now: float) -> bool:
    """Whether nobody uses ``environment`` at the moment, nor is expected to."""
    return idle_from(environment, now) <= now


def spared_until(environment: Environment, now: float) -> float:
    """When ``environment`` may go at the earliest."""
    start = min(environment.start_seconds, MOST_START_SECONDS)
    if environment.state is State.STARTING:
        return environment.launched_at + max(LEAST_HANGING_SECONDS, HANGING * start)
    unused = max(idle_from(environment, now), environment.ready_at + RESIDENCE * start)
    used = environment.ready_at + max(LEAST_RESIDENCE_IN_USE, RESIDENCE_IN_USE * start)
    return min(unused, used)


def cheapest(
    fleet: Fleet, candidates: Iterable[Environment], now: float, needed: int
) -> list[Environment]:
    """Those of ``candidates`` that are missed least and together have ``needed`` bytes.

    None when all of them have less.
    """

    def worth(environment: Environment) -> tuple[float, int]:
        return missed(environment, now) / fleet.size(environment), environment.number

    chosen: list[Environment] = []
    for environment in sorted(candidates, key=worth):
        if needed <= 0:
            break
        chosen.append(environment)
        needed -= fleet.size(environment)
    if needed > 0:
        return []
    # A large one that was chosen last may make smaller ones before it superfluous.
    for environment in sorted(chosen, key=worth, reverse=True):
        if needed + fleet.size(environment) <= 0:
            chosen.remove(environment)
            needed += fleet.size(environment)
    return chosen


def turn(fleet: Fleet, model: Model, victims: Iterable[Environment], now: float) -> float:
    """When ``model``, which waits, may have the room of ``victims``.

    While no core is idle it would only take from others what it gets, and starts take cores too.
    """
    assert model.waiting_since is not None
    patience = PATIENCE_SECONDS
    price = 0.0
    for environment in victims:
        price += missed(environment, now)
        if not is_idle(environment, now):
            patience = PATIENCE_IN_USE_SECONDS
    if fleet.is_saturated(now):
        patience *= PATIENCE_IF_BUSY
    wait = patience * price / asked(model, now) / model.spec.weight
    return model.waiting_since + min(wait, TURN_SECONDS)
