"""Center the channels that share a scale around zero, without changing the function."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from npuc.errors import PassError
from npuc.passes import biases
from npuc.passes.base import Pass, Result
from npuc.passes.equalization.channels import shape
from npuc.passes.equalization.noise import Statistics
from npuc.passes.graphs import Names, constant, infer_types
from npuc.profile import IntScheme, Profile

Array = np.ndarray[Any, Any]
_KEEPING = ("Reshape", "Identity", "Flatten", "Squeeze", "Unsqueeze")
_PRODUCTS = ("Conv", "Gemm", "MatMul")
GAIN = 0.95
"""Centering must leave at most this part of a tensor's range: less would not repay the rounding."""


@dataclass(frozen=True)
class Center(Pass):
    """LayerNorm(g, b) → MatMul(W) + c  ⇒  LayerNorm(g, b - o) → MatMul(W) + (c + W·o)

    o is the middle of what each channel held, so that the channels' ranges lie on one another
    and their tensor's is the widest of them, not their union (channel-wise shifting, Wei et al.
    2023, "Outlier Suppression+"). Only between an offset and products with constant weights and
    biases: a Relu between them, or a convolution's padding, would not commute with it.
    `statistics` are those of the channels of tensors, by name. Everything else is left alone.
    """

    name: ClassVar[str] = "center"
    optional: ClassVar[bool] = True

    statistics: Mapping[str, Statistics] = field(repr=False)

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Rewrite constants in place; `changes` counts the tensors that were centered."""
        scheme = profile.int_scheme
        if scheme is None:
            raise PassError(f"target {profile.name!r} has no integer scheme")
        infer_types(model)
        found, names = offsets(model, scheme, self.statistics), Names(model)
        values = {v.name: v for node in model.graph for v in node.outputs}
        for name, offset in found.items():
            value = values[name]
            source = value.producer()
            assert source is not None
            biases.subtract(_offered(source), offset, scheme, names)
            for reader in _readers(value, offset.size) or ():
                weight = constant(reader.inputs[1])
                assert weight is not None
                added = biases.response(np.asarray(biases.matrix(reader, weight)), offset)
                biases.subtract(reader, -added, scheme, names)
        return Result(len(found))


def offsets(
    model: ir.Model, scheme: IntScheme, statistics: Mapping[str, Statistics]
) -> dict[str, Array]:
    """Return by what `Center` moves the channels of each tensor that it can move."""
    infer_types(model)
    found = {}
    for node in model.graph:
        for value in node.outputs[:1]:
            seen = statistics.get(value.name or "")
            if seen is None or seen.low.size < 2 or not _movable(value, seen.low.size):
                continue
            middle = (seen.low + seen.high) / 2
            if _span(seen.low - middle, seen.high - middle, scheme) < GAIN * _span(
                seen.low, seen.high, scheme
            ):
                found[value.name or ""] = middle
    return found


def _span(low: Array, high: Array, scheme: IntScheme) -> float:
    least, most = min(float(low.min()), 0.0), max(float(high.max()), 0.0)
    return 2 * max(-least, most) if scheme.activation_symmetric else most - least


def _movable(value: ir.Value, size: int) -> bool:
    source = value.producer()
    if source is None or source.domain or not _gives(source, size):
        return False
    return bool(_readers(value, size))


def _readers(value: ir.Value, size: int) -> list[ir.Node] | None:
    """Return the products that read a value, through reshapes that keep its last axis.

    None where something else reads it.
    """
    if value.is_graph_output():
        return None
    found: list[ir.Node] = []
    for node, index in value.uses():
        if _takes(node, index, size):
            found.append(node)
        elif node.op_type in _KEEPING and not node.domain and _last(node.outputs[0]) == size:
            further = _readers(node.outputs[0], size) if _last(value) == size else None
            if further is None:
                return None
            found += further
        else:
            return None
    return found


def _last(value: ir.Value) -> int | None:
    dims = shape(value)
    return dims[-1] if dims else None


def _gives(node: ir.Node, size: int) -> bool:
    offered = _offered(node)
    last = node.op_type != "LayerNormalization" or node.attributes.get_int("axis", -1) in (
        -1,
        len(node.outputs[0].shape or ()) - 1,
    )
    return (
        offered.op_type in ("LayerNormalization", *_PRODUCTS)
        and last
        and not biases.refusal(offered, size)
    )


def _offered(node: ir.Node) -> ir.Node:
    """Return the node whose bias a node's result has: a product's, where this adds it."""
    if node.op_type == "Add":
        for value in node.inputs:
            source = None if value is None else value.producer()
            if source is not None and source.op_type == "MatMul":
                return source
    return node


def _takes(node: ir.Node, index: int, size: int) -> bool:
    weight = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if index != 0 or node.domain or weight is None or node.op_type not in _PRODUCTS:
        return False
    if any(node.attributes.get_ints("pads", [0])) or node.attributes.get_int("transA", 0) != 0:
        return False
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    rows = biases.matrix(node, weight)
    groups = node.attributes.get_int("group", 1)
    fits = rows is not None and rows.shape[1] * groups == size
    return fits and rows is not None and not biases.refusal(node, rows.shape[0])
