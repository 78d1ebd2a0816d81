"""The evaluation: results that are kept, and the page that is made of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.evaluation import run as runs
from benchmarks.evaluation.claims import expectations
from benchmarks.evaluation.page import write_page
from benchmarks.evaluation.result import Result
from benchmarks.evaluation.run import QUICK, Settings, code_digest, run
from tests.study_example import example
from vessels.study.result import LatencyPoint, Study


def _result(study: Study) -> Result:
    """As it comes back from its file."""
    return Result.of(json.loads(json.dumps(study.as_json())))


@pytest.fixture(scope="module")
def study() -> Study:
    """A network whose conventional pool is several EPCs."""
    return example(model="large", epc_size=16 << 20, layer_count=16, width=128)


def test_a_result_is_the_study(study: Study) -> None:
    result = _result(study)
    assert result.latency == study.latency and result.tenants == study.tenants
    assert result.reduction == study.conventional.pool_size / study.planned.pool_size
    slow, fast = result.at_epc("conventional"), result.at_epc("planned")
    assert slow is not None and fast is not None
    assert result.speedup == slow.median_ms / fast.median_ms
    assert result.rate("planned", 3) is None


def test_the_page_has_all_that_was_measured(study: Study, tmp_path: Path) -> None:
    small = example(model="small", layer_count=12, width=32)
    path = write_page([_result(study), _result(small)], tmp_path)
    text = path.read_text()
    for heading in ("expected", "Footprint", "Speed", "Tenants", "Faults", "peer"):
        assert any(heading in line for line in text.splitlines() if line.startswith("## ")), heading
    for plot in ("footprint", "speed", "tenants"):
        assert f"(evaluation-{plot}.svg)" in text
        assert (tmp_path / f"evaluation-{plot}.svg").stat().st_size > 1000
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert sum(line.startswith("| large |") for line in tables) >= 5
    assert f"{_result(study).speedup:.1f}" in text


def test_the_page_of_analysis_alone(study: Study, tmp_path: Path) -> None:
    path = write_page([_result(example(measured=False))], tmp_path)
    text = path.read_text()
    assert "There was no emulator" in text and "## Footprint" in text
    assert "## Speed" not in text and "## Tenants" not in text
    assert not (tmp_path / "evaluation-speed.svg").exists()


def _altered(study: Study, policy: str, **changes: Any) -> Study:
    """The study with other values at its EPC size."""

    def other(point: LatencyPoint) -> LatencyPoint:
        here = (point.policy, point.epc_size) == (policy, study.epc_size)
        return replace(point, **changes) if here else point

    return replace(study, latency=tuple(other(p) for p in study.latency))


def test_what_does_not_hold_is_said(study: Study) -> None:
    assert "Holds." in expectations([_result(study)])
    loud = _altered(study, "planned", faults=17.0)
    assert "does not hold: large 17.0 in 16.0 MiB" in expectations([_result(loud)])
    fast = _result(study).at_epc("planned")
    assert fast is not None
    slow = _altered(study, "conventional", median_ms=2 * fast.median_ms)
    assert "Not for large (2.0)" in expectations([_result(slow)])
    big = replace(study, planned=replace(study.planned, pool_size=study.conventional.pool_size))
    assert "Outside: large 1.0 times" in expectations([_result(big)])


def test_results_are_kept_until_something_changes(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(model: Path, **arguments: Any) -> Study:
        calls.append(model.stem)
        assert arguments["epc_size"] == QUICK.epc_size
        return replace(study, model=model.stem)

    monkeypatch.setattr(runs, "study", counted)
    monkeypatch.setattr(runs, "write_report", lambda study, path: path.write_text("report"))
    names = ["squeezenet", "mobilenet_v2"]
    first = run(names, tmp_path, QUICK)
    assert calls == names and [r.network for r in first] == names
    assert run(names, tmp_path, QUICK) == first and calls == names
    # A file cut short is no result.
    stored = tmp_path / "squeezenet.json"
    stored.write_text(stored.read_text()[:100])
    assert run(names, tmp_path, QUICK) == first and calls == [*names, "squeezenet"]
    run(["squeezenet"], tmp_path, Settings(seconds=QUICK.seconds + 1))
    assert len(calls) == 4
    monkeypatch.setattr(runs, "code_digest", lambda: "other code")
    run(["mobilenet_v2"], tmp_path, QUICK, keep=True)
    assert len(calls) == 4
    run(["mobilenet_v2"], tmp_path, QUICK)
    assert len(calls) == 5


def test_the_digest_is_of_what_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "benchmarks" / "zoo").mkdir(parents=True)
    package = tmp_path / "python" / "vessels"
    (package / "cli").mkdir(parents=True)
    (package / "plan.py").write_text("one = 1")
    (package / "cli" / "run.py").write_text("one = 1")
    binary = tmp_path / "vessels-enclave"
    binary.write_text("binary")
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setenv("VESSELS_ENCLAVE", str(binary))
    monkeypatch.setenv("VESSELS_EPC", str(binary))
    before = code_digest()
    (package / "cli" / "run.py").write_text("two = 2")
    assert code_digest() == before
    (package / "plan.py").write_text("two = 2")
    changed = code_digest()
    assert changed != before
    binary.write_text("other")
    assert code_digest() not in (before, changed)
