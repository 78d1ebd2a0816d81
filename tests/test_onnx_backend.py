"""ONNX's own backend tests, over :class:`backend.VesselsBackend`.

A model that is refused with a clear error counts as such and is skipped; a wrong answer or any
other error fails its test. The counts are printed at the end of the run.
"""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx.backend.test import BackendTest

from tests.backend import REFUSED, LateRep, VesselsBackend


class _Counts:
    """A pytest plugin that counts the outcomes of this file's tests."""

    def __init__(self) -> None:
        self.models: dict[str, Counter[str]] = {"light": Counter(), "other": Counter()}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if Path(report.fspath).name != Path(__file__).name or (
            report.when != "call" and report.outcome != "failed"
        ):
            return
        counts = self.models["light" if "RealModel" in report.nodeid else "other"]
        if report.outcome == "passed":
            counts["passed"] += 1
        elif report.outcome == "failed":
            counts["wrong"] += 1
        else:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            counts["refused" if REFUSED in reason else "skipped"] += 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("ONNX backend tests")
        for kind, counts in self.models.items():
            terminalreporter.write_line(
                f"{kind}: {counts['passed']} passed, {counts['refused']} refused as unsupported, "
                f"{counts['wrong']} wrong, {counts['skipped']} skipped otherwise"
            )
        terminalreporter.write_line(
            f"({LateRep.used} of those that passed have inputs bound as constants)"
        )


_COUNTS = _Counts()


@pytest.fixture(scope="module", autouse=True)
def _count(request: pytest.FixtureRequest) -> Iterator[None]:
    if not request.config.pluginmanager.is_registered(_COUNTS):
        request.config.pluginmanager.register(_COUNTS)
    yield


@pytest.fixture(scope="module", autouse=True)
def _model_folder() -> Iterator[None]:
    """Keeps what the suite writes for its light models out of the home directory."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNX_MODELS", folder)
        yield


def _test_cases() -> dict[str, type[Any]]:
    state = np.random.get_state()
    # The suite draws its inputs at import, and judges by tolerances that not all inputs allow.
    np.random.seed(0)
    with warnings.catch_warnings():
        # So are its expected overflows and infinities computed.
        warnings.simplefilter("ignore", RuntimeWarning)
        cases: dict[str, type[Any]] = BackendTest(VesselsBackend, __name__).test_cases
    np.random.set_state(state)
    for case in cases.values():
        for name in [n for n in vars(case) if n.endswith("_cuda")]:
            delattr(case, name)
    return cases


globals().update(_test_cases())
