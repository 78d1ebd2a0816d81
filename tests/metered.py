"""A server's metrics as a test wants them, and an address that gives them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client import Histogram as Recorder

from tests.serving import PATIENCE
from vessels.top import Reading, View, view

MIB = 1 << 20
BOUNDS = (0.001, 0.01, 0.1, 1.0)
"""Of latencies, in seconds."""


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
        self.requests = counter("vessels_requests", "model", "kind", "outcome")
        self.launches = counter("vessels_launches", "model")
        self.evictions = counter("vessels_evictions", "model")
        self.seconds = recorder("vessels_predict_seconds", BOUNDS)
        self.batch = recorder("vessels_batch_size", (1, 2, 4, 8))

    @property
    def text(self) -> str:
        return generate_latest(self.registry).decode()

    def read(self, at: float) -> Reading:
        return Reading.parse(self.text, at=at)


def two_models() -> Server:
    """Models ``a``, which is asked for, and ``b``, which starts, in 40 of 93 MiB."""
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
    server.requests.labels("a", "predict", "overloaded").inc(7)
    before = server.read(10.0)
    times = [0.002] * 10 + [0.05] * 9 + [0.5]
    for seconds in times:
        server.seconds.labels("a").observe(seconds)
    for count in (4, 4, 2):
        server.batch.labels("a").observe(count)
    server.requests.labels("a", "predict", "ok").inc(20)
    server.requests.labels("a", "predict", "overloaded").inc(2)
    server.requests.labels("a", "evidence", "no_room").inc(3)
    server.requests.labels("a", "predict", "no_room").inc(1)
    server.launches.labels("b").inc()
    return view(before, server.read(14.0)), times


class Metered:
    """An address that gives what metrics it is told to; it may be closed and opened again."""

    def __init__(self) -> None:
        self.text = ""
        self.status = 200
        self.port = 0
        self.authorizations: set[str] = set()
        """What was sent to prove who asks."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def open(self) -> Iterator[None]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.authorizations.add(self.headers.get("Authorization", ""))
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
