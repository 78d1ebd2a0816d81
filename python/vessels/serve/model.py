"""What a host knows of a model it serves: where its sealed file lies, and what that says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vessels.attestation import model_digest
from vessels.errors import EnclaveError
from vessels.header import Header
from vessels.schedule.model import Machine, ModelSpec, Shape
from vessels.seal import read_header
from vessels.sealed_messages import request_size, response_size
from vessels.serve.backends import Backend
from vessels.serve.config import ModelSettings
from vessels.serve.limits import Limits
from vessels.serve.shapes import first_guess


@dataclass(frozen=True)
class Build:
    """A sealed build: ``largest_request`` is the most bytes that a sealed request to it has,
    ``response_size`` what every sealed prediction of it has."""

    digest: bytes
    largest_request: int
    response_size: int
    header: Header

    @classmethod
    def read(cls, path: Path) -> Build:
        """What the file at ``path`` says now. Raises :class:`SealedError`."""
        header = read_header(path)
        sizes = request_size(header.inputs), response_size(header.outputs)
        return cls(model_digest(path), *sizes, header)


class ServedModel:
    """A sealed model by the name that clients use.

    ``build`` is the one that was read last: the file may be replaced while environments run, and
    each has the build that was there when it started. Raises :class:`SealedError` when the file is
    no sealed model. With a ``shape`` its environments have no other.
    """

    def __init__(
        self,
        settings: ModelSettings,
        *,
        backend: Backend,
        limits: Limits,
        machine: Machine,
        shape: Shape | None = None,
    ) -> None:
        self.name = settings.name
        self.path = settings.path
        self._settings = settings
        self._backend = backend
        self._machine = machine
        self.build = Build.read(self.path)
        shapes = self._shapes(self.build) if shape is None else (shape,)
        self.spec = ModelSpec(
            name=self.name,
            shapes=shapes,
            run_time=first_guess(shapes),
            weight=settings.weight,
            queue_count=settings.queue or limits.waiting_count,
            deadline=settings.deadline,
        )

    def read(self, shape: Shape) -> Build:
        """The build that the file holds now, for an environment of ``shape``.

        Raises :class:`EnclaveError` when that one needs more memory than is accounted for.
        """
        build = Build.read(self.path)
        wanted = (shape.rung, shape.slots, shape.threads)
        for found in self._shapes(build):
            if (found.rung, found.slots, found.threads) == wanted and found.size <= shape.size:
                self.build = build
                return build
        raise EnclaveError(
            f"{self.path} was replaced by a build that does not run in the {shape.size} bytes of "
            "the one before; start the server anew to serve it"
        )

    def _shapes(self, build: Build) -> tuple[Shape, ...]:
        return self._backend.shapes(self.path, build.header, self._settings, self._machine)
