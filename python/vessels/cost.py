"""What an instruction costs: the estimates by which the planner chooses.

One small model in cycles of one core with one 512-bit multiply-add per cycle, all threads busy
alike. It need not be exact, only order the choices well: algorithm, tile block, depth per chunk.
``vessels bench --layers`` shows the truth beside it. All constants are here.
"""

from __future__ import annotations

from vessels.program import (
    PANEL_WIDTH,
    Conv,
    Depthwise,
    Instruction,
    MatMul,
    Program,
    Winograd,
    WinogradMode,
    align,
    panel_widths,
)

CYCLES_PER_NS = 3.4
"""Clock in GHz: 108 GFLOP/s at 32 FLOP per cycle."""
LANES = 16
"""Float32 in a vector."""
TILE_PIXELS = 14
"""Most pixels in a register tile of two vectors each."""
LOAD_CYCLES = 3.0
"""Least cycles to bring a parameter row of 32 into a register tile from L2."""
DECRYPT_CYCLES_PER_BYTE = 3.4 / 7.0
"""AES-256-GCM at about 7 GB/s, the copy into staging included."""
CHUNK_CYCLES = 1000.0
"""Starting on another chunk: nonce, tag, hand-over."""
INPUT_TRANSFORM_CYCLES = 230.0
"""Winograd: one 6x6 input tile of 16 channels."""
OUTPUT_TRANSFORM_CYCLES = 190.0
"""Winograd: one 4x4 output tile of 16 channels, activation and store included."""
PARAMETER_TRANSFORM_CYCLES = 130.0
"""Winograd: one input channel's 3x3 parameters for 16 output channels."""
L2_SIZE = 1 << 20
"""Bytes of a core's L2 that a working set may take beside a chunk in staging."""
BEYOND_L2_CYCLES_PER_BYTE = 0.06
"""Extra cost of a byte read again from beyond L2."""
SPILLED_CYCLES_PER_BYTE = 0.4
"""Extra cost of a byte of partial sums that L2 cannot hold: written, and read again."""
BYTES_PER_CYCLE = 4.0
"""What instructions that only move data read and write."""
INSTRUCTION_CYCLES = 5000.0
"""Going from one instruction to the next: waiting for the last item of the others."""


def estimated_ns(program: Program) -> float:
    """What a run of ``program`` at its rung takes, all its threads busy: an order, no promise."""
    threads = program.layout.thread_count
    streamed = (c.size for c in program.chunks if c.resident_offset is None)
    cycles = sum(instruction_cycles(i, threads) for i in program.instructions)
    return (cycles + sum(decryption_cycles(size, threads) for size in streamed)) / CYCLES_PER_NS


def instruction_cycles(instruction: Instruction, thread_count: int) -> float:
    """Estimated cycles of ``instruction``, decryption apart; a cut is taken into account."""
    if isinstance(instruction, Winograd):
        cycles = _winograd(instruction, thread_count)
    elif isinstance(instruction, Conv):
        cycles = _conv(instruction, thread_count)
    elif isinstance(instruction, Depthwise):
        taps = instruction.kernel[0] * instruction.kernel[1]
        cycles = instruction.output.count / LANES * (taps + 4) / thread_count
    elif isinstance(instruction, MatMul):
        depth = instruction.a.shape[-1]
        cycles = instruction.output.count / LANES * depth * 1.3 / thread_count
    else:
        views = (*instruction.reads, *instruction.writes)
        size = sum(v.count * v.dtype.size for v in views)
        cycles = size / BYTES_PER_CYCLE / thread_count
    return cycles + INSTRUCTION_CYCLES


def decryption_cycles(size: int, thread_count: int) -> float:
    """Cycles to decrypt a streamed chunk of ``size`` bytes once."""
    return (size * DECRYPT_CYCLES_PER_BYTE + CHUNK_CYCLES) / thread_count


def _products(tile_count: int, block: int) -> float:
    """Cycles for one depth step of ``tile_count`` pixels or tiles by a panel of 32."""
    full, rest = divmod(tile_count, block)
    return full * max(2.0 * block, LOAD_CYCLES) + (max(2.0 * rest, LOAD_CYCLES) if rest else 0.0)


def _conv(conv: Conv, thread_count: int) -> float:
    n, height, width, _ = conv.output.shape
    depth = conv.kernel[0] * conv.kernel[1] * conv.input.shape[-1]
    panels = sum(panel_widths(conv.output.shape[-1])) / PANEL_WIDTH
    return depth * panels * _products(n * height * width, TILE_PIXELS) * 1.05 / thread_count


def _winograd(conv: Winograd, thread_count: int) -> float:
    n, height, width, out_channels = conv.output.shape
    channels = conv.input.shape[-1]
    tiles = n * -(-height // 4) * -(-width // 4)
    width_sum = sum(panel_widths(out_channels))
    panels = width_sum / PANEL_WIDTH
    block = conv.tile_block
    padded = align(tiles, block)
    in_transform = tiles * -(-channels // LANES) * INPUT_TRANSFORM_CYCLES
    out_transform = tiles * width_sum / LANES * OUTPUT_TRANSFORM_CYCLES
    parameters = channels * width_sum / LANES * PARAMETER_TRANSFORM_CYCLES
    products = 36 * channels * panels * _products(padded, block)
    depth = channels if conv.cut is None else conv.cut.depth_per_chunk
    if conv.mode == WinogradMode.INPUT:
        # Panels are shared out whole: one too many leaves threads waiting.
        whole = -(-len(panel_widths(out_channels)) // thread_count) * thread_count
        imbalance = whole / len(panel_widths(out_channels))
        again = 36 * channels * padded * 4.0 * panels
        pressure = 36 * channels * padded * 4 + 36 * depth * PANEL_WIDTH * 4
        extra = again * BEYOND_L2_CYCLES_PER_BYTE if pressure > L2_SIZE else 0.0
        if 36 * depth * PANEL_WIDTH * 4 > 640 * 1024:
            extra += 36 * channels * width_sum * 4.0 * (padded / block) * BEYOND_L2_CYCLES_PER_BYTE
        # Partial sums are read and written once for every further piece of the depth.
        pieces = -(-channels // depth)
        extra += (pieces - 1) * 36 * padded * width_sum * 8.0 / 32
        sums = 36 * padded * PANEL_WIDTH * 4
        if sums + 36 * depth * PANEL_WIDTH * 4 > 1.5 * L2_SIZE:
            extra += 2.0 * sums * panels * SPILLED_CYCLES_PER_BYTE
        work = in_transform + (parameters + products + out_transform + extra) * imbalance
    else:
        blocks = padded // block
        whole = -(-blocks // thread_count) * thread_count
        transformed = 36 * channels * width_sum * 4
        extra = transformed * blocks * BEYOND_L2_CYCLES_PER_BYTE if transformed > L2_SIZE else 0.0
        work = parameters + (in_transform + products + out_transform + extra) * (whole / blocks)
    return work * 1.05 / thread_count
