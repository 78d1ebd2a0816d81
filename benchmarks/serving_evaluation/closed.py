"""Clients in a closed loop: each asks again when it has its answer.

They are clients as anybody writes them, :class:`vessels.AsyncClient`. Who is refused pauses, as
the server proposes, and asks again; how long it takes until there is an answer counts pauses, too.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.load.sealed import Question
from benchmarks.serving_evaluation.systems import Settings
from vessels.client import AsyncClient
from vessels.errors import ServerError
from vessels.serve.errors import RETRY_SECONDS

TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class Answer:
    """``at`` is when it came; ``seconds`` since it was asked for last, ``in_all`` since first."""

    at: float
    model: str
    seconds: float
    in_all: float
    right: bool


@dataclass
class Log:
    """What clients saw; ``refusals`` are when, and with which status and code."""

    answers: list[Answer] = field(default_factory=list)
    refusals: list[tuple[float, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Seen:
    """What became of requests in a window of ``seconds``; percentiles in milliseconds.

    ``p99_ms`` is from asking to the answer, ``patient_p99_ms`` with refusals and pauses before
    it. ``models`` is of how many models there was an answer.
    """

    seconds: float
    answers: int
    wrong: int
    models: int
    per_second: float
    p50_ms: float | None
    p99_ms: float | None
    patient_p99_ms: float | None
    refused: dict[str, int]


def ask(
    url: str,
    policy: Path,
    models: Sequence[str],
    clients: int,
    question: Question,
    settings: Settings,
) -> Seen:
    """``clients`` ask ``models`` in turn, each its own one, ``question``."""
    return asyncio.run(_ask(url, policy, models, clients, question, settings))


async def _ask(
    url: str,
    policy: Path,
    models: Sequence[str],
    clients: int,
    question: Question,
    settings: Settings,
) -> Seen:
    log = Log()
    async with AsyncClient(url, policy=policy, timeout=TIMEOUT_SECONDS) as client:
        tasks = [
            asyncio.ensure_future(_loop(client, models[n % len(models)], question, log))
            for n in range(clients)
        ]
        try:
            await _pause(tasks, settings.warmup)
            begin = end = time.monotonic()
            while not _is_enough(log, begin, end, settings):
                await _pause(tasks, 0.05)
                end = time.monotonic()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return seen(log, begin, end)


def seen(log: Log, begin: float, end: float) -> Seen:
    """Of what came from ``begin`` to ``end``."""
    answers = [a for a in log.answers if begin <= a.at <= end]
    refused = Counter(kind for at, kind in log.refusals if begin <= at <= end)
    times_ms = [a.seconds * 1e3 for a in answers]
    patient_ms = [a.in_all * 1e3 for a in answers]
    return Seen(
        seconds=end - begin,
        answers=len(answers),
        wrong=sum(not a.right for a in answers),
        models=len({a.model for a in answers}),
        per_second=len(answers) / (end - begin),
        p50_ms=_percentile(times_ms, 50),
        p99_ms=_percentile(times_ms, 99),
        patient_p99_ms=_percentile(patient_ms, 99),
        refused=dict(refused.most_common()),
    )


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None


def _is_enough(log: Log, begin: float, end: float, settings: Settings) -> bool:
    if end - begin < settings.seconds:
        return False
    answers = sum(a.at >= begin for a in log.answers)
    return answers >= settings.least_answers or end - begin >= settings.most_seconds


async def _pause(tasks: Sequence[asyncio.Future[None]], seconds: float) -> None:
    """Some time; a client that fails, which none is to do, ends it with its error."""
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()


async def _loop(client: AsyncClient, model: str, question: Question, log: Log) -> None:
    while True:
        first = time.monotonic()
        while True:
            begin = time.monotonic()
            try:
                outputs = await client.predict(model, question.inputs)
                break
            except ServerError as error:
                if error.status is None:
                    raise
                log.refusals.append((time.monotonic(), f"{error.status} {error.code}"))
                await asyncio.sleep(RETRY_SECONDS)
        now = time.monotonic()
        right = question.is_right(outputs)
        log.answers.append(Answer(now, model, now - begin, now - first, right))
