"""What the network sees of a cluster: the HTTP interface of ``docs/serving.md``.

It holds no environment: every request goes on to a replica of its model, and what comes of it, a
replica's end included, becomes an answer.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vessels.attestation.fetch import MEDIA_TYPE as EVIDENCE_TYPE
from vessels.cluster.need import Need, largest_node, shortage
from vessels.cluster.replica import Answer
from vessels.cluster.router import ENVIRONMENT, EVIDENCE
from vessels.serve.answering import answered, application
from vessels.serve.errors import Code, ServeError
from vessels.serve.limits import Limits
from vessels.serve.logs import event, failure, use_guest_log
from vessels.serve.reading import (
    SEALED_TYPE,
    check_sealed,
    named_environment,
    sealed_body,
    stated_nonce,
    stated_seconds,
)
from vessels.serve.threads import in_thread

_GOOD = ("ready", "on demand")
_LOOK_SECONDS = 0.5
_OTHER_SECONDS = 5.0
"""Within which Serve notices that a replica has ended."""
_PAUSE_SECONDS = 0.1
_LATE_SECONDS = 0.5
"""So long after a deadline the word of a replica is waited for, which knows why it was not met."""
_ENDING = (Code.NO_EVIDENCE, Code.ENCLAVE_ENDED, Code.STOPPING)


@dataclass(frozen=True)
class Served:
    """A model as the network sees it."""

    name: str
    digest: bytes
    largest_request: int
    on_demand: bool
    """Whether it may have no environment until somebody asks for one."""
    need: Need


class Ingress:
    """Answers HTTP requests by asking replicas; ``handles`` are those of each model's deployment.

    A request has ``start_seconds`` for finding a replica, while there is none, and for evidence;
    and ``predict_seconds`` besides for its prediction; less if it says so.
    """

    def __init__(
        self,
        served: tuple[Served, ...],
        handles: dict[str, Any],
        start_seconds: float,
        predict_seconds: float,
    ) -> None:
        use_guest_log()
        self._served = {s.name: s for s in served}
        self._handles = handles
        self._start_seconds = start_seconds
        self._seconds = start_seconds + predict_seconds
        self._limits = Limits()
        self._application: str = serve.get_replica_context().app_name
        self._looked = -math.inf
        self._states: dict[str, str] = {}
        # Ray says nothing of its type.
        nodes: Callable[[], list[dict[str, Any]]] = ray.nodes
        most = largest_node(nodes())
        for model in served:
            if told := shortage(model.name, model.need, most):
                event("no_room", level=logging.WARNING, why=told)

    def __serve_build_asgi_app__(self) -> Starlette:
        """For Serve."""
        routes = [
            ("/v2/health/live", self.live, "GET"),
            ("/v2/health/ready", self.ready, "GET"),
            ("/v2/models/{name}/ready", self.model_ready, "GET"),
            ("/vessels/v1/models", self.models, "GET"),
            ("/vessels/v1/models/{name}/evidence", self.evidence, "GET"),
            ("/vessels/v1/models/{name}/predict", self.predict, "POST"),
        ]
        return application((path, answered(call, _tell), how) for path, call, how in routes)

    async def live(self, request: Request) -> Response:
        """The ingress runs."""
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        """Every model answers, or would start to when asked."""
        states = await self._look()
        ready = all(state in _GOOD for state in states.values())
        body = {"ready": ready, "stopping": False, "models": states}
        return JSONResponse(body, 200 if ready else 503)

    async def model_ready(self, request: Request) -> Response:
        """A model answers, or would start to when asked."""
        model = self._model(request)
        state = (await self._look())[model.name]
        ready = state in _GOOD
        body = {"name": model.name, "ready": ready, "state": state}
        return JSONResponse(body, 200 if ready else 503)

    async def models(self, request: Request) -> Response:
        """What is served."""
        states = await self._look()
        listed = [
            {
                "name": m.name, "model_digest": m.digest.hex(), "state": states[m.name],
                "largest_request": m.largest_request,
            }
            for m in self._served.values()
        ]  # fmt: skip
        return JSONResponse({"models": listed})

    async def evidence(self, request: Request) -> Response:
        """Evidence of an environment with little to do."""
        model = self._model(request)
        seconds = min(self._start_seconds, stated_seconds(request) or math.inf)
        value = await self._evidence(model.name, stated_nonce(request), seconds)
        return Response(value, media_type=EVIDENCE_TYPE, headers={"cache-control": "no-store"})

    async def predict(self, request: Request) -> Response:
        """The sealed answer of the environment that the request was sealed to."""
        model = self._model(request)
        check_sealed(request)
        environment = named_environment(request)
        stated = stated_seconds(request)
        arrival = time.monotonic()
        sealed = await sealed_body(request, model.largest_request, self._limits)
        # A time of this clock says nothing to another node.
        left = None if stated is None else arrival + stated - time.monotonic()
        seconds = self._seconds if left is None else min(self._seconds, left + _LATE_SECONDS)
        value = await self._ask(
            model.name, seconds, "predict", sealed, **{ENVIRONMENT: environment, "seconds": left}
        )
        return Response(value, media_type=SEALED_TYPE, headers={"cache-control": "no-store"})

    async def _evidence(self, name: str, nonce: bytes, seconds: float) -> bytes:
        """Evidence of any environment: of another, when one ends just now."""
        until = time.monotonic() + min(seconds, _OTHER_SECONDS)
        while True:
            try:
                return await self._ask(name, seconds, EVIDENCE, nonce)
            except ServeError as error:
                if error.code not in _ENDING or time.monotonic() > until:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _ask(
        self, name: str, seconds: float, method: str, /, *args: object, **more: object
    ) -> bytes:
        """What a replica answers. Raises :class:`ServeError` for all that it may say instead."""
        response = getattr(self._handles[name], method).remote(*args, **more)
        try:
            async with asyncio.timeout(seconds):
                answer: Answer = await response
        except TimeoutError:
            response.cancel()
            raise ServeError(
                Code.NOT_READY if method == EVIDENCE else Code.TOO_LONG,
                f"model {name} gave no answer within {seconds:.3g} s.",
            ) from None
        except RayTaskError:
            # A defect of the replica's code, not its end.
            raise
        except RayError:
            raise ServeError(
                Code.ENCLAVE_ENDED,
                "the environment ended before it had answered; get new evidence and ask again.",
            ) from None
        except RayServeException as error:
            raise _not_taken(name, error) from None
        return answer.unwrapped()

    async def _look(self) -> dict[str, str]:
        """The state of each model, as Serve saw it a moment ago: asking a model would start it."""
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked = time.monotonic()
            try:
                self._states = await in_thread(self._seen)
            except RayError as error:
                event("states_unknown", level=logging.WARNING, why=type(error).__name__)
                self._states = {}
        return self._states or dict.fromkeys(self._served, "starting")

    def _seen(self) -> dict[str, str]:
        found = serve.status().applications.get(self._application)
        states = {}
        for model in self._served.values():
            seen = found and found.deployments.get(model.name)
            if seen and any(n for state, n in seen.replica_states.items() if state == "RUNNING"):
                states[model.name] = "ready"
            else:
                states[model.name] = "on demand" if model.on_demand else "starting"
        return states

    def _model(self, request: Request) -> Served:
        model = self._served.get(request.path_params["name"])
        if model is None:
            raise ServeError(Code.UNKNOWN_MODEL, "no model of this name is served.")
        return model


def _tell(request: Request, outcome: str, defect: Exception | None) -> None:
    if defect is not None:
        failure("request_failed", defect)


def _not_taken(name: str, error: RayServeException) -> ServeError:
    """Why Serve sent a request to no replica."""
    # Of its exceptions only this has a status of HTTP's.
    if hasattr(error, "status_code"):
        return ServeError(Code.OVERLOADED, f"too many requests wait for model {name}.")
    return ServeError(Code.NOT_READY, f"model {name} is not deployed.")
