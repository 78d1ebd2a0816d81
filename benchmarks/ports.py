"""A port for who is told of it, and for nobody else."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_port() -> Iterator[int]:
    """A port of 127.0.0.1 that nobody else gets meanwhile, and that servers may be found on.

    It is bound here and not listened on: who connects is refused until a server listens, as ours
    and Ray's can, and who asks for any port gets another.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        yield port
