"""What a scheduler knows of a machine and of the models it serves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One way to run a model: an environment of exactly ``size`` bytes of trusted memory.

    ``rung`` is that of the model's plan ladder: 0 streams all parameters, each higher one keeps
    more of them resident. ``slots`` is how many requests it may answer in one run; ``threads`` how
    many cores a run takes. ``size`` is all the environment takes: pool, binary, stacks, and a
    library OS where there is one.
    """

    rung: int
    slots: int
    threads: int
    size: int


@dataclass(frozen=True)
class RunTime:
    """What a run is expected to take: ``fixed`` seconds, and ``each`` more for each request in it.

    ``fixed`` is what a batch shares, such as the decryption of streamed parameters.
    """

    fixed: float
    each: float

    def seconds(self, count: int) -> float:
        """Of a run of ``count`` requests."""
        return self.fixed + self.each * count


@dataclass(frozen=True)
class ModelSpec:
    """A model as it is served.

    ``shapes`` are those it may take, from the most frugal to the most generous; it is refused when
    none fits the machine. ``weight`` is its share of a busy machine in relation to others'.
    ``queue_count`` bounds the requests that wait for it. ``deadline`` is what a request has that
    states none, in seconds from its arrival; without one it follows from what runs take.
    ``run_time`` and ``start_seconds`` are first guesses, for the first shape; what is measured
    takes their place.
    """

    name: str
    shapes: tuple[Shape, ...]
    weight: float = 1.0
    queue_count: int = 128
    deadline: float | None = None
    run_time: RunTime = RunTime(0.0, 0.05)
    start_seconds: float = 0.2


@dataclass(frozen=True)
class Machine:
    """What all environments share: ``epc_size`` bytes of trusted memory, and ``core_count`` cores.

    Without ``epc_size`` memory is not what is scarce, as in a confidential guest.
    """

    core_count: int
    epc_size: int | None = None
