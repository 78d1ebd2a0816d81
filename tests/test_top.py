"""What `vessels top` makes of a server's metrics, and how it takes a server's absence."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import threading
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client import Histogram as Recorder
from rich.console import Console

from tests.conftest import ROOT
from tests.serving import PATIENCE
from vessels.cli.top import _shown, top
from vessels.errors import ServerError, UsageError
from vessels.serve.metrics import Metrics
from vessels.top import Histogram, Reading, View, view

MIB = 1 << 20
BOUNDS = (0.001, 0.01, 0.1, 1.0)
NAMES = {
    "vessels_predict_seconds", "vessels_batch_size", "vessels_epc_capacity_bytes",
    "vessels_epc_used_bytes", "vessels_environments", "vessels_environment_bytes",
    "vessels_queue_length", "vessels_shed", "vessels_launches", "vessels_evictions",
    "vessels_model_ready", "process_start_time_seconds",
}  # fmt: skip


class Server:
    """The metrics of a server, to be set as a test wants them."""

    def __init__(self, started: float = 1.0) -> None:
        registry = self.registry = CollectorRegistry()

        def gauge(name: str, *labels: str) -> Gauge:
            return Gauge(name, ".", labels, registry=registry)

        def counter(name: str, *labels: str) -> Counter:
            return Counter(name, ".", labels, registry=registry)

        def recorder(name: str, bounds: tuple[float, ...]) -> Recorder:
            return Recorder(name, ".", ["model"], buckets=bounds, registry=registry)

        gauge("process_start_time_seconds").set(started)
        self.capacity = gauge("vessels_epc_capacity_bytes")
        self.used = gauge("vessels_epc_used_bytes")
        self.environments = gauge("vessels_environments", "model", "state")
        self.size = gauge("vessels_environment_bytes", "model")
        self.queue = gauge("vessels_queue_length", "model")
        self.shed = counter("vessels_shed", "model", "reason")
        self.launches = counter("vessels_launches", "model")
        self.evictions = counter("vessels_evictions", "model")
        self.seconds = recorder("vessels_predict_seconds", BOUNDS)
        self.batch = recorder("vessels_batch_size", (1, 2, 4, 8))

    @property
    def text(self) -> str:
        return generate_latest(self.registry).decode()

    def read(self, at: float) -> Reading:
        return Reading.parse(self.text, at=at)


@pytest.fixture
def server() -> Server:
    found = Server()
    found.capacity.set(93 * MIB)
    found.used.set(40 * MIB)
    for model, ready in (("a", 2), ("b", 0)):
        found.environments.labels(model, "ready").set(ready)
        found.environments.labels(model, "starting").set(1 - ready // 2)
        found.size.labels(model).set(20 * MIB)
        found.queue.labels(model).set(3 * ready)
        found.launches.labels(model).inc(4)
        found.evictions.labels(model).inc(ready)
        found.seconds.labels(model)
    return found


def two(server: Server) -> tuple[View, list[float]]:
    """A view of four seconds in which model ``a`` gave answers, and their times."""
    server.seconds.labels("a").observe(5.0)
    server.shed.labels("a", "overloaded").inc(7)
    before = server.read(10.0)
    times = [0.002] * 10 + [0.05] * 9 + [0.5]
    for seconds in times:
        server.seconds.labels("a").observe(seconds)
    for count in (4, 4, 2):
        server.batch.labels("a").observe(count)
    server.shed.labels("a", "overloaded").inc(2)
    server.shed.labels("a", "no_room").inc(4)
    server.launches.labels("b").inc()
    return view(before, server.read(14.0)), times


def test_a_view_has_what_holds_and_what_happened_in_between(server: Server) -> None:
    found, times = two(server)
    assert (found.seconds, found.restarted) == (4.0, False)
    assert (found.epc_capacity, found.epc_used) == (93 * MIB, 40 * MIB)
    assert found.epc_free == 53 * MIB
    a, b = found.models
    assert (a.name, b.name) == ("a", "b")
    assert (a.environments, b.environments) == ({"ready": 2}, {"starting": 1})
    assert (a.environment_size, a.queue_length, a.launches, a.evictions) == (20 * MIB, 6, 4, 2)
    assert a.answered_per_second == len(times) / 4
    assert a.batch_mean == pytest.approx(10 / 3)
    assert a.shed_per_second == {"no_room": 1.0, "overloaded": 0.5}
    # Ten of twenty are in the bucket of 1 to 10 ms, nine in that of 10 to 100 ms.
    assert a.p50_ms == pytest.approx(10.0)
    assert a.p95_ms == pytest.approx(100.0)
    assert a.p99_ms == pytest.approx(100.0 + 900.0 * 0.8)
    assert (b.p50_ms, b.batch_mean, b.shed_per_second, b.launches) == (None, None, {}, 5)


def test_without_a_bound_there_is_no_free_memory(server: Server) -> None:
    server.capacity.set(0)
    found = view(server.read(0.0), server.read(1.0))
    assert (found.epc_capacity, found.epc_used, found.epc_free) == (None, 40 * MIB, None)


def test_a_server_that_has_begun_anew_is_counted_from_its_start(server: Server) -> None:
    two(server)
    before = server.read(20.0)
    anew = Server(started=2.0)
    for _ in range(30):
        anew.seconds.labels("a").observe(0.002)
    anew.shed.labels("a", "overloaded").inc(100)
    found = view(before, anew.read(30.0))
    assert found.restarted
    assert found.models[0].answered_per_second == 3.0
    assert found.models[0].shed_per_second == {"overloaded": 10.0}


def test_every_metric_that_is_read_is_one_that_a_server_has() -> None:
    assert {family.name for family in Metrics().registry.collect()} >= NAMES


@pytest.mark.parametrize(
    "text", ["", "<html>no</html>", "vessels_waiting{", "other_total 3\n", "vessels_waiting x\n"]
)
def test_what_are_no_metrics_is_refused(text: str) -> None:
    with pytest.raises(ServerError, match="metrics"):
        Reading.parse(text)


@given(data=st.data())
def test_whatever_a_server_says_is_read_or_refused(data: st.DataObject) -> None:
    text = Server().text
    at = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(at, min(len(text), at + 40)))
    said = text[:at] + data.draw(st.text(max_size=20)) + text[end:]
    try:
        found = Reading.parse(said, at=1.0)
    except ServerError:
        return
    view(Reading(0.0, {}), found)
    view(found, Reading.parse(text, at=2.0))


def test_a_histogram_without_its_last_bucket_is_none() -> None:
    text = 'vessels_h_bucket{le="1.0"} 3\nvessels_h_sum 1\n'
    assert Histogram.of(Reading.parse(text), "vessels_h") is None
    falling = text + 'vessels_h_bucket{le="+Inf"} 2\n'
    assert Histogram.of(Reading.parse(falling), "vessels_h") is None


@given(
    values=st.lists(st.floats(0.0001, 3.0), min_size=1, max_size=60),
    part=st.sampled_from([0.01, 0.5, 0.9, 0.95, 0.99, 1.0]),
    earlier=st.lists(st.floats(0.0001, 3.0), max_size=20),
)
def test_a_percentile_lies_in_the_bucket_that_the_right_value_is_in(
    values: list[float], part: float, earlier: list[float]
) -> None:
    server = Server()
    for value in earlier:
        server.seconds.labels("m").observe(value)
    before = Histogram.of(server.read(0.0), "vessels_predict_seconds", model="m")
    for value in values:
        server.seconds.labels("m").observe(value)
    after = Histogram.of(server.read(1.0), "vessels_predict_seconds", model="m")
    assert after is not None
    added = after.since(before)
    assert added.count == len(values)
    assert added.mean == pytest.approx(sum(values) / len(values), abs=1e-9)
    exact = sorted(values)[math.ceil(part * len(values)) - 1]
    at = bisect_left(BOUNDS, exact)
    found = added.percentile(part)
    assert found is not None
    if at == len(BOUNDS):
        assert found == BOUNDS[-1]
    else:
        assert (BOUNDS[at - 1] if at else 0.0) < found <= BOUNDS[at] * (1 + 1e-12)


def shown(found: View, width: int) -> str:
    text = io.StringIO()
    Console(width=width, file=text).print(_shown("http://h:1", found, None))
    return text.getvalue()


def test_the_page_names_everything(server: Server) -> None:
    found, _ = two(server)
    text = shown(found, 80)
    for expected in ("40.00 MiB used of 93.00 MiB, 53.00 MiB free", "2 ready", "1 starting",
                     "20.00 MiB", "10.0", "100.0", "820.0", "3.33", "no_room 1.0", "overloaded 0.5",
                     "interpolated"):  # fmt: skip
        assert expected in " ".join(text.split()), text


def test_a_latency_beyond_the_last_bucket_is_a_bound(server: Server) -> None:
    before = server.read(0.0)
    server.seconds.labels("a").observe(60.0)
    assert ">1000.0" in shown(view(before, server.read(1.0)), 160)


class Metered:
    """An address that gives what metrics it is told to; it may be closed and opened again."""

    def __init__(self) -> None:
        self.text = ""
        self.status = 200
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def open(self) -> Iterator[None]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(outer.status if self.path == "/metrics" else 404)
                self.end_headers()
                self.wfile.write(outer.text.encode())

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", self.port), Handler) as listening:
            self.port = listening.server_port
            thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield
            finally:
                listening.shutdown()
                thread.join(PATIENCE)


def test_once_prints_one_interval(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    metered = Metered()
    metered.text = server.text
    with metered.open():
        top(f"{metered.url}/", once=True, as_json=True, interval=0.1)
    found = json.loads(capsys.readouterr().out)
    assert [m["name"] for m in found["models"]] == ["a", "b"]
    assert found["epc_free"] == 53 * MIB
    assert 0.1 <= found["seconds"] < PATIENCE


def test_once_refuses_a_server_that_is_not_there(server: Server) -> None:
    metered = Metered()
    with metered.open():
        pass
    with pytest.raises(ServerError, match=rf"{metered.url}/metrics: .*refused"):
        top(metered.url, once=True, as_json=False, interval=0.1)
    metered.text, metered.status = server.text, 503
    with metered.open(), pytest.raises(ServerError, match="HTTP 503"):
        top(metered.url, once=True, as_json=False, interval=0.1)
    metered.text, metered.status = "hello", 200
    with metered.open(), pytest.raises(ServerError, match=rf"{metered.url}/metrics: .*metrics"):
        top(metered.url, once=True, as_json=False, interval=0.1)


def test_what_is_no_url_is_refused() -> None:
    with pytest.raises(UsageError, match="no URL"):
        top("127.0.0.1:8080", once=True, as_json=False, interval=0.1)


def test_it_outlives_the_server_and_says_since_when_it_is_gone(server: Server) -> None:
    metered = Metered()
    metered.text = server.text
    with metered.open():
        process = subprocess.Popen(
            [sys.executable, "-m", "vessels", "top", metered.url, "--json", "--interval", "0.1"],
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert process.stdout is not None
        assert next_with("models", process.stdout)["models"]
    try:
        gone = next_with("gone_since", process.stdout)
        assert "refused" in gone["why"]
        again = next_with("gone_since", process.stdout)
        assert again["gone_since"] == gone["gone_since"]
        with metered.open():
            assert next_with("models", process.stdout)["epc_used"] == 40 * MIB
    finally:
        process.terminate()
        process.wait(PATIENCE)


def next_with(key: str, lines: IO[str]) -> dict[str, Any]:
    """The next document that has ``key``."""
    for line in lines:
        found: dict[str, Any] = json.loads(line)
        if key in found:
            return found
    raise AssertionError("it ended")
