"""The account of a machine's trusted memory: who has how much of it, to the byte.

An environment is entered before it is started and struck off after it has ended. The sum never
exceeds the capacity: an entry that would exceed it is an error of the scheduler, and raised.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import MappingProxyType


class EpcAccount:
    """What each environment takes of ``capacity`` bytes; without capacity, of any number."""

    def __init__(self, capacity: int | None) -> None:
        self.capacity = capacity
        self._sizes: dict[int, int] = {}
        self._used = 0
        self._excess = 0  # By which corrections have brought the sum above the capacity.

    @property
    def used(self) -> int:
        """The bytes that all environments take together."""
        return self._used

    @property
    def free(self) -> int:
        """The bytes that may still be taken: never negative; endless without capacity."""
        return sys.maxsize if self.capacity is None else max(0, self.capacity - self._used)

    @property
    def by_environment(self) -> Mapping[int, int]:
        """The size of each environment by its number, in the order of their entries."""
        return MappingProxyType(self._sizes)

    def enter(self, environment: int, size: int) -> None:
        """``environment`` is about to be started and takes ``size`` bytes until it has ended."""
        if environment in self._sizes or not 0 <= size <= self.free:
            raise RuntimeError(
                f"environment {environment} of {size:,} bytes does not fit the account: "
                f"{self._used:,} of {self.capacity} bytes are taken"
            )
        self._sizes[environment] = size
        self._used += size
        self._check()

    def strike(self, environment: int) -> None:
        """``environment`` has ended: its memory is free."""
        self._used -= self._sizes.pop(environment)
        self._excess = min(self._excess, self._above())
        self._check()

    def correct(self, environment: int, size: int) -> None:
        """``environment`` was found to take more than was entered.

        This is the one change that may exceed the capacity, since it is a fact and no decision.
        """
        self._used += size - self._sizes[environment]
        self._sizes[environment] = size
        self._excess = self._above()
        self._check()

    def _above(self) -> int:
        return 0 if self.capacity is None else max(0, self._used - self.capacity)

    def _check(self) -> None:
        if self._used != sum(self._sizes.values()) or self._above() > self._excess:
            raise RuntimeError(f"the account is wrong: {self._used:,} of {self.capacity} bytes")
