"""Points of clients in a closed loop, measured where they are not known."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from benchmarks.load.sealed import Question, questions
from benchmarks.serving_evaluation.bench import Bench, tell
from benchmarks.serving_evaluation.closed import ask
from benchmarks.serving_evaluation.result import ClosedPoint
from benchmarks.serving_evaluation.served import NotServedError, Served
from benchmarks.serving_evaluation.systems import SYSTEMS, Settings, System
from vessels.client import Client


def over_clients(bench: Bench) -> list[ClosedPoint]:
    """One model, more and more clients."""
    settings = bench.settings
    return [
        point
        for system in SYSTEMS
        for point in crowd(bench, system, settings.client_network, 1, settings.client_counts)
    ]


def over_tenants(bench: Bench) -> list[ClosedPoint]:
    """More and more models, with as many clients each."""
    settings = bench.settings
    return [
        point
        for system in SYSTEMS
        for count in settings.tenant_counts
        for point in crowd(
            bench, system, settings.tenant_network, count, [count * settings.clients_per_tenant]
        )
    ]


def crowd(
    bench: Bench,
    system: System,
    network: str,
    tenants: int,
    counts: Sequence[int],
    *,
    settings: Settings | None = None,
    turn: int | None = None,
) -> list[ClosedPoint]:
    """A point for each number of clients; those of another ``turn`` are measured once more."""
    suffix = "" if turn is None else f"-{turn}"
    names = {n: f"{system.name}-{network}-{tenants}-{n}{suffix}".replace(", ", "-") for n in counts}
    points = {
        n: ClosedPoint.of(found)
        for n, name in names.items()
        if (found := bench.known(name)) is not None
    }
    missing = [n for n in counts if n not in points]
    asked = settings or bench.settings
    for point in _measured(bench, asked, system, network, tenants, missing) if missing else ():
        points[point.clients] = point
        bench.store(names[point.clients], asdict(point))
        tell(f"{names[point.clients]}: {_short(point)}")
    return [points[n] for n in counts]


def _short(point: ClosedPoint) -> str:
    if point.seen is None:
        return f"not served: {point.refusal}"
    return f"{point.seen.per_second:.3g} answers/s"


def _measured(
    bench: Bench,
    settings: Settings,
    system: System,
    network: str,
    tenants: int,
    counts: Sequence[int],
) -> Iterator[ClosedPoint]:
    try:
        with bench.server(system, network, tenants) as server:
            with Client(server.url, policy=server.policy) as client:
                # All models are of one network.
                [question] = questions(client, server.models[0], 1, onnx=bench.onnx(network))
            for clients in counts:
                yield _point(settings, system, network, server, clients, question)
    except NotServedError as error:
        for clients in counts:
            yield ClosedPoint(
                system.name, network, tenants, clients, os.getloadavg()[0], refusal=str(error)
            )


def _point(
    settings: Settings,
    system: System,
    network: str,
    server: Served,
    clients: int,
    question: Question,
) -> ClosedPoint:
    load, before, cpu = os.getloadavg()[0], server.counts(), time.process_time()
    found = ask(server.url, server.policy, server.models, clients, question, settings)
    spent, after = time.process_time() - cpu, server.counts()
    runs, answers = after.runs - before.runs, after.run_requests - before.run_requests
    asked_ms = 1e3 / max(1, answers + sum(found.refused.values()))
    return ClosedPoint(
        system=system.name,
        network=network,
        tenants=len(server.models),
        clients=clients,
        load=load,
        seen=found,
        faults=(after.faults - before.faults) / max(1, answers),
        batch=answers / runs if runs else None,
        launches=after.launches - before.launches,
        evictions=after.evictions - before.evictions,
        run_ms=(after.run_seconds - before.run_seconds) * 1e3 / answers if answers else None,
        clients_cpu_ms=spent * asked_ms,
        server_cpu_ms=(after.cpu_seconds - before.cpu_seconds) * asked_ms,
    )
