"""``vessels proxy``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vessels.cli.collateral import CollateralPath, Pccs, collateral_source
from vessels.cli.common import err, out, parse_size
from vessels.errors import VesselsError

if TYPE_CHECKING:
    from vessels.client import AsyncClient
    from vessels.proxy.run import Addresses


def proxy(
    server: Annotated[
        str, typer.Option(metavar="URL", help="The server with the models, which is not trusted.")
    ],
    policy: Annotated[
        Path, typer.Option(metavar="POLICY.toml", help="Which enclaves and models are accepted.")
    ],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where local programs speak REST.")
    ] = "127.0.0.1:8000",
    listen_grpc: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Where they speak gRPC. Default: the port after --listen's."
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="How long the server may be silent.")
    ] = 60.0,
    largest_request: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE", parser=parse_size, help="Largest request taken. Default: 256MiB."
        ),
    ] = None,
    pccs: Pccs = None,
    collateral: CollateralPath = None,
    insecure_network: Annotated[
        bool,
        typer.Option(
            "--insecure-network",
            help="Listen on an address that other machines reach: inputs and outputs cross the "
            "network in plain.",
        ),
    ] = False,
) -> None:
    """Let local programs use a confidential server by the Open Inference Protocol v2."""
    from vessels.attestation import Policy
    from vessels.client import AsyncClient
    from vessels.listening import parse_address
    from vessels.proxy.run import LARGEST_REQUEST, check_local, run_proxy

    source = collateral_source(pccs, collateral)
    rest = parse_address(listen)
    # Port 0 is any that is free.
    rpc = parse_address(listen_grpc) if listen_grpc else (rest[0], rest[1] and rest[1] + 1)
    if insecure_network:
        err.print(
            "warning: --insecure-network: what comes to the proxy is NOT encrypted.",
            style="yellow",
        )
    else:
        check_local(rest, rpc)
    rules = Policy.load(policy)

    async def run() -> None:
        attesting: list[asyncio.Task[None]] = []

        def ready(at: Addresses) -> None:
            for line in (f"REST {at.rest}", f"gRPC {at.grpc}"):
                out.print(line, markup=False, highlight=False, soft_wrap=True)
            attesting.extend(asyncio.create_task(_attest(client, name)) for name in rules.models)

        async with AsyncClient(server, policy=rules, collateral=source, timeout=timeout) as client:
            await run_proxy(
                client,
                rest,
                rpc,
                largest_request=largest_request or LARGEST_REQUEST,
                ready=ready,
            )

    asyncio.run(run())


async def _attest(client: AsyncClient, model: str) -> None:
    """Attest ``model`` before the first request does, and say what came of it."""
    try:
        attested = await client.describe(model)
    except VesselsError as error:
        err.print(
            f"{model}: not attested: {error}", markup=False, highlight=False, soft_wrap=True,
            style="yellow",
        )  # fmt: skip
        return
    verified = attested.verified
    what = "SIMULATED, which proves nothing" if verified.simulated else str(verified.quote.tee)
    digest = verified.claims.model_digest.hex()
    err.print(
        f"{model}: attested, {what}, build {digest}", markup=False, highlight=False, soft_wrap=True
    )
