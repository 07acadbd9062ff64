"""Find which channels' factors of a graph can be chosen, and what each choice changes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from npuc.passes.equalization.variables import Variables
from npuc.passes.graphs import constant, label
from npuc.program import Refusal

Array = np.ndarray[Any, Any]

COPIED = 1 << 16
"""Bytes up to which a constant that several nodes read is copied for one of them; a larger one is
shared on purpose, and keeps being shared."""


@dataclass(frozen=True, slots=True)
class Absorbed:
    """A constant input of a node that takes factors: multiplied by s^sign, s the factors of `ids`.

    `ids` broadcasts with the constant.
    """

    node: ir.Node
    index: int
    ids: Array
    sign: int


@dataclass
class Channels:
    """Every float tensor's factors, as numbers of `variables` in an array that broadcasts to it.

    A tensor divided by its factors is what it becomes; a tensor that is not listed keeps what
    it is. Where all of `absorbed` are applied the graph computes the same function.
    """

    variables: Variables = field(default_factory=Variables)
    ids: dict[ir.Value, Array] = field(default_factory=dict)
    absorbed: list[Absorbed] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def of(self, value: ir.Value | None) -> Array:
        """Return a tensor's factors; zeros where they are held."""
        if value is None or value not in self.ids:
            return np.zeros([1] * (0 if value is None else len(shape(value) or ())), np.int64)
        return self.ids[value]

    def hold(self, value: ir.Value | None) -> None:
        """Keep a tensor as it is."""
        self.variables.hold(self.of(value))

    def refuse(self, node: ir.Node, reason: str, *values: ir.Value | None) -> None:
        """Keep tensors as they are, for a reason that is worth telling."""
        if any(self.of(value).any() for value in values) or not values:
            self.refusals.append(Refusal(label(node), reason))
        for value in values:
            self.hold(value)

    def give(self, value: ir.Value, ids: Array) -> None:
        """Say what a tensor's factors are; axes along which they are equal shrink to one."""
        ids = self.variables.known(ids)
        for axis in range(ids.ndim):
            if ids.shape[axis] > 1 and (ids == ids.take([0], axis)).all():
                ids = ids.take([0], axis)
        if ids.any():
            self.ids[value] = ids

    def vector(self, value: ir.Value | None, axis: int) -> Array | None:
        """Return the factors along one axis, or None where they vary along another."""
        dims = shape(value)
        if value is None or dims is None or not -len(dims) <= axis < len(dims):
            return None
        ids = self.of(value)
        axis %= len(dims)
        if any(size > 1 for place, size in enumerate(ids.shape) if place != axis):
            return None
        return np.broadcast_to(ids.reshape(-1), (dims[axis],))

    def absorb(self, node: ir.Node, index: int, ids: Array, sign: int) -> None:
        """Note that a constant of a node takes factors."""
        if index < len(node.inputs) and node.inputs[index] is not None and ids.any():
            self.absorbed.append(Absorbed(node, index, ids, sign))

    def owned(self, node: ir.Node, *indices: int) -> bool:
        """Whether a node's inputs are constants it may have changed; large shared ones are not."""
        for index in indices:
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None:
                continue
            array = constant(value)
            if array is None or array.dtype != np.float32 or value.is_graph_output():
                return False
            if len(tuple(value.uses())) > 1 and array.nbytes > COPIED:
                name = f"its weight {value.name!r} is shared with another operator"
                self.refusals.append(Refusal(label(node), name))
                return False
        return True


Rule = Callable[[ir.Node, Channels], None]


def trace(model: ir.Model, rules: Mapping[str, Rule]) -> Channels:
    """Follow factors through a model of fixed shapes. What no rule speaks of is held at 1."""
    found = Channels()
    for node in model.graph:
        rule = rules.get(node.op_type) if node.domain == "" else None
        fixed = all(shape(v) is not None for v in (*node.inputs, *node.outputs) if v is not None)
        if rule is not None and fixed and not any(_bodies(node)):
            rule(node, found)
        else:
            for value in node.inputs:
                found.hold(value)
    for value in model.graph.outputs:
        found.hold(value)
    for node in model.graph.all_nodes():
        if node.graph is not model.graph:  # a body reads what is outside by name
            for value in node.inputs:
                if value is not None and value in found.ids:
                    found.hold(value)
    return found


def shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return a tensor's fixed shape, or None where a dimension or the rank is not known."""
    if value is None or value.shape is None:
        return None
    dims = tuple(value.shape)
    return dims if all(isinstance(d, int) for d in dims) else None  # type: ignore[return-value]


def _bodies(node: ir.Node) -> list[ir.Attr]:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return [item for item in node.attributes.values() if item.type in kinds]
