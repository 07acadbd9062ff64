"""Where the result of a node is coded: after what belongs to it, and through what only moves it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from npuc.partition import on_host
from npuc.passes.arithmetic.held import moves
from npuc.passes.graphs import constant, label
from npuc.profile import IntScheme
from npuc.program import Refusal

Array = np.ndarray[Any, Any]
_PASSES_ON = frozenset(
    {
        "CenterCropPad",
        "Compress",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "GlobalMaxPool",
        "Identity",
        "MaxPool",
        "Pad",
        "ReduceMax",
        "ReduceMin",
        "Reshape",
        "Resize",
        "ReverseSequence",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators whose output holds values of their first input alone, where `held.moves` agrees."""


def carries(node: ir.Node) -> bool:
    """Whether a node's outputs hold values of its first input, or zero, in that input's codes."""
    if node.op_type not in _PASSES_ON or not moves(node):
        return False
    mode = node.attributes.get("mode")
    if node.op_type == "Pad" and (mode is None or mode.as_string() == "constant"):
        given = node.inputs[2] if len(node.inputs) > 2 else None
        fill = constant(given)
        return given is None or (fill is not None and not fill.any())
    return True


def source(value: ir.Value, scheme: IntScheme) -> ir.Value:
    """Return the value whose codes `value` shares: on a device without floats, what it moves."""
    producer = value.producer()
    while scheme.whole and producer is not None and carries(producer) and not on_host(producer):
        moved = producer.inputs[0]
        if moved is None or constant(moved) is not None or moved.dtype != ir.DataType.FLOAT:
            break
        value, producer = moved, moved.producer()
    return value


def tail(node: ir.Node, scheme: IntScheme) -> tuple[ir.Node, ...]:
    """Return the nodes that belong to a node's result, in order: its bias, its fused clamps.

    Each is the only reader of the one before. A bias is an Add of a constant along the last axis
    to the product of a MatMul with a constant right side.
    """
    found: list[ir.Node] = []
    value = node.outputs[0]
    reader = only_reader(value)
    if reader is not None and _is_bias(node, reader):
        found.append(reader)
        reader = only_reader(reader.outputs[0])
    while reader is not None and reader.op_type in scheme.fused and _is_clamp(reader):
        found.append(reader)
        reader = only_reader(reader.outputs[0])
    return tuple(found)


def absorbed(model: ir.Model, scheme: IntScheme) -> frozenset[ir.Node]:
    """Return the nodes that belong to the result of another node of the scheme."""
    return frozenset(
        item
        for node in model.graph
        if node.domain == "" and node.op_type in listed(scheme) and not on_host(node)
        for item in tail(node, scheme)
    )


def listed(scheme: IntScheme) -> frozenset[str]:
    """Return the operators computed on codes: a clamp on its own too, where there are no floats."""
    return scheme.ops | scheme.fused if scheme.whole else scheme.ops


def results(node: ir.Node, scheme: IntScheme) -> Iterator[ir.Value]:
    """Yield the float32 values that a device without floats codes when it computed `node`."""
    if not scheme.whole or carries(node):
        return
    last = (node, *tail(node, scheme))[-1]
    for value in last.outputs:
        if _is_read(value):
            yield value


def left_in_float(model: ir.Model, scheme: IntScheme) -> tuple[Refusal, ...]:
    """List the nodes that compute in float32 although the device is said to have none."""
    if not scheme.whole:
        return ()
    known = absorbed(model, scheme)
    return tuple(
        Refusal(label(node), f"{node.op_type} is not an operator of the device's integer scheme")
        for node in model.graph
        if node.op_type not in listed(scheme)
        and not on_host(node)
        and node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Constant")
        and node not in known
        and not carries(node)
        and any(_is_read(value) for value in node.outputs)
    )


def only_reader(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads a value, once; None where the caller or the host does."""
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0][0].domain != "":
        return None
    return None if on_host(uses[0][0]) else uses[0][0]


def bias_of(node: ir.Node, product: ir.Value) -> ir.Value | None:
    """Return what an Add adds to `product`."""
    return next((v for v in node.inputs if v is not None and v is not product), None)


def _is_bias(node: ir.Node, reader: ir.Node) -> bool:
    if node.op_type != "MatMul" or reader.op_type != "Add":
        return False
    weight, bias = _stored(node.inputs[1]), constant(bias_of(reader, node.outputs[0]))
    if weight is None or bias is None or weight.ndim < 2 or not bias.ndim:
        return False
    return bias.size == bias.shape[-1] == weight.shape[-1] and bias.ndim <= weight.ndim


def _is_clamp(node: ir.Node) -> bool:
    return all(v is None or constant(v) is not None for v in node.inputs[1:])


def _stored(value: ir.Value | None) -> Array | None:
    """Return a constant, or the codes of one that is dequantized."""
    producer = None if value is None else value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        value = producer.inputs[0]
    return constant(value)


def _is_read(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT and bool(value.uses() or value.is_graph_output())
