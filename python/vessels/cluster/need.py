"""What an environment takes of a node, and what nodes have.

Ray knows trusted memory as a custom resource, :data:`RESOURCE`, counted in whole MiB: its custom
resources above 1 are whole numbers. An environment's need is rounded up, a node's capacity down,
so the sum of what runs on a node never exceeds its EPC.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vessels.ladder import Ladder
from vessels.schedule.allotment import allot
from vessels.schedule.fitting import fitting
from vessels.schedule.model import Machine, ModelSpec, Shape
from vessels.seal import read_header
from vessels.serve.shapes import first_guess, manifest_shape, plain_shapes

RESOURCE = "epc_mib"
MIB = 1 << 20

_SPARE_FACTOR = 2
"""An environment takes up to so many times what it must, if nobody says how much it may."""


@dataclass(frozen=True)
class Need:
    """What one environment of ``shape`` takes: trusted memory, and a core for each thread."""

    shape: Shape

    @property
    def size(self) -> int:
        """Bytes of trusted memory."""
        return self.shape.size

    @property
    def thread_count(self) -> int:
        """Cores."""
        return self.shape.threads

    @property
    def epc_mib(self) -> int:
        """Of the resource :data:`RESOURCE`."""
        return -(-self.size // MIB)

    @property
    def machine(self) -> Machine:
        """What of a node is kept for it."""
        return Machine(self.thread_count, self.epc_mib * MIB)


def need_of(
    model: Path,
    *,
    threads: int | None = None,
    slots: int | None = None,
    memory: int | None = None,
    manifest: Path | None = None,
) -> Need:
    """What an environment of the sealed model at ``model`` takes; its key is not needed.

    It has the best shape within ``memory`` bytes, as a scheduler sees it that has nothing else to
    serve; ``threads`` and ``slots`` are the most that it has. If only ``slots`` are given it has so
    many, at the rung that the model was built for; if neither is, ``memory`` is twice what it takes
    with one slot at that rung. With a ``manifest``, the folder of one, it is an enclave under
    Gramine, whose shape the manifest says.

    Raises :class:`~vessels.errors.SealedError` when the file is no sealed model,
    :class:`~vessels.errors.EnclaveError` where the folder has no signed manifest, and
    :class:`~vessels.errors.UsageError` where no environment is so small.
    """
    header = read_header(model)
    if manifest is not None:
        return Need(manifest_shape(manifest, header))
    count = min(header.thread_count, threads or header.thread_count)
    if memory is None:
        if slots is not None:
            return Need(plain_shapes(header, Machine(count), threads=count, slots=slots)[-1])
        memory = _SPARE_FACTOR * Ladder.of(header).environment_size(None, 1, count)
    machine = Machine(count, memory)
    shapes = plain_shapes(header, machine, threads=count, slots=slots)
    spec = ModelSpec(model.stem, shapes, run_time=first_guess(shapes))
    [alone] = fitting(machine, [spec])
    alone.widen(count)
    return Need(allot([alone], memory, 0.0)[alone])


def resources_argument(epc_size: int) -> str:
    """The value of ``ray start --resources`` on a node with ``epc_size`` bytes of EPC."""
    return json.dumps({RESOURCE: epc_size // MIB})


def largest_node(nodes: Iterable[Mapping[str, Any]]) -> int:
    """The most :data:`RESOURCE` that a node of ``ray.nodes()`` has, whatever it runs now."""
    return max(
        (int(n["Resources"].get(RESOURCE, 0)) for n in nodes if n["Alive"]),
        default=0,
    )


def shortage(name: str, need: Need, most: int) -> str | None:
    """Why an environment cannot run on a cluster whose largest node has ``most``; else nothing."""
    if need.epc_mib <= most:
        return None
    has = f"the largest has {most}" if most else "none has any"
    return (
        f"model {name}: an environment takes {RESOURCE}={need.epc_mib} of a node, and {has}. "
        f"It waits until one joins: ray start --resources='{{\"{RESOURCE}\": {need.epc_mib}}}'."
    )
