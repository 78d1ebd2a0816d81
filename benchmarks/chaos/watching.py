"""The server's account of the memory, compared with the processes there are, again and again."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.chaos.parties import Life, Party
from benchmarks.chaos.processes import Process, anonymous_size, enclaves
from benchmarks.chaos.rules import Rule, Verdict
from benchmarks.chaos.stage import Stage

ORPHAN_SECONDS = 1.0
"""How long an enclave that was killed with its server may take to be gone, on a busy machine."""

SUMMED = ("vessels_launches", "vessels_evictions", "vessels_shed")
"""Counters that are added up over all lives of the server."""

_READ_SECONDS = 30.0


@dataclass(frozen=True)
class Account:
    """What the server says at one moment: bytes, and numbers of environments and requests."""

    capacity: int
    used: int
    by_model: int
    environment_count: int
    queue_length: int
    waiting_count: int
    summed: Counter[str]

    @classmethod
    def parse(cls, text: str) -> Account:
        """The account in the text of ``/metrics``."""
        sums: Counter[str] = Counter()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.endswith(("_bucket", "_sum", "_created")):
                    continue
                sums[sample.name.removesuffix("_total")] += int(sample.value)
        return cls(
            sums["vessels_epc_capacity_bytes"],
            sums["vessels_epc_used_bytes"],
            sums["vessels_environment_bytes"],
            sums["vessels_environments"],
            sums["vessels_queue_length"],
            sums["vessels_waiting"],
            Counter({name: sums[name] for name in SUMMED}),
        )


class Watch:
    """Samples of the server at ``url``, which may take ``capacity`` bytes for its enclaves."""

    def __init__(
        self, stage: Stage, server: Party, url: str, capacity: int, verdict: Verdict
    ) -> None:
        self.sample_count = 0
        self.exact_count = 0
        """Samples where all processes were known, and the account was compared to the byte."""
        self.most_used = 0
        self.most_taken = 0
        """As planned, of all enclaves there were at once, those of a killed server included."""
        self.most_held = 0
        """Their anonymous memory."""
        self.longest_orphan_seconds = 0.0
        self._stage = stage
        self._server = server
        self._url = url
        self._capacity = capacity
        self._verdict = verdict
        self._orphans: dict[Process, float] = {}
        self._summed: dict[int, Counter[str]] = {}

    @property
    def summed(self) -> Counter[str]:
        """:data:`SUMMED`, over all lives."""
        return sum(self._summed.values(), Counter())

    def enclaves(self) -> set[Process]:
        """Those of the server's present life."""
        parent = self._server.life.process.pid
        return {p for p in enclaves(self._stage.sealed) if p.parent == parent}

    async def go_on(self, pause: float) -> None:
        """Take samples until cancelled."""
        async with httpx2.AsyncClient(timeout=_READ_SECONDS) as http:
            while True:
                await self.sample(http)
                await asyncio.sleep(pause)

    async def sample(self, http: httpx2.AsyncClient) -> Account | None:
        """Compare once; the account, unless the server was away."""
        life, began = self._server.life, time.monotonic()
        before = self._all()
        if not life.serves:
            return None
        try:
            answer = await http.get(f"{self._url}/metrics")
        except httpx2.HTTPError as error:
            if not self._server.was_away(began, time.monotonic()):
                self._verdict.broken(Rule.ERRORS, f"/metrics: {error!r}, while the server is there")
            return None
        after = self._all()
        self._server.look()
        if self._server.life is not life or not life.serves:
            return None
        account = Account.parse(answer.text)
        self._summed[life.process.pid] = account.summed
        self._compare(account, life, before, after)
        return account

    def _all(self) -> set[Process]:
        """All enclaves; what they hold together is checked, and whether they have a server."""
        found = enclaves(self._stage.sealed)
        held = {p: anonymous_size(p) for p in found}
        total = sum(held.values())
        self.most_held = max(self.most_held, total)
        if total > self._capacity:
            self._broken(Rule.MEMORY, f"{len(held)} enclaves hold {total:,} bytes", found)
        # Those that a killed server left are in no account, and take their memory all the same.
        taken = sum(self._server.planned_size(p.pid) for p in found)
        self.most_taken = max(self.most_taken, taken)
        if taken > self._capacity:
            self._broken(Rule.ACCOUNT, f"{taken:,} bytes are taken in all", found)
        life, now = self._server.life, time.monotonic()
        for process, size in held.items():
            planned = life.planned.get(process.pid)
            if process.parent != life.process.pid:
                since = self._orphans.setdefault(process, now)
                self.longest_orphan_seconds = max(self.longest_orphan_seconds, now - since)
                if now - since > ORPHAN_SECONDS:
                    self._broken(Rule.ORPHANS, f"after {now - since:.1f} s", [process])
            elif planned is not None and size > planned:
                self._broken(Rule.MEMORY, f"{size:,} bytes held of {planned:,}", [process])
        return found

    def _compare(
        self, account: Account, life: Life, before: set[Process], after: set[Process]
    ) -> None:
        """What ran before and after the account was made, ran then."""
        self.sample_count += 1
        self.most_used = max(self.most_used, account.used)
        parent = life.process.pid
        then = {p for p in before & after if p.parent == parent}
        known = sum(life.planned.get(p.pid, 0) for p in then)
        said = f"{account.used:,} of {account.capacity:,} bytes are used"
        if account.capacity != self._capacity or account.used > account.capacity:
            self._broken(Rule.ACCOUNT, said)
        if account.used != account.by_model:
            self._broken(Rule.ACCOUNT, f"{said}, models have {account.by_model:,}")
        if known > account.used:
            self._broken(Rule.ACCOUNT, f"{said}, what runs takes {known:,}", then)
        # Each process is an environment: with as many of both there are no others.
        if account.environment_count == len(then) and all(p.pid in life.planned for p in then):
            self.exact_count += 1
            if account.used != known:
                self._broken(Rule.ACCOUNT, f"{said}, but {known:,} are", then)

    def _broken(self, rule: Rule, how: str, processes: Iterable[Process] = ()) -> None:
        names = ", ".join(sorted(f"{p.model} ({p.pid})" for p in processes))
        self._verdict.broken(rule, f"{how}: {names}" if names else how)
