"""Compute on tensors of no higher rank than a device has."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from npuc.passes.base import Pass, Result
from npuc.passes.forms.expand import Expander
from npuc.passes.forms.merge_axes import forms
from npuc.passes.graphs import Names, constant, drop_if_unused, infer_shapes, initializer, label
from npuc.passes.writer import Unfit, shape_of
from npuc.profile import Profile
from npuc.program import Refusal

VIEWS = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class ReduceRank(Pass):
    """Reshape[n, c, r, r, h, w] → Transpose → Reshape  ⇒  Reshape → (Transpose → Reshape)ⁿ

    x[n, 3, h, s, d] → Softmax → y  ⇒  Reshape[n·3·h·s, d] → Softmax → Reshape → y

    Fires on nodes that read or make a tensor of higher rank than ``ops.rank_max``. Axes that an
    operator treats alike become one; a Transpose of more axes moves one block of them after the
    other, each time [a, b, c, d] → [a, c, b, d]. A Reshape of a Reshape is one Reshape, so that
    tensors of high rank vanish between. Values are copied, never computed anew.

    Refuses what still has a higher rank: inputs and outputs of the model, operators that mix more
    axes than the device has, and kinds without a rule. Nothing happens without ``ops.rank_max``.
    """

    name: ClassVar[str] = "reduce-rank"

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Rewrite in place; `changes` counts the nodes rewritten, merged or dropped."""
        limit = profile.get("ops.rank_max")
        if limit is None or all(_rank(node) <= limit for node in model.graph):
            return Result()
        infer_shapes(model)
        names, changes = Names(model), 0
        why: dict[ir.Node, str] = {}
        opset = model.opset_imports.get("", 0)
        expander = Expander(forms(limit), lambda n: _high(n, limit), opset)
        for node in list(model.graph):
            if node.domain or not _high(node, limit):
                continue
            reason = expander.expand(node, names)
            if reason:
                why[node] = reason
            changes += not reason
        changes += sum(_plain(node, names, limit) for node in list(model.graph))
        while merged := sum(_joined(node) for node in list(model.graph)):
            changes += merged
            changes += _swept(model.graph)
        left = [node for node in model.graph if _rank(node) > limit]
        reasons = (Refusal(label(n), why.get(n, _edge(n, limit))) for n in left)
        return Result(changes, tuple(reasons))


def _rank(node: ir.Node) -> int:
    """Return the highest rank of what a node reads and makes, constants left out."""
    values = [v for v in node.inputs if v is not None and constant(v) is None]
    return max((len(v.shape) for v in (*values, *node.outputs) if v.shape is not None), default=0)


def _high(node: ir.Node, limit: int) -> str:
    if node.op_type in VIEWS or _rank(node) <= limit:
        return ""
    return f"{node.op_type} has rank {_rank(node)}: at most {limit}"


def _edge(node: ir.Node, limit: int) -> str:
    values = [v for v in (*node.inputs, *node.outputs) if v is not None and v.shape is not None]
    high = next(v for v in values if len(v.shape or ()) > limit)
    port = "an input of the model" if high.is_graph_input() else "an output of the model"
    ends = high.is_graph_input() or high.is_graph_output()
    what = port if ends else f"read or made by {node.op_type}"
    return f"{high.name!r} has rank {len(high.shape or ())}, the device {limit}; it is {what}"


def _plain(node: ir.Node, names: Names, limit: int) -> int:
    """Write a view of high rank as a Reshape to numbers."""
    if node.op_type not in VIEWS or node.domain or _rank(node) <= limit or node.graph is None:
        return 0
    try:
        wanted = np.asarray(shape_of(node.outputs[0]), np.int64)
    except Unfit:
        return 0  # a size that depends on the data: what is left over says so
    given = constant(node.inputs[1]) if node.op_type == "Reshape" else None
    if given is not None and np.array_equal(given, wanted):
        return 0
    assert isinstance(node.graph, ir.Graph)
    old = node.inputs[1] if len(node.inputs) > 1 else None
    shape = initializer(node.graph, names.new(f"{label(node)}_shape"), wanted)
    node.op_type = "Reshape"
    node.attributes.clear()
    node.resize_inputs(2)
    node.replace_input_with(1, shape)
    if old is not None:
        drop_if_unused(old)
    return 1


def _joined(node: ir.Node) -> int:
    """Let a Reshape read what the Reshape before it reads."""
    source = node.inputs[0] if node.op_type == "Reshape" and not node.domain else None
    before = None if source is None else source.producer()
    if before is None or before.op_type != "Reshape" or before.domain:
        return 0
    wanted = constant(node.inputs[1])
    if wanted is None or np.any(np.asarray(wanted, np.int64) <= 0):
        return 0
    node.replace_input_with(0, before.inputs[0])
    return 1


def _swept(graph: ir.Graph) -> int:
    """Remove Reshapes that nobody reads."""
    dead = [
        n for n in graph
        if n.op_type == "Reshape" and not n.outputs[0].uses() and not n.outputs[0].is_graph_output()
    ]  # fmt: skip
    for node in dead:
        inputs = [v for v in node.inputs if v is not None]
        graph.remove(node, safe=True)
        for value in inputs:
            drop_if_unused(value)
    return len(dead)
