"""The key service over HTTP: a thin layer on :class:`~vessels.keys.release.KeyService`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from vessels.attestation.evidence import MAX_SIZE as MAX_EVIDENCE_SIZE
from vessels.endpoints import Endpoint, application
from vessels.keys.messages import (
    JSON_TYPE,
    KEY_TYPE,
    MAX_AUTH_SIZE,
    PREFIX,
    Auth,
    Code,
    Refusal,
    digest_of,
    session_of,
)
from vessels.keys.release import KeyService
from vessels.listening import Limits, TooLarge, TooSlow, read_body
from vessels.serve.logs import event

VERIFICATION_COUNT = 8
"""Verifications at a time; each may wait for collateral."""

WAITING_COUNT = 32
"""Further ones that may wait for one to end; the rest are told to come again."""

LOOKUP_COUNT = 256
"""Requests that may wait for the store; it is read anew when it was changed."""

_T = TypeVar("_T")


def key_app(service: KeyService, limits: Limits | None = None) -> Starlette:
    """The ASGI application that serves ``service``."""
    bounds = limits or Limits()
    # Verifications may wait for collateral; they must not hold up the rest.
    verifications = _Queue(VERIFICATION_COUNT, WAITING_COUNT)
    lookups = _Queue(1, LOOKUP_COUNT)

    async def auth(request: Request) -> Response:
        body = await read_body(request, MAX_AUTH_SIZE, bounds.body_seconds)
        message = Auth.decode(body)
        challenge = await lookups.run(lambda: service.auth(message))
        return _answer(200, challenge.encoded(), JSON_TYPE)

    async def attest(request: Request) -> Response:
        session = session_of(request.headers.get("authorization"))
        # Nobody fills the memory with evidence for no session.
        service.check_session(session)
        body = await read_body(request, MAX_EVIDENCE_SIZE, bounds.body_seconds)
        await verifications.run(lambda: service.attest(session, body))
        return _answer(204)

    async def resource(request: Request) -> Response:
        session = session_of(request.headers.get("authorization"))
        digest = digest_of(request.path_params["digest"])
        sealed = await lookups.run(lambda: service.resource(session, digest))
        return _answer(200, sealed, KEY_TYPE)

    async def ready(_: Request) -> Response:
        await lookups.run(service.check)
        return _answer(200, b'{"ready":true}', JSON_TYPE)

    paths = (
        ("auth", auth, "POST"),
        ("attest", attest, "POST"),
        ("resource/{digest}", resource, "GET"),
        ("ready", ready, "GET"),
    )
    return application(
        ((f"{PREFIX}/{path}", _answered(handler), method) for path, handler, method in paths),
        _not_routed,
    )


class _Queue:
    """Runs what blocks in threads, ``running`` at a time; more than ``waiting`` are refused."""

    def __init__(self, running: int, waiting: int) -> None:
        self._threads = CapacityLimiter(running)
        self._most = running + waiting
        self._count = 0

    async def run(self, work: Callable[[], _T]) -> _T:
        """What ``work`` gives. Raises :class:`Refusal` when too many wait."""
        if self._count >= self._most:
            raise Refusal(Code.BUSY, "too many ask at once; come again.")
        self._count += 1
        try:
            return await to_thread.run_sync(work, limiter=self._threads)
        finally:
            self._count -= 1


def _answered(handler: Endpoint) -> Endpoint:
    """``handler`` with its refusals as answers."""

    async def endpoint(request: Request) -> Response:
        try:
            return await handler(request)
        except Refusal as refusal:
            return _refused(refusal)
        except TooLarge:
            return _refused(Refusal(Code.SIZE, "the body is too large."))
        except TooSlow:
            return _refused(Refusal(Code.SLOW, "the body did not arrive in time."))
        except ClientDisconnect:
            # Nobody reads it.
            return _answer(499)
        except Exception as error:
            # Its kind alone: a message or a trace may hold what is secret.
            event("request_failed", level=logging.ERROR, error=type(error).__name__)
            return _refused(Refusal(Code.DEFECT, "the service failed; its log has more."))

    return endpoint


def _not_routed(_: Request, status: int) -> Response:
    if status == 405:
        return _refused(Refusal(Code.METHOD, "this path does not take that method."))
    return _refused(Refusal(Code.PATH, "there is no such path."))


def _refused(refusal: Refusal) -> Response:
    answer = _answer(refusal.code.status, refusal.encoded(), JSON_TYPE)
    # A body may be unread; nor has who was refused much more to ask.
    answer.headers["Connection"] = "close"
    if refusal.code is Code.SESSION:
        answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


def _answer(status: int, body: bytes = b"", media_type: str | None = None) -> Response:
    return Response(body, status, {"Cache-Control": "no-store"}, media_type)
