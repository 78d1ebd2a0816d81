"""Errors of an ingress as answers, in the form of ``docs/serving.md``."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from vessels.serve.errors import Code, ServeError

Endpoint = Callable[[Request], Awaitable[Response]]

log = logging.getLogger("ray.serve")


def answered(call: Endpoint) -> Endpoint:
    """``call`` with its errors as answers."""

    async def endpoint(request: Request) -> Response:
        try:
            return await call(request)
        except ServeError as error:
            return refusal(error)
        except ClientDisconnect:
            # Nobody reads it.
            return Response(status_code=499)
        except Exception as error:
            # Where it happened and what kind it is; what it says may hold anything.
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = type(error).__name__
            log.error("internal error: %s at %s:%s", kind, where.filename, where.lineno)
            return refusal(ServeError(Code.INTERNAL, "the server failed; its log has more."))

    return endpoint


async def no_such(request: Request, error: Exception) -> Response:
    """Starlette's own refusals in the server's form."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return refusal(ServeError(Code.METHOD, "this address takes another method."))
    return refusal(ServeError(Code.NOT_FOUND, "there is nothing at this address."))


def refusal(error: ServeError) -> Response:
    """``error`` as an answer."""
    return JSONResponse(error.as_json(), error.status, headers=error.headers)
