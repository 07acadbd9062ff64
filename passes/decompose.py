"""Write operators that a device does not have in those that it has."""

from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from npuc.legality import Finding, judge
from npuc.partition import on_host
from npuc.passes.base import Pass, Result
from npuc.passes.forms import activations as decompose_activations
from npuc.passes.forms import arithmetic as decompose_arithmetic
from npuc.passes.forms import attention as decompose_attention
from npuc.passes.forms import convolutions as decompose_convolutions
from npuc.passes.forms import einsum as decompose_einsum
from npuc.passes.forms import norms as decompose_norms
from npuc.passes.forms import products as decompose_products
from npuc.passes.forms import reductions as decompose_reductions
from npuc.passes.forms import resize as decompose_resize
from npuc.passes.forms import shapes as decompose_shapes
from npuc.passes.forms.expand import Expander, Form, Forms, Judge, isolate
from npuc.passes.graphs import Names, infer_shapes, label
from npuc.profile import Profile
from npuc.program import Program, Refusal

FAMILIES: tuple[Forms, ...] = (
    decompose_activations.FORMS,
    decompose_arithmetic.FORMS,
    decompose_attention.FORMS,
    decompose_einsum.FORMS,
    decompose_norms.FORMS,
    decompose_reductions.FORMS,
    decompose_resize.FORMS,
    decompose_shapes.FORMS,
    decompose_products.FORMS,
    decompose_convolutions.FORMS,
)


def forms() -> Forms:
    """Return all ways to write each operator, over all families, the preferred one first."""
    every: dict[str, tuple[Form, ...]] = {}
    for family in FAMILIES:
        for kind, ways in family.items():
            every[kind] = (*every.get(kind, ()), *ways)
    return every


@dataclass(frozen=True)
class Decompose(Pass):
    """x → Gelu → y  ⇒  x → ·√½ → Erf → +1 → ·(x/2) → y;  x → HardSwish → y  ⇒  x·HardSigmoid(x)

    LayerNormalization(x)  ⇒  (x - mean x) / √(mean (x - mean x)² + ε)·s + b
    Attention(Q, K, V)     ⇒  Softmax(√s·Q·(√s·K)ᵀ + M)·V
    Einsum(a, b)           ⇒  Transpose → Reshape → MatMul → Reshape → Transpose
    Resize(x)              ⇒  a ConvTranspose of ones, or a MatMul along each axis
    Softmax over axis 1    ⇒  Transpose → Softmax → Transpose
    ReduceMean ⇔ GlobalAveragePool ⇔ AveragePool, Gemm ⇔ MatMul + Add, Clip ⇔ Min, Max, …

    A node is rewritten where the profile does not let the device run it: its kind is not in a
    public ``ops.supported``, a limit forbids it, or it came after ``onnx.opset_max``. Of the ways
    to write it (`npuc.passes.decompose_*`) the first is taken all of whose operators the device
    runs, or that have such forms themselves. Where there is none the node is refused with the
    reason for each. Nothing happens where the profile says nothing: nobody knows then.

    Every form computes the same function up to rounding. Those that multiply by a mask of zeros,
    and sums over weights of zero, hold for finite values. Shapes must be static.
    """

    name: ClassVar[str] = "decompose"

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Rewrite in place; `changes` counts the nodes that went."""
        if profile.supported is None and not profile.limits and profile.opset_max is None:
            return Result()
        every, opset = forms(), model.opset_imports.get("", 0)
        if model.functions:
            InlinePass()(model)
        if any(v.shape is None or v.dtype is None for node in model.graph for v in node.outputs):
            infer_shapes(model)
        judge_node = judging(profile, opset)
        expander, names = Expander(every, judge_node, opset), Names(model)
        refusals, changes = [], 0
        for node in list(model.graph):
            if node.domain or node.op_type not in every or on_host(node) or not judge_node(node):
                continue
            reason = expander.expand(node, names)
            if reason:
                refusals.append(Refusal(label(node), reason))
            changes += not reason
        return Result(changes, tuple(refusals))


def judging(profile: Profile, opset: int) -> Judge:
    """Return what says why a device does not take a node alone, "" where it does."""
    newest = profile.opset_max
    known: dict[str, int] = {}

    def why(node: ir.Node) -> str:
        if newest is not None and opset > newest:
            first = known.setdefault(node.op_type, _first(node.op_type, opset))
            if first > newest:
                return f"{node.op_type} came with opset {first}, the device takes {newest}"
        alone = Program.from_model(isolate(node, opset))
        found = judge(alone, profile)
        return "; ".join(_short(f) for f in found if f.node and f.verdict == "host" and _ours(f))

    return why


def _ours(found: Finding) -> bool:
    """Whether no other pass mends it: `reduce-rank`, `narrow-int64`, `fix-shapes`."""
    high = found.measure == "rank" and found.bound.startswith("at most")
    return not high and found.measure not in ("dtype", "shape")


def _short(found: Finding) -> str:
    missing = found.measure == "operator" and found.verdict == "host"
    return f"the device has no {found.op}" if missing else f"{found.op} has {found.reason}"


def _first(kind: str, opset: int) -> int:
    return next((v for v in range(1, opset + 1) if onnx.defs.has(kind, v, "")), opset + 1)
