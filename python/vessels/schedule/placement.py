"""Which environments there are: launches, and who makes room for them.

Models that are asked for and have no environment stand in line: the longer one has waited and the
more it is asked for, for its size, the sooner it comes. Whoever has waited for so long that it is
overdue comes first, and nobody after it. With what memory the line leaves, models without an
environment are launched as far as they fit, a model whose queue stays long while cores are free
gets one more, and environments are replaced by more generous ones.
"""

from __future__ import annotations

from vessels.schedule.allotment import allot, frontier
from vessels.schedule.decisions import Launch
from vessels.schedule.eviction import (
    TURN_SECONDS,
    asked,
    cheapest,
    is_idle,
    spared_until,
    turn,
)
from vessels.schedule.model import Shape
from vessels.schedule.reshape import EVERY_SECONDS, GAIN_IN_PLACE, spacious, wish
from vessels.schedule.state import Environment, Fleet, Model, State

IN_LINE_SECONDS = 10.0
"""So long a model stays in line when nobody waits for it any more: whoever was refused returns."""
ASKED_SECONDS = 60.0
"""So long after somebody asked for it a model's share of the memory is kept in mind."""
LONG_SECONDS = 0.5
"""So long a queue is to be long before one more environment is launched for it."""


class Placement:
    """Places environments in the memory of a fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.wake = 0.0
        """When there may be something to do again, if nothing else happens."""
        self.line_count = 0
        """How many models wait for an environment."""
        self._reshaped_at = 0.0
        self.leaving: list[Environment] = []
        """Those that were chosen to go in the last call of :meth:`place`."""

    def place(self, now: float) -> list[Launch]:
        """What is to be launched now; ``leaving`` are the environments that are to go."""
        self.wake = float("inf")
        self.leaving = []
        fleet = self._fleet
        self._widen(now)
        if self._is_exceeded(now):
            return []
        launches: list[Launch] = []
        line = self._line(now)
        self.line_count = len(line)
        left = fleet.account.free + self._coming()
        for model in line:
            needed = model.shapes[0].size + model.excess_size
            if self._later(model.restart_at, now):
                continue
            if needed > left:
                gained = self._make_room(model, needed - left, now)
                if not gained and _is_overdue(model, now):
                    return launches
                if not gained:
                    continue
                left += gained
            launch = self._launch(model, now, min(left, fleet.account.free))
            if launch is None:
                left -= needed
                continue
            left -= fleet.account.by_environment[launch.environment]
            self.line_count -= 1
            launches.append(launch)
        launches += self._beside(now, left)
        launches += self._more(now, left)
        if not line and now >= self._reshaped_at + EVERY_SECONDS:
            self._reshaped_at = now
            launches += self._reshape(now, fleet.account.free)
        return launches

    def _asked(self, now: float) -> list[Model]:
        """The models that have been asked for of late; all of them if nobody asked for any."""
        models = list(self._fleet.models.values())
        return [m for m in models if m.asked_at and now < m.asked_at + ASKED_SECONDS] or models

    def _widen(self, now: float) -> None:
        """Runs of several threads are for when there are fewer models to run than cores."""
        threads = max(1, self._fleet.machine.core_count // max(1, len(self._asked(now))))
        for model in self._fleet.models.values():
            model.widen(threads)

    def _is_exceeded(self, now: float) -> bool:
        """Whether environments were found larger than planned and are too large together."""
        account = self._fleet.account
        for each in self._fleet.environments.values():
            found = self._fleet.size(each) - each.shape.size
            each.model.excess_size = max(each.model.excess_size, found)
        excess = account.used - self._coming() - (account.capacity or account.used)
        if excess <= 0:
            return False
        live = [each for each in self._fleet.environments.values() if each.live]
        self.leaving = cheapest(self._fleet, live, now, excess)
        return True

    def _line(self, now: float) -> list[Model]:
        line = []
        for model in self._fleet.models.values():
            if model.waiting_since is not None and self._fleet.has_room_for(model):
                if model.wants or self._later(model.asked_at + IN_LINE_SECONDS, now):
                    line.append(model)
                else:
                    model.waiting_since = None

        def urgency(model: Model) -> tuple[bool, float, int]:
            waited = now - (model.waiting_since or 0.0)
            overdue = _is_overdue(model, now)
            weight = 1.0 if overdue else asked(model, now) * model.spec.weight
            return not overdue, -waited * weight / model.shapes[0].size, model.index

        return sorted(line, key=urgency)

    def _allotted(self, now: float, *more: Model) -> dict[Model, Shape]:
        asked_for = self._asked(now)
        models = [
            model
            for model in self._fleet.models.values()
            if model.environments or model in more or model in asked_for
        ]
        capacity = self._fleet.machine.epc_size
        if capacity is not None:
            for model in models:
                capacity -= sum(self._fleet.size(each) for each in model.live()[1:])
        return allot(models, capacity, now)

    def _launch(self, model: Model, now: float, room: int, *others: Model) -> Launch | None:
        """Launch the most generous shape up to its allotment that fits in ``room``."""
        if model.shapes[0].size + model.excess_size > room:
            return None
        most = self._allotted(now, model, *others)[model].size
        return self._launch_in(model, now, min(most, room - model.excess_size))

    def _launch_in(self, model: Model, now: float, size: int) -> Launch | None:
        fitting = [shape for shape in frontier(model) if shape.size <= size]
        if not fitting:
            return None
        environment = self._fleet.launch(model, fitting[-1], now)
        return Launch(environment.number, model.spec.name, fitting[-1])

    def _coming(self) -> int:
        """The bytes of those that are going."""
        fleet = self._fleet
        return sum(fleet.size(each) for each in fleet.environments.values() if not each.live)

    def _make_room(self, model: Model, needed: int, now: float) -> int:
        """Have environments go for ``model`` if it is its turn; the bytes that they leave."""
        fleet = self._fleet
        candidates = []
        for each in fleet.environments.values():
            if not each.live or each in self.leaving:
                continue
            if not self._later(spared_until(each, now), now):
                candidates.append(each)
        victims = cheapest(fleet, candidates, now, needed)
        if not victims or self._later(turn(fleet, model, victims, now), now):
            return 0
        self.leaving += victims
        return sum(fleet.size(each) for each in victims)

    def _beside(self, now: float, left: int) -> list[Launch]:
        """Launch models that have no environment and need nobody's room."""
        launches = []
        absent = [
            model
            for model in self._fleet.models.values()
            if not model.environments and model.waiting_since is None
        ]
        for model in absent:
            if not self._later(max(model.restart_at, model.absent_until), now):
                room = min(left, self._fleet.account.free)
                if launch := self._launch(model, now, room, *absent):
                    left -= self._fleet.account.by_environment[launch.environment]
                    launches.append(launch)
        return launches

    def _more(self, now: float, left: int) -> list[Launch]:
        """Launch one more for the model whose queue has been long for longest."""
        fleet = self._fleet
        long = [model for model in fleet.models.values() if model.long_since is not None]
        for model in sorted(long, key=lambda each: (each.long_since or 0.0, each.index)):
            live = model.live()
            slots = sum(each.shape.slots for each in live)
            if not live or model.queued_count() <= slots or model.restart_at > now:
                continue
            if any(each.state is State.STARTING for each in live):
                continue
            assert model.long_since is not None
            if self._later(model.long_since + LONG_SECONDS, now):
                continue
            shape = self._one_more(model, live, min(left, fleet.account.free))
            if shape is None:
                continue
            if fleet.free_cores < shape.threads:
                self._later(now + LONG_SECONDS, now)
                continue
            environment = fleet.launch(model, shape, now)
            model.long_since = None
            return [Launch(environment.number, model.spec.name, shape)]
        return []

    def _one_more(self, model: Model, live: list[Environment], room: int) -> Shape | None:
        """The shape of one more beside ``live``: not larger than the first, and as wide as fits."""
        spare = self._fleet.machine.core_count - sum(each.shape.threads for each in live)
        most = min(room - model.excess_size, live[0].shape.size)
        for width in sorted(model.widths, reverse=True):
            fitting = [shape for shape in model.widths[width] if shape.size <= most]
            if fitting and width <= spare:
                return fitting[-1]
        return None

    def _reshape(self, now: float, left: int) -> list[Launch]:
        """Launch a successor where one is worth it, or have room made for one."""
        allotted = self._allotted(now)
        best = wish(self._fleet, allotted, now)
        if best is None:
            return []
        environment, model = best.environment, best.environment.model
        if best.shape.size + model.excess_size <= left:
            successor = self._fleet.launch(model, best.shape, now)
            successor.replaces = environment
            return [Launch(successor.number, model.spec.name, best.shape)]
        if idle := spacious(self._fleet, allotted, now):
            self.leaving.append(idle)
        elif best.gain >= GAIN_IN_PLACE and is_idle(environment, now):
            self.leaving.append(environment)
            model.waiting_since = now
        return []

    def _later(self, at: float, now: float) -> bool:
        """Whether ``at`` is still to come; then it is a time to look again."""
        if at > now:
            self.wake = min(self.wake, at)
        return at > now


def _is_overdue(model: Model, now: float) -> bool:
    """Whether ``model`` has waited so long that its turn comes before all others."""
    return model.waiting_since is not None and now - model.waiting_since >= TURN_SECONDS
