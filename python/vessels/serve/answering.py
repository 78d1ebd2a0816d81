"""Endpoints whose errors are answers, in the form of ``docs/serving.md``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from vessels import endpoints
from vessels.endpoints import Endpoint
from vessels.serve.errors import Code, ServeError

Tell = Callable[[Request, str, Exception | None], None]

OK: Final = "ok"
"""The outcome of a request that was answered as it wished."""


def answered(call: Endpoint, tell: Tell) -> Endpoint:
    """``call`` with its errors as answers.

    ``tell`` is told of each request's outcome, which is :data:`OK`, a :class:`Code` or
    ``client_gone``, and of the error where that is a defect.
    """

    async def endpoint(request: Request) -> Response:
        defect = None
        try:
            response, outcome = await call(request), OK
        except ServeError as error:
            response, outcome = _refusal(error), str(error.code)
        except ClientDisconnect:
            # Nobody reads it.
            response, outcome = Response(status_code=499), "client_gone"
        except Exception as error:
            defect = error
            told = ServeError(Code.INTERNAL, "the server failed; its log has more.")
            response, outcome = _refusal(told), str(told.code)
        tell(request, outcome, defect)
        return response

    return endpoint


def application(routes: Iterable[tuple[str, Endpoint, str]]) -> Starlette:
    """An application with these paths, endpoints and methods, and nothing else."""
    return endpoints.application(routes, _no_such)


def _no_such(request: Request, status: int) -> Response:
    if status == 405:
        told = ServeError(Code.METHOD, "this address takes another method.")
    elif status == 404:
        told = ServeError(Code.NOT_FOUND, "there is nothing at this address.")
    else:
        told = ServeError(Code.MALFORMED, "this request cannot be read.")
    return _refusal(told)


def _refusal(error: ServeError) -> Response:
    return JSONResponse(error.as_json(), error.status, headers=error.headers)
