"""Small things the rescalings need to read and to change a graph."""

from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, np.dtype[Any]]


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return a value's number where it is a constant, as an initializer or from a node."""
    return None if value is None else ir.convenience.get_const_tensor(value)


def is_weight(value: ir.Value | None) -> bool:
    """Return whether a value is a floating-point constant."""
    tensor = constant(value)
    return tensor is not None and tensor.dtype.is_floating_point()


def shape(value: ir.Value) -> tuple[int, ...] | None:
    """Return a shape where every dimension is a number."""
    if value.shape is None or not value.shape.is_static():
        return None
    return value.shape.numpy()


def integer(node: ir.Node, name: str, default: int = 0) -> int:
    """Return an integer attribute."""
    found = node.attributes.get(name)
    return default if found is None else found.as_int()


def multiply(model: ir.Model, node: ir.Node, at: int, factors: Array) -> None:
    """Multiply the constant at one input of a node; other readers of it keep the old one.

    `factors` broadcasts against the constant. The product is taken in double precision.
    """
    old = node.inputs[at]
    tensor = constant(old)
    assert old is not None and tensor is not None
    weight = (tensor.numpy().astype(np.float64) * factors).astype(np.float32)
    taken = model.graph.initializers
    name = f"{old.name}_rescaled"
    while name in taken:
        name += "_"
    new = ir.Value(name=name, const_value=ir.tensor(weight, name=name))
    new.type, new.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(weight.shape)
    taken[name] = new
    node.replace_input_with(at, new)
    if not old.uses():
        taken.pop(old.name or "", None)
