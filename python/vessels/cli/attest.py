"""``vessels attest``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from vessels.cli.collateral import CollateralPath, Pccs, collateral_source
from vessels.cli.common import AsJson, err, out, print_json
from vessels.errors import AttestationError, UsageError

if TYPE_CHECKING:
    from vessels.attestation import CollateralSource, Evidence, Policy

Server = Annotated[
    str,
    typer.Argument(metavar="URL|FILE", help="A server, or a file with evidence that it gave."),
]


def attest(
    server: Server,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model, as server and policy name it.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="POLICY.toml", help="What is accepted; without it, what is there."),
    ] = None,
    nonce: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="For a file: the nonce that its evidence was asked with."),
    ] = None,
    pccs: Pccs = None,
    collateral: CollateralPath = None,
    insecure_simulation: Annotated[
        bool,
        typer.Option(
            "--insecure-simulation",
            help="Without a policy: trust this machine's simulation, which protects nothing.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what runs on a server, verified, and whether a policy accepts it."""
    from vessels.attestation import Policy, new_nonce
    from vessels.attestation.fetch import fetch_evidence

    if policy is not None and insecure_simulation:
        raise UsageError("a policy says itself whether it trusts a simulation.")
    source = collateral_source(pccs, collateral)
    rules = None if policy is None else Policy.load(policy)
    asked = None if nonce is None else _hex(nonce)
    if "://" in server:
        if model is None:
            raise UsageError("--model NAME is needed: each model has an enclave of its own.")
        asked = new_nonce()
        evidence = fetch_evidence(server, model, asked)
    else:
        evidence = _read(Path(server))
    found = _checked(evidence, rules, source, asked, model, insecure_simulation)
    if as_json:
        print_json(found)
    else:
        _print(found, server)


def _checked(
    evidence: Evidence,
    policy: Policy | None,
    source: CollateralSource,
    nonce: bytes | None,
    model: str | None,
    insecure_simulation: bool,
) -> dict[str, Any]:
    """What is true of the evidence; without a policy, whether one wants it is not judged."""
    from vessels.attestation import INTEL, Verifier, authenticate
    from vessels.attestation.simulation import SimulationRoot

    # Evidence in a file was asked for by somebody else: it may be old.
    asked = evidence.claims.nonce if nonce is None else nonce
    fresh = {"fresh": nonce is not None}
    if policy is not None:
        verified = Verifier(policy, source).verify(evidence, nonce=asked, model=model)
        return {"policy": policy.source, **fresh, **verified.as_json()}
    root = INTEL
    if insecure_simulation:
        root = SimulationRoot.load_or_create().trusted
        err.print("warning: a SIMULATION is trusted; it proves nothing.", style="yellow")
    authentic = authenticate(evidence, nonce=asked, root=root, source=source)
    return {"policy": None, **fresh, **authentic.as_json()}


def _read(path: Path) -> Evidence:
    from vessels.attestation import Evidence
    from vessels.attestation.evidence import MAX_SIZE

    try:
        with path.open("rb") as file:
            return Evidence.decode(file.read(MAX_SIZE + 1))
    except OSError as error:
        raise AttestationError(f"evidence: cannot read {path}: {error.strerror}.") from error


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise UsageError(f"{text!r} is no nonce; write it in hexadecimal.") from None


def _print(found: dict[str, Any], server: str) -> None:
    verdict = "authentic; no policy was asked whether it is what you want"
    if found["policy"] is not None:
        verdict = f"accepted by {found['policy']}"
    if found["simulated"]:
        verdict += "; SIMULATED, so it proves nothing"
    # Text, as names may hold what Rich takes for markup.
    title = Text(f"{server}: {verdict}")
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    # A measurement is of use only as a whole.
    table.add_column(overflow="fold")
    for key, value in found.items():
        table.add_row(key.replace("_", " "), Text(_shown(value)))
    out.print(table)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        value = ", ".join(value)
    return "none" if value in (None, "") else str(value)
