"""What the server counts, for Prometheus. All of it the host sees anyway."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

if TYPE_CHECKING:
    from vessels.serve.environment import Environment
    from vessels.serve.host import Host

ENVIRONMENT_STATES = ("starting", "keyless", "ready", "running", "stopping")

_SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)


class Metrics:
    """One server's metrics, in a registry of its own. Labels only ever hold names we gave."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def seconds(name: str, what: str) -> Histogram:
            return Histogram(name, what, ["model"], buckets=_SECONDS, registry=registry)

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(name, what, labels, registry=registry)

        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(name, what, labels, registry=registry)

        self.requests = counter(
            "vessels_requests", "Requests answered, by kind and outcome.",
            "model", "kind", "outcome",
        )  # fmt: skip
        self.request_seconds = seconds(
            "vessels_predict_seconds", "From a predict request's head to its answer."
        )
        self.waiting_seconds = seconds(
            "vessels_predict_waiting_seconds", "Of these, waiting for the enclave."
        )
        self.enclave_seconds = seconds(
            "vessels_predict_enclave_seconds", "Of these, in the enclave, transfer included."
        )
        self.batch_size = Histogram(
            "vessels_batch_size", "Requests answered by one run.", ["model"], buckets=_COUNTS,
            registry=registry,
        )  # fmt: skip
        self.shed = counter(
            "vessels_shed", "Requests that the scheduler refused.", "model", "reason"
        )
        self.launches = counter("vessels_launches", "Environments launched.", "model")
        self.evictions = counter(
            "vessels_evictions", "Environments ended for others, or for a successor.", "model"
        )  # fmt: skip
        self.starts = counter("vessels_enclave_starts", "Enclave processes started.", "model")
        self.ends = counter(
            "vessels_enclave_ends", "Enclaves that ended unasked, except by a shutdown.", "model"
        )
        self.key_requests = counter(
            "vessels_key_requests", "Attempts to get a key.", "model", "outcome"
        )
        self.epc_capacity = gauge(
            "vessels_epc_capacity_bytes",
            "Trusted memory that all environments may take together; 0 without a bound.",
        )
        self.epc_used = gauge(
            "vessels_epc_used_bytes", "Trusted memory that they take, as planned."
        )
        self.environments = gauge(
            "vessels_environments", "Environments by state.", "model", "state"
        )
        self.environment_size = gauge(
            "vessels_environment_bytes", "Trusted memory of the model's environments.", "model"
        )
        self.queue_length = gauge("vessels_queue_length", "Requests in queues.", "model")
        self.waiting = gauge("vessels_waiting", "Requests waiting for or in an enclave.", "model")
        self.ready = gauge(
            "vessels_model_ready",
            "1 while an enclave of the model serves, or will when asked for.",
            "model",
        )
        self.pool_size = gauge(
            "vessels_enclave_pool_bytes", "The pools of the model's enclaves.", "model"
        )
        self.connections = gauge("vessels_connections", "Open connections.")


def show(metrics: Metrics, host: Host) -> None:
    """Have the gauges of ``host`` say what is so whenever they are read."""
    account = host.account
    metrics.epc_capacity.set_function(lambda: account.capacity or 0)
    metrics.epc_used.set_function(lambda: account.used)

    def in_state(model: str, state: str) -> float:
        return sum(_state(e) == state for e in host.environments(model))

    def pools(model: str) -> float:
        return sum(e.pool_size for e in host.environments(model))

    for name in host.models:
        for state in ENVIRONMENT_STATES:
            found = metrics.environments.labels(name, state)
            found.set_function(partial(in_state, name, state))
        shown: list[tuple[Gauge, Callable[[str], float]]] = [
            (metrics.environment_size, host.size),
            (metrics.queue_length, host.queue_length),
            (metrics.waiting, host.waiting),
            (metrics.ready, host.is_ready),
            (metrics.pool_size, pools),
        ]
        for gauge, value in shown:
            gauge.labels(name).set_function(partial(value, name))


def _state(environment: Environment) -> str:
    if environment.stopping:
        return "stopping"
    if environment.running_count:
        return "running"
    if environment.refused_key:
        return "keyless"
    return "ready" if environment.serves else "starting"
