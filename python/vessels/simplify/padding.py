"""Folds explicit zero padding into the windowed operator that reads it."""

from __future__ import annotations

import onnx_ir as ir

from vessels.simplify.rewrite import (
    NodePass,
    constant_of,
    input_of,
    replace,
    scalar_of,
    shape_of,
)


class FoldPadding(NodePass):
    """``Pad`` with zeros of spatial dimensions before ``Conv``, and before ``AveragePool`` where
    the padding is counted or there is no other, becomes the operator's own."""

    def rewrite(self, node: ir.Node) -> bool:
        if node.op_type not in ("Conv", "AveragePool") or node.inputs[0] is None:
            return False
        pad = node.inputs[0].producer()
        spatial = _zero_padding(pad) if pad is not None and pad.op_type == "Pad" else None
        if pad is None or spatial is None:
            return False
        if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return False
        own = list(node.attributes.get_ints("pads") or [0] * len(spatial))
        attributes: dict[str, object] = {
            k: a for k, a in node.attributes.items() if k not in ("pads", "auto_pad")
        }
        if node.op_type == "AveragePool":
            counted = node.attributes.get_int("count_include_pad", 0) == 1
            if (any(own) and not counted) or node.attributes.get_int("ceil_mode", 0) == 1:
                return False
            attributes["count_include_pad"] = 1
        pads = [a + b for a, b in zip(own, spatial, strict=True)]
        kernel = list(node.attributes.get_ints("kernel_shape") or ())
        if node.op_type == "AveragePool" and any(
            p >= k for p, k in zip(pads, kernel * 2, strict=True)
        ):
            return False  # a window wholly inside the padding is not allowed
        attributes["pads"] = pads
        replace(node, node.op_type, [pad.inputs[0], *node.inputs[1:]], attributes)
        return True


def _zero_padding(node: ir.Node) -> list[int] | None:
    """Begins, then ends, of the spatial dimensions, when ``node`` pads these alone with zeros."""
    assert node.inputs[0] is not None
    rank = len(shape_of(node.inputs[0]))
    if node.attributes.get_string("mode", "constant") != "constant":
        return None
    given = node.attributes.get_ints("pads")
    pads = list(given) if given is not None else _ints(input_of(node, 1))
    value = input_of(node, 2)
    zero = scalar_of(value) == 0 if value is not None else True
    if pads is None or not zero or node.attributes.get_float("value", 0.0) != 0:
        return None
    axes = _ints(input_of(node, 3)) if input_of(node, 3) is not None else list(range(rank))
    if axes is None or min(pads, default=0) < 0:
        return None
    begins, ends = [0] * rank, [0] * rank
    for axis, begin, end in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        begins[axis], ends[axis] = begin, end
    if any(begins[:2]) or any(ends[:2]):
        return None
    return begins[2:] + ends[2:]


def _ints(value: ir.Value | None) -> list[int] | None:
    array = constant_of(value)
    return [int(v) for v in array] if array is not None else None
