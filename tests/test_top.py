"""What `vessels top` makes of a server's metrics."""

from __future__ import annotations

import math
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.metered import BOUNDS, MIB, Server, two, two_models
from vessels.errors import ServerError
from vessels.serve.metrics import Metrics
from vessels.top import Histogram, Reading, view

NAMES = {
    "vessels_predict_seconds", "vessels_batch_size", "vessels_epc_capacity_bytes",
    "vessels_epc_used_bytes", "vessels_environments", "vessels_environment_bytes",
    "vessels_queue_length", "vessels_requests", "vessels_launches", "vessels_evictions",
    "vessels_model_ready", "process_start_time_seconds",
}  # fmt: skip


@pytest.fixture
def server() -> Server:
    return two_models()


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
    assert a.refused_per_second == {"no_room": 1.0, "overloaded": 0.5}
    # Ten of twenty are in the bucket of 1 to 10 ms, nine in that of 10 to 100 ms.
    assert a.p50_ms == pytest.approx(10.0)
    assert a.p95_ms == pytest.approx(100.0)
    assert a.p99_ms == pytest.approx(100.0 + 900.0 * 0.8)
    assert (b.p50_ms, b.batch_mean, b.refused_per_second, b.launches) == (None, None, {}, 5)


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
    anew.requests.labels("a", "predict", "overloaded").inc(100)
    found = view(before, anew.read(30.0))
    assert found.restarted
    assert found.models[0].answered_per_second == 3.0
    assert found.models[0].refused_per_second == {"overloaded": 10.0}


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
