"""The touches of the kernels that work on images: ``conv``, ``depthwise``, ``pool``.

They follow ``enclave/src/kernels``: parameters chunk by chunk, for each all output pixels, a few at
a time, and for those the input row by row of the window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vessels.program import PANEL_WIDTH, Conv, Depthwise, Pool, View, panel_widths
from vessels.study.result import PAGE_SIZE
from vessels.study.touches import PARAMETERS, STAGING, Pages, Touches, page_ranges

Array = np.ndarray[Any, Any]

TILE_PIXELS = 14
"""Output pixels of a register tile with AVX-512; other instruction sets take fewer at a time."""
ALIASED_TILE_PIXELS = 7
"""The same where the pixels' rows lie 4 KiB apart."""
STRIP_PIXELS = 6
"""Output pixels of a row that a depthwise convolution takes at a time."""
POOLED_CHANNELS = 64
"""Channels that a pooling of few rows takes at a time."""
FEW_LINES = 8
"""Rows below which a pooling is shared out by channels."""


@dataclass(frozen=True)
class Image:
    """A channels-last image in the pool; strides are bytes."""

    kind: int
    base: int
    count: int
    height: int
    width: int
    channels: int
    image_stride: int
    row_stride: int
    column_stride: int

    @classmethod
    def of(cls, touches: Touches, view: View) -> Image:
        base = touches.address(view)
        images, rows, columns, _ = (s * view.dtype.size for s in view.strides)
        n, height, width, channels = view.shape
        kind = touches.kind_at(base)
        return cls(kind, base, n, height, width, channels, images, rows, columns)

    def at(self, n: Any, y: Any, x: Any, channel: int = 0) -> Any:
        """Pool offset of a pixel's channel."""
        rows = n * self.image_stride + y * self.row_stride
        return self.base + rows + x * self.column_stride + 4 * channel

    def pixels(self, steps: Any, n: Any, y: Any, x: Any, first: int, last: int) -> Pages:
        """Channels ``first .. last`` of pixels."""
        return page_ranges(steps, self.at(n, y, x, first), 4 * (last - first))


