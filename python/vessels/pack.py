"""Pack: parameters in the layout that the kernels read, chunk by chunk.

:class:`vessels.program.Cut` specifies the layout. Everything here is a copy of a slice; nothing is
packed before it is asked for, so that a plan holds no second copy of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vessels.program import (
    ALIGNMENT,
    PANEL_WIDTH,
    Conv,
    Cut,
    Depthwise,
    Instruction,
    Parameters,
    Winograd,
    align,
    panel_widths,
)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Shape:
    """What cutting needs to know of parameters: ``depth`` rows of ``row_count`` times the width.

    A panel of width ``w`` whose depth is ``d`` long takes ``4 w (1 + d row_count)`` bytes.
    """

    depth: int
    row_count: int
    widths: tuple[int, ...]

    @classmethod
    def of(cls, instruction: Instruction) -> Shape:
        """The shape of an instruction's parameters."""
        assert isinstance(instruction, Conv | Winograd | Depthwise)
        assert instruction.parameters is not None
        weights = instruction.parameters.weights
        widths = tuple(panel_widths(weights.shape[-1]))
        if isinstance(instruction, Depthwise):
            return cls(weights.shape[0] * weights.shape[1], 1, widths)
        kernel_h, kernel_w, channels, _ = weights.shape
        if isinstance(instruction, Winograd):
            return cls(channels, 9, widths)
        return cls(kernel_h * kernel_w * channels, 1, widths)

    def chunk_sizes(self, panels_per_chunk: int, depth_per_chunk: int) -> list[int]:
        """Bytes of every chunk, in order."""
        sizes: list[int] = []
        for first in range(0, len(self.widths), panels_per_chunk):
            width = sum(self.widths[first : first + panels_per_chunk])
            for start in range(0, self.depth, depth_per_chunk):
                depth = min(depth_per_chunk, self.depth - start)
                sizes.append(4 * width * (1 + depth * self.row_count))
        return sizes


@dataclass(frozen=True, eq=False)
class LayerChunks:
    """The chunks of one convolution."""

    parameters: Parameters
    cut: Cut
    shape: Shape
    joined: bool
    """Whether the panels of a chunk are laid out as one (depthwise)."""

    @classmethod
    def of(cls, instruction: Conv | Winograd | Depthwise) -> LayerChunks:
        """The chunks of an instruction that has been cut."""
        assert instruction.parameters is not None and instruction.cut is not None
        joined = isinstance(instruction, Depthwise)
        return cls(instruction.parameters, instruction.cut, Shape.of(instruction), joined)

    @cached_property
    def _rows(self) -> Array:
        """``[depth, row_count, O]``."""
        weights = np.asarray(self.parameters.weights, np.float32)
        shape = self.shape
        rows = weights.reshape(-1, weights.shape[-1])
        if shape.row_count == 1:
            return rows[:, None, :]
        return rows.reshape(shape.row_count, shape.depth, -1).transpose(1, 0, 2)

    def chunk(self, index: int) -> Array:
        """Chunk ``index`` of the layer, float32, flat."""
        cut, shape = self.cut, self.shape
        pieces = -(-shape.depth // cut.depth_per_chunk)
        group, piece = divmod(index, pieces)
        start = piece * cut.depth_per_chunk
        stop = min(start + cut.depth_per_chunk, shape.depth)
        first = group * cut.panels_per_chunk
        widths = shape.widths[first : first + cut.panels_per_chunk]
        if self.joined:
            widths = (sum(widths),)
        row_size = 1 + (stop - start) * shape.row_count
        out = np.zeros(sum(widths) * row_size, np.float32)
        channel, at = first * PANEL_WIDTH, 0
        for width in widths:
            panel = out[at : at + width * row_size].reshape(row_size, width)
            rows = self._rows[start:stop, :, channel : channel + width]
            used = rows.shape[-1]
            if piece == 0:
                panel[0, :used] = self.parameters.bias[channel : channel + width]
            panel[1:].reshape(stop - start, shape.row_count, width)[:, :, :used] = rows
            channel += width
            at += width * row_size
        return out

    def __iter__(self) -> Iterator[Array]:
        return (self.chunk(i) for i in range(self.cut.chunk_count))


@dataclass(frozen=True, eq=False)
class ConstantChunks:
    """The chunks of a constant: its bytes in C order, the last chunk padded with zeros."""

    data: Array
    chunk_size: int
    chunk_count: int

    @classmethod
    def of(cls, data: Array, largest_chunk_size: int) -> ConstantChunks:
        """Cut evenly into pieces of at most ``largest_chunk_size`` bytes."""
        size = align(max(data.nbytes, 1))
        count = -(-size // largest_chunk_size)
        chunk_size = align(-(-size // count))
        return cls(data, chunk_size, -(-size // chunk_size))

    def chunk_sizes(self) -> list[int]:
        """Bytes of every chunk, in order."""
        size = align(max(self.data.nbytes, 1))
        last = size - self.chunk_size * (self.chunk_count - 1)
        return [self.chunk_size] * (self.chunk_count - 1) + [last]

    def chunk(self, index: int) -> Array:
        """Chunk ``index``, uint8, flat."""
        data = np.ascontiguousarray(self.data).reshape(-1).view(np.uint8)
        piece = data[index * self.chunk_size : (index + 1) * self.chunk_size]
        return np.pad(piece, (0, -len(piece) % ALIGNMENT))
