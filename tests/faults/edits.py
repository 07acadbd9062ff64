"""Small, wrong changes to a node of an ONNX graph."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from seams import Array, Edit

from npuc.passes.graphs import Names, constant, drop_if_unused, initializer


def attribute(**values: Any) -> Edit:
    """Set attributes."""

    def edit(model: ir.Model, node: ir.Node) -> None:
        for name, value in values.items():
            node.attributes.pop(name, None)
            if value is not None:
                node.attributes.add(ir.convenience.convert_attributes({name: value})[0])

    return edit


def stored(index: int, change: Callable[[Array], Array]) -> Edit:
    """Change a constant input, for this node alone."""

    def edit(model: ir.Model, node: ir.Node) -> None:
        array = value_of(node.inputs[index])
        put(model, node, index, np.asarray(change(array)).astype(array.dtype))

    return edit


def value_of(value: ir.Value | None) -> Array:
    """Return a constant's array; raises `LookupError` where it is none."""
    array = constant(value)
    if array is None:
        raise LookupError(f"{value and value.name} is not a constant")
    return np.array(array)


def put(model: ir.Model, node: ir.Node, index: int, array: Array) -> None:
    """Let a node read an array."""
    name, old = Names(model).new(f"{node.outputs[0].name}_wrong"), node.inputs[index]
    node.replace_input_with(index, initializer(model.graph, name, array))
    if old is not None:
        drop_if_unused(old)


def read(index: int, other: int) -> Edit:
    """Let a node read one of its inputs twice, in the place of another."""

    def edit(model: ir.Model, node: ir.Node) -> None:
        node.replace_input_with(index, node.inputs[other])

    return edit


def permuted(order: Sequence[int]) -> Edit:
    """Give a node its inputs in another order."""

    def edit(model: ir.Model, node: ir.Node) -> None:
        old = tuple(node.inputs)
        for index, source in enumerate(order):
            node.replace_input_with(index, old[source])

    return edit


def swapped_outputs(first: int, second: int) -> Edit:
    """Give the readers of two results each other's."""

    def edit(model: ir.Model, node: ir.Node) -> None:
        a, b = node.outputs[first], node.outputs[second]
        of_a, of_b = tuple(a.uses()), tuple(b.uses())
        for user, index in of_a:
            user.replace_input_with(index, b)
        for user, index in of_b:
            user.replace_input_with(index, a)

    return edit


def dropped(model: ir.Model, node: ir.Node) -> None:
    """Let readers have the node's input in place of its result."""
    result, given = node.outputs[0], node.inputs[0]
    assert given is not None and not result.is_graph_output()
    result.replace_all_uses_with(given)


def without(index: int) -> Edit:
    """Drop an optional input."""

    def edit(model: ir.Model, node: ir.Node) -> None:
        node.replace_input_with(index, None)

    return edit


def op(
    model: ir.Model, kind: str, inputs: Sequence[ir.Value | None], like: ir.Value, **more: Any
) -> Any:
    """Make a node of one result, typed as `like`; returns the node, which is not in the graph."""
    names = Names(model)
    attributes = ir.convenience.convert_attributes(more)
    out = ir.Value(name=names.new(f"{like.name}_{kind.lower()}"), type=like.type, shape=like.shape)
    return ir.Node("", kind, list(inputs), attributes, outputs=[out])


def after(build: Callable[[ir.Model, ir.Value], Sequence[ir.Node]]) -> Edit:
    """Put nodes between the first result and its readers; the last one's result is read."""

    def edit(model: ir.Model, node: ir.Node) -> None:
        result = node.outputs[0]
        users = tuple(result.uses())
        added = build(model, result)
        last = added[-1].outputs[0]
        if result.is_graph_output():
            index = next(i for i, v in enumerate(model.graph.outputs) if v is result)
            result.name, last.name = f"{result.name}_inner", result.name
            model.graph.outputs[index] = last
        model.graph.insert_after(node, added)
        for user, index in users:
            user.replace_input_with(index, last)

    return edit


def before(index: int, build: Callable[[ir.Model, ir.Value], Sequence[ir.Node]]) -> Edit:
    """Put nodes between one input and this node."""

    def edit(model: ir.Model, node: ir.Node) -> None:
        value = node.inputs[index]
        assert value is not None
        added = build(model, value)
        model.graph.insert_before(node, added)
        node.replace_input_with(index, added[-1].outputs[0])

    return edit


def through(dtype: int) -> Callable[[ir.Model, ir.Value], Sequence[ir.Node]]:
    """Round a tensor to a shorter float type and back."""

    def build(model: ir.Model, value: ir.Value) -> Sequence[ir.Node]:
        narrow = op(model, "Cast", [value], value, to=dtype)
        narrow.outputs[0].name += "_narrow"
        narrow.outputs[0].type = ir.TensorType(ir.DataType(dtype))
        return narrow, op(model, "Cast", [narrow.outputs[0]], value, to=1)

    return build


def short(model: ir.Model, value: ir.Value) -> Sequence[ir.Node]:
    """Round a tensor to 11 bits, as TF32 and half precision have: (x·c) - (x·c - x), c = 2¹³ + 1.

    By arithmetic alone (T. J. Dekker 1971), which every compiler takes.
    """
    names = Names(model)
    held = initializer(model.graph, names.new("splitter"), np.asarray(2**13 + 1, np.float32))
    wide = op(model, "Mul", [value, held], value)
    rest = op(model, "Sub", [wide.outputs[0], value], value)
    rest.outputs[0].name += "_rest"
    return wide, rest, op(model, "Sub", [wide.outputs[0], rest.outputs[0]], value)


def times(factor: float) -> Callable[[ir.Model, ir.Value], Sequence[ir.Node]]:
    """Multiply a tensor by a constant."""

    def build(model: ir.Model, value: ir.Value) -> Sequence[ir.Node]:
        held = initializer(
            model.graph, Names(model).new("wrong_factor"), np.asarray(factor, np.float32)
        )
        return (op(model, "Mul", [value, held], value),)

    return build


def again(model: ir.Model, value: ir.Value) -> Sequence[ir.Node]:
    """Apply the operator that made a tensor to it once more."""
    node = value.producer()
    assert node is not None
    more = {a.name: a.value for a in node.attributes.values()}
    return (op(model, node.op_type, [value, *node.inputs[1:]], value, **more),)


def both(*edits: Edit) -> Edit:
    """Do several edits."""

    def edit(model: ir.Model, node: ir.Node) -> None:
        for one in edits:
            one(model, node)

    return edit


def tf32(array: Array) -> Array:
    """Round float32 to 10 bits of mantissa, ties to even, as tensor cores read their operands."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32).astype(np.uint64)
    bits += 0xFFF + ((bits >> 13) & 1)
    return (bits & 0xFFFFE000).astype(np.uint32).view(np.float32)
