"""What the server counts, for Prometheus. All of it the host sees anyway."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

_SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip


class Metrics:
    """One server's metrics, in a registry of its own. Labels only ever hold names we gave."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def histogram(name: str, what: str) -> Histogram:
            return Histogram(name, what, ["model"], buckets=_SECONDS, registry=registry)

        self.requests = Counter(
            "vessels_requests", "Requests answered, by kind and outcome.",
            ["model", "kind", "outcome"], registry=registry,
        )  # fmt: skip
        self.request_seconds = histogram(
            "vessels_predict_seconds", "From a predict request's head to its answer."
        )
        self.waiting_seconds = histogram(
            "vessels_predict_waiting_seconds", "Of these, waiting for the enclave."
        )
        self.enclave_seconds = histogram(
            "vessels_predict_enclave_seconds", "Of these, in the enclave, transfer included."
        )
        self.waiting = Gauge(
            "vessels_waiting", "Requests waiting for or in the enclave.", ["model"],
            registry=registry,
        )  # fmt: skip
        self.ready = Gauge(
            "vessels_model_ready", "1 while the model's enclave has its key and serves.", ["model"],
            registry=registry,
        )  # fmt: skip
        self.pool_size = Gauge(
            "vessels_enclave_pool_bytes", "The pool of the model's enclave.", ["model"],
            registry=registry,
        )  # fmt: skip
        self.starts = Counter(
            "vessels_enclave_starts", "Enclaves started.", ["model"], registry=registry
        )
        self.ends = Counter(
            "vessels_enclave_ends", "Enclaves that ended, except by a shutdown.", ["model"],
            registry=registry,
        )  # fmt: skip
        self.key_requests = Counter(
            "vessels_key_requests", "Attempts to get a key.", ["model", "outcome"],
            registry=registry,
        )  # fmt: skip
        self.connections = Gauge("vessels_connections", "Open connections.", registry=registry)
