"""Remove what has no effect on the outputs, and what is there twice."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    RemoveUnusedFunctionsPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from npuc.passes.base import Pass, Result
from npuc.passes.graphs import constant, label
from npuc.profile import Profile
from npuc.program import Refusal


@dataclass(frozen=True)
class DropUnused(Pass):
    """x → Identity → Dropout → Op  ⇒  x → Op;  nodes and weights nobody reads  ⇒  nothing

    y = x. Equal weights become one, and equal nodes on equal inputs become one.

    Leaves alone: model inputs, used or not; an Identity that joins an input or a weight, or a
    second output, to an output. Refuses a Dropout that is live (training mode) or whose mask is
    read.
    """

    name: ClassVar[str] = "drop-unused"

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Drop in place; `changes` counts the nodes and initializers that went."""
        before = _things(model)
        refusals: list[Refusal] = []
        for node in list(model.graph.all_nodes()):
            if node.domain == "" and node.op_type == "Dropout":
                reason = _live(node)
                if reason:
                    refusals.append(Refusal(label(node), reason))
                else:
                    _forward(node)
            elif node.domain == "" and node.op_type == "Identity":
                _forward(node)
        for graph in model.graphs():
            _merge_weights(graph)
        for cleanup in (
            CommonSubexpressionEliminationPass(),
            RemoveUnusedNodesPass(),
            RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
            RemoveUnusedOpsetsPass(),
        ):
            cleanup(model)
        return Result(len(before - _things(model)), tuple(refusals))


def _things(model: ir.Model) -> set[object]:
    weights = (v for graph in model.graphs() for v in graph.initializers.values())
    return {*model.graph.all_nodes(), *weights}


def _live(node: ir.Node) -> str:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is not None:
        value = constant(training)
        if value is None:
            return "whether it trains is decided at run time"
        if value.any():
            return "it is in training mode: its output is random; export the model with eval()"
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        return "its mask is read"
    return ""


def _merge_weights(graph: ir.Graph) -> None:
    """Let equal initializers be one. onnx_ir's own pass fails on a transposed (strided) tensor."""
    alike: dict[object, list[ir.Value]] = defaultdict(list)
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or value.is_graph_output():
            continue
        if tensor.dtype != ir.DataType.STRING:
            alike[tensor.dtype, tuple(tensor.shape)].append(value)
    for group in alike.values():
        if len(group) == 1:  # nothing to compare with: do not read it from the disk
            continue
        first: dict[str, ir.Value] = {}
        for value in group:
            assert value.const_value is not None and value.name is not None
            kept = first.setdefault(_digest(value.const_value), value)
            if kept is not value:
                value.replace_all_uses_with(kept)
                graph.initializers.pop(value.name)


def _digest(tensor: ir.TensorProtocol) -> str:
    return hashlib.sha256(np.ascontiguousarray(tensor.numpy()).tobytes()).hexdigest()


def _forward(node: ir.Node) -> None:
    """Take out a node that hands its first input on, where the ports keep their names.

    onnx_ir's own IdentityEliminationPass renames the input even where that is a port itself.
    """
    source, output = node.inputs[0], node.outputs[0]
    if source is None or node.graph is None:
        return
    if output.is_graph_output():
        inside = source.producer() is not None and source.graph is node.graph
        if not inside or source.is_graph_output():
            return
        source.name = output.name
    if source.shape is None:
        source.shape = output.shape
    if source.type is None:
        source.type = output.type
    output.replace_all_uses_with(source, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)
