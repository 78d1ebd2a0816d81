"""Every error a user can cause, with the exit code of the command line.

A message says what failed, where, and what to do about it. The command line
prints it on standard error without a traceback and exits with ``exit_code``.
"""

from __future__ import annotations

from typing import ClassVar


class VesselsError(Exception):
    """Base of all errors that are the user's to solve."""

    exit_code: ClassVar[int] = 1


class UsageError(VesselsError):
    """An argument makes no sense: a size, a shape, a thread count, a file name."""

    exit_code = 2


class ModelError(VesselsError):
    """The model cannot be read: not ONNX, truncated, dynamic shapes left open."""

    exit_code = 3


class UnsupportedError(ModelError):
    """The model uses operators, attributes or types that are not supported; all are listed."""


class BudgetError(VesselsError):
    """The memory budget is below the smallest possible plan, which the message names."""

    exit_code = 4


class PlanError(VesselsError):
    """A plan breaks a rule of the instruction set: a defect of Vessels, please report it."""

    exit_code = 70


class SealedError(VesselsError):
    """A sealed model was refused: altered, truncated, of another version, or invalid."""

    exit_code = 5


class KeyFileError(VesselsError):
    """A key file is missing, malformed, or the wrong one for this model."""

    exit_code = 5


class RequestError(VesselsError):
    """An input is missing, misnamed, or of the wrong dtype or shape; or the run refused it."""

    exit_code = 6


class EnclaveError(VesselsError):
    """The enclave process could not be started, broke the protocol or died."""

    exit_code = 7


class EmulatorError(VesselsError):
    """The EPC emulator could not be started, refused a command or a page, or died."""

    exit_code = 7


class OutputError(VesselsError):
    """A file could not be written; nothing was left behind under its name."""

    exit_code = 8


class PolicyError(UsageError):
    """An attestation policy cannot be read: an unknown key, a value of the wrong form, a gap."""


class AttestationError(VesselsError):
    """Evidence was refused; the message names each check that failed and what it saw."""

    exit_code = 9


class KeyReleaseError(VesselsError):
    """A key service gave no key: it is out of reach, or the model is unknown to it or revoked.

    ``code`` is one of ``docs/key-release.md``; ``passing`` says that a later try may succeed.
    """

    exit_code = 10

    def __init__(self, message: str, code: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.passing = passing


class ServerError(VesselsError):
    """A server cannot be reached, refused a request, or broke the protocol.

    ``status`` is the HTTP status and ``code`` the server's own code (``docs/serving.md``), where
    there was an answer, and ``retry_after`` the seconds that it proposes to wait before the next
    attempt, if it does. None of it is authentic: only what an enclave sealed is.
    """

    exit_code = 11

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after


class DeadlineError(ServerError):
    """The answer did not come before its deadline."""
