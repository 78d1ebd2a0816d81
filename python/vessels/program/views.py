"""Where operands lie: element types, buffers, and strided views of them."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

MAX_RANK = 8
"""Most dimensions a view may have."""

PANEL_WIDTH = 32
"""Output channels in a full parameter panel; the last panel of a layer is 16
wide when 16 channels or fewer remain."""

ALIGNMENT = 64
"""Every buffer, region and chunk starts at and is padded to this many bytes."""

MAX_PADDED_CHANNELS = 16384
"""Most input channels of a convolution that reads padding: the enclave holds
one shared row of zeros of this many float32."""


WINOGRAD_GAP = 32
"""Float32 elements between what belongs to one of a transformed tile's 36 points
and to the next, so that they do not meet in one set of the L1 cache."""


class DType(enum.IntEnum):
    """Element types the enclave computes with."""

    F32 = 0
    I32 = 1
    I64 = 2
    U8 = 3
    BOOL = 4
    I8 = 5

    @property
    def size(self) -> int:
        """Bytes of one element."""
        return (4, 4, 8, 1, 1, 1)[self]

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype with the same layout."""
        return np.dtype((np.float32, np.int32, np.int64, np.uint8, np.bool_, np.int8)[self])

    @classmethod
    def of(cls, dtype: np.dtype[Any] | type) -> DType:
        """The element type of a NumPy dtype; ``KeyError`` when there is none."""
        return {d.numpy: d for d in cls}[np.dtype(dtype)]


BufferKind = Literal["input", "output", "arena", "constant"]


@dataclass(frozen=True, eq=False)
class Buffer:
    """A run of bytes that gets one place in the pool; compared by identity.

    ``input`` and ``output`` buffers live in the I/O region for the whole run;
    ``arena`` buffers are reused as their liveness allows; ``constant`` buffers
    hold ``data`` (C order) and are loaded from parameter chunks before their
    first reader, or stay resident.
    """

    name: str
    size: int
    kind: BufferKind = "arena"
    data: np.ndarray[Any, Any] | None = None


@dataclass(frozen=True)
class View:
    """A strided n-d window on a buffer: ``offset`` in bytes, strides in elements."""

    buffer: Buffer
    offset: int
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def dense(cls, buffer: Buffer, dtype: DType, shape: tuple[int, ...], offset: int = 0) -> View:
        """A C-contiguous view."""
        return cls(buffer, offset, dtype, shape, dense_strides(shape))

    @property
    def count(self) -> int:
        """Elements."""
        n = 1
        for d in self.shape:
            n *= d
        return n

    @property
    def is_dense(self) -> bool:
        """C-contiguous, ignoring the strides of dimensions of one element."""
        expected = dense_strides(self.shape)
        return all(
            d == 1 or s == e for d, s, e in zip(self.shape, self.strides, expected, strict=True)
        )

    def span(self) -> tuple[int, int]:
        """Half-open byte range inside the buffer that the view touches."""
        low = sum(min(0, (d - 1) * s) for d, s in zip(self.shape, self.strides, strict=True))
        high = sum(max(0, (d - 1) * s) for d, s in zip(self.shape, self.strides, strict=True))
        return self.offset + low * self.dtype.size, self.offset + (high + 1) * self.dtype.size


def dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """C-order strides in elements."""
    strides: list[int] = []
    step = 1
    for d in reversed(shape):
        strides.append(step)
        step *= d
    return tuple(reversed(strides))


def align(size: int, to: int = ALIGNMENT) -> int:
    """``size`` rounded up to a multiple of ``to``."""
    return -(-size // to) * to


def panel_widths(channel_count: int) -> list[int]:
    """Widths of the parameter panels that cover ``channel_count`` output channels."""
    full, rest = divmod(channel_count, PANEL_WIDTH)
    return [PANEL_WIDTH] * full + ([] if rest == 0 else [16] if rest <= 16 else [PANEL_WIDTH])
