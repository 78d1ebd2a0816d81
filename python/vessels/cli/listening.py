"""What the commands that strangers connect to share: TLS, and the form of their log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vessels.errors import UsageError
from vessels.serve.logs import Style

Certificate = Annotated[
    Path | None,
    typer.Option("--tls-certificate", metavar="FILE.pem", help="Speak TLS: the certificate chain."),
]
PrivateKey = Annotated[
    Path | None,
    typer.Option("--tls-key", metavar="FILE.pem", help="Speak TLS: its private key."),
]


def check_tls(certificate: Path | None, key: Path | None) -> None:
    """Raises :class:`UsageError` for one without the other."""
    if (certificate is None) != (key is None):
        raise UsageError("--tls-certificate and --tls-key go together.")


def log_style(text: str) -> Style:
    """The form of log lines; raises :class:`UsageError`."""
    try:
        return Style(text)
    except ValueError:
        raise UsageError(f"--log is {text!r}; it must be json or text.") from None
