"""The touches of ``winograd``: as ``enclave/src/kernels/winograd.rs`` runs it in either mode."""

from __future__ import annotations

from typing import Any

import numpy as np

from vessels.program import PANEL_WIDTH, WINOGRAD_GAP, Winograd, WinogradMode, panel_widths
from vessels.study.touches import WORKSPACE, Touches
from vessels.study.touches_images import Image, Places, Window, chunk_at

Array = np.ndarray[Any, Any]

POINTS = 36
"""Values of a transformed tile."""
TILE = 4
"""Output pixels of a tile's side."""
LANES = 16
"""Channels that an output transform takes at a time."""
TRANSFORMED_CHANNELS = 32
"""Channels whose parameters' transforms count as one step: a page of each of the 36 points."""


class _Run:
    """One instruction's geometry; elements of float32 unless named sizes."""

    def __init__(self, touches: Touches, index: int, i: Winograd) -> None:
        assert i.cut is not None
        self.touches, self.index, self.cut = touches, index, i.cut
        self.input, self.output = Image.of(touches, i.input), Image.of(touches, i.output)
        self.residual = None if i.residual is None else Image.of(touches, i.residual)
        rows, columns = -(-self.output.height // TILE), -(-self.output.width // TILE)
        tile = np.arange(self.output.count * rows * columns)
        places = tile // columns
        self.tiles = Places(places // rows, places % rows, tile % columns)
        self.tile = tile
        self.window = Window(self.input, (6, 6), (TILE, TILE), (1, 1), i.padding)
        self.channels = self.input.channels
        self.widths = panel_widths(self.output.channels)
        self.depth = min(i.cut.depth_per_chunk, self.channels)
        self.pieces = range(0, self.channels, self.depth)
        self.block_size = i.tile_block
        self.blocks = np.arange(-(-len(tile) // i.tile_block))
        self.block, self.row = tile // i.tile_block, tile % i.tile_block
        self.rows = np.minimum(i.tile_block, len(tile) - self.blocks * i.tile_block)
        self.workspace = touches.address(i.workspace)
        self.value_step = i.tile_block * self.channels + WINOGRAD_GAP
        self.sum_step = i.tile_block * PANEL_WIDTH + WINOGRAD_GAP
        self.points = np.arange(POINTS)

    def work(self, steps: Any, starts: Any, counts: Any) -> None:
        """``counts`` elements of the workspace at element ``starts``."""
        self.touches.add(WORKSPACE, steps, self.workspace + 4 * starts, 4 * counts)

    def transform_input(self, steps: Array, starts: Array) -> None:
        """Tiles are read, and their 36 values written to ``starts`` and on."""
        for stroke in self.window.strokes(0, self.channels):
            pages = self.window.pages(steps, self.tiles, stroke)
            self.touches.add_pages(self.input.kind, pages)
        places = starts[:, None] + self.points * self.value_step
        self.work(steps[:, None], places, self.channels)

    def transform_parameters(
        self, step: int, chunk: int, depth: int, width: int, start: int, point_step: int
    ) -> int:
        """A chunk is fetched and its transforms written to ``start`` and on; the step after."""
        kind, at = chunk_at(self.touches, chunk, step)
        channels = np.arange(0, depth, TRANSFORMED_CHANNELS)
        counts = np.minimum(TRANSFORMED_CHANNELS, depth - channels)
        steps = step + 2 + np.arange(len(channels))
        # The bias comes before the first channel.
        before = np.where(channels == 0, width, 0)
        first = at + 4 * width * (1 + 9 * channels) - 4 * before
        self.touches.add(kind, steps, first, 4 * (9 * width * counts + before))
        places = start + self.points * point_step + channels[:, None] * width
        self.work(steps[:, None], places, counts[:, None] * width)
        return step + 2 + len(channels)

    def transform_output(self, steps: Array, starts: Array, panel: int) -> None:
        """Tiles' sums are read at ``starts`` and on, and the output written."""
        first = panel * PANEL_WIDTH
        last = min(first + self.widths[panel], self.output.channels)
        lanes = -(-(last - first) // LANES) * LANES
        self.work(steps[:, None], starts[:, None] + self.points * self.sum_step, lanes)
        n = self.tiles.n[:, None, None]
        y = self.tiles.y[:, None, None] * TILE + np.arange(TILE)[:, None]
        x = self.tiles.x[:, None, None] * TILE + np.arange(TILE)
        inside = (y < self.output.height) & (x < self.output.width)
        size = np.where(inside, 4 * (last - first), 0)
        for image in (self.residual, self.output):
            if image is not None:
                start = image.at(n, y, x, first)
                self.touches.add(image.kind, steps[:, None, None], start, size)

    def flush(self) -> None:
        self.touches.flush(self.index)


def winograd(touches: Touches, index: int, i: Winograd) -> None:
    """All touches of a ``winograd`` by one worker."""
    run = _Run(touches, index, i)
    if i.mode == WinogradMode.INPUT:
        _keep_input(run)
    else:
        _keep_parameters(run)


def _keep_input(run: _Run) -> None:
    """All input tiles are transformed; then panel by panel its pieces, products and output."""
    values = run.block * POINTS * run.value_step + run.row * run.channels
    run.transform_input(run.tile, values)
    run.flush()
    transformed = POINTS * run.value_step * len(run.blocks)
    sums = transformed + POINTS * (PANEL_WIDTH * run.cut.depth_per_chunk + WINOGRAD_GAP)
    chunk = run.cut.first_chunk
    point, block = run.points[:, None], run.blocks
    number = block * POINTS + point
    for panel, width in enumerate(run.widths):
        step = 0
        for first in run.pieces:
            depth = min(run.depth, run.channels - first)
            point_step = depth * width + WINOGRAD_GAP
            step = run.transform_parameters(step, chunk, depth, width, transformed, point_step)
            chunk += 1
            order = step + point * len(run.blocks) + block
            rows = np.arange(run.block_size)
            counts = np.where(rows < run.rows[:, None], depth, 0)
            starts = (number * run.value_step + first)[:, :, None] + rows * run.channels
            run.work(order[:, :, None], starts, counts)
            run.work(order, transformed + point * point_step, depth * width)
            run.work(order, sums + number * run.sum_step, run.rows * PANEL_WIDTH)
            step += POINTS * len(run.blocks)
        places = sums + run.block * POINTS * run.sum_step + run.row * PANEL_WIDTH
        run.transform_output(step + run.tile, places, panel)
        run.flush()


def _keep_parameters(run: _Run) -> None:
    """All parameters are transformed; then block by block its tiles, and for each panel the
    products and the output."""
    panel_count = len(run.widths)
    panel_step = POINTS * (run.channels * PANEL_WIDTH + WINOGRAD_GAP)
    width_sum = sum(run.widths)
    bias = POINTS * (run.channels * width_sum + WINOGRAD_GAP * panel_count)
    chunk = run.cut.first_chunk
    step = 0
    for panel, width in enumerate(run.widths):
        for first in run.pieces:
            depth = min(run.depth, run.channels - first)
            start = panel * panel_step + first * width
            point_step = run.channels * width + WINOGRAD_GAP
            step = run.transform_parameters(step, chunk, depth, width, start, point_step)
            chunk += 1
            if first == 0:
                run.work(step, bias + panel * PANEL_WIDTH, width)
                step += 1
    run.flush()

    values = bias + width_sum
    sums = values + POINTS * run.value_step
    per_panel = POINTS + run.block_size
    per_block = run.block_size + panel_count * per_panel
    begin = run.blocks * per_block
    run.transform_input(begin[run.block] + run.row, values + run.row * run.channels)
    point = run.points[:, None]
    for panel, width in enumerate(run.widths):
        base = begin + run.block_size + panel * per_panel
        order = base + point
        run.work(order, values + point * run.value_step, run.rows * run.channels)
        place = panel * panel_step + point * (run.channels * width + WINOGRAD_GAP)
        run.work(order, place, run.channels * width)
        run.work(order, sums + point * run.sum_step, run.rows * PANEL_WIDTH)
        last = base[run.block] + POINTS + run.row
        run.work(last, bias + panel * PANEL_WIDTH, width)
        run.transform_output(last, sums + run.row * PANEL_WIDTH, panel)
    run.flush()
