"""A whole run: load, load with kills, load again, rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx2

from benchmarks.chaos.asking import Asking
from benchmarks.chaos.killing import KINDS, Killer, Recoveries
from benchmarks.chaos.parties import Party
from benchmarks.chaos.pauses import Pauses
from benchmarks.chaos.processes import enclaves
from benchmarks.chaos.rules import Rule, Verdict
from benchmarks.chaos.stage import Stage
from benchmarks.chaos.watching import Watch
from benchmarks.ports import held_port

START_SECONDS = 120.0
REST_SECONDS = 60.0
"""What is over this long after the last request was answered is not."""

_SAMPLE_SECONDS = 0.1
_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Setting:
    """How a run goes: seconds of kills, one ``every`` so many on average, between calm ones.

    Enclaves may take ``memory`` of what all models need at least. ``recovery`` is how many seconds
    it may take from a kill until all is as before. At the end there must be ``share`` of the right
    answers a second that there were at the beginning.
    """

    seconds: float
    every: float
    calm: float
    clients: int
    memory: float = 0.6
    recovery: float = 90.0
    share: float = 0.5
    seed: int = 0


@dataclass
class Report:
    """What came of it; ``broken`` has the rules that were, how often and how."""

    setting: dict[str, Any]
    seconds: float
    capacity: int
    needed: int
    requests: int
    outcomes: dict[str, int]
    right_by_model: dict[str, int]
    longest_request_seconds: float
    right_per_second_before: float
    right_per_second_after: float
    kills: dict[str, int]
    longest_recovery_seconds: dict[str, float]
    server_events: dict[str, int]
    ends: dict[str, int]
    launches: int
    evictions: int
    shed: int
    samples: int
    exact_samples: int
    most_used: int
    most_taken: int
    most_held: int
    longest_orphan_seconds: float
    longest_pause_seconds: float
    broken: dict[str, int]
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        """Whether all held that must."""
        return not self.broken

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"held": self.held}


def run(stage: Stage, setting: Setting) -> Report:
    """Have it all happen."""
    return asyncio.run(_Run(stage, setting).run())


class _Run:
    def __init__(self, stage: Stage, setting: Setting) -> None:
        self.stage = stage
        self.setting = setting
        self.verdict = Verdict()
        self.pauses = Pauses()
        sizes = [m.size for m in stage.models]
        self.needed = sum(sizes)
        # Room for the largest one, or none but the others would ever be served.
        self.capacity = max(*sizes, int(setting.memory * self.needed))

    async def run(self) -> Report:
        with ExitStack() as parties:
            self._start(parties)
            # A defect in any of them ends the run, and is raised.
            async with asyncio.TaskGroup() as group:
                begin = group.create_task
                tending = [
                    begin(self.server.tend()), begin(self.keys.tend()),
                    begin(self.watch.go_on(_SAMPLE_SECONDS)), begin(self.pauses.go_on()),
                ]  # fmt: skip
                clients = [begin(self.asking.ask_on(n)) for n in range(self.setting.clients)]
                await self._phases(clients)
                for task in tending:
                    task.cancel()
        if left := enclaves(self.stage.sealed):
            self.verdict.broken(Rule.ORPHANS, f"left when all has ended: {left}")
        self._check_chaos()
        return self._report()

    def _start(self, parties: ExitStack) -> None:
        stage, seed = self.stage, self.setting.seed
        # Who is started again is to be found where it was.
        keys_port, port = (parties.enter_context(held_port()) for _ in range(2))
        url = f"http://127.0.0.1:{port}"
        keys = [f"--key={m.name}={stage.key(m.name)}" for m in stage.models]
        self.keys = Party(
            "key service",
            ["keys", "serve", "--policy", stage.policy_file, *keys,
             "--listen", f"127.0.0.1:{keys_port}", "--log", "json"],
            stage.folder, self.verdict,
        )  # fmt: skip
        parties.enter_context(self.keys.running())
        self.server = Party(
            "server",
            ["serve", "--models", stage.sealed, "--epc", str(self.capacity), "--log", "json",
             "--keys", f"http://127.0.0.1:{keys_port}", "--listen", f"127.0.0.1:{port}"],
            stage.folder, self.verdict,
        )  # fmt: skip
        parties.enter_context(self.server.running())
        names = tuple(m.name for m in stage.models)
        self.recoveries = Recoveries(names, self.setting.recovery, self.verdict)
        self.keys.on_serving = self.recoveries.keys_serve
        self.watch = Watch(stage, self.server, url, self.capacity, self.verdict)
        self.killer = Killer(self.watch, self.server, self.keys, self.recoveries, seed)
        self.asking = Asking(
            stage, url, self.verdict, self.pauses, was_away=self.server.was_away,
            on_right=self.recoveries.right, seed=seed,
        )  # fmt: skip

    async def _phases(self, clients: list[asyncio.Task[None]]) -> None:
        """The run, from the first request to the last."""
        right = self.asking.right_by_model
        await self._until(
            lambda: all(right[m.name] for m in self.stage.models), START_SECONDS, "first answers"
        )
        self.before = await self._right_per_second()
        await self.killer.go_on(self.setting.seconds, self.setting.every)
        await self._until(
            lambda: not self.recoveries.pending, self.setting.recovery, "recovery",
            lambda: str(self.recoveries.pending),
        )  # fmt: skip
        self.after = await self._right_per_second()
        if self.after < self.setting.share * self.before:
            self.verdict.broken(
                Rule.CAPACITY,
                f"{self.after:.1f} right answers a second after {self.before:.1f} at first",
            )
        self.asking.stopped = True
        await asyncio.gather(*clients)
        await self._rest()

    async def _right_per_second(self) -> float:
        before, began = self.asking.right_by_model.total(), time.monotonic()
        await asyncio.sleep(self.setting.calm)
        return (self.asking.right_by_model.total() - before) / (time.monotonic() - began)

    async def _until(
        self,
        true: Callable[[], bool],
        seconds: float,
        what: str,
        state: Callable[[], str] = str,
    ) -> None:
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                self.verdict.broken(Rule.CAPACITY, f"{what}: not in {seconds:g} s {state()}")
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def _rest(self) -> None:
        """Nobody asks any more: nothing waits, and what is accounted for is what runs."""
        end = time.monotonic() + REST_SECONDS
        account, exact = None, False
        async with httpx2.AsyncClient(timeout=REST_SECONDS) as http:
            while time.monotonic() < end:
                compared = self.watch.exact_count
                account = await self.watch.sample(http)
                exact = self.watch.exact_count > compared
                if exact and account and account.queue_length == account.waiting_count == 0:
                    return
                await asyncio.sleep(_LOOK_SECONDS)
        self.verdict.broken(Rule.ACCOUNT, f"not at rest after the end: {account}, {exact=}")

    def _check_chaos(self) -> None:
        missing = [f"no {kind} was killed" for kind in KINDS if not self.killer.counts[kind]]
        missing += [
            f"{m.name} never answered"
            for m in self.stage.models
            if not self.asking.right_by_model[m.name]
        ]
        if self.capacity < self.needed and not self.watch.summed["vessels_evictions"]:
            missing.append("nothing was evicted")
        if not self.watch.exact_count:
            missing.append("the account was never compared")
        for what in missing:
            self.verdict.broken(Rule.CHAOS, what)

    def _report(self) -> Report:
        asking, watch, verdict = self.asking, self.watch, self.verdict
        return Report(
            setting=asdict(self.setting),
            seconds=round(time.monotonic() - verdict.began, 1),
            capacity=self.capacity,
            needed=self.needed,
            requests=asking.count,
            outcomes=dict(asking.outcomes.most_common()),
            right_by_model=dict(sorted(asking.right_by_model.items())),
            longest_request_seconds=round(asking.longest_seconds, 2),
            right_per_second_before=round(self.before, 1),
            right_per_second_after=round(self.after, 1),
            kills={kind: self.killer.counts[kind] for kind in KINDS},
            longest_recovery_seconds={
                kind: round(seconds, 2) for kind, seconds in self.recoveries.longest.items()
            },
            server_events=dict(self.server.counts.most_common()),
            ends=dict(self.server.ends.most_common()),
            launches=watch.summed["vessels_launches"],
            evictions=watch.summed["vessels_evictions"],
            shed=watch.summed["vessels_shed"],
            samples=watch.sample_count,
            exact_samples=watch.exact_count,
            most_used=watch.most_used,
            most_taken=watch.most_taken,
            most_held=watch.most_held,
            longest_orphan_seconds=round(watch.longest_orphan_seconds, 2),
            longest_pause_seconds=round(self.pauses.longest_seconds, 2),
            broken={rule: verdict.counts[rule] for rule in Rule if verdict.counts[rule]},
            examples={str(rule): found for rule, found in verdict.examples.items()},
        )
