"""Sending requests at their times, with locust.

A user of locust asks again when it has its answer: a closed loop. What locust offers for others is
a user with greenlets of its own on a session that allows many requests at once
(``FastHttpUser.concurrency``). So there is one user here, whose one task walks through the arrivals
and begins a greenlet for each at its time, whatever became of those before it.

Importing this makes the process cooperative: see :mod:`benchmarks.load`.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gevent
import gevent.lock
import numpy as np
from gevent.pool import Group
from locust import FastHttpUser, task
from locust.env import Environment
from locust.exception import StopUser

from benchmarks.load.arrivals import Arrival
from benchmarks.load.outcomes import OK, WRONG, Outcome
from benchmarks.load.sealed import SealedQuestion, Tenant
from vessels.client_exchange import MEDIA_TYPE
from vessels.errors import AttestationError, ServerError
from vessels.predict_headers import DEADLINE, ENVIRONMENT

MOST_CONNECTIONS = 4096
"""More than any run here has under way; a request that waited for a connection would be one in a
closed loop, and a run with as many is refused."""

_RENEW = ("not_opened",)
_GONE = ("enclave_ended", "too_long")


@dataclass
class Load:
    """What to send, and what became of it.

    Each model has its tenants, who ask in turn. ``deadline`` in seconds goes with each request;
    ``check`` is the part of answers that are opened and compared; ``timeout`` is how long a
    server may stay silent.
    """

    url: str
    arrivals: Sequence[Arrival]
    tenants: Mapping[str, Sequence[Tenant]]
    deadline: float | None = None
    check: float = 1.0
    timeout: float = 60.0
    seed: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    cpu_seconds: float = 0.0


def run(load: Load) -> None:
    """Send all of ``load`` and wait for what becomes of it."""

    class Sender(FastHttpUser):
        host = load.url
        concurrency = MOST_CONNECTIONS
        network_timeout = load.timeout
        connection_timeout = load.timeout
        insecure = False

        @task
        def everything(self) -> None:
            failures.extend(_send_all(load, self.client))
            raise StopUser

    failures: list[BaseException] = []
    environment = Environment(user_classes=[Sender], host=load.url, catch_exceptions=False)
    runner = environment.create_local_runner()
    before = time.process_time()
    runner.start(1, spawn_rate=1)
    assert runner.spawning_greenlet is not None
    runner.spawning_greenlet.get()
    runner.user_greenlets.join()
    load.cpu_seconds = time.process_time() - before
    runner.quit()
    if failures:
        raise failures[0]
    if len(load.outcomes) < len(load.arrivals):
        raise RuntimeError("the run was ended before every request had an outcome")
    if load.most_under_way >= MOST_CONNECTIONS:
        raise RuntimeError(
            f"{MOST_CONNECTIONS} requests were under way at once: from there on this is no open "
            "loop; lower the rate or the time"
        )


def _send_all(load: Load, session: Any) -> list[BaseException]:
    """The one task: what failed in a way that is no outcome."""
    tenants = {
        name: [_Asking(load, session, tenant) for tenant in them]
        for name, them in load.tenants.items()
    }
    turns = dict.fromkeys(tenants, 0)
    checked = np.random.default_rng(load.seed).random(len(load.arrivals)) < load.check
    group = Group()
    failed: list[gevent.Greenlet[..., None]] = []
    begin = time.perf_counter()
    for arrival, check in zip(load.arrivals, checked, strict=True):
        if (wait := begin + arrival.at - time.perf_counter()) > 0:
            gevent.sleep(wait)
        them = tenants[arrival.model]
        turns[arrival.model] += 1
        one = them[turns[arrival.model] % len(them)]
        load.under_way += 1
        load.most_under_way = max(load.most_under_way, load.under_way)
        group.spawn(one.ask, arrival, begin, bool(check)).link_exception(failed.append)
    group.join()
    return [g.exception for g in failed if g.exception is not None]


class _Asking:
    """A tenant on its way: asks, and is attested anew when its environment is no more."""

    def __init__(self, load: Load, session: Any, tenant: Tenant) -> None:
        self._load = load
        self._session = session
        self._tenant = tenant
        self._turn = gevent.lock.RLock()
        self._path = f"/vessels/v1/models/{tenant.model}/predict"
        self._headers = {"Content-Type": MEDIA_TYPE, "Accept-Encoding": "identity"}
        if load.deadline is not None:
            self._headers[DEADLINE] = str(round(load.deadline * 1e3))

    def ask(self, arrival: Arrival, begin: float, check: bool) -> None:
        """One request, from when it is due to its outcome."""
        lag = time.perf_counter() - begin - arrival.at
        sealed = self._tenant.next()
        renewed = False
        try:
            kind, body = self._post(sealed)
            if kind.endswith(_RENEW):
                renewed = True
                self._renew(sealed)
                sealed = self._tenant.next()
                kind, body = self._post(sealed)
            elif kind.endswith(_GONE):
                # The next one would fail as well; this one has its outcome.
                gevent.spawn(self._renew_if_possible, sealed)
        except (AttestationError, ServerError) as error:
            kind, body = _refusal_of(error), b""
        seconds = time.perf_counter() - begin - arrival.at
        self._load.under_way -= 1
        compared = check and kind == OK
        if compared and not sealed.is_right(body):
            kind = WRONG
        self._load.outcomes.append(
            Outcome(arrival.model, arrival.at, lag, seconds, kind, compared, renewed)
        )

    def _post(self, sealed: SealedQuestion) -> tuple[str, bytes]:
        """The kind of the outcome, and the body of an answer."""
        with self._session.post(
            self._path, data=sealed.body, name=self._tenant.model, catch_response=True,
            headers={**self._headers, ENVIRONMENT: sealed.environment},
        ) as answer:  # fmt: skip
            # Locust would log each refusal; here they are counted.
            answer.success()
            if answer.status_code == 200:
                return OK, answer.content
            if answer.status_code == 0:
                return f"no answer: {type(answer.error).__name__}", b""
            return f"{answer.status_code} {_code(answer.content)}", b""

    def _renew(self, sealed: SealedQuestion) -> None:
        """Attest anew, unless another of this tenant's requests has done so meanwhile."""
        with self._turn:
            if self._tenant.environment == sealed.environment:
                self._tenant.attest()

    def _renew_if_possible(self, sealed: SealedQuestion) -> None:
        # Who asks next finds out for itself why not.
        with contextlib.suppress(AttestationError, ServerError):
            self._renew(sealed)


def _code(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, LookupError, TypeError):
        return "?"


def _refusal_of(error: AttestationError | ServerError) -> str:
    """The outcome of a request that could not be sealed anew."""
    if isinstance(error, ServerError) and error.status is not None:
        return f"evidence: {error.status} {error.code}"
    return f"evidence: {type(error).__name__}"
