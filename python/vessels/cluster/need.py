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

from vessels.schedule.model import Machine, Shape
from vessels.seal import read_header
from vessels.serve.shapes import manifest_shape, plain_shapes

RESOURCE = "epc_mib"
MIB = 1 << 20


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


def need_of(model: Path, *, threads: int | None = None, manifest: Path | None = None) -> Need:
    """What an environment of the sealed model at ``model`` takes; its key is not needed.

    It has one slot, at the rung that the model was built for.
    With a ``manifest``, the folder of one, it is an enclave under Gramine. Raises
    :class:`~vessels.errors.SealedError` when the file is no sealed model, and
    :class:`~vessels.errors.EnclaveError` where the folder has no signed manifest.
    """
    header = read_header(model)
    if manifest is not None:
        return Need(manifest_shape(manifest, header))
    count = min(header.thread_count, threads or header.thread_count)
    return Need(plain_shapes(header, Machine(count), threads=count)[-1])


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
