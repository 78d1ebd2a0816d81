"""What a study times: one plan in EPCs of several sizes, beside others like it, and in the open.

Every EPC is the emulator's, given what an EPC of that size leaves for pools: ``runtime_size`` for
each enclave goes to what its process holds beside its pool. Predictions are closed loops:
the next begins when the last has ended.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vessels.enclave import Enclave
from vessels.errors import VesselsError
from vessels.study.emulator import MINIMUM_PAGE_COUNT, Counters, Emulator, emulated
from vessels.study.result import PAGE_SIZE, LatencyPoint, Policy, TenantsPoint

Array = np.ndarray[Any, Any]
Progress = Callable[[str, float], None]

_WARM_UP_COUNT = 2
"""Predictions before any is counted: the queues of the emulator's policy take so long to settle."""
_LEAST_RUN_COUNT = 2
_MOST_RUN_COUNT = 200
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Subject:
    """A sealed model to be measured.

    ``predict`` gives the faults of a steady prediction in so many pages, by the analysis: under
    exact LRU, and under the emulator's policy.
    """

    policy: Policy
    path: Path
    key: bytes
    pool_size: int
    inputs: Mapping[str, Array]
    predict: Callable[[int], tuple[int, int]]


@dataclass(frozen=True)
class Conditions:
    """What all measurements of a study share.

    ``seconds`` is spent on the timed predictions of a point, if at least two fit; a point that
    needs more than ``limit_seconds`` is given up, and said so.
    """

    runtime_size: int
    threads: int
    seconds: float
    limit_seconds: float
    padding_ns: float

    def capacity(self, epc_size: int, tenant_count: int = 1) -> int:
        """Whole pages that an EPC of ``epc_size`` leaves for the pools, in bytes; may be < 0."""
        return (epc_size - tenant_count * self.runtime_size) // PAGE_SIZE * PAGE_SIZE

    def usable(self, epc_size: int, tenant_count: int = 1) -> bool:
        """Whether that is enough to measure with."""
        return self.capacity(epc_size, tenant_count) >= MINIMUM_PAGE_COUNT * PAGE_SIZE


@dataclass(frozen=True)
class Plain:
    """A plan in plain memory, without paging: median latency, the median of each instruction, and
    what the process held."""

    median_ms: float
    microseconds: tuple[float, ...]
    trusted_size: int
    isa: str


def plain(subject: Subject, threads: int, seconds: float, *, layers: bool) -> Plain:
    """Time ``subject`` in an ordinary enclave, with ``layers`` each instruction as well."""
    inputs = subject.inputs
    with Enclave(subject.path, key=subject.key, threads=threads) as enclave:
        enclave.run(inputs)
        times = list(_timed(lambda: enclave.run(inputs), seconds))
        parts: list[Array] = []
        if layers:
            for _ in _timed(lambda: parts.append(enclave.run_timed(inputs)[1]), seconds):
                pass
        return Plain(
            median_ms=statistics.median(times) * 1e3,
            microseconds=tuple((np.median(parts, axis=0) / 1e3).tolist()) if parts else (),
            trusted_size=enclave.memory().trusted,
            isa=enclave.ready.isa,
        )


