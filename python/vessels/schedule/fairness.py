"""Who may use the cores next: shares by weight, as start-time fair queueing gives them.

Each model has a virtual time up to which it has been served: core-seconds divided by its weight.
The one that is furthest behind comes next. One that had nothing to do continues at the virtual
time of the others, so that it neither saves up a claim nor owes anything.
"""

from __future__ import annotations

from collections.abc import Sequence


class FairClock:
    """The virtual time of each of ``count`` models, of which number i has ``weights[i]``."""

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = list(weights)
        self._served = [0.0] * len(weights)
        self._now = 0.0

    def start(self, model: int) -> float:
        """The virtual time at which ``model`` would begin a run now: the least comes next."""
        return max(self._now, self._served[model])

    def begin(self, model: int, core_seconds: float) -> None:
        """``model`` begins a run that is expected to take ``core_seconds``."""
        self._now = self.start(model)
        self._served[model] = self._now + core_seconds / self._weights[model]

    def correct(self, model: int, core_seconds: float) -> None:
        """The run of ``model`` took so much more than was expected, or less if negative."""
        self._served[model] += core_seconds / self._weights[model]


def shares(core_count: float, wanted: Sequence[tuple[float, float]]) -> list[float]:
    """Divide cores among those that have (weight, most cores they can use).

    Nobody gets more than it can use; what one leaves is divided among the others by weight.
    """
    given = [0.0] * len(wanted)
    # By how soon each has all it can use, as everybody's share grows in proportion to its weight.
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i][1] / wanted[i][0], i))
    left, weights = core_count, sum(weight for weight, _ in wanted)
    for i in order:
        weight, most = wanted[i]
        given[i] = min(most, left * weight / weights)
        left -= given[i]
        weights -= weight
    return given
