"""One point of an open loop: requests that come when they come."""

from __future__ import annotations

import os
from collections.abc import Mapping

from benchmarks.load import measured
from benchmarks.load.arrivals import poisson
from benchmarks.load.outcomes import Summary
from benchmarks.serving_evaluation.bench import Bench
from benchmarks.serving_evaluation.result import OpenPoint
from benchmarks.serving_evaluation.served import Served

QUESTIONS = 4
"""Of each model, whose answers differ. Where a model's clients attest anew again and again they
have one: sealing is quick, but not beside everything else on two cores."""
CHECKED = 0.1


def open_point(
    bench: Bench,
    server: Served,
    network: str,
    shares: Mapping[str, float],
    rate: float,
    seed: int,
    *,
    clients: int,
    factor: float | None,
) -> OpenPoint:
    """Ask ``server`` ``rate`` times a second, its models by their ``shares``.

    Each model has ``clients``, attested one by one.
    """
    settings = bench.settings
    arrivals = poisson(rate, settings.load_seconds, shares, seed=seed)
    trace = bench.work / "arrivals.csv"
    trace.write_text("".join(f"{a.at!r},{a.model}\n" for a in arrivals))
    right = [f"{name}={bench.onnx(network)}" for name in sorted({a.model for a in arrivals})]
    load = os.getloadavg()[0]
    before = server.counts()
    report = measured(
        server.url, server.policy, "--trace", str(trace), "--warmup", str(settings.load_warmup),
        "--tenants", str(clients), "--questions", str(QUESTIONS if clients > 1 else 1),
        "--check", str(CHECKED), "--seed", str(seed),
        *(word for text in right for word in ("--onnx", text)),
    )  # fmt: skip
    after = server.counts()
    runs = after.runs - before.runs
    return OpenPoint(
        network=network,
        tenants=len(server.models),
        factor=factor,
        rate=rate,
        seed=seed,
        load=load,
        served=Summary(**report["total"]),
        simulated=None,
        requests=report["generator"]["requests"],
        lag_p99_ms=report["generator"]["lag_ms"]["p99"],
        generator_cpu_seconds=report["generator"]["cpu_seconds"],
        server_cpu_seconds=after.cpu_seconds - before.cpu_seconds,
        batch=(after.run_requests - before.run_requests) / runs if runs else None,
        launches=after.launches - before.launches,
        simulated_launches=None,
    )
