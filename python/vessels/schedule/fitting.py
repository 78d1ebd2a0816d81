"""The models that a machine can serve, each with the shapes that fit it."""

from __future__ import annotations

from collections.abc import Sequence

from vessels.errors import UsageError
from vessels.schedule.estimates import Estimates
from vessels.schedule.model import Machine, ModelSpec, Shape
from vessels.schedule.state import Model

_MIB = 1 << 20


def fitting(machine: Machine, specs: Sequence[ModelSpec]) -> list[Model]:
    """The models; raises :class:`UsageError` for all that do not fit, with what each needs."""
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"there are two models of the name {name}")
    narrow = {spec.name: _narrow(spec, machine) for spec in specs}
    if machine.epc_size is not None:
        _refuse_large(machine.epc_size, narrow)
    return [
        _model(index, spec, narrow[spec.name], machine.epc_size) for index, spec in enumerate(specs)
    ]


def _narrow(spec: ModelSpec, machine: Machine) -> list[Shape]:
    """The shapes of a model that the machine has cores for."""
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
    return narrow


def _refuse_large(epc_size: int, shapes: dict[str, list[Shape]]) -> None:
    """Raise :class:`UsageError` for the models of which no shape fits ``epc_size``."""
    least = {name: min(shape.size for shape in each) for name, each in shapes.items()}
    large = {name: size for name, size in least.items() if size > epc_size}
    if large:
        needs = ", ".join(
            f"model {name} needs {size:,} bytes of trusted memory" for name, size in large.items()
        )
        raise UsageError(
            f"{needs}, and the machine has {epc_size:,}. Give it {-(-max(large.values()) // _MIB)} "
            "MiB at least, or build what does not fit with a smaller --memory."
        )


def _model(index: int, spec: ModelSpec, narrow: Sequence[Shape], epc_size: int | None) -> Model:
    widths: dict[int, tuple[Shape, ...]] = {}
    for shape in sorted(narrow, key=lambda shape: (shape.threads, shape.size)):
        if epc_size is None or shape.size <= epc_size:
            widths[shape.threads] = (*widths.get(shape.threads, ()), shape)
    return Model(index, spec, widths, Estimates(spec))