@dataclass(frozen=True)
class Places:
    """Output pixels in the order they are worked on."""

    n: Array
    y: Array
    x: Array

    @classmethod
    def of(cls, output: Image) -> Places:
        index = np.arange(output.count * output.height * output.width)
        rows = index // output.width
        return cls(rows // output.height, rows % output.height, index % output.width)


@dataclass(frozen=True)
class Stroke:
    """Taps ``columns`` of row ``row`` of a window, channels ``first .. last``; the part of the
    parameters' depth that goes with them is ``depth .. depth + count``."""

    row: int
    columns: range
    first: int
    last: int
    depth: int
    count: int


@dataclass(frozen=True)
class Window:
    """How a kernel's taps fall on its input."""

    input: Image
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]

    def strokes(
        self, first: int, last: int, start: int = 0, stop: int | None = None
    ) -> list[Stroke]:
        """The window in strokes, in order, for channels ``first .. last`` of the input.

        ``start .. stop`` of the depth, where taps have all channels. A stroke is a whole row of the
        window, where no page lies between its taps.
        """
        rows, columns = self.kernel
        channels = last - first
        stop = rows * columns * channels if stop is None else stop
        gap = self.dilation[1] * self.input.column_stride - 4 * channels
        done: list[Stroke] = []
        for row in range(rows):
            begin = row * columns * channels
            end = begin + columns * channels
            if start <= begin and end <= stop and gap < PAGE_SIZE:
                done.append(
                    Stroke(row, range(columns), first, last, begin - start, columns * channels)
                )
                continue
            for column in range(columns):
                at = begin + column * channels
                low, high = max(start, at), min(stop, at + channels)
                if low < high:
                    done.append(
                        Stroke(row, range(column, column + 1), first + low - at,
                               first + high - at, low - start, high - low)
                    )  # fmt: skip
        return done

    def pages(self, steps: Any, places: Places, stroke: Stroke) -> Pages:
        """The input that a stroke reads for each output pixel; taps outside read nothing here."""
        y = places.y * self.stride[0] - self.padding[0] + stroke.row * self.dilation[0]
        origin = places.x * self.stride[1] - self.padding[1]
        step = self.dilation[1]
        # The first and the last tap inside.
        first = np.maximum(-(-np.maximum(-origin, 0) // step), stroke.columns.start)
        last = np.minimum((self.input.width - 1 - origin) // step, stroke.columns.stop - 1)
        inside = (y >= 0) & (y < self.input.height) & (first <= last)
        start = self.input.at(places.n, y, origin + first * step, stroke.first)
        reach = (last - first) * step * self.input.column_stride
        size = reach + 4 * (stroke.last - stroke.first)
        return page_ranges(steps, start, np.where(inside, size, 0))


def chunk_at(touches: Touches, index: int, step: int) -> tuple[int, int]:
    """Where chunk ``index`` is read from: its kind and pool offset.

    A streamed one is first copied to the staging buffer and decrypted there: two sweeps.
    """
    chunk = touches.program.chunks[index]
    if chunk.resident_offset is not None:
        return PARAMETERS, chunk.resident_offset
    offset = touches.layout.staging_offset
    touches.add(STAGING, [step, step + 1], offset, chunk.size)
    return STAGING, offset


def split(count: int, parts: int) -> Array:
    """The part that each of ``count`` items falls in when they are split evenly."""
    length, extra = divmod(count, parts)
    sizes = np.full(parts, length)
    sizes[:extra] += 1
    return np.repeat(np.arange(parts), sizes)


def conv(touches: Touches, index: int, i: Conv) -> None:
    """Groups of panels; for each its chunks; for each all tiles of output pixels."""
    assert i.cut is not None
    input_, output = Image.of(touches, i.input), Image.of(touches, i.output)
    residual = None if i.residual is None else Image.of(touches, i.residual)
    window = Window(input_, i.kernel, i.stride, i.dilation, i.padding)
    places = Places.of(output)
    aliased = (input_.column_stride * i.stride[1]) % PAGE_SIZE == 0
    largest = ALIASED_TILE_PIXELS if aliased else TILE_PIXELS
    tiles = split(len(places.n), -(-len(places.n) // largest))
    tile_count = int(tiles[-1]) + 1
    depth = i.kernel[0] * i.kernel[1] * input_.channels
    piece_depth = min(i.cut.depth_per_chunk, depth)
    starts = range(0, depth, piece_depth)
    pieces = [window.strokes(0, input_.channels, s, min(s + piece_depth, depth)) for s in starts]
    # Steps: two of staging, then for each tile and panel: partial sums, strokes, residual, output.
    per_panel = max(len(p) for p in pieces) + 3
    widths = panel_widths(output.channels)
    per_tile = min(i.cut.panels_per_chunk, len(widths)) * per_panel
    inputs = [
        [window.pages(2 + tiles * per_tile + 1 + n, places, s) for n, s in enumerate(strokes)]
        for strokes in pieces
    ]
    chunk_number = i.cut.first_chunk
    for group in range(0, len(widths), i.cut.panels_per_chunk):
        panels = range(group, min(group + i.cut.panels_per_chunk, len(widths)))
        for piece, strokes in enumerate(pieces):
            kind, at = chunk_at(touches, chunk_number, 0)
            chunk_number += 1
            count = sum(s.count for s in strokes)
            for number, panel in enumerate(panels):
                width = widths[panel]
                later = number * per_panel
                begin = 2 + tiles * per_tile + later
                tile_begin = 2 + np.arange(tile_count) * per_tile + later
                for n, stroke in enumerate(strokes):
                    touches.add_pages(input_.kind, inputs[piece][n], later)
                    row = 0 if n == 0 else 1 + stroke.depth
                    size = 4 * width * (1 + stroke.depth + stroke.count - row)
                    touches.add(kind, tile_begin + 1 + n, at + 4 * width * row, size)
                first = panel * PANEL_WIDTH
                last = min(first + width, output.channels)
                stored = output.pixels(
                    begin + per_panel - 1, places.n, places.y, places.x, first, last
                )
                if piece > 0:
                    touches.add_pages(output.kind, stored, 1 - per_panel)
                touches.add_pages(output.kind, stored)
                if residual is not None and piece == len(pieces) - 1:
                    touches.add_pages(
                        residual.kind,
                        residual.pixels(
                            begin + per_panel - 2, places.n, places.y, places.x, first, last
                        ),
                    )
                at += 4 * width * (1 + count)
            touches.flush(index)


def depthwise(touches: Touches, index: int, i: Depthwise) -> None:
    """Chunks of channels; for each all rows of the output, in strips."""
    assert i.cut is not None
    input_, output = Image.of(touches, i.input), Image.of(touches, i.output)
    residual = None if i.residual is None else Image.of(touches, i.residual)
    window = Window(input_, i.kernel, i.stride, i.dilation, i.padding)
    places = Places.of(output)
    strips = np.array(list(_strips(i, input_.width, output.width)))
    strip = (places.n * output.height + places.y) * (int(strips[-1]) + 1) + strips[places.x]
    per_chunk = i.cut.panels_per_chunk * PANEL_WIDTH
    for chunk in range(i.cut.chunk_count):
        kind, at = chunk_at(touches, i.cut.first_chunk + chunk, 0)
        first = chunk * per_chunk
        last = min(first + per_chunk, output.channels)
        strokes = window.strokes(first, last)
        per_strip = len(strokes) + 3
        begin = 2 + strip * per_strip
        size = touches.program.chunks[i.cut.first_chunk + chunk].size
        touches.add(kind, np.unique(begin), at, size)
        for n, stroke in enumerate(strokes):
            touches.add_pages(input_.kind, window.pages(begin + 1 + n, places, stroke))
        for image, step in ((residual, per_strip - 2), (output, per_strip - 1)):
            if image is not None:
                touches.add_pages(
                    image.kind,
                    image.pixels(begin + step, places.n, places.y, places.x, first, last),
                )
        touches.flush(index)


def _strips(i: Depthwise, input_width: int, output_width: int) -> Iterator[int]:
    """The strip of each column of the output: whole strips where all taps are inside."""
    x = number = 0
    reach = (STRIP_PIXELS - 1) * i.stride[1] + (i.kernel[1] - 1) * i.dilation[1]
    while x < output_width:
        start = x * i.stride[1] - i.padding[1]
        fits = x + STRIP_PIXELS <= output_width and start >= 0 and start + reach < input_width
        for _ in range(STRIP_PIXELS if fits else 1):
            yield number
            x += 1
        number += 1


def pool(touches: Touches, index: int, i: Pool) -> None:
    """Rows of the output; few rows by parts of the channels."""
    input_, output = Image.of(touches, i.input), Image.of(touches, i.output)
    top, left, _, _ = i.padding
    window = Window(input_, i.kernel, i.stride, i.dilation, (top, left))
    places = Places.of(output)
    lines = output.count * output.height
    parts = -(-output.channels // POOLED_CHANNELS) if lines < FEW_LINES else 1
    part_of = split(output.channels, parts)
    line = places.n * output.height + places.y
    for part in range(parts):
        channels = np.flatnonzero(part_of == part)
        first, last = int(channels[0]), int(channels[-1]) + 1
        strokes = window.strokes(first, last)
        item = (line * parts + part) * output.width + places.x
        begin = item * (len(strokes) + 1)
        for n, stroke in enumerate(strokes):
            touches.add_pages(input_.kind, window.pages(begin + n, places, stroke))
        touches.add_pages(
            output.kind,
            output.pixels(begin + len(strokes), places.n, places.y, places.x, first, last),
        )
    touches.flush(index)
