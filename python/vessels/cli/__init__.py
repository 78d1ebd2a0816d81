"""The command line: a thin layer over :mod:`vessels.api` and :mod:`vessels.enclave`.

Exit codes: 0 done, 2 usage, 3 the model cannot be read or is not supported, 4 the memory budget
is too small, 5 the sealed model or its key was refused, 6 the request was refused, 7 the enclave
or the EPC emulator could not be started or died, 8 the output could not be written, 9 evidence was
refused, 10 no key was released, 11 the server gave no answer, 1 anything else.
"""

from __future__ import annotations

from typing import Annotated

import typer

import vessels
from vessels.cli import (
    attest,
    bench,
    build,
    cluster,
    gramine,
    inspect,
    keys,
    kubernetes,
    plot,
    policy,
    proxy,
    run,
    serve,
    study,
    top,
)
from vessels.cli.common import run_app

app = typer.Typer(
    name="vessels",
    help="Confidential deep-learning prediction in as little trusted memory as possible.",
    epilog="Exit codes: 2 usage, 3 model unreadable or unsupported, 4 memory budget too small, "
    "5 sealed model or key refused, 6 request refused, 7 enclave or emulator died, "
    "8 output not writable, 9 evidence refused, 10 no key released, 11 no answer from the server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    build.build, inspect.inspect, run.run, bench.bench, plot.plot, study.study, attest.attest,
    gramine.gramine, kubernetes.kubernetes, serve.serve, top.top, proxy.proxy,
):  # fmt: skip
    app.command()(command)
app.add_typer(keys.app, name="keys")
app.add_typer(policy.app, name="policy")
app.add_typer(cluster.app, name="cluster")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vessels {vessels.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the ``vessels`` script and of ``python -m vessels``."""
    run_app(app)