def latency(
    subject: Subject,
    epc_sizes: Sequence[int],
    conditions: Conditions,
    notes: list[str],
    progress: Progress,
) -> list[LatencyPoint]:
    """Points for ``epc_sizes``, from the largest down, one enclave for all.

    Sentences on sizes left out are added to ``notes``.
    """
    sizes = sorted({s for s in epc_sizes if conditions.usable(s)}, reverse=True)
    if not sizes:
        return []
    points: list[LatencyPoint] = []
    with _emulated(subject, conditions, sizes[0]) as (emulator, [enclave]):
        for index, size in enumerate(sizes):
            progress(f"{subject.policy} plan, EPC of {_mib(size)}", index / len(sizes))
            emulator.set_capacity(conditions.capacity(size))
            for _ in range(_WARM_UP_COUNT):
                warm = _seconds(lambda: emulator.run(enclave, subject.inputs))
                if slow := warm * (_WARM_UP_COUNT + _LEAST_RUN_COUNT) > conditions.limit_seconds:
                    break
            if slow:
                notes.append(
                    f"Latency ({subject.policy}) was not measured at {_mib(size)} of EPC "
                    f"and below: one prediction took {warm:.0f} s."
                )
                break
            before = emulator.counters()
            times = list(_timed(lambda: emulator.run(enclave, subject.inputs), conditions.seconds))
            after = emulator.counters()
            lru, policy = subject.predict(conditions.capacity(size) // PAGE_SIZE)
            points.append(
                LatencyPoint(
                    policy=subject.policy,
                    epc_size=size,
                    median_ms=statistics.median(times) * 1e3,
                    least_ms=min(times) * 1e3,
                    most_ms=max(times) * 1e3,
                    run_count=len(times),
                    faults=(after.fetched - before.fetched) / len(times),
                    soft_faults=(after.soft - before.soft) / len(times),
                    predicted_lru=lru,
                    predicted_policy=policy,
                )
            )
    return points


def throughput(
    subject: Subject,
    epc_size: int,
    tenant_counts: Sequence[int],
    conditions: Conditions,
    notes: list[str],
    progress: Progress,
) -> list[TenantsPoint]:
    """Points for so many enclaves of this model at once in one EPC.

    Sentences on numbers left out are added to ``notes``.
    """
    points: list[TenantsPoint] = []
    for index, count in enumerate(tenant_counts):
        progress(f"{subject.policy} plan, tenants: {count}", index / len(tenant_counts))
        what = f"Throughput of {count} tenants ({subject.policy}) was not measured: "
        if not conditions.usable(epc_size, count):
            notes.append(
                f"{what}{count} times {_mib(conditions.runtime_size)}, held by each enclave "
                f"beside its pool, leave nothing of {_mib(epc_size)}."
            )
        elif (needed := count * subject.pool_size) > (there := _available_size()):
            notes.append(f"{what}it takes {_mib(needed)} of memory, {_mib(there)} are available.")
        elif points and (due := _due_seconds(points[-1], count)) > conditions.limit_seconds:
            notes.append(f"{what}it would take some {due:.0f} s.")
        elif (point := _crowd(subject, epc_size, count, conditions)) is None:
            notes.append(
                f"{what}some had not finished a prediction in {conditions.limit_seconds:.0f} s."
            )
        else:
            points.append(point)
    return points


def _due_seconds(known: TenantsPoint, count: int) -> float:
    """For a prediction that warms up and one that counts, judged by fewer tenants."""
    return 2 * known.median_ms / 1e3 * count / known.tenant_count


def _crowd(
    subject: Subject, epc_size: int, count: int, conditions: Conditions
) -> TenantsPoint | None:
    """``count`` enclaves at once; ``None`` when some predict nothing within the limit.

    Each tenant's rate is that of its whole predictions between the end of the one before the
    window opened and of its last within it; all the others are at work all that time.
    """
    stop = threading.Event()
    failures: list[VesselsError] = []
    ends: list[list[float]] = [[] for _ in range(count)]
    with _emulated(subject, conditions, epc_size, count) as (emulator, enclaves):

        def work(enclave: Enclave, ended: list[float]) -> None:
            try:
                while not stop.is_set():
                    emulator.run(enclave, subject.inputs)
                    ended.append(time.perf_counter())
            except VesselsError as error:
                if not stop.is_set():
                    failures.append(error)
                    stop.set()

        workers = [
            threading.Thread(target=work, args=pair, daemon=True)
            for pair in zip(enclaves, ends, strict=True)
        ]
        try:
            for worker in workers:
                worker.start()
            limit = time.perf_counter() + conditions.limit_seconds
            _wait(lambda: all(ends) or stop.is_set(), limit)
            opened, before = time.perf_counter(), emulator.counters()
            bases = [len(e) for e in ends]
            _wait(
                lambda: (
                    stop.is_set()
                    or (
                        time.perf_counter() >= opened + conditions.seconds
                        and all(len(e) > b for e, b in zip(ends, bases, strict=True))
                    )
                ),
                limit,
            )
            closed, after = time.perf_counter(), emulator.counters()
            finished = [list(e) for e in ends]
        finally:
            # A prediction under way may take minutes; nobody waits for its result.
            stop.set()
            for enclave in enclaves:
                enclave.kill()
            for worker in workers:
                if worker.ident is not None:
                    worker.join()
    if failures:
        raise failures[0]
    spans = [e[b - 1 :] for e, b in zip(finished, bases, strict=True) if b and len(e) > b]
    if len(spans) < count:
        return None
    rate = sum((len(s) - 1) / (s[-1] - s[0]) for s in spans)
    return TenantsPoint(
        policy=subject.policy,
        epc_size=epc_size,
        tenant_count=count,
        predictions_per_second=rate,
        median_ms=float(np.median(np.concatenate([np.diff(s) for s in spans]))) * 1e3,
        faults=_fetched(before, after) / (rate * (closed - opened)),
    )


def _emulated(
    subject: Subject, conditions: Conditions, epc_size: int, count: int = 1
) -> AbstractContextManager[tuple[Emulator, list[Enclave]]]:
    return emulated(
        subject.path,
        key=subject.key,
        threads=conditions.threads,
        epc_size=conditions.capacity(epc_size, count),
        padding_ns=conditions.padding_ns,
        count=count,
    )


def _fetched(before: Counters, after: Counters) -> int:
    return after.fetched - before.fetched


def _wait(done: Callable[[], bool], limit: float) -> None:
    while not done() and time.perf_counter() < limit:
        time.sleep(_POLL_SECONDS)


def _timed(work: Callable[[], object], seconds: float) -> Iterator[float]:
    """Seconds of each of at least two runs, for about ``seconds``."""
    end = time.perf_counter() + seconds
    for count in range(_MOST_RUN_COUNT):
        if count >= _LEAST_RUN_COUNT and time.perf_counter() >= end:
            return
        yield _seconds(work)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _available_size() -> int:
    """Memory the kernel says is available."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 62


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
