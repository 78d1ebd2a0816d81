"""Rungs: which prefixes of the optional chunks the ladder of a plan has.

A rung costs a model a few bytes of its header; what bounds their number is that a choice between
two that are nearly equal is none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vessels.stream import KIB

PARTS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
"""Of the optional parameters, what is resident at a rung, as nearly as chunks allow."""

LEAST_PART = 1 / 16
"""Rungs between the ends differ by at least this part of the optional parameters."""

LEAST_SIZE = 64 * KIB
"""And by at least so many bytes."""


def ladder_counts(kept_sizes: NDArray[np.int64], default: int) -> list[int]:
    """How many optional chunks are resident at each rung, ascending; ``default`` is among them.

    ``kept_sizes[k]`` are the bytes of the first ``k``. Both ends are always there.
    """
    total = int(kept_sizes[-1])
    gap = max(total * LEAST_PART, LEAST_SIZE)
    counts = {0, len(kept_sizes) - 1, default}
    for part in PARTS[1:-1]:
        count = int(np.abs(kept_sizes - total * part).argmin())
        if all(abs(int(kept_sizes[count] - kept_sizes[other])) >= gap for other in counts):
            counts.add(count)
    return sorted(counts)
