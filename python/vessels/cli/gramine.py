"""``vessels gramine``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vessels.cli.common import AsJson, mib, out, print_json, sizes_table
from vessels.ladder import MAX_SLOTS

Sealed = Annotated[Path, typer.Argument(metavar="MODEL.vessel", help="The sealed model.")]


def gramine(
    model: Sealed,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The enclave's folder.")
    ],
    name: Annotated[
        str | None, typer.Option(help="What the model is called. Default: the file's name.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Worker threads. Default: as many as the model was built for."),
    ] = None,
    rung: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="How much stays resident; `vessels inspect` lists the rungs. "
            "Default: what the model was built for.",
        ),
    ] = None,
    slots: Annotated[
        int, typer.Option(min=1, max=MAX_SLOTS, help="Requests that may be in work together.")
    ] = 1,
    isv_prod_id: Annotated[
        int, typer.Option(help="The signer's number of the product, for policies by signer.")
    ] = 0,
    isv_svn: Annotated[int, typer.Option(help="The security version, for policies by signer.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write the manifest of the SGX enclave that runs a sealed model under Gramine."""
    from vessels.gramine import plan_enclave
    from vessels.gramine_folder import TEMPLATE, write_folder

    plan = plan_enclave(
        model, name=name, threads=threads, rung=rung, slots=slots, isv_prod_id=isv_prod_id,
        isv_svn=isv_svn,
    )  # fmt: skip
    write_folder(plan, output)
    if as_json:
        print_json(
            {
                "folder": str(output),
                "template": TEMPLATE,
                "enclave_size": plan.enclave_size,
                "needed_size": plan.needed_size,
                "parts": {p.name: p.size for p in plan.parts},
                "max_threads": plan.max_threads,
                "thread_count": plan.thread_count,
                "rung": plan.rung,
                "slots": plan.slots,
                "model_place": str(plan.model_place),
            }
        )
        return
    rows = [(f"  {p.name}", mib(p.size)) for p in plan.parts]
    rows += [
        ("needed", mib(plan.needed_size)),
        ("enclave size", mib(plan.enclave_size)),
        ("threads, Gramine's included", str(plan.max_threads)),
        ("rung, slots", f"{plan.rung}, {plan.slots}"),
    ]
    out.print(sizes_table(rows, str(output / TEMPLATE)))
    out.print(
        "Sign it with gramine-manifest and gramine-sgx-sign (docs/gramine.md), then "
        f"`vessels serve {model} --backend gramine --manifest {output}`.",
        highlight=False,
        soft_wrap=True,
    )
