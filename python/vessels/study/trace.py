"""The page trace of a program: which pages of the pool one prediction touches, in order.

It is exact for the addresses, which never depend on the input (but for ``gather``), and for the
order of everything that is more than a few tiles apart. What it takes for granted:

* One worker thread. It takes all shared work in order, and nothing is split for others.
* The instruction set is AVX-512 (:data:`~vessels.study.touches_images.TILE_PIXELS`); with another
  one register tiles have fewer pixels, and the same pages are touched more often in between.
* Within a *step* of a kernel, which is one register tile or less than a few dozen pages of a larger
  loop, operands are touched one after the other: first what is read, then what is written. Really
  they alternate; a memory too small for one step's pages misses more often than told here.
* Ranges with less than a page between them, such as the taps of a window's row, are one range.
* A streamed chunk is swept twice before it is used: copied into staging, then decrypted there.
* The request comes before the first instruction, the response after the last
  (:mod:`~vessels.study.touches_messages`).
* A ``gather`` by indices that are no constants counts through its axis.
* Nothing else of the enclave's memory pages: the stack, the code, the table of zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vessels.program import (
    Conv,
    Copy,
    Depthwise,
    Gather,
    Instruction,
    Load,
    Map,
    MatMul,
    Pool,
    Program,
    Reduce,
    Winograd,
)
from vessels.study import touches_elements, touches_images, touches_messages
from vessels.study.touches import Touches
from vessels.study.touches_winograd import winograd

Array = np.ndarray[Any, Any]

REQUEST = -1
"""The instruction that touches of the arriving request count as."""


@dataclass(frozen=True)
class Trace:
    """One prediction's touches in order; a touch is a page's use between uses of others.

    ``pages`` (int32) are numbered from the start of the pool, ``instructions`` (int32) from 0, with
    :data:`REQUEST` before and ``instruction_count`` for the response after; ``kinds`` (uint8) are
    indices of :data:`vessels.study.result.KINDS`.
    """

    pages: Array
    instructions: Array
    kinds: Array
    instruction_count: int

    def __len__(self) -> int:
        return len(self.pages)


_KERNELS: dict[type[Instruction], Callable[[Touches, int, Any], None]] = {
    Load: touches_elements.load,
    Conv: touches_images.conv,
    Winograd: winograd,
    Depthwise: touches_images.depthwise,
    MatMul: touches_elements.matmul,
    Pool: touches_images.pool,
    Map: touches_elements.map_,
    Reduce: touches_elements.reduce,
    Copy: touches_elements.copy,
    Gather: touches_elements.gather,
}


def page_trace(program: Program) -> Trace:
    """The touches of one prediction by one worker thread."""
    touches = Touches(program)
    count = len(program.instructions)
    touches_messages.request(touches, REQUEST)
    for index, instruction in enumerate(program.instructions):
        _KERNELS[type(instruction)](touches, index, instruction)
    touches_messages.response(touches, count)
    return Trace(*touches.finished(), count)
