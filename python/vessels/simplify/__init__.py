"""Simplify: the same function of the inputs with fewer, plainer nodes.

Each pass states what it requires and ensures and :class:`onnx_ir.passes.PassManager` checks
both; all share one invariant (:func:`vessels.simplify.rewrite.check_static`). Arithmetic on
constants is done in float64 and rounded once.

What is left for lowering to know:

* A rank-2 ``MatMul`` by a constant followed by ``Add`` of a constant vector is a ``Gemm``; one
  of a higher rank stays ``MatMul``, ``Add``.
* Batch normalization in inference mode is gone: in the weights before it, or ``Mul``, ``Add``.
* ``Sub`` and ``Div`` by float constants are ``Add`` and ``Mul``; ``Sum`` of two is ``Add``.
* Hard swish however it was spelled is ``Mul(x, HardSigmoid(x))``.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import PassManager, common

from vessels.simplify.absorb import AbsorbAffine
from vessels.simplify.activations import HoistScalars, RecognizeHardSigmoid
from vessels.simplify.affine import FoldAffine, MatMulAddToGemm, SplitBatchNormalization
from vessels.simplify.canonical import Canonicalize
from vessels.simplify.noops import BypassExpand, RemoveNoOps
from vessels.simplify.padding import FoldPadding
from vessels.simplify.views import MergeViews

__all__ = ["simplify"]

MOST_ROUNDS = 16
"""Rounds of all passes; every pass makes the graph smaller or plainer, so few suffice."""


def simplify(model: ir.Model) -> ir.Model:
    """Simplify ``model`` in place and return it.

    ``model`` is as :func:`vessels.importer.load` gives it, and stays so: same inputs and outputs
    by name, dtype and shape, static shapes everywhere. Float32 results differ by rounding alone.
    """
    manager = PassManager(
        [
            Canonicalize(),
            RemoveNoOps(),
            BypassExpand(),
            MergeViews(),
            FoldPadding(),
            FoldAffine(),
            SplitBatchNormalization(),
            AbsorbAffine(),
            RecognizeHardSigmoid(),
            HoistScalars(),
            MatMulAddToGemm(),
            common.CommonSubexpressionEliminationPass(),
            common.RemoveUnusedNodesPass(),
        ],
        steps=MOST_ROUNDS,
    )
    model = manager(model).model
    if not any(v.is_graph_output() for v in model.graph.initializers.values()):
        # The pass logs a warning for each constant that is an output, which is of no use here.
        common.DeduplicateInitializersPass()(model)
    return model
