"""What one server allows its clients and its enclaves, in numbers and seconds."""

from __future__ import annotations

from dataclasses import dataclass

from vessels import listening


@dataclass(frozen=True)
class Limits(listening.Limits):
    """Bounds that hold whatever a client sends.

    The most memory that requests take is that of the largest one for each connection.
    """

    idle_seconds: int = 30
    surplus_count: int = 512
    waiting_count: int = 128
    """Requests that may wait for one model."""
    body_seconds: float = 10.0
    """What every body has; more for each :attr:`body_rate` bytes of it."""
    body_rate: int = 64 << 10
    open_seconds: float = 120.0
    """What an enclave has to get its key, and again to open the model; else it is ended."""
    key_seconds: float = 60.0
    """What an enclave has to be given its key where others may need its memory; else it is ended,
    and started again later."""
    predict_seconds: float = 120.0
    """An enclave that has not finished a run after this is ended."""
    shutdown_seconds: float = 30.0
    """What requests under way have when the server is told to stop."""

    def seconds_for(self, size: int) -> float:
        """How long a body of ``size`` bytes may take to arrive."""
        return self.body_seconds + size / self.body_rate
