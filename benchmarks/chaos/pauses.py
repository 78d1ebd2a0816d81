"""When this program itself stood still: what it then finds late may have been in time."""

from __future__ import annotations

import asyncio
import time

_STEP_SECONDS = 0.05


class Pauses:
    """How much later than due the event loop went on, moment by moment."""

    def __init__(self) -> None:
        self.longest_seconds = 0.0
        self._total_seconds = 0.0

    @property
    def total_seconds(self) -> float:
        """All of it so far."""
        return self._total_seconds

    async def go_on(self) -> None:
        """Measure until cancelled."""
        while True:
            due = time.monotonic() + _STEP_SECONDS
            await asyncio.sleep(_STEP_SECONDS)
            late = max(0.0, time.monotonic() - due)
            self.longest_seconds = max(self.longest_seconds, late)
            self._total_seconds += late
