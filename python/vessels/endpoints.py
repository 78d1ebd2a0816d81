"""An ASGI application of given paths, and its own form for requests to any other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Endpoint = Callable[[Request], Awaitable[Response]]
Refuse = Callable[[Request, int], Response]


def application(routes: Iterable[tuple[str, Endpoint, str]], refuse: Refuse) -> Starlette:
    """An application with these paths, endpoints and methods, and nothing else.

    ``refuse`` answers what no endpoint gets: 404 for another path, 405 for another method.
    """

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response = refuse(request, error.status_code)
        response.headers.update(error.headers or {})
        return response

    app = Starlette(
        routes=[Route(path, endpoint, methods=[method]) for path, endpoint, method in routes],
        exception_handlers={HTTPException: refused},
    )
    # Nobody is sent to a host that a client names.
    app.router.redirect_slashes = False
    return app
