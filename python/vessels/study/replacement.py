"""The replacement policy of the EPC emulator, for one tenant that touches pages one by one.

It counts exactly what ``vessels-epc`` counts, without a page being moved. The policy:

* A page is untouched, *mapped*, *unmapped* (in the EPC, but a touch is seen: a soft fault) or
  *evicted*. ``mapped + unmapped <= capacity`` at all times.
* Mapped pages form a queue in order of their last mapping, unmapped ones a queue in order of
  their unmapping. Touching a mapped page changes nothing: nobody sees it.
* A touch of an unmapped page moves it to the tail of the mapped queue.
* A touch of an untouched or evicted page (``first`` or ``fetched``) evicts, if the EPC is full,
  up to :data:`BATCH` pages from the head of the unmapped queue, and maps the page at the tail.
* Under pressure, which is with fewer than :data:`BATCH` pages free, the unmapped queue is refilled
  after a soft fault and after a reclaim, and before a reclaim if it is empty: pages from the head
  of the mapped queue are unmapped, in batches of up to :data:`BATCH`, until it holds
  :func:`unmapped_limit` pages.

That is Linux's SGX reclaimer (``arch/x86/kernel/cpu/sgx/main.c``: a list in order of loading,
``SGX_NR_TO_SCAN`` = 16 at a time, a second chance for pages touched since), with the hardware's
accessed bit replaced by unmapping ahead, as VMS did it: Turner and Levy, "Segmented FIFO page
replacement", SIGMETRICS 1981.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

BATCH = 16
"""Most pages that are evicted, or unmapped, in one go."""

LEAST_CAPACITY = 64
"""The emulator raises smaller capacities to this many pages."""

_WARM_UP = 2
"""Predictions before any is counted."""

_MOST_COUNTED = 6
"""Predictions counted where none repeats the one before."""


def unmapped_limit(capacity: int) -> int:
    """Most unmapped pages of an EPC of ``capacity`` pages."""
    return max(BATCH, capacity // 8)


def steady_faults(pages: Array, capacity: int) -> tuple[int, int]:
    """The pages fetched and the soft faults of a steady prediction that touches ``pages``.

    That is one that faults as the one before did. In an EPC that is almost large enough the queues
    may never come to rest: then it is the mean of several, and single ones scatter about it.
    """
    epc = Replacement(capacity)
    touches = pages.tolist()
    counted: list[tuple[int, int]] = []
    for number in range(_WARM_UP + _MOST_COUNTED):
        before = epc.fetched, epc.soft
        epc.run(touches)
        found = epc.fetched - before[0], epc.soft - before[1]
        if len(epc.mapped) == epc.first:
            # All pages that there are, so that nothing is left to fault.
            return 0, 0
        if number >= _WARM_UP:
            if counted and found == counted[-1]:
                return found
            counted.append(found)
    fetched, soft = (round(sum(c) / len(c)) for c in zip(*counted, strict=True))
    return fetched, soft


class Replacement:
    """An EPC of ``capacity`` pages with one tenant, and what it has counted since it was made."""

    def __init__(self, capacity: int) -> None:
        self.capacity = max(capacity, LEAST_CAPACITY)
        self.limit = unmapped_limit(self.capacity)
        self.first = 0
        self.fetched = 0
        self.soft = 0
        self.evicted = 0
        self.mapped: OrderedDict[int, None] = OrderedDict()
        self.unmapped: OrderedDict[int, None] = OrderedDict()
        self._outside: set[int] = set()

    def touch(self, page: int) -> None:
        """Touch one page."""
        if page not in self.mapped:
            self._fault(page)

    def run(self, pages: list[int]) -> None:
        """Touch ``pages`` in order."""
        mapped, fault = self.mapped, self._fault
        for page in pages:
            if page not in mapped:
                fault(page)

    def _fault(self, page: int) -> None:
        if page in self.unmapped:
            self.soft += 1
            del self.unmapped[page]
            self.mapped[page] = None
            self._refill()
            return
        if page in self._outside:
            self.fetched += 1
            self._outside.remove(page)
        else:
            self.first += 1
        full = len(self.mapped) + len(self.unmapped) == self.capacity
        if full:
            self._reclaim()
        self.mapped[page] = None
        if full:
            self._refill()

    def _reclaim(self) -> None:
        if not self.unmapped:
            self._refill()
        for _ in range(min(BATCH, len(self.unmapped))):
            page, _ = self.unmapped.popitem(last=False)
            self._outside.add(page)
            self.evicted += 1

    def _refill(self) -> None:
        if len(self.mapped) + len(self.unmapped) <= self.capacity - BATCH:
            return
        for _ in range(min(self.limit - len(self.unmapped), len(self.mapped))):
            page, _ = self.mapped.popitem(last=False)
            self.unmapped[page] = None
