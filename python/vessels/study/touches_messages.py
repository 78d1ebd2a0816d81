"""Touches before the first instruction and after the last: request, wiping, response.

The messages lie in the arena, from its start, sealed and opened in place (``docs/messages.md``).
Where the arena is too small for the largest message, that has memory of its own, which is no part
of the pool: then only the copies into and out of the I/O region are told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vessels.header import HeaderPort
from vessels.program import Port, Program, align
from vessels.sealed_messages import (
    CONTENT_OFFSET,
    NONCE_SIZE,
    PUBLIC_SIZE,
    TAG_SIZE,
    MessageSizes,
)
from vessels.study.result import PAGE_SIZE
from vessels.study.touches import ARENA, IO, Touches

_WIPED_SIZE = 256 << 10
"""Bytes of the arena that are zeroed in one sweep; the last sweep is the first."""


def request(touches: Touches, instruction: int) -> None:
    """It arrives, is opened, copied to the inputs' places and zeroed."""
    program = touches.program
    sizes = _sizes(program)
    message = _Message(touches, PUBLIC_SIZE, sizes.request, sizes.memory)
    message.sweep()
    message.sweep()
    message.copy(program.inputs)
    message.sweep()
    touches.flush(instruction)


def response(touches: Touches, instruction: int) -> None:
    """The arena is zeroed. Outputs are copied to it, the I/O region is zeroed; it is sealed."""
    program = touches.program
    _wipe_arena(touches)
    touches.flush(instruction)
    sizes = _sizes(program)
    message = _Message(touches, NONCE_SIZE, sizes.response, sizes.memory)
    message.sweep()
    message.copy(program.outputs)
    message.io_region()
    message.sweep()
    message.sweep()
    touches.flush(instruction)


def _wipe_arena(touches: Touches) -> None:
    layout = touches.layout
    starts = np.arange(0, layout.arena_size, _WIPED_SIZE)[::-1]
    sizes = np.minimum(_WIPED_SIZE, layout.arena_size - starts)
    touches.add(ARENA, np.arange(len(starts)), layout.arena_offset + starts, sizes)


@dataclass
class _Message:
    """The memory of one message: ``lead`` bytes, ``content_size`` bytes of content, a tag."""

    touches: Touches
    lead: int
    content_size: int
    memory_size: int
    _step: int = 0

    @property
    def _in_arena(self) -> bool:
        return self.memory_size <= self.touches.layout.arena_size

    @property
    def _start(self) -> int:
        return self.touches.layout.arena_offset + CONTENT_OFFSET

    def sweep(self) -> None:
        """All of it is touched, from start to end."""
        if self._in_arena:
            size = self.lead + self.content_size + TAG_SIZE
            self.touches.add(ARENA, self._step, self._start - self.lead, size)
        self._step += 1

    def copy(self, ports: Iterable[Port]) -> None:
        """Tensors are copied between their places and the message, page by page."""
        ports = tuple(ports)
        at = self._start + self.content_size - sum(align(_size(p)) for p in ports)
        for port in ports:
            size = _size(port)
            offsets = np.arange(0, size, PAGE_SIZE)
            steps = self._step + np.arange(len(offsets))
            sizes = np.minimum(PAGE_SIZE, size - offsets)
            if self._in_arena:
                self.touches.add(ARENA, steps, at + offsets, sizes)
            self.touches.add(IO, steps, self.touches.address(port.view) + offsets, sizes)
            self._step += len(offsets)
            at += align(size)

    def io_region(self) -> None:
        """All of it is touched, from start to end."""
        self.touches.add(IO, self._step, 0, self.touches.layout.io_size)
        self._step += 1


def _sizes(program: Program) -> MessageSizes:
    return MessageSizes.of(
        *(
            [HeaderPort(p.name, p.view.dtype, p.view.shape) for p in ports]
            for ports in (program.inputs, program.outputs)
        )
    )


def _size(port: Port) -> int:
    return port.view.count * port.view.dtype.size
