"""What a cluster is asked to serve: models, what each pod of theirs takes, and how they are run."""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

import vessels
from vessels.attestation import model_digest
from vessels.errors import UsageError
from vessels.gramine import EnclavePlan, epc_size, plan_enclave
from vessels.ladder import MIB
from vessels.seal import read_header
from vessels.sealed_messages import request_size
from vessels.serve.limits import Limits

SERVER_SIZE = 256 * MIB
"""Ordinary memory for the server and Gramine's part outside the enclave: an allowance. The server
alone holds 97 MiB at rest (measured, one small model)."""

SCRATCH_SIZE = 64 * MIB
_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Deployed:
    """A model as a cluster is to serve it; sizes in bytes.

    ``epc_size`` is the trusted memory of one pod, ``file_size`` the sealed model's,
    ``request_size`` the largest request's.
    """

    name: str
    digest: bytes
    plan: EnclavePlan
    file_size: int
    request_size: int

    @property
    def label(self) -> str:
        """The name of everything that belongs to it."""
        return f"vessels-{self.name.lower().replace('_', '-').replace('.', '-')}"

    @property
    def epc_size(self) -> int:
        return epc_size(self.plan.enclave_size)

    @property
    def shared_size(self) -> int:
        """Of shared memory: the copy that the enclave reads, and the next one as it is written."""
        return 2 * self.file_size + MIB

    @property
    def memory_size(self) -> int:
        """Ordinary memory that it may take, with the largest request on every connection."""
        limits = Limits()
        requests = (limits.connection_count + limits.surplus_count) * self.request_size
        return SERVER_SIZE + self.shared_size + SCRATCH_SIZE + requests


@dataclass(frozen=True)
class Cluster:
    """What the manifests say beside the models. ``claim`` is the volume that holds the models'
    files, where they are not in the ``image``."""

    keys: str
    image: str = f"vessels:{vessels.__version__}"
    replicas: int = 1
    claim: str | None = None

    def __post_init__(self) -> None:
        url = urllib.parse.urlsplit(self.keys)
        try:
            sound = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            sound = False
        if not sound:
            raise UsageError(f"--keys {self.keys!r} is no URL of a key service.")
        if not self.image or self.image != self.image.strip() or " " in self.image:
            raise UsageError(f"--image {self.image!r} is no reference of an image.")
        if self.replicas < 0:
            raise UsageError(f"--replicas is {self.replicas}; it must be at least 0.")
        if self.claim is not None and not _LABEL.fullmatch(self.claim):
            raise UsageError(f"--claim {self.claim!r} is no name of a claim.")

    @property
    def keys_port(self) -> int:
        url = urllib.parse.urlsplit(self.keys)
        return url.port or (443 if url.scheme == "https" else 80)


def deployed(
    model: Path,
    *,
    name: str | None = None,
    rung: int | None = None,
    slots: int = 1,
    threads: int | None = None,
) -> Deployed:
    """The sealed ``model`` by what its public header says; its key is not needed.

    ``rung``, ``slots`` and ``threads`` are its environment's, by default the model's own, one, and
    all it was built for. Raises as :func:`~vessels.gramine.plan_enclave`, and
    :class:`~vessels.errors.UsageError` for a name that Kubernetes does not take.
    """
    plan = plan_enclave(model, name=name, rung=rung, slots=slots, threads=threads)
    found = Deployed(
        name=plan.name,
        digest=model_digest(model),
        plan=plan,
        file_size=model.stat().st_size,
        request_size=request_size(read_header(model).inputs),
    )
    if not _LABEL.fullmatch(found.label):
        raise UsageError(
            f"{plan.name!r} is no name for Kubernetes, which takes 55 letters, digits, '-', and "
            f"a letter or digit at the end; give it another: NAME={model}."
        )
    return found
