"""Where the commands that verify evidence get its collateral from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vessels.errors import UsageError

if TYPE_CHECKING:
    from vessels.attestation import CollateralSource

Pccs = Annotated[
    str | None,
    typer.Option("--pccs", metavar="URL", help="Service of collateral. Default: Intel's."),
]
CollateralPath = Annotated[
    Path | None,
    typer.Option("--collateral", metavar="FILE.json", help="Collateral from a file instead."),
]


def collateral_source(pccs: str | None, collateral: Path | None) -> CollateralSource:
    """The service or the file; raises :class:`UsageError` for both."""
    from vessels.attestation import CollateralFile, CollateralService

    if pccs is not None and collateral is not None:
        raise UsageError("collateral is from --pccs or from --collateral, not both.")
    if collateral is not None:
        return CollateralFile(collateral)
    return CollateralService() if pccs is None else CollateralService(pccs)
