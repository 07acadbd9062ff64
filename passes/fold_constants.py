"""Compute ahead of time what does not depend on the inputs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass
from onnxscript import optimizer

from npuc.errors import PassError
from npuc.passes.base import Pass, Result
from npuc.passes.graphs import constant, label
from npuc.profile import Profile
from npuc.program import Refusal

KEEP = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
"""Folding these would turn integer weights back into floats."""


@dataclass(frozen=True)
class FoldConstants(Pass):
    """c₁, c₂ → Op → y  ⇒  y as an initializer;  Shape(x) of a static x  ⇒  an initializer

    y = Op(c₁, c₂), computed by ONNX's reference implementation. Constant nodes become
    initializers, so that weights are found in one place.

    Leaves alone: random operators, control flow, quantize and dequantize nodes, initializers a
    caller may override. Refuses a result larger than `limit` bytes that replaces nothing of its
    size, operators with several outputs, and those the reference cannot evaluate.
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
                return Result(changes, tuple(self._left(model)))

    def _left(self, model: ir.Model) -> Iterator[Refusal]:
        for node in model.graph:
            if not node.inputs or node.op_type in KEEP or _has_body(node):
                continue
            if any(value is not None and constant(value) is None for value in node.inputs):
                continue
            shape = node.outputs[0].shape
            if len(node.outputs) > 1:
                yield Refusal(label(node), "it has several outputs")
            elif shape is not None and shape.is_static() and _size(shape) > self.limit // 8:
                yield Refusal(label(node), f"its result would exceed {self.limit} bytes")
            else:
                yield Refusal(label(node), "it cannot be evaluated on its constants")

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
            raise PassError(f"{error}: {error.__cause__}") from error


def _has_body(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def _size(shape: ir.Shape) -> int:
    return math.prod(shape.numpy())
