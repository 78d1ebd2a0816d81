"""The public interface of a sealed model: names, dtypes and shapes of inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from vessels.header import HeaderPort


@dataclass(frozen=True)
class Port:
    """A named input or output in NumPy's terms."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, listed: Iterable[HeaderPort]) -> tuple[Self, ...]:
        """The ports that a sealed model's header lists, in its order."""
        return tuple(cls(p.name, p.dtype.numpy, p.shape) for p in listed)

    def describe(self) -> str:
        """As in ``float32 1x3x224x224``."""
        return f"{self.dtype} {'x'.join(map(str, self.shape)) or 'scalar'}"

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"name": self.name, "dtype": self.dtype.name, "shape": list(self.shape)}
