"""Compute ahead of time what does not depend on the inputs."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass
from onnxscript import optimizer

from npuc.errors import PassError
from npuc.passes.base import Pass, Result
from npuc.profile import Profile

KEEP = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
"""Folding these would turn integer weights back into floats."""


@dataclass(frozen=True)
class FoldConstants(Pass):
    """c₁, c₂ → Op → y  ⇒  y as an initializer;  Shape(x) of a static x  ⇒  an initializer

    y = Op(c₁, c₂), computed by ONNX's reference implementation. Constant nodes become
    initializers, so that weights are found in one place.

    Leaves alone: results larger than `limit` bytes that replace nothing of their size, random
    operators, control flow, quantize and dequantize nodes, initializers a caller may override.
    Raises `PassError` where an operator cannot be evaluated on its constants.
    """

    name: ClassVar[str] = "fold-constants"

    limit: int = 4 * 2**20

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Fold in place until nothing changes; `changes` counts the nodes that went."""
        before = set(model.graph.all_nodes())
        while True:
            size = len(before - set(model.graph.all_nodes()))
            self._once(model)
            changes = len(before - set(model.graph.all_nodes()))
            if changes == size:
                return Result(changes)

    def _once(self, model: ir.Model) -> None:
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        try:
            optimizer.fold_constants_ir(
                model,
                onnx_shape_inference=True,
                # Elements: no ONNX number that is common in constants is wider than 8 bytes.
                output_size_limit=self.limit // 8,
                should_fold=lambda node: node.op_type not in KEEP,
            )
        except (ir.passes.PassError, RuntimeError) as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise PassError(f"{error}: {reason}") from error
