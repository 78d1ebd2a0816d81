"""Gives every graph input a static shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from vessels.errors import ModelError, UnsupportedError, UsageError

Dim = int | str
"""A static extent, or the symbol of an open one (``?`` when it has none)."""


def resolve_inputs(
    graph: onnx.GraphProto, shapes: Mapping[str, Sequence[int]]
) -> dict[str, onnx.TypeProto]:
    """The static tensor type of each input of ``graph`` that is not an initializer.

    A symbol that ``shapes`` fixes for one input holds for all. Raises :class:`UsageError` when
    ``shapes`` does not fit and :class:`ModelError` when dimensions stay open.
    """
    constant = {t.name for t in graph.initializer} | {
        t.values.name for t in graph.sparse_initializer
    }
    inputs = {i.name: i.type for i in graph.input if i.name not in constant}
    declared = {name: _dims(name, t) for name, t in inputs.items()}
    _check_names(declared, shapes)

    symbols: dict[str, int] = {}
    for name, shape in shapes.items():
        _bind(name, declared[name], shape, symbols)
    resolved: dict[str, tuple[int, ...]] = {}
    for name, dims in declared.items():
        if name in shapes:
            resolved[name] = tuple(shapes[name])
        elif dims is not None:
            bound = [symbols.get(d, d) if isinstance(d, str) else d for d in dims]
            if bound and isinstance(bound[0], str) and all(isinstance(d, int) for d in bound[1:]):
                bound[0] = 1
            if all(isinstance(d, int) for d in bound):
                resolved[name] = tuple(int(d) for d in bound)
    still_open = {name: dims for name, dims in declared.items() if name not in resolved}
    if still_open:
        options = " ".join(f"--shape {name}={_example(dims)}" for name, dims in still_open.items())
        raise ModelError(
            f"the model leaves dimensions of its inputs open: {_listing(still_open)}."
            f" Say how large they are, for example: {options}"
        )
    return {
        name: onnx.helper.make_tensor_type_proto(inputs[name].tensor_type.elem_type, shape)
        for name, shape in resolved.items()
    }


def _dims(name: str, type_: onnx.TypeProto) -> list[Dim] | None:
    """The declared dimensions; ``None`` when not even the rank is known."""
    if not type_.HasField("tensor_type"):
        raise UnsupportedError(
            f"input '{name}' is a {type_.WhichOneof('value')}; only tensors are supported."
        )
    if not type_.tensor_type.HasField("shape"):
        return None
    return [
        # Exporters write an open dimension as a symbol, as nothing at all, or as -1.
        d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else (d.dim_param or "?")
        for d in type_.tensor_type.shape.dim
    ]


def _check_names(
    declared: Mapping[str, list[Dim] | None], shapes: Mapping[str, Sequence[int]]
) -> None:
    unknown = [name for name in shapes if name not in declared]
    if unknown:
        raise UsageError(
            f"the model has no input {', '.join(repr(n) for n in unknown)};"
            f" its inputs are {_listing(declared)}."
        )


def _bind(name: str, dims: list[Dim] | None, shape: Sequence[int], symbols: dict[str, int]) -> None:
    """Check a given shape against the declared one and note what it fixes."""
    given = f"{name}={','.join(map(str, shape))}"
    if any(d < 1 for d in shape):
        raise UsageError(f"shape {given}: every dimension must be at least 1.")
    if dims is None:
        return
    if len(dims) != len(shape):
        raise UsageError(
            f"shape {given} has {len(shape)} dimensions, but the input has {len(dims)}:"
            f" {_listing({name: dims})}."
        )
    for i, (declared, extent) in enumerate(zip(dims, shape, strict=True)):
        if isinstance(declared, str):
            fixed = extent if declared == "?" else symbols.setdefault(declared, extent)
            if fixed != extent:
                raise UsageError(
                    f"shape {given}: dimension {i} is '{declared}', which is {fixed} elsewhere."
                )
        elif declared != extent:
            raise UsageError(
                f"shape {given}: the model fixes dimension {i} to {declared}: "
                f"{_listing({name: dims})}."
            )


def _listing(inputs: Mapping[str, Sequence[Dim] | None]) -> str:
    return ", ".join(
        f"'{name}' [{', '.join(map(str, dims))}]"
        if dims is not None
        else f"'{name}' [rank unknown]"
        for name, dims in inputs.items()
    )


def _example(dims: Sequence[Dim] | None) -> str:
    """A shape to show: a batch of 1 and a common image extent for what is open."""
    if dims is None:
        return "1,3,224,224"
    return ",".join(
        str(d) if isinstance(d, int) else ("1" if i == 0 else "320") for i, d in enumerate(dims)
    )
