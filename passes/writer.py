"""Write the nodes that stand for another one, in whatever opset the model is in."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from npuc.passes.builder import Attribute, Builder
from npuc.passes.graphs import Names, constant

Array = np.ndarray[Any, Any]


class Unfit(Exception):
    """One way to write a node does not fit it; the message says why. Never leaves the passes."""


class Writer(Builder):
    """A `Builder` that knows the opset: what was an attribute once becomes one again."""

    def __init__(self, graph: ir.Graph, names: Names, prefix: str, opset: int) -> None:
        super().__init__(graph, names, prefix)
        self.opset = opset

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Attribute) -> ir.Value:
        """Append a node with one output, of its first input's type but for a Cast."""
        result = super().op(op_type, *inputs, **attributes)
        result.type = None if op_type == "Cast" else inputs[op_type == "Where"].type
        return result

    def number(self, name: str, value: float, like: ir.Value) -> ir.Value:
        """Add a scalar of another value's dtype."""
        if like.dtype is None:
            raise Unfit("the type of its input is unknown")
        return self.constant(name, np.asarray(value, like.dtype.numpy()))

    def integers(self, name: str, values: Sequence[int]) -> ir.Value:
        """Add a list of int64."""
        return self.constant(name, np.asarray(values, np.int64))

    def reduce(self, op: str, x: ir.Value, axes: Sequence[int], keep: bool = True) -> ir.Value:
        """Reduce along axes; they are an input since opset 18, for ReduceSum since 13."""
        if self.opset >= (13 if op == "ReduceSum" else 18):
            return self.op(op, x, self.integers("axes", axes), keepdims=int(keep))
        return self.op(op, x, axes=list(axes), keepdims=int(keep))

    def reshape(self, x: ir.Value, shape: Sequence[int]) -> ir.Value:
        """Reshape to numbers."""
        return self.op("Reshape", x, self.integers("shape", shape))

    def transpose(self, x: ir.Value, order: Sequence[int]) -> ir.Value:
        """Permute the axes; nothing where they stay."""
        if list(order) == list(range(len(order))):
            return x
        return self.op("Transpose", x, perm=list(order))

    def slice(self, x: ir.Value, axis: int, start: int, stop: int, step: int = 1) -> ir.Value:
        """Cut along one axis."""
        bounds = [self.integers(n, [v]) for n, v in (("start", start), ("stop", stop))]
        rest = [self.integers("axis", [axis])]
        if step != 1:
            rest.append(self.integers("step", [step]))
        return self.op("Slice", x, *bounds, *rest)

    def cut(self, x: ir.Value, sizes: Sequence[int], axis: int) -> Sequence[ir.Value]:
        """Split into parts of given sizes; these are an input since opset 13."""
        if len(sizes) == 1:
            return [x]
        if self.opset >= 13:
            return self.several("Split", (x, self.integers("split", sizes)), len(sizes), axis=axis)
        return self.several("Split", (x,), len(sizes), axis=axis, split=list(sizes))

    def optional(self, op_type: str, inputs: Sequence[ir.Value | None]) -> ir.Value:
        """Append a node some of whose inputs are left out."""
        return self._node(op_type, inputs, 1, {})[0]

    def concat(self, values: Sequence[ir.Value], axis: int) -> ir.Value:
        """Join along an axis; one value is itself."""
        return values[0] if len(values) == 1 else self.op("Concat", *values, axis=axis)


def shape_of(value: ir.Value | None) -> tuple[int, ...]:
    """Return a static shape; raises `Unfit` where it is not known in numbers."""
    if value is None or value.shape is None:
        raise Unfit("the shape of its input is unknown")
    dims = [d for d in value.shape if isinstance(d, int)]
    if len(dims) != len(value.shape):
        raise Unfit(f"the shape of {value.name!r} is not static: bind it with --dim")
    return tuple(dims)


def given(node: ir.Node, index: int) -> ir.Value | None:
    """Return an input that may be left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def needed(node: ir.Node, index: int = 0) -> ir.Value:
    """Return an input that every valid node has."""
    value = given(node, index)
    if value is None:
        raise Unfit(f"its input {index} is left out")
    return value


def fixed(node: ir.Node, index: int, what: str) -> Array:
    """Return a constant input; raises `Unfit` where it is computed, or a caller may change it."""
    array = constant(given(node, index))
    if array is None:
        raise Unfit(f"its {what} is not a constant")
    return array


def floats(node: ir.Node, index: int = 0) -> ir.Value:
    """Return an input that must hold floats."""
    value = needed(node, index)
    if value.dtype is None or not value.dtype.is_floating_point():
        kind = "of unknown type" if value.dtype is None else value.dtype.name
        raise Unfit(f"its input is {kind}, not a float")
    return value


def axis_of(node: ir.Node, rank: int, default: int = -1) -> int:
    """Return the attribute `axis`, counted from the front."""
    return node.attributes.get_int("axis", default) % max(rank, 1)


def axes_of(node: ir.Node, rank: int) -> list[int]:
    """Return the axes of a Reduce operator, sorted from the front: an attribute or an input."""
    listed = node.attributes.get_ints("axes", ())
    if given(node, 1) is not None:
        listed = [int(a) for a in fixed(node, 1, "list of axes").reshape(-1)]
    if not listed and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        raise Unfit("no axes means nothing to reduce")
    return sorted(a % rank for a in listed) if listed else list(range(rank))
