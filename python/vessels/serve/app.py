"""What the network sees of a server: health, metrics, evidence, predictions.

``docs/serving.md`` specifies the addresses. Bodies of predictions are sealed; the server bounds
them, forwards them and cannot read them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TypeVar

from prometheus_client import exposition
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message

from vessels.attestation.fetch import MEDIA_TYPE as EVIDENCE_TYPE
from vessels.endpoints import Endpoint
from vessels.listening import is_surplus
from vessels.serve.answering import OK, answered, application
from vessels.serve.errors import Code, ServeError
from vessels.serve.host import Host
from vessels.serve.lane import Done
from vessels.serve.limits import Limits
from vessels.serve.logs import event, failure
from vessels.serve.metrics import Metrics
from vessels.serve.model import ServedModel
from vessels.serve.reading import (
    SEALED_TYPE,
    check_sealed,
    named_environment,
    sealed_body,
    stated_nonce,
    stated_seconds,
)

T = TypeVar("T")


@dataclass
class Site:
    """What one server serves."""

    host: Host
    limits: Limits
    metrics: Metrics
    stopping: bool = field(default=False)

    @property
    def ready(self) -> bool:
        """Whether requests are taken: for one model at least."""
        return not self.stopping and any(self.host.is_ready(m) for m in self.host.models)


def make_app(site: Site) -> Starlette:
    """The ASGI application of ``site``."""
    handlers = _Handlers(site)
    routes = [
        ("/v2/health/live", handlers.live, "live", "GET"),
        ("/v2/health/ready", handlers.ready, "ready", "GET"),
        ("/v2/models/{name}/ready", handlers.model_ready, "model_ready", "GET"),
        ("/metrics", handlers.metrics, "metrics", "GET"),
        ("/vessels/v1/models", handlers.models, "models", "GET"),
        ("/vessels/v1/models/{name}/evidence", handlers.evidence, "evidence", "GET"),
        ("/vessels/v1/models/{name}/predict", handlers.predict, "predict", "POST"),
    ]
    return application(
        (path, _answered(site, kind, call), method) for path, call, kind, method in routes
    )


class _Handlers:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._host = site.host

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        site = self._site
        states = {name: site.host.state(name) for name in site.host.models}
        body = {"ready": site.ready, "stopping": site.stopping, "models": states}
        return JSONResponse(body, 200 if site.ready else 503)

    async def model_ready(self, request: Request) -> Response:
        model = self._model(request)
        ready = self._host.is_ready(model.name) and not self._site.stopping
        body = {"name": model.name, "ready": ready, "state": self._host.state(model.name)}
        return JSONResponse(body, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        # In one form: the library fails at some of what a client may say that it accepts.
        encode, media_type = exposition.choose_encoder("")
        body = encode(self._site.metrics.registry)
        return Response(body, headers={"content-type": media_type})

    async def models(self, request: Request) -> Response:
        found = [
            {
                "name": m.name,
                "model_digest": m.build.digest.hex(),
                "state": self._host.state(m.name),
                "largest_request": m.build.largest_request,
            }
            for m in self._host.models.values()
        ]
        return JSONResponse({"models": found})

    async def evidence(self, request: Request) -> Response:
        model = self._model(request)
        self._refuse_when_stopping()
        nonce = stated_nonce(request)
        due = _deadline(request, time.monotonic())
        asked = self._host.evidence(model.name, nonce, due)
        evidence = await _unless_gone(request, asked)
        return Response(evidence, media_type=EVIDENCE_TYPE, headers={"cache-control": "no-store"})

    async def predict(self, request: Request) -> Response:
        began = time.monotonic()
        model = self._model(request)
        self._refuse_when_stopping()
        due = _deadline(request, began)
        identity = named_environment(request)
        # Before the body is read, which no other could open.
        environment = self._host.find(model.name, identity)
        check_sealed(request)
        self._host.foresee(environment, due)
        sealed = await sealed_body(request, environment.build.largest_request, self._site.limits)
        done = await _unless_gone(request, self._host.predict(environment, sealed, due))
        seconds = time.monotonic() - began
        # Counted and logged when the answer is on its way.
        asyncio.get_running_loop().call_soon(self._predicted, model, len(sealed), done, seconds)
        return Response(done.value, media_type=SEALED_TYPE, headers={"cache-control": "no-store"})

    def _predicted(
        self, model: ServedModel, request_size: int, done: Done[bytes], seconds: float
    ) -> None:
        metrics = self._site.metrics
        metrics.request_seconds.labels(model.name).observe(seconds)
        metrics.waiting_seconds.labels(model.name).observe(done.waiting_seconds)
        metrics.enclave_seconds.labels(model.name).observe(done.working_seconds)
        event(
            "predicted", model=model.name, request_size=request_size,
            response_size=len(done.value), waiting_ms=_ms(done.waiting_seconds),
            enclave_ms=_ms(done.working_seconds), ms=_ms(seconds),
        )  # fmt: skip

    def _model(self, request: Request) -> ServedModel:
        model = self._host.models.get(request.path_params["name"])
        if model is None:
            raise ServeError(Code.UNKNOWN_MODEL, "no model of this name is served.")
        return model

    def _refuse_when_stopping(self) -> None:
        if self._site.stopping:
            raise ServeError(Code.STOPPING, "the server is being shut down.")


def _answered(site: Site, kind: str, call: Endpoint) -> Endpoint:
    """``call`` with its errors as answers, counted."""

    async def taken(request: Request) -> Response:
        if is_surplus(request) and kind != "live":
            raise ServeError(Code.OVERLOADED, "the server has too many connections.")
        try:
            return await call(request)
        except asyncio.CancelledError:
            if not site.stopping:
                raise
            raise ServeError(Code.STOPPING, "the server has been shut down.") from None

    def tell(request: Request, outcome: str, defect: Exception | None) -> None:
        name = request.path_params.get("name", "")
        model = name if name in site.host.models else ""
        if defect is not None:
            failure("request_failed", defect, kind=kind, model=model)
        site.metrics.requests.labels(model, kind, outcome).inc()
        if outcome != OK:
            event(
                "refused", level=logging.WARNING, kind=kind, model=model or None, outcome=outcome
            )  # fmt: skip

    return answered(taken, tell)


def _deadline(request: Request, arrival: float) -> float | None:
    """When the answer is of no more use, as a time."""
    seconds = stated_seconds(request)
    return None if seconds is None else arrival + seconds


def _refuse_gone(message: Message) -> None:
    if message["type"] == "http.disconnect":
        raise ClientDisconnect


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What ``work`` gives; it is given up when the client closes its connection first."""

    async def gone() -> None:
        while True:
            _refuse_gone(await request.receive())

    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            watcher.result()
        return await task
    finally:
        task.cancel()
        watcher.cancel()


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
