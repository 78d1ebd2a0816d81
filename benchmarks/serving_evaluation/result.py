"""What the evaluation finds, as it is kept and shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from benchmarks.load.outcomes import Summary
from benchmarks.serving_evaluation.closed import Seen


@dataclass(frozen=True)
class ClosedPoint:
    """A system asked by clients in a closed loop.

    ``refusal`` is what the server said where it did not serve these models at all; then there is
    nothing else. ``faults`` are for each answer; ``batch`` is requests in a run, ``run_ms`` a run's
    mean time; ``clients_cpu_ms`` and ``server_cpu_ms`` are for each request, refused ones
    too. ``load`` is the load average of the machine at the start.
    """

    system: str
    network: str
    tenants: int
    clients: int
    load: float
    seen: Seen | None = None
    refusal: str | None = None
    faults: float = 0.0
    batch: float | None = None
    launches: int = 0
    evictions: int = 0
    run_ms: float | None = None
    clients_cpu_ms: float = 0.0
    server_cpu_ms: float = 0.0

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """From its JSON."""
        found = fields["seen"]
        return cls(**{**fields, "seen": None if found is None else Seen(**found)})


@dataclass(frozen=True)
class RunTimes:
    """Of one rung, as measured: seconds of runs of one thread by how many requests are in one,
    and of a start, of which the enclave and who starts it have ``start_core_seconds`` of a core.

    ``spread`` is by what part the median run takes longer than the shortest. ``wide_seconds`` is of
    the most requests that ``seconds`` has, on all threads that a run may have.
    """

    rung: int
    seconds: dict[int, float]
    spread: float
    start_seconds: float
    start_core_seconds: float
    wide_seconds: float | None


@dataclass(frozen=True)
class Timing:
    """What the simulator is told of a network; times in seconds.

    An enclave can give evidence ``evidence_after`` its launch. Giving and verifying it takes
    ``evidence``; with a request sealed to it, it is ``renewal`` of a core. ``travel`` is one way of
    a message, ``server_cpu`` and ``generator_cpu`` are for each request.
    """

    network: str
    threads: int
    evidence_after: float
    evidence: float
    renewal: float
    travel: float
    server_cpu: float
    generator_cpu: float
    rungs: tuple[RunTimes, ...]

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """From its JSON, whose keys are texts."""
        rungs = tuple(
            RunTimes(**{**r, "seconds": {int(n): s for n, s in r["seconds"].items()}})
            for r in fields["rungs"]
        )
        return cls(**{**fields, "rungs": rungs})


@dataclass(frozen=True)
class OpenPoint:
    """Requests that came at ``rate`` a second on average, ``factor`` times what it is judged by.

    The search for the capacity has no factor. ``requests`` are all that were sent, those of the
    warm-up too, which :class:`~benchmarks.load.outcomes.Summary` leaves out.
    ``lag_p99_ms`` is how late the generator itself was.
    """

    network: str
    tenants: int
    factor: float | None
    rate: float
    seed: int
    load: float
    served: Summary
    simulated: Summary | None
    requests: int
    lag_p99_ms: float
    generator_cpu_seconds: float
    server_cpu_seconds: float
    batch: float | None
    launches: int
    simulated_launches: int | None

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """From its JSON."""
        found = fields["simulated"]
        return cls(
            **{
                **fields,
                "served": Summary(**fields["served"]),
                "simulated": None if found is None else Summary(**found),
            }
        )
