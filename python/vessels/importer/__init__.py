"""Import: ONNX in, a flat graph with static shapes out.

The way through the package::

    read      file → checked ModelProto, external data loaded
    inputs    --shape → a static shape for every input
    flatten   node by node: names resolved, functions and ``If`` inlined, constants folded,
              shapes inferred
    graph     the remaining nodes → ``onnx_ir.Model``
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from vessels.importer.flatten import Flattener
from vessels.importer.graph import to_ir
from vessels.importer.inputs import resolve_inputs
from vessels.importer.read import read_model

__all__ = ["load"]


def load(
    path_or_model: Path | str | onnx.ModelProto,
    shapes: Mapping[str, Sequence[int]] | None = None,
    native: Collection[str] | None = None,
) -> ir.Model:
    """Read an ONNX model and make everything about it static.

    ``shapes`` gives input shapes by input name. An open first dimension whose input is otherwise
    static is a batch and becomes 1; every other open dimension must be given. ``native`` names
    the operators to keep (default: :data:`vessels.lower.SUPPORTED`); another operator that ONNX
    defines by a function body is replaced by that body.

    In the result every value has a dtype and a static shape; there are no functions, subgraphs
    or nodes whose inputs are all constant, and constants are initializers. A constant that ONNX
    makes by filling or broadcasting may be a read-only array with strides of zero.

    Raises :class:`~vessels.errors.ModelError` (unreadable, invalid, or a dynamic shape left
    open), :class:`~vessels.errors.UnsupportedError` (types or shapes depend on data or on unknown
    operators) and :class:`~vessels.errors.UsageError` (``shapes`` does not fit the model).
    """
    if native is None:
        from vessels.lower import SUPPORTED  # lowering imports nothing of this package

        native = SUPPORTED
    model = read_model(path_or_model)
    input_types = resolve_inputs(model.graph, shapes or {})
    flat = Flattener(model, input_types, frozenset(native)).run()
    return to_ir(flat)
