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
from npuc.passes.decompose import forms
from npuc.passes.forms.expand import Expander
from npuc.passes.forms.older_forms import CHANGED, fits, not_last
from npuc.passes.forms.read_back import faults
from npuc.passes.graphs import Names, drop_if_unused, infer_shapes, infer_types, label
from npuc.profile import Profile

OLDEST = 11


@dataclass(frozen=True)
class LowerOpset(Pass):
    """ReduceMean₁₈(x, axes)  ⇒  ReduceMean₁₃(x){axes};  Gelu₂₀(x)  ⇒  x/2·(1 + Erf(x/√2))

    Each node is checked against the operator's definition in opset `version`: attributes at
    their default are dropped, inputs that were attributes become attributes again, and operators
    that do not exist yet are written out (`npuc.passes.decompose`). (onnx's own version converter
    cannot go below 14 with a Relu, and torch's silently stays where it was.) The result is read
    back: every node must be one of that opset, its attributes, inputs and dtypes with it.

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
        names, reasons, changes = Names(model), Counter[str](), 0
        expander = Expander(forms(), lambda n: _newer(n, current, self.version), current)
        for node in [n for n in model.graph.all_nodes() if _newer(n, current, self.version)]:
            reason = expander.expand(node, names)
            _count(reasons, node, reason)
            changes += not reason
        for node in list(model.graph.all_nodes()):
            if node.domain != "" or _newer(node, current, self.version):
                continue
            before = (len(node.inputs), dict(node.attributes))
            _count(reasons, node, _lower(node, current, self.version, names))
            changes += before != (len(node.inputs), dict(node.attributes))
        if reasons:
            listed = "\n  ".join(f"{n} x {reason}" for reason, n in sorted(reasons.items()))
            raise PassError(
                f"opset {self.version} cannot express:\n  {listed}",
                hint="choose a higher opset, or a target whose toolchain takes one",
            )
        model.graph.opset_imports[""] = self.version
        infer_shapes(model)
        if wrong := faults(model):
            listed = "\n  ".join(wrong)
            raise PassError(
                f"what was written in opset {self.version} does not read back:\n  {listed}",
                hint="this is a fault of npuc: report it with the model",
            )
        return Result(changes)


def _newer(node: ir.Node, current: int, version: int) -> str:
    """Say why a node has to be written in other operators, "" where it has not."""
    if node.domain != "":
        return ""
    if not onnx.defs.has(node.op_type, version, ""):
        return f"the operator came with opset {_first(node.op_type, version, current)}"
    if version < 13 <= current and node.op_type in ("Hardmax", "LogSoftmax", "Softmax"):
        return not_last(node)
    return ""


def _count(reasons: Counter[str], node: ir.Node, reason: str) -> None:
    if reason:
        reasons[f"{node.op_type}: {reason} (as in {label(node)!r})"] += 1


def _lower(node: ir.Node, current: int, version: int, names: Names) -> str:
    assert isinstance(node.graph, ir.Graph)
    build = Builder(node.graph, names, node.name or node.op_type.lower())
    new = onnx.defs.get_schema(node.op_type, current, "")
    old = onnx.defs.get_schema(node.op_type, version, "")
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
