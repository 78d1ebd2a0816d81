"""Running the proxy: both APIs on one event loop, until it is told to end."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass

import grpc.aio

from vessels.client import AsyncClient
from vessels.errors import OutputError, UsageError
from vessels.listening import Limits, bound_socket, serve_until_signal, server, url_of
from vessels.proxy.gateway import Gateway
from vessels.proxy.rest import make_application
from vessels.proxy.rpc import handlers

GRACE_SECONDS = 5
IDLE_SECONDS = 75
LARGEST_REQUEST = 256 << 20

Address = tuple[str, int]


@dataclass(frozen=True)
class Addresses:
    """Where the proxy is found: a URL for REST, ``HOST:PORT`` for gRPC."""

    rest: str
    grpc: str


def check_local(*addresses: Address) -> None:
    """Refuse addresses that other machines could reach: what comes to a proxy is not encrypted.

    Raises :class:`UsageError`.
    """
    for host, _ in addresses:
        try:
            local = host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            local = False
        if not local:
            raise UsageError(
                f"{host} is not of this machine alone: inputs and outputs would cross a network in "
                "plain. Listen on 127.0.0.1, or allow it with --insecure-network."
            )


async def run_proxy(
    client: AsyncClient,
    rest: Address,
    rpc: Address,
    *,
    largest_request: int = LARGEST_REQUEST,
    ready: Callable[[Addresses], None],
    stop: Callable[[Callable[[], None]], None] | None = None,
) -> None:
    """Answer on ``rest`` and ``rpc`` until SIGTERM or SIGINT; ``ready`` is told where.

    ``stop`` is as :func:`~vessels.listening.serve_until_signal` takes it. Raises
    :class:`OutputError` where an address cannot be had.
    """
    gateway = Gateway(client)
    rpc_server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", largest_request),
            ("grpc.max_send_message_length", -1),
            # Two proxies must not share a port without knowing.
            ("grpc.so_reuseport", 0),
        ]
    )
    rpc_server.add_generic_rpc_handlers((handlers(gateway),))
    with contextlib.closing(bound_socket(*rest)) as listening:
        port = _add_port(rpc_server, rpc)
        await rpc_server.start()
        application = make_application(gateway, largest_request=largest_request)
        web = server(application, Limits(idle_seconds=IDLE_SECONDS), grace_seconds=GRACE_SECONDS)
        try:
            ready(Addresses(url_of(listening), _written(rpc[0], port)))
            await serve_until_signal(web, listening, stop=stop)
        finally:
            await rpc_server.stop(GRACE_SECONDS)


def _add_port(rpc_server: grpc.aio.Server, address: Address) -> int:
    written = _written(*address)
    try:
        port: int = rpc_server.add_insecure_port(written)
    except RuntimeError:
        port = 0
    if port == 0:
        raise OutputError(f"cannot listen on {written} for gRPC; is it in use?")
    return port


def _written(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
