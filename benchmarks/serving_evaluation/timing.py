"""What runs and starts of a model take, measured on an idle machine, for the simulator."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.load.sealed import made_up
from benchmarks.machine import core_seconds
from benchmarks.serving_evaluation.emulated import Emulated
from benchmarks.serving_evaluation.result import RunTimes, Timing
from benchmarks.trust import client_policy
from vessels.attestation import CollateralService, Evidence, Policy, Verifier, new_nonce
from vessels.ports import Port
from vessels.schedule.model import Machine, Shape
from vessels.sealed_messages import RequestSealer
from vessels.serve.backends import Process
from vessels.serve.config import ModelSettings
from vessels.serve.errors import ServeError
from vessels.serve.keys import InsecureKeyFiles
from vessels.serve.limits import Limits
from vessels.serve.model import ServedModel
from vessels.serve.runs import exchange

_RENEWALS = 5


def described(name: str, path: Path, backend: Emulated, machine: Machine) -> ServedModel:
    """The model at ``path`` as a server of ``machine`` sees it."""
    return ServedModel(ModelSettings(name, path), backend=backend, limits=Limits(), machine=machine)


def timing_of(
    network: str, model: ServedModel, backend: Emulated, epc_size: int, seconds: float
) -> Timing:
    """Of each rung, ``seconds`` for each figure; what requests take beside runs is left at 0.

    Shapes that do not fit into an EPC of ``epc_size`` bytes are left out: they would page.
    """
    shapes = [s for s in model.spec.shapes if s.size <= epc_size]
    widest = max(s.threads for s in shapes)
    found: list[RunTimes] = []
    after: list[float] = []
    evidence: list[float] = []
    renewal: list[float] = []
    for rung in sorted({s.rung for s in shapes}):
        narrow = {s.slots: s for s in shapes if (s.rung, s.threads) == (rung, 1)}
        wide = {s.slots: s for s in shapes if (s.rung, s.threads) == (rung, widest)}
        most = max(narrow.keys() & wide.keys() or narrow)
        with _Started(model, backend, narrow[most]) as one:
            counts = sorted({1, most})
            times = {count: one.times(count, seconds) for count in counts}
            evidence.append(statistics.median(repeated(one.attest, seconds / 4)))
            renewal.append(one.renewal())
        wide_seconds = None
        if widest > 1 and most in wide:
            with _Started(model, backend, wide[most]) as other:
                wide_seconds = statistics.median(other.times(most, seconds))
        after.append(one.evidence_seconds)
        found.append(
            RunTimes(
                rung=rung,
                seconds={count: statistics.median(t) for count, t in times.items()},
                spread=statistics.median(times[1]) / min(times[1]) - 1,
                start_seconds=one.start_seconds,
                start_core_seconds=one.start_core_seconds,
                wide_seconds=wide_seconds,
            )
        )
    return Timing(
        network=network,
        threads=widest,
        evidence_after=statistics.median(after),
        evidence=statistics.median(evidence),
        renewal=statistics.median(renewal),
        travel=0.0,
        server_cpu=0.0,
        generator_cpu=0.0,
        rungs=tuple(found),
    )


class _Started:
    """An environment of ``shape`` with its key."""

    def __init__(self, model: ServedModel, backend: Emulated, shape: Shape) -> None:
        self._backend, self._name = backend, model.name
        self._verifier = Verifier(
            Policy.parse(client_policy({model.name: model.path}), "policy"), CollateralService()
        )
        keys = InsecureKeyFiles.load([model.path.with_suffix(".key")])
        begin, before = time.perf_counter(), time.process_time()
        # All that a host does for a start.
        build = model.read(shape)
        self._process: Process = backend.start(model.path, shape)
        claims = self._prove(new_nonce()).claims
        self.evidence_seconds = time.perf_counter() - begin
        sealed = keys.get(build.digest, model.path, self._prove)
        self._process.give_key(sealed)
        self.start_seconds = time.perf_counter() - begin
        own = time.process_time() - before
        self.start_core_seconds = own + core_seconds(self._process.pid)
        self._inputs = made_up(Port.of(build.header.inputs), seed=1)
        self._sealer = RequestSealer(claims.public_key, claims.model_digest)
        self._request = self._sealer.seal_predict(self._inputs)[0]

    def __enter__(self) -> _Started:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.close()

    def _prove(self, nonce: bytes) -> Evidence:
        return self._backend.evidence(self._process.claims(nonce))

    def attest(self) -> float:
        """Seconds that it takes to give evidence and to verify it."""
        begin, nonce = time.perf_counter(), new_nonce()
        self._verifier.verify(self._prove(nonce), nonce=nonce, model=self._name)
        return time.perf_counter() - begin

    def renewal(self) -> float:
        """Processor time of attesting and sealing a request anew, but for the enclave's part."""
        begin = time.process_time()
        for _ in range(_RENEWALS):
            self.attest()
            self._sealer.seal_predict(self._inputs)
        return (time.process_time() - begin) / _RENEWALS

    def times(self, count: int, seconds: float) -> list[float]:
        """Seconds of runs of ``count`` requests, three at least, after one that warms up."""
        self._run(count)
        return repeated(lambda: self._run(count), seconds)

    def _run(self, count: int) -> float:
        begin = time.perf_counter()
        answers = exchange(self._process, [self._request] * count)
        taken = time.perf_counter() - begin
        for answer in answers:
            if isinstance(answer, ServeError):
                raise answer
        return taken


def repeated(call: Callable[[], float], seconds: float) -> list[float]:
    """What ``call`` gives, for ``seconds`` and three times at least."""
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < 3 or time.perf_counter() < end:
        found.append(call())
    return found
