"""The server and the key service: processes that are killed, and that a supervisor starts again."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chaos.rules import Rule, Verdict
from vessels.closing import await_end

TEND_SECONDS = 0.02

_DEFECTS = {
    "environment_larger_than_planned", "keys_unreadable", "request_failed", "run_failed",
    "scheduling_failed", "supervision_failed",
}  # fmt: skip
_NO_KEY = "it was not given its key in time"


@dataclass
class Life:
    """One process of a party, from its start to its end, and what its log says.

    ``planned`` is what its enclaves are accounted for, by process id; ``killed`` are those of them
    that were killed.
    """

    process: subprocess.Popen[bytes]
    log: Path
    began: float
    serving_at: float | None = None
    killed_at: float | None = None
    planned: dict[int, int] = field(default_factory=dict)
    killed: set[int] = field(default_factory=set)
    _pids: dict[int, int] = field(default_factory=dict)
    _read_size: int = 0

    @property
    def serves(self) -> bool:
        """Whether it has said that it serves, and was not killed since."""
        return self.serving_at is not None and self.killed_at is None

    def events(self) -> Iterator[dict[str, Any]]:
        """What it has logged since the last time."""
        with self.log.open("rb") as file:
            file.seek(self._read_size)
            whole = file.read().rpartition(b"\n")[0]
        if not whole:
            return
        self._read_size += len(whole) + 1
        for line in whole.splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                yield {"event": "unreadable", "message": line.decode(errors="replace")}

    def started(self, event: dict[str, Any]) -> None:
        """An enclave of its own started."""
        self.planned[event["pid"]] = event["size"]
        self._pids[event["environment"]] = event["pid"]

    def was_killed(self, environment: int) -> bool:
        """Whether the process of ``environment`` was killed."""
        return self._pids.get(environment) in self.killed


class Party:
    """A command of ``vessels`` that listens on one port for as many lives as it takes.

    Ended with its context, as an operator would end it.
    """

    def __init__(
        self, name: str, arguments: list[str | Path], folder: Path, verdict: Verdict
    ) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()
        """Events of its log."""
        self.ends: Counter[str] = Counter()
        """How enclaves ended unasked, as far as the server lived to say so."""
        self.on_serving: Callable[[], None] = lambda: None
        self._command = [sys.executable, "-m", "vessels", *map(str, arguments)]
        self._folder = folder
        self._verdict = verdict
        self._lives: list[Life] = []
        self._start()

    @property
    def life(self) -> Life:
        """The present one."""
        return self._lives[-1]

    def kill(self) -> None:
        """End it as a crash would."""
        self.life.killed_at = time.monotonic()
        self.life.process.kill()

    def was_away(self, begin: float, end: float) -> bool:
        """Whether it did not serve at some moment between two times."""
        since: float | None = self._lives[0].began
        for life in self._lives:
            if life.serving_at is not None:
                if since is not None and since <= end and begin <= life.serving_at:
                    return True
                since = None
            if since is None:
                since = life.killed_at
        return since is not None and since <= end

    def planned_size(self, pid: int) -> int:
        """What an enclave, of a former life perhaps, was accounted for; 0 if that is not known."""
        return next((life.planned[pid] for life in self._lives[::-1] if pid in life.planned), 0)

    async def tend(self) -> None:
        """Be its supervisor: start it whenever it has ended."""
        while True:
            await asyncio.sleep(TEND_SECONDS)
            self.look()

    def look(self) -> None:
        """Read its log; start it anew if it has ended."""
        life = self.life
        code = life.process.poll()
        for event in life.events():
            self._heard(life, event)
        if code is None:
            return
        if life.killed_at is None:
            life.killed_at = time.monotonic()
            self._verdict.broken(Rule.ENDS, f"{self.name} ended with {code}, see {life.log}")
        self._start()

    @contextmanager
    def running(self) -> Iterator[Party]:
        """Ends it at last; it must end well."""
        try:
            yield self
        except BaseException:
            self.life.process.kill()
            self.life.process.wait()
            raise
        self.life.process.send_signal(signal.SIGTERM)
        code = await_end(self.life.process, 60)
        for event in self.life.events():
            self._heard(self.life, event)
        if code != 0:
            self._verdict.broken(Rule.ENDS, f"{self.name} was told to end, and did with {code}")

    def _start(self) -> None:
        log = self._folder / f"{self.name.replace(' ', '-')}-{len(self._lives)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file
            )
        self._lives.append(Life(process, log, time.monotonic()))

    def _heard(self, life: Life, event: dict[str, Any]) -> None:
        what = event["event"]
        self.counts[what] += 1
        if what == "serving":
            life.serving_at = time.monotonic()
            self.on_serving()
        elif what == "enclave_started":
            life.started(event)
        elif what == "enclave_ended":
            killed = life.was_killed(event["environment"])
            self.ends["killed" if killed else event["why"]] += 1
            if not killed and event["why"] != _NO_KEY:
                self._verdict.broken(Rule.ENDS, f"an enclave nobody killed: {event}")
        elif what in _DEFECTS or what == "unreadable":
            self._verdict.broken(Rule.ENDS, f"{self.name} says {event}")
