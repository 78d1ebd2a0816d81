"""The models that a machine can serve, each with the shapes that fit it."""

from __future__ import annotations

from collections.abc import Sequence

from vessels.errors import UsageError
from vessels.schedule.estimates import Estimates
from vessels.schedule.model import Machine, ModelSpec, Shape
from vessels.schedule.state import Model


def fitting(machine: Machine, specs: Sequence[ModelSpec]) -> list[Model]:
    """The models; raises :class:`UsageError` for one that does not fit, with what it needs."""
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"there are two models of the name {name}")
    return [_model(index, spec, machine) for index, spec in enumerate(specs)]


def _model(index: int, spec: ModelSpec, machine: Machine) -> Model:
    if spec.weight <= 0 or spec.queue_count < 1:
        raise UsageError(f"model {spec.name} needs a positive weight and a queue of at least one")
    if not spec.shapes:
        raise UsageError(f"model {spec.name} has no shape that it may take")
    narrow = [shape for shape in spec.shapes if shape.threads <= machine.core_count]
    if not narrow:
        least = min(shape.threads for shape in spec.shapes)
        raise UsageError(
            f"model {spec.name} needs {least} threads and the machine has {machine.core_count}"
        )
    epc_size = machine.epc_size
    shapes = [shape for shape in narrow if epc_size is None or shape.size <= epc_size]
    if not shapes:
        least = min(shape.size for shape in narrow)
        raise UsageError(
            f"model {spec.name} needs {least:,} bytes of trusted memory and the machine has "
            f"{epc_size:,}; give it that much or build the model with a smaller --memory"
        )
    widths: dict[int, tuple[Shape, ...]] = {}
    for shape in sorted(shapes, key=lambda shape: (shape.threads, shape.size)):
        widths[shape.threads] = (*widths.get(shape.threads, ()), shape)
    return Model(index, spec, widths, Estimates(spec))
