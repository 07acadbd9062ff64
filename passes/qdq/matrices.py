"""Constant weights of products as the matrices they are, and the products that read them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from npuc.partition import on_host
from npuc.passes.graphs import bodies, constant, label
from npuc.passes.qdq.products import Layout, layout_of
from npuc.passes.qdq.sites import dequantized
from npuc.passes.round_floats import PRODUCTS
from npuc.program import Refusal

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Matrix:
    """One product's reading of a constant weight, its input number `index`."""

    node: ir.Node
    index: int
    layout: Layout

    @property
    def value(self) -> ir.Value:
        """The weight."""
        found = self.node.inputs[self.index]
        assert found is not None  # matrices() lists constants only
        return found

    @property
    def data(self) -> ir.Value:
        """What the weight is multiplied by."""
        found = self.node.inputs[1 - self.index]
        assert found is not None  # matrices() lists products of two
        return found

    @property
    def array(self) -> Array:
        """The weight as it is stored."""
        found = constant(self.value)
        assert found is not None  # matrices() lists constants only
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape as it is stored."""
        return tuple(self.array.shape)

    @property
    def flipped(self) -> bool:
        """Whether the weight is stored as [depth, outputs]."""
        return self.layout.weight_flipped

    @property
    def rows(self) -> Array:
        """The weight as [outputs, depth], outputs of all groups of a convolution."""
        stack = self.layout.rows(self.array)
        return stack.reshape(-1, stack.shape[-1])


def matrices(
    model: ir.Model, skip: Iterable[str] = ()
) -> tuple[dict[str, tuple[Matrix, ...]], tuple[Refusal, ...]]:
    """List the weights of products by name, in graph order, and why others are left as they are.

    A product of two activations, or one that the host computes, is no one's business and is not
    listed.
    """
    skipped = set(skip)
    refused = [
        Refusal(label(node), f"{node.op_type} is inside {where}")
        for where, node in bodies(model)
        if node.domain == "" and node.op_type in PRODUCTS
    ]
    found: dict[str, list[Matrix]] = {}
    for node in model.graph:
        if node.domain != "" or node.op_type not in PRODUCTS or on_host(node):
            continue
        if node.name in skipped:
            refused.append(Refusal(label(node), "skipped by name"))
            continue
        matrix = _matrix(node)
        if isinstance(matrix, str):
            refused.append(Refusal(label(node), matrix))
        elif matrix is not None:
            found.setdefault(matrix.value.name or "", []).append(matrix)
    for name, readers in list(found.items()):
        first = readers[0].layout
        if any((r.flipped, r.layout.group) != (first.weight_flipped, first.group) for r in readers):
            refused += [
                Refusal(label(r.node), "others read its weight differently") for r in readers
            ]
            del found[name]
    return {name: tuple(readers) for name, readers in found.items()}, tuple(refused)


def _matrix(node: ir.Node) -> Matrix | str | None:
    known = [i for i in (0, 1) if constant(node.inputs[i]) is not None]
    if len(known) == 2:
        return "both its factors are constants: run fold-constants first"
    if not known:
        if node.op_type.startswith("Conv") and not dequantized(node.inputs[1]):
            return "its weight is not a constant"
        return None
    (index,) = known
    value, array = node.inputs[index], constant(node.inputs[index])
    assert value is not None and array is not None
    if value.dtype != ir.DataType.FLOAT:
        kind = "unknown" if value.dtype is None else value.dtype.name.lower()
        return f"its weight is {kind}; only float32 is coded"
    if array.size == 0 or array.ndim < 2:
        return f"its weight of shape {list(array.shape)} is no matrix"
    found = layout_of(node, index, array)
    return f"its weight {found}" if isinstance(found, str) else Matrix(node, index, found)
