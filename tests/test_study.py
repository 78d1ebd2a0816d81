"""The study end to end: what is measured under the emulator, and the command."""

from __future__ import annotations

import functools
import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import zoo
from tests.conftest import Sealed
from tests.test_cli import Run, vessels
from vessels.cli.study import parse_duration
from vessels.enclave import Enclave
from vessels.errors import EmulatorError, EnclaveError, UsageError
from vessels.study import emulator as emulators
from vessels.study import measure
from vessels.study.emulator import Emulator
from vessels.study.prepare import Prepared, prepare
from vessels.study.replacement import BATCH
from vessels.study.result import PAGE_SIZE, FaultCost
from vessels.study.study import epc_sweep, study
from vessels.study.wording import beyond_agreement

__all__ = ["vessels"]

Array = np.ndarray[Any, Any]


@functools.cache
def _unavailable() -> str | None:
    try:
        with Emulator(1 << 20):
            return None
    except (EmulatorError, EnclaveError) as error:
        return str(error)


@pytest.fixture
def emulated() -> None:
    """For tests that need the emulator."""
    if (why := _unavailable()) is not None:
        pytest.skip(why)


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network: 10 MiB the conventional way."""
    path = tmp_path_factory.mktemp("squeezenet") / "squeezenet.onnx"
    onnx.save(zoo.build("squeezenet", input_size=112), path)
    return path


@pytest.fixture(scope="module")
def plans(squeezenet: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Prepared]:
    """Its plans: conventional, streamed, budgets."""
    return prepare(
        squeezenet,
        shapes={},
        threads=1,
        epc_size=8 << 20,
        plain_seconds=None,
        folder=tmp_path_factory.mktemp("plans"),
        progress=lambda step, part: None,
    )


@pytest.fixture(scope="module")
def expected(plans: list[Prepared]) -> dict[str, Array]:
    """The outputs in plain memory."""
    subject = plans[1].subject
    with Enclave(subject.path, key=subject.key) as enclave:
        return enclave.run(subject.inputs)


def _conditions(**changes: Any) -> measure.Conditions:
    given = {"runtime_size": 0, "threads": 1, "seconds": 0.1, "limit_seconds": 60.0}
    return measure.Conditions(**{**given, "padding_ns": 0.0, **changes})


def _same(found: dict[str, Array], expected: dict[str, Array]) -> bool:
    return all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def test_heavy_paging_changes_no_bit(
    emulated: None, plans: list[Prepared], expected: dict[str, Array]
) -> None:
    conventional, planned = plans[0].subject, plans[1].subject
    wrong: list[str] = []
    with (
        Emulator(1 << 20) as emulator,
        emulator.enclave(conventional.path, key=conventional.key) as first,
        emulator.enclave(conventional.path, key=conventional.key) as second,
        emulator.enclave(planned.path, key=planned.key) as third,
    ):

        def work(enclave: Enclave) -> None:
            for _ in range(2):
                if not _same(emulator.run(enclave, planned.inputs), expected):
                    wrong.append(str(enclave.path))

        tenants = [threading.Thread(target=work, args=(e,)) for e in (first, second, third)]
        for tenant in tenants:
            tenant.start()
        for tenant in tenants:
            tenant.join()
        counters = emulator.counters()
    assert wrong == []
    assert [t.pid for t in counters.tenants] == [first.pid, second.pid, third.pid]
    assert all(t.fetched > 100 and t.alive for t in counters.tenants)
    assert counters.peak_used <= counters.capacity == 256


@pytest.mark.parametrize(
    ("index", "parts"),
    # Below half of the plan's pool, a few dozen pages, the order within a step of a kernel tells.
    [(0, (0.25, 0.5, 0.75)), (1, (0.5, 0.75))],
    ids=["conventional", "planned"],
)
def test_faults_are_those_predicted(
    emulated: None, plans: list[Prepared], index: int, parts: tuple[float, ...]
) -> None:
    subject = plans[index].subject
    pool = subject.pool_size
    notes: list[str] = []
    points = measure.latency(
        subject,
        [*(round(part * pool) for part in parts), pool + (BATCH + 1) * PAGE_SIZE],
        _conditions(),
        notes,
        lambda step, part: None,
    )
    assert notes == []
    assert [p.epc_size for p in points] == sorted((p.epc_size for p in points), reverse=True)
    largest, *others = points
    assert (largest.faults, largest.predicted_lru, largest.predicted_policy) == (0, 0, 0)
    assert largest.soft_faults == 0
    for point in others:
        assert point.predicted_policy > 0 and not beyond_agreement(point), point
        assert point.least_ms <= point.median_ms <= point.most_ms and point.run_count >= 2
    assert len(others) == len(parts)


def test_what_fits_faults_in_the_first_prediction_only(
    emulated: None, plans: list[Prepared], expected: dict[str, Array]
) -> None:
    subject = plans[1].subject
    with emulators.emulated(
        subject.path, key=subject.key, threads=1, epc_size=subject.pool_size + PAGE_SIZE
    ) as (emulator, [enclave]):
        emulator.run(enclave, subject.inputs)
        first = emulator.counters()
        for _ in range(3):
            assert _same(emulator.run(enclave, subject.inputs), expected)
        after = emulator.counters()
    assert after.tenants == first.tenants
    assert 0 < first.tenants[0].first <= math.ceil(subject.pool_size / PAGE_SIZE)
    assert (first.fetched, first.tenants[0].evicted) == (0, 0)


@pytest.mark.parametrize("how", ["flip", "replay"])
def test_an_altered_page_is_refused_and_others_go_on(
    emulated: None, plans: list[Prepared], expected: dict[str, Array], how: emulators.Tampering
) -> None:
    subject = plans[0].subject
    with (
        Emulator(1 << 20) as emulator,
        emulator.enclave(subject.path, key=subject.key) as victim,
        emulator.enclave(subject.path, key=subject.key) as other,
    ):
        for _ in range(2):
            emulator.run(victim, subject.inputs)
        tenant = emulator.counters().tenant(victim.pid)
        assert tenant is not None
        page = emulator.tamper(tenant.id, how)
        with pytest.raises(EmulatorError, match=f"page {page}"):
            for _ in range(3):
                emulator.run(victim, subject.inputs)
        assert _same(emulator.run(other, subject.inputs), expected)
        tenant = emulator.counters().tenant(victim.pid)
        assert tenant is not None and tenant.refused and not tenant.alive
        with pytest.raises(EmulatorError, match="tamper"):
            emulator.tamper(999, how)


def test_throughput_counts_whole_predictions(emulated: None, plans: list[Prepared]) -> None:
    subject = plans[1].subject
    notes: list[str] = []
    conditions = _conditions(runtime_size=1 << 20, seconds=0.5)
    # A window in which the machine stood still tells nothing of the rate.
    for _ in range(5):
        notes.clear()
        points = measure.throughput(
            subject, 10 << 20, [1, 2, 10], conditions, notes, lambda step, part: None
        )
        assert [p.tenant_count for p in points] == [1, 2]
        assert points[0].faults == 0
        # In a closed loop each tenant has one prediction under way.
        rates = [point.tenant_count / point.median_ms * 1e3 for point in points]
        found = [point.predictions_per_second for point in points]
        if found == pytest.approx(rates, rel=0.5):
            break
    else:
        pytest.fail(f"{found} a second, where the times of predictions say {rates}")
    assert len(notes) == 1 and "10 tenants" in notes[0]


def test_a_slow_point_is_given_up_and_said_so(emulated: None, plans: list[Prepared]) -> None:
    notes: list[str] = []
    hasty = _conditions(limit_seconds=1e-6, seconds=1e-6)
    quiet = lambda step, part: None  # noqa: E731
    assert measure.latency(plans[0].subject, [1 << 20], hasty, notes, quiet) == []
    assert measure.throughput(plans[0].subject, 1 << 20, [1], hasty, notes, quiet) == []
    assert len(notes) == 2 and all("not measured" in note for note in notes)


def test_the_sweep_goes_from_half_the_plan_to_everything() -> None:
    runtime, epc = 3 << 20, 93 << 20
    sizes = epc_sweep(6_000_001, 200_000_000, runtime, epc)
    assert sizes == sorted(set(sizes)) and epc in sizes
    assert sizes[0] < runtime + 6_000_001 < sizes[1]
    assert sizes[-1] >= runtime + 200_000_000
    assert 6 <= len(sizes) <= 8


def _script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exit 1", "exit code 1.*said nothing"),
        ("echo 'no userfaultfd' >&2; exit 1", "no userfaultfd"),
        ("echo nonsense; cat", "not understood"),
        ("""echo '{"ready": false, "why": "old kernel"}'; cat""", "old kernel"),
    ],
)
def test_an_emulator_that_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setenv("VESSELS_EPC", str(_script(tmp_path / "epc", text)))
    with pytest.raises(EmulatorError, match=message):
        Emulator(1 << 20)


def test_an_emulator_that_dies_or_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = """echo '{"ready": true, "mode": "user"}'; read line; """
    monkeypatch.setenv("VESSELS_EPC", str(_script(tmp_path / "epc", ready + "exit 3")))
    with Emulator(1 << 20) as emulator, pytest.raises(EmulatorError, match="exit code 3"):
        emulator.counters()
    with pytest.raises(EmulatorError, match="has ended"):
        emulator.counters()
    refusing = ready + """echo '{"error": "too few pages"}'; cat"""
    monkeypatch.setenv("VESSELS_EPC", str(_script(tmp_path / "epc", refusing)))
    with Emulator(1 << 20) as emulator, pytest.raises(EmulatorError, match="too few pages"):
        emulator.set_capacity(1)


def test_where_there_is_no_emulator_the_rest_is_studied(
    sealed: Sealed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = """echo '{"available": false, "why": "no userfaultfd here"}'"""
    monkeypatch.setenv("VESSELS_EPC", str(_script(tmp_path / "epc", answer)))
    found = study(sealed.onnx, seconds=0.1)
    assert found.unmeasured is not None and "no userfaultfd here" in found.unmeasured
    assert found.latency == () and found.tenants == () and found.fault_cost is None
    assert found.planned.touch_count > 0 and found.budget_latency[0].median_ms > 0
    assert sum(row.microseconds for row in found.planned.layers) > 0


@pytest.mark.parametrize(("stated", "padding"), [(12_000.0, 5_000.0), (4_000.0, 0.0)])
def test_a_stated_cost_is_made_up_by_waiting(
    sealed: Sealed, emulated: None, monkeypatch: pytest.MonkeyPatch, stated: float, padding: float
) -> None:
    monkeypatch.setattr(emulators, "fault_cost", lambda: FaultCost(7_000.0, 2_000.0, 0.0))
    found = study(sealed.onnx, tenants=[1], seconds=0.1, fault_cost_ns=stated)
    assert found.fault_cost is not None and found.fault_cost.padding_ns == padding
    assert any("nothing was added" in note for note in found.notes) == (padding == 0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"epc_size": 4096},
        {"tenants": []},
        {"tenants": [0]},
        {"threads": 0},
        {"fault_cost_ns": 0.0},
        {"seconds": 0.0},
        {"seconds": 2.0, "limit_seconds": 1.0},
    ],
)
def test_arguments_that_make_no_sense(sealed: Sealed, arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        study(sealed.onnx, **arguments)


def test_durations() -> None:
    assert [parse_duration(t) for t in ("12us", "800 ns", "0.02ms", "1.5\N{MICRO SIGN}s")] == [
        12_000, 800, 20_000, 1_500,
    ]  # fmt: skip


def test_the_command(vessels: Run, emulated: None, squeezenet: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    code, out, err = vessels(
        "study", squeezenet, "--epc", "12MiB", "--tenants", "1,2", "--seconds", 0.1,
        "-o", report, "--json",
    )  # fmt: skip
    assert code == 0, err
    assert err.count("does NOT protect") == 1
    found = json.loads(out)
    assert found["unmeasured"] is None and found["fault_cost"]["fault_ns"] > 0
    points = {p["policy"]: p for p in found["latency"] if p["epc_size"] == 12 << 20}
    assert points["planned"]["faults"] == 0 < points["conventional"]["faults"]
    assert {(t["policy"], t["tenant_count"]) for t in found["tenants"]} == {
        (policy, count) for policy in ("planned", "conventional") for count in (1, 2)
    }
    assert found["footprint"]["runtime_size"] > 1 << 20
    page = report.read_text()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert "squeezenet" in page


def test_the_command_with_analysis_only(
    vessels: Run,
    sealed: Sealed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VESSELS_ENCLAVE", "/nowhere/vessels-enclave")
    code, out, err = vessels("study", sealed.onnx, "--analysis-only")
    assert (code, err) == (0, "")
    assert "Not measured: only the analysis was asked for" in out
    assert "wrote m.study.html" in out
    assert (tmp_path / "m.study.html").stat().st_size > 1000


def test_the_command_refuses(vessels: Run, sealed: Sealed, tmp_path: Path) -> None:
    report = ("-o", tmp_path / "report.html")
    for wrong in (
        ("--epc", "lots"), ("--epc", "16KiB"), ("--tenants", "0"), ("--tenants", "1,,2"),
        ("--fault-cost", "12"), ("--fault-cost", "0us"), ("--threads", "0"), ("--seconds", "0"),
        ("--shape", "image"),
    ):  # fmt: skip
        assert vessels("study", sealed.onnx, *wrong, *report)[0] == 2, wrong
    assert vessels("study", tmp_path / "missing.onnx", *report)[0] == 3
    assert vessels("study", sealed.onnx, "-o", tmp_path / "no" / "r.html")[0] == 8
    assert vessels("study", sealed.onnx, "-o", sealed.onnx)[0] == 2
    assert list(tmp_path.iterdir()) == []
