"""The load generator: arrivals, what is made of outcomes, and that its loop is open.

What it needs (locust) changes the process it is imported into, so it runs in one of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load import measured
from benchmarks.load.arrivals import parse_mix, poisson, read_trace
from benchmarks.load.outcomes import OK, WRONG, Outcome, by_model, summary
from benchmarks.load.sealed import Question, close
from benchmarks.trust import client_policy
from tests.conftest import ROOT, Sealed
from tests.http_running import LocalServer, QuietHandler, running
from tests.serving import PATIENCE, until
from vessels.errors import UsageError


@given(
    rate=st.floats(0.1, 200), seconds=st.floats(0.1, 20), seed=st.integers(0, 1 << 32),
    weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=4),
)  # fmt: skip
def test_poisson_arrivals_are_in_time_in_order_and_of_the_models(
    rate: float, seconds: float, seed: int, weights: list[float]
) -> None:
    mix = {f"m{i}": w for i, w in enumerate(weights)}
    arrivals = poisson(rate, seconds, mix, seed=seed)
    times = [a.at for a in arrivals]
    assert times == sorted(times) and all(0 <= t <= seconds for t in times)
    assert {a.model for a in arrivals} <= set(mix)
    assert arrivals == poisson(rate, seconds, mix, seed=seed)


def test_poisson_arrivals_have_the_rate_the_mix_and_no_memory() -> None:
    arrivals = poisson(100, 200, {"often": 3, "seldom": 1}, seed=1)
    assert len(arrivals) == pytest.approx(20_000, rel=0.03)
    assert sum(a.model == "often" for a in arrivals) == pytest.approx(15_000, rel=0.04)
    gaps = np.diff([a.at for a in arrivals])
    # Of exponential gaps the deviation is the mean.
    assert gaps.mean() == pytest.approx(0.01, rel=0.03)
    assert gaps.std() == pytest.approx(0.01, rel=0.05)


def test_a_trace_is_read_in_order_of_time(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text('1.5,b\n0,a\n"0.25","a,c"\n')
    assert [(a.at, a.model) for a in read_trace(trace)] == [(0, "a"), (0.25, "a,c"), (1.5, "b")]


@pytest.mark.parametrize("line", ["x,a", "1", "1,a,b", "-1,a", "inf,a", "nan,a", "1,", ""])
def test_any_other_trace_is_refused_by_its_line(tmp_path: Path, line: str) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text(f"0,a\n{line}\n2,b\n")
    with pytest.raises(UsageError, match=r"t\.csv, line 2"):
        read_trace(trace)


def test_a_mix_is_names_with_weights() -> None:
    assert parse_mix(["a", "b=2.5"]) == {"a": 1.0, "b": 2.5}


@pytest.mark.parametrize("text", ["a=", "a=much", "a=0", "a=-1", "a=inf", "a=nan"])
def test_any_other_weight_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="NAME=WEIGHT"):
        parse_mix(["b", text])


def outcome(at: float, seconds: float, kind: str = OK, model: str = "m") -> Outcome:
    return Outcome(model, at, 0.0, seconds, kind, checked=kind in (OK, WRONG))


def test_a_summary_counts_each_request_once_and_goodput_by_when_answers_come() -> None:
    found = [
        outcome(0.5, 1.0),  # due before the window, answered in it
        outcome(1.0, 0.1),
        outcome(2.0, 0.2, WRONG),
        outcome(2.5, 0.9),  # late
        outcome(3.0, 0.0, "429 overloaded"),
        outcome(4.9, 0.3),  # answered after the window
    ]
    total = summary(found, 1.0, 5.0, deadline=0.8)
    assert (total.offered, total.accepted, total.wrong, total.late) == (5, 4, 1, 1)
    assert total.outcomes == {OK: 3, WRONG: 1, "429 overloaded": 1}
    assert total.goodput == 1 / 4
    assert summary(found, 1.0, 5.0).goodput == 3 / 4
    assert total.p50_ms == pytest.approx(250)
    assert summary(found[4:5], 1.0, 5.0).p99_ms is None


def test_summaries_by_model_add_up() -> None:
    found = [outcome(i / 10, 0.01, model=f"m{i % 3}") for i in range(20)]
    parts = by_model(found, 0.0, 2.0)
    assert sum(p.offered for p in parts.values()) == summary(found, 0.0, 2.0).offered == 20


def test_an_answer_to_another_question_is_not_right() -> None:
    right = {"scores": np.array([0.2, 0.3, 0.5], np.float32)}
    question = Question({}, right)
    assert question.is_right({"scores": right["scores"] + np.float32(4e-4)})
    assert not question.is_right({"scores": right["scores"] + np.float32(6e-4)})
    assert not question.is_right({"scores": right["scores"].astype(np.float64)})
    assert not question.is_right({"scores": right["scores"][:2]})
    assert not question.is_right({"others": right["scores"]})
    assert not question.is_right({})
    assert not close(np.array([np.nan], np.float32), np.array([1], np.float32))
    assert not close(np.array([1, 2]), np.array([1, 3]))


_ASK = """
import json, sys
from benchmarks.load.arrivals import poisson
from benchmarks.load.generator import Load, run
from benchmarks.load.sealed import Question, SealedQuestion

