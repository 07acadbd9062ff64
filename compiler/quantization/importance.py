"""How much an error in each channel of a tensor matters to the layers that read it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from npuc.passes.graphs import constant
from npuc.passes.qdq.results import source
from npuc.passes.qdq.sites import Site, coded, sites
from npuc.profile import IntScheme
from npuc.quantization.observers import Importance

Array = np.ndarray[Any, Any]
LEVELS = 255
"""The largest weight. Whole numbers, so that weighted counts are exact in any order."""


def of(model: ir.Model, scheme: IntScheme) -> Mapping[str, Importance]:
    """Return the importance of the channels of tensors that layers with weights read.

    An error e_j in channel j moves the layer's outputs by Σ_k w_kj·e_j, in squares by e_j² times
    the squared norm of what the weight has for j; several readers add up. Errors of different
    channels are taken to be independent. A tensor is left out, and all its channels count alike,
    where one of its readers has no weight or its readers see channels on different axes.
    """
    found: dict[str, tuple[int, Array]] = {}
    plain: set[str] = set()
    for site in sites(model, scheme)[0]:
        norms = _norms(site)
        for value in coded(site, scheme):
            name = source(value, scheme).name or ""
            read = any(site.node.inputs[index] is value for index in site.activations)
            if not read:
                continue  # it makes this tensor; who reads it says what matters
            if norms is None or source(value, scheme) is not value:
                plain.add(name)
                continue
            axis, powers = norms
            before = found.get(name)
            if before is not None and (before[0], before[1].shape) != (axis, powers.shape):
                plain.add(name)
            else:
                found[name] = (axis, powers if before is None else before[1] + powers)
    return {
        name: Importance(axis, _levels(powers))
        for name, (axis, powers) in found.items()
        if name not in plain and powers.any()
    }


def _norms(site: Site) -> tuple[int, Array] | None:
    """Return the channel axis of a layer's input, and the squared norms of its weight by channel.

    The axis counts from the end for a product, whose input may have any number of leading axes.
    """
    node = site.node
    if len(site.weights) != 1 or node.op_type not in _LAYOUTS:
        return None
    array = constant(node.inputs[site.weights[0]])
    if array is None:
        return None
    squares = np.square(array.astype(np.float64))
    return _LAYOUTS[node.op_type](node, squares, site.weights[0] == 1)


def _conv(node: ir.Node, squares: Array, right: bool) -> tuple[int, Array] | None:
    """(out, in / group, ...): every group of outputs reads its own inputs."""
    groups = node.attributes.get_int("group", 1)
    parts = squares.reshape(groups, squares.shape[0] // groups, squares.shape[1], -1)
    return 1, parts.sum(axis=(1, 3)).reshape(-1)


def _transposed(node: ir.Node, squares: Array, right: bool) -> tuple[int, Array] | None:
    """(in, out / group, ...)."""
    return 1, squares.reshape(squares.shape[0], -1).sum(axis=1)


def _gemm(node: ir.Node, squares: Array, right: bool) -> tuple[int, Array] | None:
    turned = node.attributes.get_int("transB" if right else "transA", 0)
    other = node.attributes.get_int("transA" if right else "transB", 0)
    if right:
        return (0 if other else 1), squares.sum(axis=0 if turned else 1)
    return (1 if other else 0), squares.sum(axis=1 if turned else 0)


def _matmul(node: ir.Node, squares: Array, right: bool) -> tuple[int, Array] | None:
    if squares.ndim != 2:
        return None  # a weight for every batch entry: its channels are not those of one axis
    return (-1, squares.sum(axis=1)) if right else (-2, squares.sum(axis=0))


_LAYOUTS = {"Conv": _conv, "ConvTranspose": _transposed, "Gemm": _gemm, "MatMul": _matmul}


def _levels(powers: Array) -> Array:
    levels: Array = np.maximum(1, np.rint(LEVELS * powers / powers.max())).astype(np.int64)
    return levels
