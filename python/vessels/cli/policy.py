"""``vessels policy``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from vessels.cli.common import err, out
from vessels.errors import UsageError

app = typer.Typer(help="Write what evidence is accepted of an enclave.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command()
def new(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]MODEL.vessel…",
            help="Sealed models; the file's name is the model's. Two of one name are two builds.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="POLICY.toml", help="The file. Default: standard output."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What the model is called, where there is but one.")
    ] = None,
    mr_enclave: Annotated[
        list[str] | None,
        typer.Option(metavar="HEX", help="Measurement of an SGX enclave that is accepted."),
    ] = None,
    mr_td: Annotated[
        list[str] | None,
        typer.Option(metavar="HEX", help="Measurement of a TDX guest's firmware, instead."),
    ] = None,
    insecure_simulation: Annotated[
        bool,
        typer.Option(
            "--insecure-simulation",
            help="Accept this machine's simulation, which protects nothing.",
        ),
    ] = False,
) -> None:
    """Write a policy for sealed models, to start from."""
    from vessels.attestation import Tee
    from vessels.attestation.simulation import Enclave, SimulationRoot
    from vessels.attestation.template import new_policy
    from vessels.enclave import find_enclave_binary
    from vessels.files import check_destination, write_text

    if mr_enclave and mr_td:
        raise UsageError("--mr-enclave is of SGX and --mr-td of TDX; give one of them.")
    if insecure_simulation and mr_td:
        raise UsageError("the simulation is of SGX; --mr-td is of TDX.")
    found = _named(models, name)
    if output is not None:
        check_destination(output, keep=[path for _, path in found])
    measurements = [_measurement(m, 32) for m in mr_enclave or ()]
    measurements += [_measurement(m, 48) for m in mr_td or ()]
    root = None
    if insecure_simulation:
        root = SimulationRoot.load_or_create().trusted
        measurements = measurements or [Enclave.of_binary(find_enclave_binary()).mr_enclave]
        err.print(
            "warning: this policy trusts a SIMULATION, which protects nothing.", style="yellow"
        )
    text = new_policy(
        _builds(found),
        tee=Tee.TDX if mr_td else Tee.SGX,
        measurements=measurements,
        insecure_simulation_root=root,
    )
    if output is None:
        typer.echo(text, nl=False)
        return
    write_text(output, text)
    out.print(f"wrote {output}", highlight=False, soft_wrap=True)
    if not measurements or mr_td:
        err.print(
            "Fill in the empty lists before you use it; until then it is refused.",
            highlight=False,
        )


def _named(texts: list[str], name: str | None) -> list[tuple[str, Path]]:
    """The models with their names."""
    from vessels.serve.config import named

    if name is None:
        return [(model.name, model.path) for model in named(texts)]
    if len(texts) > 1:
        raise UsageError("--name is for one model; write NAME=MODEL.vessel for each.")
    return [(name, Path(texts[0]))]


def _builds(models: list[tuple[str, Path]]) -> dict[str, list[bytes]]:
    """The digests of each model's builds."""
    from vessels.attestation import model_digest

    builds: dict[str, list[bytes]] = {}
    paths: dict[bytes, Path] = {}
    for name, path in models:
        digest = model_digest(path)
        if (same := paths.setdefault(digest, path)) is not path:
            raise UsageError(f"{same} and {path} are one build; a policy has it once.")
        builds.setdefault(name, []).append(digest)
    return builds


def _measurement(text: str, size: int) -> bytes:
    if not re.fullmatch(rf"[0-9A-Fa-f]{{{2 * size}}}", text):
        raise UsageError(f"{text!r} is no measurement of {2 * size} hexadecimal digits.")
    return bytes.fromhex(text)
