"""The evaluation of serving: what is made of answers and of a simulation, and the page."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import kept
from benchmarks.load.arrivals import poisson
from benchmarks.load.outcomes import Outcome, Summary, summary
from benchmarks.serving_evaluation import bench, overload, page
from benchmarks.serving_evaluation import run as runs
from benchmarks.serving_evaluation.claims import expectations, verdict
from benchmarks.serving_evaluation.closed import Answer, Log, seen
from benchmarks.serving_evaluation.overload import (
    Loaded,
    Overload,
    again_in_simulation,
    is_saturated,
    with_costs,
)
from benchmarks.serving_evaluation.replay import efficiency, replayed, simulated_model
from benchmarks.serving_evaluation.result import ClosedPoint, OpenPoint, RunTimes, Timing
from benchmarks.serving_evaluation.run import Found
from benchmarks.serving_evaluation.systems import QUICK, SYSTEMS
from vessels.errors import EmulatorError
from vessels.schedule.model import Machine, ModelSpec, RunTime, Shape
from vessels.study.emulator import fault_cost
from vessels.study.result import Machine as StudiedMachine

MIB = 1 << 20
MACHINE = Machine(2, 93 * MIB)
RUNG = RunTimes(
    0,
    {1: 0.05, 4: 0.14},
    spread=0.0,
    start_seconds=0.1,
    start_core_seconds=0.03,
    wide_seconds=0.084,
)
TIMING = Timing("net", 2, 0.05, 0.01, 0.0, 0.001, 0.0, 0.0, (RUNG,))
SPEC = ModelSpec("net", (Shape(0, 1, 1, 10 * MIB),), run_time=RunTime(0.0, 0.05))


def _log(seconds: list[float], *, refused: int = 0) -> Log:
    answers = [Answer(n + 1.0, f"m{n % 2}", s, 2 * s, n != 3) for n, s in enumerate(seconds)]
    return Log(answers, [(1.5, "429 overloaded")] * refused + [(100.0, "503 no_room")])


def test_what_clients_saw_is_of_the_window() -> None:
    found = seen(_log([0.1] * 10, refused=2), begin=1.5, end=6.5)
    assert (found.answers, found.wrong, found.models) == (5, 1, 2)
    assert found.per_second == 1.0 and found.refused == {"429 overloaded": 2}
    assert found.p99_ms == pytest.approx(100) and found.patient_p99_ms == pytest.approx(200)
    nothing = seen(Log(), 0.0, 1.0)
    assert nothing.answers == 0 and nothing.p50_ms is None and nothing.p99_ms is None


def test_results_come_back_from_their_files(tmp_path: Path) -> None:
    point, refused, opened = _closed("ours", 1, 4), _refused(), _open(0.9, 1, 50.0, 10.0)
    for result in (point, refused, opened, TIMING):
        kept.keep(tmp_path / "r.json", "key", result=asdict(result))
        found = kept.load(tmp_path / "r.json", "key")
        assert found is not None and type(result).of(found["result"]) == result
    assert kept.load(tmp_path / "r.json", "another key") is None
    assert kept.load(tmp_path / "r.json", None) is not None
    (tmp_path / "r.json").write_text("{")
    assert kept.load(tmp_path / "r.json", None) is None


def test_run_times_are_split_by_the_batches() -> None:
    [found] = simulated_model(SPEC, TIMING).run_times
    assert found.fixed == pytest.approx(0.02) and found.each == pytest.approx(0.03)
    [busy] = simulated_model(SPEC, replace(TIMING, server_cpu=0.002, generator_cpu=0.001)).run_times
    assert busy.each == pytest.approx(0.033)
    assert efficiency(TIMING) == pytest.approx(0.05 / 0.03 - 1)
    one = replace(TIMING, rungs=(replace(RUNG, seconds={1: 0.05}),))
    [single] = simulated_model(SPEC, one).run_times
    assert single.seconds(1) == pytest.approx(0.05)


def test_costs_are_those_of_all_requests() -> None:
    point = replace(
        _open(None, 1, 1.0, 1.0), requests=100, server_cpu_seconds=0.3, generator_cpu_seconds=0.1
    )
    found = with_costs(TIMING, point, travel=0.004)
    assert (found.server_cpu, found.generator_cpu, found.travel) == (0.003, 0.001, 0.004)


def test_a_replay_answers_what_the_cores_can() -> None:
    calm = _replayed(rate=5.0)
    assert calm.accepted == calm.offered and calm.p50_ms == pytest.approx(52, abs=5)
    crowd = _replayed(rate=80.0)
    assert crowd.accepted < crowd.offered and "OVERLOADED" in crowd.outcomes
    # Two environments of one thread on two cores; the window may cut a run.
    assert 0.95 * 2 / 0.05 < crowd.goodput < 1.01 * 2 / 0.05
    settings = replace(QUICK, load_warmup=2.0)
    busy = replace(TIMING, server_cpu=0.01)
    arrivals = poisson(80.0, 20.0, {"net": 1.0}, seed=3)
    one, two = (
        again_in_simulation([SPEC], MACHINE, busy, settings, factor)(arrivals).summary
        for factor in (1, 2)
    )
    assert two.goodput < one.goodput < crowd.goodput


def _replayed(rate: float) -> Summary:
    arrivals = poisson(rate, 20.0, {"net": 1.0}, seed=3)
    return replayed([SPEC], MACHINE, TIMING, arrivals, begin=2.0, clients=4).summary


def test_limits_of_overload_are_kept_or_missed() -> None:
    search = _open(None, 1, 100.0, 50.0)
    good = [_open(0.9, 1, 100.0, 90.0), _open(2.0, 1, 199.0, 97.0), _open(2.0, 2, 199.0, 95.0)]
    beside = [_answered(40.0), _answered(60.0)]
    found = verdict(_loaded(beside, good))
    assert found is not None and found.capacity == 96.0
    # Of several turns the mean counts, not the best.
    most = verdict(_loaded([_answered(100.0), _answered(140.0)], good))
    assert most is not None and most.capacity == 120.0 and not most.goodput_kept
    assert found.p99_kept and found.goodput_kept and found.p99_ratio == pytest.approx(1.99)
    slow = verdict(_loaded(beside, [good[0], _open(2.0, 1, 201.0, 80.0)]))
    assert slow is not None and not slow.p99_kept and not slow.goodput_kept
    assert verdict(_loaded(beside, good[:1])) is None
    # Where all are refused there is no p99, and no limit is kept.
    assert verdict(_loaded(beside, [good[0], replace(good[1], served=_summary([]))])) is None
    clients, tenants = _points()
    one, small = _loaded(beside, good), _loaded(beside, [good[0], _open(2.0, 1, 201.0, 80.0)])
    text = expectations(clients, tenants, Overload(50.0, search, TIMING, one, small, TIMING, ()))
    assert "1.99 times: kept" in text
    assert "2.01 times: MISSED" in text and "88.9%: MISSED" in text


def test_the_page_says_all_that_was_measured(tmp_path: Path) -> None:
    clients, tenants = _points()
    points = [_open(f, s, 100.0 * f, 50.0) for f in (0.9, 2.0) for s in (1, 2)]
    simulated = [replace(p, simulated=p.served, simulated_launches=7) for p in points]
    loaded = _loaded([_answered(40.0), _answered(60.0)], simulated)
    over = Overload(
        50.0, _open(None, 1, 9.0, 50.0), TIMING, loaded, loaded, TIMING, tuple(simulated[:2])
    )
    about = StudiedMachine("a processor", 2, "Linux 6", "", "1.0", "2030-01-02T03:04:05")
    found = Found(about, 3.5, QUICK, clients, tenants, over)
    path = page.write_page(found, tmp_path)
    text = path.read_text()
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert len(headings) == 6
    for part in ("clients", "tenants", "overload"):
        assert f"(evaluation-serving-{part}.svg)" in text
        assert (tmp_path / f"evaluation-serving-{part}.svg").stat().st_size > 1000
    for system in SYSTEMS:
        assert f"| {system.name} |" in text
    assert "too large" in text and "not served" in text and "None" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    widths = {row.count("|") for row in rows if row.startswith(("| ours |", "| conventional"))}
    assert {12, 13} <= widths
    json.dumps(asdict(found))


def _points() -> tuple[tuple[ClosedPoint, ...], tuple[ClosedPoint, ...]]:
    clients = [_closed(s.name, 1, n) for s in SYSTEMS[:2] for n in (1, 4)]
    tenants = [_closed(s.name, n, 2 * n) for s in SYSTEMS for n in (1, 2)]
    return (*clients, _refused()), tuple(tenants)


def _closed(system: str, tenants: int, clients: int) -> ClosedPoint:
    found = seen(_log([0.1] * 10), 0.0, 20.0)
    return ClosedPoint(system, "net", tenants, clients, 0.5, found, faults=3.0, batch=1.5)


def _loaded(beside: list[ClosedPoint], points: list[OpenPoint]) -> Loaded:
    return Loaded(tuple(beside), tuple(points))


def _answered(rate: float) -> ClosedPoint:
    found = seen(_log([0.1] * 10), 0.0, 20.0)
    return replace(_closed("ours", 1, 8), seen=replace(found, per_second=rate))


def _refused() -> ClosedPoint:
    return ClosedPoint("conventional, admitted", "net", 1, 4, 0.5, refusal="it is too large")


def _open(factor: float | None, seed: int, p99_ms: float, goodput: float) -> OpenPoint:
    """A point whose p99 and goodput are these."""
    times = np.linspace(0, 10, round(goodput * 10), endpoint=False)
    found = _summary([Outcome("net", float(t), 0.0, p99_ms / 1e3, "ok") for t in times])
    return OpenPoint(
        "net", 1, factor, 50.0, seed, 0.5, replace(found, goodput=goodput), None, 100, 1.0, 0.1,
        0.3, 1.5, 0, None,
    )  # fmt: skip


def _summary(outcomes: list[Outcome]) -> Summary:
    return summary(outcomes, 0.0, 10.0)


def test_capacity_is_where_requests_are_refused() -> None:
    point = _open(None, 1, 100.0, 50.0)
    assert not is_saturated(point)
    most = replace(point, served=replace(point.served, accepted=int(0.9 * point.served.offered)))
    assert is_saturated(most)


@pytest.mark.heavy
def test_a_small_evaluation_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    settings = replace(
        QUICK, client_counts=(2,), tenant_counts=(2,), seconds=2.0, load_seconds=3.0, loads=(2.0,)
    )
    try:
        fault_cost()
    except EmulatorError as error:
        pytest.skip(str(error))
    first = runs.run(settings, tmp_path / "results")
    points = [*first.clients, *first.tenants]
    assert [p.system for p in points] == [s.name for s in SYSTEMS] * 2
    for closed in points:
        assert closed.seen is not None and closed.seen.answers and not closed.seen.wrong
        assert closed.seen.models == closed.tenants and closed.refusal is None
    assert all(p.faults == 0 for p in points if p.system == "ours")
    [one], [small] = first.overload.one.open, first.overload.small.open
    [mixed] = first.overload.mixed
    assert small.served.checked and not small.served.wrong
    for point in (one, mixed):
        assert point.served.checked and not point.served.wrong and point.simulated is not None
        assert point.simulated.offered == point.served.offered
    assert mixed.tenants == settings.mixed_tenants

    def again(*_: object) -> None:
        raise AssertionError("measured a second time")

    monkeypatch.setattr(bench, "served", again)
    monkeypatch.setattr(overload, "timing_of", again)
    assert asdict(runs.run(settings, tmp_path / "results")) == asdict(first)
    text = page.write_page(first, tmp_path).read_text()
    assert "## Served and simulated" in text
