"""Attestation: what an enclave proves about itself, and how that is checked.

:mod:`~vessels.attestation.evidence` is what an enclave sends,
:mod:`~vessels.attestation.policy` what a person accepts,
:mod:`~vessels.attestation.verify` the check of the one against the other. The specification is
``docs/attestation.md``.
"""

from __future__ import annotations

from vessels.attestation.collateral import (
    Collateral,
    CollateralFile,
    CollateralService,
    CollateralSource,
)
from vessels.attestation.evidence import Claims, Evidence, Kind, model_digest, new_nonce
from vessels.attestation.policy import Policy
from vessels.attestation.roots import INTEL, Root
from vessels.attestation.verify import (
    AuthenticEvidence,
    SgxMeasurements,
    TdxMeasurements,
    Tee,
    VerifiedEvidence,
    VerifiedQuote,
    Verifier,
    authenticate,
    check_quote,
    verify_quote,
)

__all__ = [
    "INTEL",
    "AuthenticEvidence",
    "Claims",
    "Collateral",
    "CollateralFile",
    "CollateralService",
    "CollateralSource",
    "Evidence",
    "Kind",
    "Policy",
    "Root",
    "SgxMeasurements",
    "TdxMeasurements",
    "Tee",
    "VerifiedEvidence",
    "VerifiedQuote",
    "Verifier",
    "authenticate",
    "check_quote",
    "model_digest",
    "new_nonce",
    "verify_quote",
]
