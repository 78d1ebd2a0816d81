"""The instruction set: the executable specification of what the enclave runs.

A *program* is a list of instructions over views of one memory pool. The same
classes serve two stages of the way of a model:

``lowered``
    Views name a virtual :class:`Buffer`; parameters are plain arrays
    (:class:`Parameters`); nothing has an address yet.
``planned``
    :class:`Cut` says which parameter chunks an instruction reads, and a
    placement gives every buffer its offset. Only this stage can be encoded.

Conventions, all of them checked by :mod:`vessels.check` and, independently, by
the enclave's validator:

* Images are channels-last: ``[N, H, W, C]``; the channel stride is 1.
* Strides count *elements* and may be zero (broadcast) or negative on inputs;
  outputs never overlap themselves.
* ``size`` is bytes, ``count`` is elements (or items), offsets are bytes.
* An output never overlaps an input, except that :class:`Map` may write exactly
  the view it reads, and :class:`Conv`, :class:`Winograd` and
  :class:`Depthwise` may write exactly the view of their residual (a :class:`Conv`
  only when its depth is not cut: partial sums rest in the output).

Files: :mod:`~vessels.program.views` (operands), :mod:`~vessels.program.instructions`, and
:mod:`~vessels.program.programs` (whole programs and their encoding). The encoding is CBOR
(RFC 8949, core deterministic encoding); ``docs/format.md`` specifies it. Floats travel as the
integer of their IEEE 754 bits.
"""

from vessels.program.instructions import (
    INSTRUCTIONS,
    MAX_MAP_REGISTERS,
    RELU,
    Activation,
    ActivationKind,
    Conv,
    Copy,
    Cut,
    Depthwise,
    Gather,
    Instruction,
    Load,
    Map,
    MapCode,
    MapOp,
    MatMul,
    Parameters,
    Pool,
    PoolKind,
    Reduce,
    ReduceKind,
    Winograd,
    WinogradMode,
    winograd_scratch_count,
)
from vessels.program.programs import (
    Chunk,
    LoweredProgram,
    PoolLayout,
    Port,
    Program,
    Rung,
    float_bits,
    pool_size,
)
from vessels.program.views import (
    ALIGNMENT,
    MAX_PADDED_CHANNELS,
    MAX_RANK,
    PANEL_WIDTH,
    WINOGRAD_GAP,
    Buffer,
    BufferKind,
    DType,
    View,
    align,
    dense_strides,
    panel_widths,
)

__all__ = [
    "ALIGNMENT",
    "INSTRUCTIONS",
    "MAX_MAP_REGISTERS",
    "MAX_PADDED_CHANNELS",
    "MAX_RANK",
    "PANEL_WIDTH",
    "RELU",
    "WINOGRAD_GAP",
    "Activation",
    "ActivationKind",
    "Buffer",
    "BufferKind",
    "Chunk",
    "Conv",
    "Copy",
    "Cut",
    "DType",
    "Depthwise",
    "Gather",
    "Instruction",
    "Load",
    "LoweredProgram",
    "Map",
    "MapCode",
    "MapOp",
    "MatMul",
    "Parameters",
    "Pool",
    "PoolKind",
    "PoolLayout",
    "Port",
    "Program",
    "Reduce",
    "ReduceKind",
    "Rung",
    "View",
    "Winograd",
    "WinogradMode",
    "align",
    "dense_strides",
    "float_bits",
    "panel_widths",
    "pool_size",
    "winograd_scratch_count",
]
