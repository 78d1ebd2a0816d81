"""What a cluster is to serve, as ``serve run`` and a Serve configuration file say it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from vessels.cli.common import parse_size
from vessels.ladder import MAX_SLOTS
from vessels.predict_headers import MAX_DEADLINE_MS
from vessels.serve.config import NAME


def _size(given: Any) -> Any:
    """``93MiB`` as bytes."""
    if not isinstance(given, str):
        return given
    try:
        return parse_size(given)
    except typer.BadParameter as error:
        raise ValueError(error.message) from error


class ModelConfig(BaseModel):
    """One model. Its sealed file must lie at ``path`` on every node that is to run it.

    ``threads``, ``slots`` and ``memory`` are the most that an environment of it has.
    ``deadline_ms`` is what a request has that states none. ``replicas`` are the fewest and the
    most environments that it gets; with 0 as the fewest it is started when somebody asks for it.
    One more is started when each has more than ``busy_count`` requests at a time: as many as two
    of its runs answer, but four at least, if that is not given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    path: Path
    threads: Annotated[int, Field(ge=1)] | None = None
    slots: Annotated[int, Field(ge=1, le=MAX_SLOTS)] | None = None
    memory: Annotated[int, Field(ge=1), BeforeValidator(_size)] | None = None
    deadline_ms: Annotated[int, Field(ge=1, le=MAX_DEADLINE_MS)] | None = None
    replicas: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]] = (1, 1)
    busy_count: Annotated[float, Field(gt=0)] | None = None
    queue: Annotated[int, Field(ge=1)] = 128
    """Requests that may wait for one environment."""
    manifest: Path | None = None
    """For Gramine: the signed folder of this model, on every node."""

    @model_validator(mode="after")
    def _ordered(self) -> ModelConfig:
        if self.replicas[0] > self.replicas[1]:
            raise ValueError("replicas are [fewest, most].")
        return self


class ClusterConfig(BaseModel):
    """All that a cluster serves.

    ``models`` may be text, too, as a command line has it: ``[NAME=]FILE`` separated by commas.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: Annotated[tuple[ModelConfig, ...], Field(min_length=1)]
    keys: str | None = None
    """URL of the model owner's key service."""
    insecure_keys: tuple[Path, ...] = ()
    """Key files on every node instead; its host can then read the models."""
    backend: Literal["simulation", "gramine", "native"] = "simulation"
    predict_seconds: Annotated[float, Field(gt=0)] = 120.0
    """An environment that takes longer over one run is ended."""
    grace_seconds: Annotated[float, Field(ge=0)] = 30.0
    """What requests under way have when their environment is to go."""
    start_seconds: Annotated[float, Field(gt=0)] = 60.0
    """How long a request waits for an environment while there is none."""
    scale_up_seconds: Annotated[float, Field(ge=0)] = 5.0
    """How long a model must have been busy before it gets a further environment."""
    scale_down_seconds: Annotated[float, Field(ge=0)] = 300.0
    """How long it must have been less busy before it loses one."""
    ingress_replicas: Annotated[int, Field(ge=1)] = 1
    ingress_on_head: bool = True
    """Whether they run on the head node, or on any."""

    @model_validator(mode="before")
    @classmethod
    def _read_text(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        found = dict(given)
        if isinstance(texts := found.get("models"), str):
            found["models"] = [_named(text) for text in texts.split(",")]
        if isinstance(paths := found.get("insecure_keys"), str):
            found["insecure_keys"] = paths.split(",")
        return found

    @model_validator(mode="after")
    def _sound(self) -> ClusterConfig:
        if (self.keys is None) == (not self.insecure_keys):
            raise ValueError("keys come from a service (keys) or from insecure_keys; give one.")
        names = [m.name for m in self.models]
        if len(set(names)) != len(names):
            raise ValueError("two models have the same name.")
        for model in self.models:
            if (model.manifest is not None) != (self.backend == "gramine"):
                raise ValueError("backend gramine needs a manifest for each model, others none.")
            if self.backend == "gramine" and (model.threads or model.slots or model.memory):
                raise ValueError("under Gramine threads, slots and memory are the manifest's.")
        return self


def _named(text: str) -> dict[str, str]:
    name, equals, path = text.partition("=")
    return {"name": name, "path": path} if equals else {"name": Path(text).stem, "path": text}