class Tenant:
    model, environment = "m", "0011223344556677"
    def next(self):
        return SealedQuestion(Question({}, {}), b"x" * 100, self.environment, None)

load = Load(sys.argv[1], poisson(60, 1.0, {"m": 1}, seed=5), {"m": [Tenant()]}, deadline=1.5)
run(load)
print(json.dumps([[o.kind, o.lag, load.most_under_way] for o in load.outcomes]))
"""


def test_no_request_waits_for_the_answer_to_another() -> None:
    count = len(poisson(60, 1.0, {"m": 1}, seed=5))
    all_here = threading.Barrier(count)
    heads: list[dict[str, str]] = []

    class Handler(QuietHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            heads.append(dict(self.headers))
            # Nobody is answered before all have asked.
            all_here.wait(PATIENCE)
            self.answer(429, b'{"error": {"code": "overloaded", "message": "."}}')

    with running(LocalServer(Handler)) as server:
        done = subprocess.run(
            [sys.executable, "-c", _ASK, server.url],
            capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert [kind for kind, _, _ in outcomes] == ["429 overloaded"] * count
    assert {most for _, _, most in outcomes} == {count}
    assert {h["vessels-environment"] for h in heads} == {"0011223344556677"}
    assert {h["vessels-deadline-ms"] for h in heads} == {"1500"}
    assert {h["Content-Type"] for h in heads} == {"application/octet-stream"}


@dataclass
class Serving:
    """A `vessels serve` of the small model, as `small`, and its log."""

    url: str
    policy: Path
    log: Path

    def events(self, name: str) -> list[dict[str, Any]]:
        whole = self.log.read_text().rpartition("\n")[0]
        return [e for e in map(json.loads, whole.splitlines()) if e["event"] == name]


@contextmanager
def serving(sealed: Sealed, folder: Path) -> Iterator[Serving]:
    command = [sys.executable, "-m", "vessels", "serve", f"small={sealed.vessel}", "--listen"]
    command += ["127.0.0.1:0", "--insecure-key", str(sealed.key), "--log", "json"]
    found = Serving("", folder / "policy.toml", folder / "log")
    found.policy.write_text(client_policy({"small": sealed.vessel}))
    with found.log.open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        until(lambda: found.events("model_ready") or process.poll() is not None, "a server")
        found.url = found.events("serving")[0]["url"]
        yield found
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture(scope="module")
def server(
    sealed: Sealed, home: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    with serving(sealed, tmp_path_factory.mktemp("served")) as found:
        yield found


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_a_server_is_asked_and_its_answers_are_compared(server: Serving, sealed: Sealed) -> None:
    report = measured(
        server.url, server.policy, "--rate", "40", "--seconds", "2", "--deadline-ms", "60000",
        "--onnx", f"small={sealed.onnx}", "--seed", "3", models=["small"],
    )  # fmt: skip
    count = len(poisson(40, 2, {"small": 1}, seed=3))
    total = report["total"]
    assert report["models"] == {"small": total}
    assert (total["offered"], total["accepted"], total["checked"]) == (count, count, count)
    assert (total["wrong"], total["late"], total["outcomes"]) == (0, 0, {"ok": count})
    assert 0 < total["p50_ms"] <= total["p95_ms"] <= total["p99_ms"]
    assert report["generator"]["requests"] == count


def test_an_enclave_that_is_killed_costs_answers_and_never_a_wrong_one(server: Serving) -> None:
    before = {name: len(server.events(name)) for name in ("predicted", "enclave_started")}

    def kill() -> None:
        until(lambda: len(server.events("predicted")) > before["predicted"] + 40, "predictions")
        os.kill(server.events("enclave_started")[-1]["pid"], signal.SIGKILL)

    with meanwhile(kill):
        report = measured(server.url, server.policy, "--rate", "40", "--seconds", "4")
    total = report["total"]
    assert sum(total["outcomes"].values()) == total["offered"] == report["generator"]["requests"]
    assert total["wrong"] == 0
    assert total["renewed"] > 0
    assert len(server.events("enclave_started")) > before["enclave_started"]


def test_a_trace_is_followed_and_only_what_is_due_after_the_warmup_counts(
    server: Serving, tmp_path: Path
) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("0,small\n0.1,small\n0.6,small\n0.6,small\n1.0,small\n")
    report = measured(
        server.url, server.policy, "--trace", str(trace), "--warmup", "0.5", "--check", "0",
        "--questions", "1", "--tenants", "2",
    )  # fmt: skip
    total = report["total"]
    assert (total["offered"], total["accepted"], total["checked"]) == (3, 3, 0)
    assert (total["seconds"], report["generator"]["requests"]) == (0.5, 5)


def test_a_run_without_requests_is_refused(server: Serving, tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("")
    with pytest.raises(RuntimeError, match="no request is due"):
        measured(server.url, server.policy, "--trace", str(trace))
