"""The server and all around it are killed under load, shortly; and what judges it does notice.

``make chaos`` is the long run.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.chaos import watching
from benchmarks.chaos.asking import Asking
from benchmarks.chaos.killing import ENCLAVE, KEYS, SERVER, Recoveries
from benchmarks.chaos.parties import Life, Party
from benchmarks.chaos.pauses import Pauses
from benchmarks.chaos.processes import Process, anonymous_size, enclaves, kill
from benchmarks.chaos.rules import Rule, Verdict
from benchmarks.chaos.run import Setting, run
from benchmarks.chaos.stage import Stage, build
from benchmarks.chaos.watching import ORPHAN_SECONDS, Account, Watch
from benchmarks.ports import held_port
from tests.serving import serving, until
from vessels.enclave import EnclaveProcess
from vessels.errors import UsageError

MODELS = ("squeezenet:48", "squeezenet:48", "squeezenet:64")


@pytest.fixture(scope="module")
def stage(home: None, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return build(tmp_path_factory.mktemp("stage"), MODELS, seed=1)


@pytest.fixture
def party(tmp_path: Path) -> Party:
    """One that ends by itself at once, and well."""
    return Party("it", ["--version"], tmp_path, Verdict())


def only_enclave(stage: Stage) -> Process:
    """The one that runs; for an instant after its start a process has no command line yet."""
    until(lambda: enclaves(stage.sealed), "an enclave")
    [found] = enclaves(stage.sealed)
    return found


def asked_once(stage: Stage, url: str, verdict: Verdict) -> Counter[str]:
    """What comes of the first requests of a client, to a server that is said to be there."""
    asking = Asking(
        stage, url, verdict, Pauses(), was_away=lambda begin, end: False,
        on_right=lambda model, asked: None, seed=0,
    )  # fmt: skip

    async def once() -> None:
        client = asyncio.ensure_future(asking.ask_on(0))
        while not asking.count and not client.done():
            await asyncio.sleep(0.01)
        asking.stopped = True
        await client

    asyncio.run(once())
    return asking.outcomes


def test_nothing_goes_wrong_when_everything_is_killed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What else runs on this machine may delay the end of a process.
    monkeypatch.setattr(watching, "ORPHAN_SECONDS", 10.0)
    setting = Setting(seconds=6, every=0.7, calm=3, clients=6, memory=0.7, share=0.1, seed=3)
    report = run(stage, setting)
    assert report.held, (report.broken, report.examples)
    assert all(report.kills[kind] for kind in (ENCLAVE, SERVER, KEYS))
    assert report.capacity < report.needed and report.evictions > 0
    assert 0 < report.most_taken <= report.capacity
    assert 0 < report.most_used <= report.capacity
    assert report.exact_samples > 5
    assert report.outcomes["right"] == sum(report.right_by_model.values()) > 20
    assert report.requests == sum(report.outcomes.values()) > report.outcomes["right"]
    assert all(report.longest_recovery_seconds.values())


def test_wrong_answers_are_noticed(stage: Stage) -> None:
    first, second, _ = stage.models
    [one, two, *_] = first.questions
    # What the server gives is right; here it is held against that of another question or model.
    swapped = replace(one, answer=two.answer)
    foreign = replace(one, answer=second.questions[0].answer)
    path = stage.sealed / f"{first.name}.vessel"
    with serving({first.name: path}, stage.key(first.name)) as running:
        running.await_ready()
        for question, outcome in ((one, "right"), (swapped, "wrong"), (foreign, "wrong")):
            only = replace(stage, models=[replace(first, questions=[question])])
            verdict = Verdict()
            outcomes = asked_once(only, running.url, verdict)
            assert outcomes.keys() == {outcome}
            assert verdict.held == (outcome == "right")
            assert verdict.counts[Rule.ANSWERS] == outcomes["wrong"]


def test_a_server_that_is_away_without_a_reason_is_noticed(stage: Stage) -> None:
    verdict = Verdict()
    with held_port() as port:
        outcomes = asked_once(stage, f"http://127.0.0.1:{port}", verdict)
    assert verdict.counts[Rule.ERRORS] == outcomes["unreachable"] >= 1


def test_who_ends_by_itself_is_noticed_and_started_again(tmp_path: Path) -> None:
    verdict = Verdict()
    party = Party("it", ["--version"], tmp_path, verdict)
    first = party.life
    first.process.wait()
    party.look()
    assert party.life is not first and verdict.counts == {Rule.ENDS: 1}
    party.kill()
    party.life.process.wait()
    second = party.life
    party.look()
    assert party.life is not second and verdict.counts == {Rule.ENDS: 1}
    party.kill()
    party.life.process.wait()


def test_when_a_party_was_away(party: Party) -> None:
    process = party.life.process
    process.wait()
    log = party.life.log
    party._lives[:] = [
        Life(process, log, began=0, serving_at=1, killed_at=10),
        Life(process, log, began=10.5, killed_at=11),
        Life(process, log, began=11.5, serving_at=14, killed_at=20),
        Life(process, log, began=20.5),
    ]
    away = [(0.5, 0.6), (0, 30), (9, 10.1), (10.2, 10.3), (12, 12.5), (13, 16), (20, 21), (30, 31)]
    assert all(party.was_away(*span) for span in away)
    assert not any(party.was_away(*span) for span in [(1.5, 9.5), (14.5, 19.5)])


def test_a_recovery_is_what_was_asked_since_and_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict, now = Verdict(), 100.0
    recoveries = Recoveries(("a", "b"), 5.0, verdict)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    recoveries.hit(SERVER)
    recoveries.hit(ENCLAVE, "a")
    recoveries.right("a", 99.0)
    assert len(recoveries.pending) == 3
    now = 104.0
    recoveries.right("a", 103.0)
    assert len(recoveries.pending) == 1 and verdict.held
    now = 106.0
    recoveries.right("b", 103.0)
    assert recoveries.pending == [] and verdict.counts == {Rule.CAPACITY: 1}
    assert (recoveries.longest[SERVER], recoveries.longest[ENCLAVE]) == (6.0, 4.0)
    recoveries.hit(KEYS)
    now = 107.0
    recoveries.keys_serve()
    assert recoveries.longest[KEYS] == 1.0 and not recoveries.pending


def test_enclaves_are_found_measured_and_killed(stage: Stage) -> None:
    model = stage.models[0].name
    with EnclaveProcess(stage.sealed / f"{model}.vessel") as enclave:
        found = only_enclave(stage)
        assert (found.pid, found.parent, found.model) == (enclave.pid, os.getpid(), model)
        assert 0 < anonymous_size(found) < stage.models[0].size
        other = replace(found, began=found.began + 1)
        assert not kill(other) and anonymous_size(other) == 0
        assert kill(found)
        until(lambda: not enclaves(stage.sealed), "its end")


def test_an_account_that_is_wrong_is_noticed(stage: Stage, party: Party) -> None:
    party.life.process.wait()
    mine = party.life.process.pid
    one, two = Process(101, 1, mine, "a"), Process(102, 1, mine, "b")
    party.life.planned.update({101: 40, 102: 50})
    exact = Account(100, 90, 90, 2, 0, 0, Counter())

    def found(account: Account, *ran: Process) -> Counter[Rule]:
        verdict = Verdict()
        watch = Watch(stage, party, "", 100, verdict)
        watch._compare(account, party.life, set(ran), set(ran))
        return verdict.counts

    assert not found(exact, one, two)
    assert not found(exact, one), "one that has not started yet is no mistake"
    assert found(replace(exact, used=89, by_model=89), one, two)[Rule.ACCOUNT] == 2
    assert found(replace(exact, used=91, by_model=91), one, two)[Rule.ACCOUNT] == 1
    assert found(replace(exact, by_model=80), one, two)[Rule.ACCOUNT] == 1
    assert found(replace(exact, capacity=80), one, two)[Rule.ACCOUNT] == 1
    assert found(replace(exact, used=0, by_model=0, environment_count=0), one)[Rule.ACCOUNT] == 1
    orphan = replace(one, parent=1)
    assert not found(replace(exact, used=50, by_model=50, environment_count=1), orphan, two)


def test_what_a_killed_server_leaves_takes_memory(stage: Stage, party: Party) -> None:
    party.life.process.wait()
    first = party.life
    party.look()
    party.kill()
    party.life.process.wait()
    with EnclaveProcess(stage.sealed / f"{stage.models[0].name}.vessel") as enclave:
        first.planned[enclave.pid] = 60
        assert party.planned_size(enclave.pid) == 60
        assert party.planned_size(os.getpid()) == 0
        found = only_enclave(stage)
        verdict = Verdict()
        watch = Watch(stage, party, "", 1 << 30, verdict)
        watch._all()
        assert verdict.held and watch.most_taken == 60
        # It is no child of the server's present process.
        watch._orphans[found] -= ORPHAN_SECONDS
        watch._all()
        assert verdict.counts == {Rule.ORPHANS: 1}
        verdict = Verdict()
        Watch(stage, party, "", 59, verdict)._all()
        assert verdict.counts == {Rule.ACCOUNT: 1, Rule.MEMORY: 1}


def test_an_account_is_read_from_metrics() -> None:
    text = """\
# TYPE vessels_epc_capacity_bytes gauge
vessels_epc_capacity_bytes 100.0
vessels_epc_used_bytes 90.0
vessels_environment_bytes{model="a"} 40.0
vessels_environment_bytes{model="b"} 50.0
vessels_environments{model="a",state="ready"} 1.0
vessels_environments{model="b",state="stopping"} 1.0
vessels_queue_length{model="a"} 3.0
vessels_waiting{model="a"} 4.0
# TYPE vessels_evictions counter
vessels_evictions_total{model="a"} 2.0
vessels_evictions_total{model="b"} 5.0
vessels_evictions_created{model="b"} 1.7e9
"""
    account = Account.parse(text)
    assert account == Account(100, 90, 90, 2, 3, 4, account.summed)
    assert account.summed["vessels_evictions"] == 7


def test_models_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="NETWORK:PIXELS"):
        build(tmp_path, ["squeezenet"], seed=0)


def test_the_command_says_what_it_takes() -> None:
    command = [sys.executable, "-m", "benchmarks.chaos", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--every" in said.stdout
