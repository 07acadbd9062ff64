"""Give convolutions and linear layers as many channels as a device's unit takes at once."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from npuc.passes.base import Pass, Result
from npuc.passes.builder import Builder
from npuc.passes.forms.merge_axes import UNARY
from npuc.passes.graphs import Names, constant, drop_if_unused, infer_shapes, initializer, label
from npuc.profile import Profile
from npuc.program import Refusal

Array = np.ndarray[Any, Any]
POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})
THROUGH = frozenset(UNARY) | POOLS
"""Operators that keep channels apart: what a padded one holds, no other one sees."""


@dataclass(frozen=True)
class AlignChannels(Pass):
    """x → Conv(W[6]) → Relu → Conv(V[8, 6])  ⇒  x → Conv([W, 0][8]) → Relu → Conv([V, 0][8, 8])

    x → Conv(W[6]) → y  ⇒  x → Conv([W, 0][8]) → Slice(0:6) → y

    Fires where ``align.channels`` is public, on each Conv and Gemm with constant weights whose
    number of results is no multiple of it: filters of zeros are added. Where only convolutions
    read the result, directly or through operators that keep channels apart, their weights for the
    new channels are zero; elsewhere the new channels are cut off. Zeros change no sum, so the
    answer is the same to the bit while values are finite.

    Refuses convolutions in groups, and weights that are computed or that others read.
    """

    name: ClassVar[str] = "align-channels"

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Pad in place; `changes` counts the layers that got more channels."""
        multiple = profile.get("align.channels")
        if multiple is None:
            return Result()
        names, changes, refusals = Names(model), 0, []
        for node in list(model.graph):
            if node.domain or node.op_type not in ("Conv", "Gemm"):
                continue
            reason, missing = _missing(node, multiple)
            if reason:
                refusals.append(Refusal(label(node), reason))
            elif missing:
                _pad(node, missing, names)
                changes += 1
        if changes:
            infer_shapes(model)
        return Result(changes, tuple(refusals))


def _axis(node: ir.Node) -> int:
    """Return the axis of the weight that counts results."""
    return 0 if node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1 else 1


def _missing(node: ir.Node, multiple: int) -> tuple[str, int]:
    weight = constant(node.inputs[1])
    if weight is None:
        return "its weight is not a constant", 0
    missing = -weight.shape[_axis(node)] % multiple
    if missing > 0 and node.attributes.get_int("group", 1) != 1:
        return "it has groups", 0
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if missing and bias is not None and constant(bias) is None:
        return "its bias is not a constant", 0
    return "", missing


def _pad(node: ir.Node, missing: int, names: Names) -> None:
    count = _grown(node, 1, _axis(node), missing, names)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = constant(node.inputs[2])
        if bias is not None and bias.ndim and bias.shape[-1] == count:
            _grown(node, 2, bias.ndim - 1, missing, names)
    readers = _readers(node.outputs[0])
    if readers is None:
        _cut(node, count, names)
        return
    for reader in readers:
        _grown(reader, 1, 1, missing, names)
    _forget(node.outputs[0])


def _grown(node: ir.Node, index: int, axis: int, missing: int, names: Names) -> int:
    """Add zeros to a constant along an axis; returns how many values there were."""
    old = node.inputs[index]
    array = constant(old)
    assert old is not None and array is not None and isinstance(node.graph, ir.Graph)
    pads = [(0, missing if a == axis else 0) for a in range(array.ndim)]
    fresh = initializer(
        node.graph, names.new(f"{old.name}_aligned"), np.pad(np.asarray(array), pads)
    )
    node.replace_input_with(index, fresh)
    drop_if_unused(old)
    return int(array.shape[axis])


def _readers(value: ir.Value) -> list[ir.Node] | None:
    """Return the convolutions at the end of every path from here; None where others read it."""
    found: list[ir.Node] = []
    if value.is_graph_output() or not value.uses():
        return None
    for node, index in value.uses():
        if index == 0 and node.op_type == "Conv" and not node.domain:
            if constant(node.inputs[1]) is None or node.attributes.get_int("group", 1) != 1:
                return None
            found.append(node)
        elif index == 0 and node.op_type in THROUGH and len(node.outputs) == 1 and not node.domain:
            behind = _readers(node.outputs[0])
            if behind is None:
                return None
            found += behind
        else:
            return None
    return found


def _forget(value: ir.Value) -> None:
    """Leave the shapes of padded values to inference."""
    value.shape = None
    for node, _ in value.uses():
        if node.op_type in THROUGH:
            _forget(node.outputs[0])


def _cut(node: ir.Node, count: int, names: Names) -> None:
    """Slice the channels that were there before off the result."""
    assert isinstance(node.graph, ir.Graph)
    old = node.outputs[0]
    build = Builder(node.graph, names, label(node).partition(" ")[0])
    bounds = [
        build.constant(n, np.array([v], np.int64))
        for n, v in (("start", 0), ("stop", count), ("axis", 1))
    ]
    kept = build.op("Slice", old, *bounds)
    for new in build.nodes:
        new.metadata_props.update(node.metadata_props)
    users = list(old.uses())
    outputs = node.graph.outputs
    kept.shape, kept.type, old.shape = old.shape, old.type, None
    for user, index in users:
        if user not in build.nodes:
            user.replace_input_with(index, kept)
    if old.is_graph_output():
        name = old.name
        old.name = names.new(f"{name}_aligned")
        outputs[outputs.index(old)] = kept
        kept.name = name
    node.graph.insert_after(node, build.nodes)
