"""Read a node of an ONNX graph: its data, its constants, its shapes, its attributes' defaults."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import onnx
import onnx_ir as ir

UNKNOWN = None
ABSENT: tuple[Any, ...] = ()

_TWO_SIDED = frozenset(
    {"Add", "And", "BitShift", "Div", "Equal", "Greater", "GreaterOrEqual", "Less"}
    | {"LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "Sub", "Sum", "Xor"}
)
"""Operators whose data may be any of their inputs: the other is often a constant."""


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """Return an input, or None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def data(node: ir.Node) -> ir.Value | None:
    """Return the input that carries the data: not the condition, not a constant operand."""
    if node.op_type == "Where":
        return operand(node, 1)
    if node.op_type in _TWO_SIDED:
        found = (v for v in node.inputs if v is not None and not is_constant(v))
        return next(found, operand(node, 0))
    return operand(node, 0)


def is_constant(value: ir.Value | None) -> bool:
    """Whether no caller can change a value; dequantized weights count, arrays are not read."""
    if value is None or value.is_graph_input():
        return False
    producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        return is_constant(producer.inputs[0])
    return value.is_initializer() or (producer is not None and producer.op_type == "Constant")


def shape(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """Return a value's shape, with None for a dimension that has no number."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else None for d in value.shape)


def attribute(node: ir.Node, name: str) -> Any:
    """Return an attribute, or its default in the node's opset; `ABSENT` where there is none."""
    found = node.attributes.get(name)
    if found is None:
        return _default(node.op_type, _opset(node), name) if node.domain == "" else ABSENT
    if found.is_ref():
        return UNKNOWN
    value = found.value
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


@cache
def _default(op_type: str, opset: int, name: str) -> Any:
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return ABSENT
    if name not in schema.attributes or not schema.attributes[name].default_value.name:
        return ABSENT
    value = onnx.helper.get_attribute_value(schema.attributes[name].default_value)
    return value.decode() if isinstance(value, bytes) else value


def _opset(node: ir.Node) -> int:
    """Return the opset of the node's graph; a body does not know its own: the newest there."""
    found = node.graph.opset_imports.get("") if node.graph is not None else None
    return found or onnx.defs.onnx_opset_version()
