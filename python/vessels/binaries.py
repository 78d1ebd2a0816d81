"""Where the package's programs are: installed with it, or where a variable says."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

from vessels.errors import EmulatorError, EnclaveError, VesselsError

_SUFFIX = sysconfig.get_config_var("EXE") or ""


def find_enclave_binary() -> Path:
    """The ``vessels-enclave`` binary: ``$VESSELS_ENCLAVE``, or the one installed with the package.

    Raises :class:`EnclaveError` when there is none.
    """
    if chosen := _chosen("VESSELS_ENCLAVE", EnclaveError):
        return chosen
    name = f"vessels-enclave{_SUFFIX}"
    user_scheme = sysconfig.get_preferred_scheme("user")
    folders = [
        Path(sysconfig.get_path("scripts")),
        Path(sys.prefix) / "bin",
        Path(sysconfig.get_path("scripts", scheme=user_scheme)),
        # `pip install --target`
        Path(__file__).parent.parent / "bin",
    ]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    looked = ", ".join(dict.fromkeys(str(f) for f in folders))
    raise EnclaveError(
        f"{name} was not found in {looked}. Install the package with pip, "
        "or build the binary with `make build` and name it in VESSELS_ENCLAVE."
    )


def find_emulator_binary() -> Path:
    """The ``vessels-epc`` binary: ``$VESSELS_EPC``, or the one beside the enclave's.

    Raises :class:`EmulatorError` when there is none.
    """
    if chosen := _chosen("VESSELS_EPC", EmulatorError):
        return chosen
    path = find_enclave_binary().with_name(f"vessels-epc{_SUFFIX}")
    if not path.is_file():
        raise EmulatorError(
            f"{path} was not found. Install the package with pip, or build the emulator with "
            "`make build` and name it in VESSELS_EPC."
        )
    return path


def _chosen(variable: str, error: type[VesselsError]) -> Path | None:
    """The file that an environment variable names, if it is set."""
    chosen = os.environ.get(variable)
    if not chosen:
        return None
    path = Path(chosen)
    if not path.is_file():
        raise error(
            f"{variable} names {path}, which is no file. "
            "Build it with `make build`, or unset the variable."
        )
    return path
