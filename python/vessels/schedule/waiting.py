"""Who waits for what, and until when it makes sense."""

from __future__ import annotations

import heapq

from vessels.schedule.state import Environment, Fleet, Model, Request


class Waiting:
    """All tickets that are not answered yet, each in the queue of an environment or of a model."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._where: dict[int, Environment | Model] = {}
        self._ends: list[tuple[float, int]] = []

    def add(self, request: Request, where: Environment | Model, end: float) -> None:
        """``request`` waits; from ``end`` on it is in vain."""
        self._where[request.ticket] = where
        if isinstance(where, Environment):
            where.queue[request.ticket] = request
            self._fleet.recount(where)
        else:
            where.wants[request.ticket] = request
        heapq.heappush(self._ends, (end, request.ticket))
        # Those that were answered are left in the heap until they are more than the others.
        if len(self._ends) > 2 * len(self._where) + 64:
            self._ends = [each for each in self._ends if each[1] in self._where]
            heapq.heapify(self._ends)

    def remove(self, ticket: int) -> Environment | Model | None:
        """Take a ticket from where it waits, and say where; None if it does not wait."""
        where = self._where.pop(ticket, None)
        if isinstance(where, Environment):
            del where.queue[ticket]
            self._fleet.recount(where)
        elif where is not None:
            del where.wants[ticket]
        return where

    def next_end(self) -> float:
        """When the next one that waits will wait in vain."""
        while self._ends and self._ends[0][1] not in self._where:
            heapq.heappop(self._ends)
        return self._ends[0][0] if self._ends else float("inf")

    def ended(self, now: float) -> list[int]:
        """The tickets that wait in vain by now; they still do."""
        tickets = []
        while self.next_end() <= now:
            tickets.append(heapq.heappop(self._ends)[1])
        return tickets
