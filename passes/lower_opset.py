"""Write a model in an older ONNX opset."""

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from npuc.errors import PassError, UsageError
from npuc.passes.base import Pass, Result
from npuc.passes.builder import Builder
from npuc.passes.graphs import Names, drop_if_unused, infer_shapes, infer_types, label
from npuc.passes.older_forms import CHANGED, MISSING, fits
from npuc.profile import Profile

OLDEST = 11


@dataclass(frozen=True)
class LowerOpset(Pass):
    """ReduceMean₁₈(x, axes)  ⇒  ReduceMean₁₃(x){axes};  Gelu₂₀(x)  ⇒  x/2·(1 + Erf(x/√2))

    Each node is checked against the operator's definition in opset `version`: attributes at
    their default are dropped, inputs that were attributes become attributes again, and Gelu,
    HardSwish and LayerNormalization are written out where they do not exist yet. (onnx's own
    version converter cannot go below 14 with a Relu, and torch's silently stays where it was.)

    A model at or below `version` is left alone. Raises `UsageError` below opset 11 and
    `PassError` naming every operator that cannot be said in that opset, with the reason.
    """

    name: ClassVar[str] = "lower-opset"

    version: int = 13

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Lower in place; `changes` counts the nodes that had to be written differently."""
        if self.version < OLDEST:
            raise UsageError(f"lower-opset goes down to opset {OLDEST}, not {self.version}")
        current = model.opset_imports.get("", 0)
        if current <= self.version:
            return Result()
        InlinePass()(model)
        infer_types(model)
        names, faults, changes = Names(model), Counter[str](), 0
        for node in list(model.graph.all_nodes()):
            if node.domain != "":
                continue
            before = (len(node.inputs), dict(node.attributes), node.graph)
            reason = _lower(node, current, self.version, names)
            if reason:
                faults[f"{node.op_type}: {reason} (as in {label(node)!r})"] += 1
            changes += before != (len(node.inputs), dict(node.attributes), node.graph)
        if faults:
            listed = "\n  ".join(f"{n} x {fault}" for fault, n in sorted(faults.items()))
            raise PassError(
                f"opset {self.version} cannot express:\n  {listed}",
                hint="choose a higher opset, or a target whose toolchain takes one",
            )
        model.graph.opset_imports[""] = self.version
        infer_shapes(model)
        return Result(changes)


def _lower(node: ir.Node, current: int, version: int, names: Names) -> str:
    assert isinstance(node.graph, ir.Graph)
    build = Builder(node.graph, names, node.name or node.op_type.lower())
    new = onnx.defs.get_schema(node.op_type, current, "")
    try:
        old = onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        if node.op_type not in MISSING:
            return f"the operator came with opset {_first(node.op_type, version, current)}"
        return MISSING[node.op_type](node, build)
    if new.since_version == old.since_version:
        return ""
    inputs = [value for value in node.inputs if value is not None]
    for since, rewrite in CHANGED.get(node.op_type, ()):
        if version < since <= current:
            reason = rewrite(node, build)
            if reason:
                return reason
    reason = fits(node, new, old)
    for value in inputs:
        drop_if_unused(value)
    return reason


def _first(op_type: str, version: int, current: int) -> int:
    for opset in range(version + 1, current):
        if onnx.defs.has(op_type, opset, ""):
            return opset
    return current
