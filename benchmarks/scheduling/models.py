"""The zoo as the simulator sees it: sizes of real plans, times from measurements.

Sizes are those that ``vessels build`` makes. Milliseconds are of ``docs/evaluation.md``: a
prediction of the plan that streams everything, on one thread. What of it is decryption, and thus
shared by a batch, is an estimate: all parameters at :data:`DECRYPTION_RATE`.
"""

from __future__ import annotations

from dataclasses import dataclass

from vessels.schedule.model import ModelSpec, RunTime, Shape
from vessels.schedule.simulated import SimulatedModel

MIB = 1 << 20

DECRYPTION_RATE = 6.6e9
"""Bytes a second that one core opens and brings into staging: what AlexNet and VGG-16 take longer
when their parameters stream (README)."""
EFFICIENCY = 0.82
"""What a second thread adds, in parts of the first: the mean of the five networks in README."""
BESIDE_POOL = 57 * MIB // 10
"""Most that an enclave process was seen to hold beside its pool."""
START_SECONDS = 0.15
"""Process, evidence, release of the key; then resident parameters are decrypted. Without key
service and evidence it was seen to take 60 to 120 ms."""
START_CORE_SECONDS = 0.05
"""What a core does of it: 35 to 55 ms were seen."""
RESIDENT_SHARES = (0.0, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
"""Of the optional parameters, by rung."""
SLOTS = (1, 2, 4, 8)
THREADS = (1, 2)


@dataclass(frozen=True)
class Figures:
    """Of one network: bytes, and milliseconds of a prediction."""

    name: str
    slot_size: int
    staging_size: int
    parameter_size: int
    milliseconds: float


ZOO = (
    Figures("squeezenet", 4956672, 131328, 4958400, 17.1),
    Figures("mobilenet_v2", 6627264, 163968, 14000000, 14.0),
    Figures("resnet50", 6427840, 295040, 102216128, 96.3),
    Figures("inception_v3", 9955584, 262272, 95347264, 133.1),
    Figures("alexnet", 2537408, 204928, 244725248, 50.4),
    Figures("densenet201", 8232896, 245888, 80084416, 84.6),
    Figures("darknet53", 10239936, 295040, 166495296, 121.2),
    Figures("resnet152", 6427840, 295040, 240624064, 226.0),
    Figures("vgg16", 27301056, 160896, 553968640, 211.5),
    Figures("yolov3", 38923456, 295040, 247819392, 433.6),
)
"""From the one that is asked for most to the one asked for least, in the skewed mix."""


def simulated(figures: Figures) -> SimulatedModel:
    """``figures`` as a model of all rungs, slots and threads."""
    resident = [int(figures.parameter_size * share) for share in RESIDENT_SHARES]
    decryption = figures.parameter_size / DECRYPTION_RATE
    each = figures.milliseconds / 1000 - decryption
    run_times = tuple(RunTime(decryption * (1 - share), each) for share in RESIDENT_SHARES)
    start_seconds = tuple(START_SECONDS + size / DECRYPTION_RATE for size in resident)
    last = len(RESIDENT_SHARES) - 1
    shapes = [
        Shape(
            rung,
            slots,
            threads,
            BESIDE_POOL
            + slots * figures.slot_size
            + resident[rung]
            + (figures.staging_size * threads if rung < last else 0),
        )
        for rung in range(len(RESIDENT_SHARES))
        for slots in SLOTS
        for threads in THREADS
    ]
    spec = ModelSpec(
        figures.name,
        tuple(sorted(shapes, key=lambda s: (s.size, s.rung, s.slots, s.threads))),
        run_time=run_times[0],
        start_seconds=start_seconds[0],
    )
    return SimulatedModel(spec, run_times, start_seconds, EFFICIENCY)
