"""A whole server: the enclaves of its models, and the network before them."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

from vessels.errors import VesselsError
from vessels.listening import serve_until_signal, url_of
from vessels.listening import server as listening_server
from vessels.serve.app import Site, make_app
from vessels.serve.errors import Code, ServeError
from vessels.serve.logs import event

_MALFORMED = ServeError(Code.MALFORMED, "this is no HTTP/1.1 request that can be read.")


async def serve(
    site: Site,
    bound: socket.socket,
    *,
    certificate: Path | None = None,
    private_key: Path | None = None,
    stop: Callable[[Callable[[], None]], None] | None = None,
) -> None:
    """Serve ``site`` on ``bound`` until SIGTERM or SIGINT, then finish what is under way.

    A second signal ends what is under way, too. ``stop`` is given the function that does what a
    signal does, for callers that are not a process of their own. With a ``certificate`` it speaks
    TLS; raises :class:`~vessels.errors.UsageError` where that and its key cannot be used. Raises
    :class:`~vessels.errors.VesselsError` where the server ended by a defect of its own.
    """
    server = listening_server(
        make_app(site),
        site.limits,
        certificate=certificate,
        private_key=private_key,
        grace_seconds=site.limits.shutdown_seconds,
        malformed=json.dumps(_MALFORMED.as_json()),
    )
    site.metrics.connections.set_function(lambda: len(server.server_state.connections))

    def stopping() -> None:
        event("stopping", at_once=site.stopping)
        site.stopping = True

    def defective() -> None:
        site.stopping = True
        server.should_exit = True

    site.host.on_defect = defective
    try:
        site.host.start()
        url = url_of(bound, tls=certificate is not None)
        event("serving", url=url, models=sorted(site.host.models), pid=os.getpid())
        await serve_until_signal(server, bound, stop=stop, on_stop=stopping)
    finally:
        site.stopping = True
        await site.host.close()
        event("stopped")
    if site.host.failed:
        raise VesselsError("the server ended by a defect of its own; its log has more.")
