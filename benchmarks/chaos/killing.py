"""Who is killed, when, and how long it was felt."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field

from benchmarks.chaos.parties import Party
from benchmarks.chaos.processes import kill
from benchmarks.chaos.rules import Rule, Verdict
from benchmarks.chaos.watching import Watch

ENCLAVE, SERVER, KEYS = KINDS = ("enclave", "server", "key service")
_WEIGHTS = (8, 1, 1)


@dataclass
class Recoveries:
    """How long it took from a kill until what it hit was as before.

    After an enclave's end its model has to answer rightly what was asked since; after the server's
    every model; after the key service's, that has to serve again. A victim that is hit again
    meanwhile goes on counting from the first time.
    """

    models: tuple[str, ...]
    limit_seconds: float
    verdict: Verdict
    longest: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    _since: dict[tuple[str, str], float] = field(default_factory=dict)

    def hit(self, kind: str, model: str = "") -> None:
        """One of ``kind`` was killed just now; of ``model``, if it is an enclave."""
        now = time.monotonic()
        for name in self.models if kind == SERVER else (model,):
            self._since.setdefault((kind, name), now)

    def right(self, model: str, asked: float) -> None:
        """``model`` answered rightly what it was asked at a time."""
        for kind in (ENCLAVE, SERVER):
            if self._since.get((kind, model), asked) < asked:
                self._over(kind, model)

    def keys_serve(self) -> None:
        """The key service serves again."""
        if (KEYS, "") in self._since:
            self._over(KEYS, "")

    @property
    def pending(self) -> list[str]:
        """What has not recovered yet."""
        now = time.monotonic()
        return [
            f"{model or kind} hit {now - since:.1f} s ago ({kind})"
            for (kind, model), since in self._since.items()
        ]

    def _over(self, kind: str, model: str) -> None:
        seconds = time.monotonic() - self._since.pop((kind, model))
        self.longest[kind] = max(self.longest[kind], seconds)
        if seconds > self.limit_seconds:
            self.verdict.broken(
                Rule.CAPACITY, f"{model or kind} took {seconds:.1f} s to recover ({kind} killed)"
            )


class Killer:
    """Kills an enclave, the server or the key service, at random.

    One of each kind comes before the rest. The pauses are exponential: kills know nothing of one
    another, and some come in quick succession, or at a start.
    """

    def __init__(
        self, watch: Watch, server: Party, keys: Party, recoveries: Recoveries, seed: int
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._watch = watch
        self._server = server
        self._keys = keys
        self._recoveries = recoveries
        self._chance = random.Random(f"{seed} kills")

    async def go_on(self, seconds: float, every: float) -> None:
        """Kill for so long, once in ``every`` seconds on average."""
        end = time.monotonic() + seconds
        first = list(KINDS)
        self._chance.shuffle(first)
        while True:
            await asyncio.sleep(self._chance.expovariate(1 / every))
            if time.monotonic() >= end:
                return
            if not first:
                first = self._chance.choices(KINDS, _WEIGHTS)
            if self._strike(first[-1]):
                first.pop()

    def _strike(self, kind: str) -> bool:
        """Kill one of ``kind``; whether there was one."""
        if kind == ENCLAVE:
            return self._strike_enclave()
        party = self._server if kind == SERVER else self._keys
        if party.life.killed_at is not None:
            return False
        self._recoveries.hit(kind)
        party.kill()
        self.counts[kind] += 1
        return True

    def _strike_enclave(self) -> bool:
        found = sorted(self._watch.enclaves(), key=lambda p: p.pid)
        if not found:
            return False
        victim = self._chance.choice(found)
        killed = self._server.life.killed
        killed.add(victim.pid)
        if not kill(victim):
            # It has ended by itself, or is another's by now.
            killed.discard(victim.pid)
            return False
        self._recoveries.hit(ENCLAVE, victim.model)
        self.counts[ENCLAVE] += 1
        return True
