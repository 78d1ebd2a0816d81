"""Which environments a sealed model may be given: how large, how many slots, how many threads."""

from __future__ import annotations

import re
import tomllib
from itertools import pairwise
from pathlib import Path

from vessels.errors import EnclaveError
from vessels.gramine import epc_size
from vessels.gramine_folder import SIGNED_MANIFEST
from vessels.header import Header
from vessels.ladder import Ladder
from vessels.schedule.model import Machine, ModelSpec, RunTime, Shape

SLOT_COUNTS = (1, 2, 4, 8)
"""How many requests one run may answer; what a batch saves is had by then."""

DECRYPTION_RATE = 6.6e9
"""Bytes of parameters that one core decrypts in a second, about: a first guess for scheduling."""


def plain_shapes(
    header: Header, machine: Machine, *, threads: int | None = None, slots: int | None = None
) -> tuple[Shape, ...]:
    """The shapes of a plain process, by size: ``threads`` and ``slots`` are the most it may have.

    A run takes one thread or all it may have, which are no more than the machine has cores. On a
    machine whose memory nobody has given a figure, an environment takes no more than it must: the
    rung it was built for, and one slot where no more are asked for.
    """
    ladder = Ladder.of(header)
    bounded = machine.epc_size is not None
    rungs = range(len(ladder.rungs)) if bounded else (ladder.default,)
    widest = min(header.thread_count, machine.core_count, threads or machine.core_count)
    most = slots or (SLOT_COUNTS[-1] if bounded else 1)
    counts = sorted({c for c in SLOT_COUNTS if c < most} | {most})
    shapes = [
        Shape(rung, count, width, ladder.environment_size(rung, count, width))
        for rung in rungs
        for count in counts
        for width in sorted({1, widest})
    ]
    return tuple(sorted(shapes, key=lambda s: s.size))


def first_guess(shapes: tuple[Shape, ...]) -> RunTime:
    """What runs in the first shape may take, as far as the sizes of ``shapes`` tell.

    What higher rungs keep resident is what the lowest one streams, once for a whole batch.
    """
    first = shapes[0]
    alike = [s.size for s in shapes if (s.slots, s.threads) == (first.slots, first.threads)]
    return RunTime((max(alike) - min(alike)) / DECRYPTION_RATE, ModelSpec.run_time.each)


def manifest_shape(folder: Path, header: Header) -> Shape:
    """The one shape of an enclave under Gramine: what the signed manifest in ``folder`` says.

    An enclave's memory is all added at its start, so its size is the manifest's, and what the
    kernel adds. Raises :class:`EnclaveError` where the manifest is none that ``vessels gramine``
    wrote.
    """
    path = folder / SIGNED_MANIFEST
    try:
        manifest = tomllib.loads(path.read_text(encoding="utf-8"))
        size = _bytes(manifest["sgx"]["enclave_size"])
        arguments = [str(a) for a in manifest["loader"]["argv"]]
        options = dict(pairwise(arguments))
        threads = int(options.get("--threads", header.thread_count))
        slots, rung = int(options.get("--slots", 1)), int(options.get("--rung", header.rung))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise EnclaveError(f"{path} is no manifest that `vessels gramine` wrote.") from error
    return Shape(rung, slots, threads, epc_size(size))


def _bytes(text: str) -> int:
    """A size as Gramine writes it."""
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    if match is None:
        raise ValueError(text)
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]
