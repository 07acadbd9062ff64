"""Weights that alone are coded, as the floats they stand for: no kernel here takes their codes."""

import sys

import numpy as np
import onnx_ir as ir

from npuc.passes.arithmetic.round_to import DOMAIN, round_to
from npuc.passes.fold_constants import FoldConstants
from npuc.passes.graphs import Names, constant, initializer
from npuc.passes.qdq.groups import Array
from npuc.profile import FloatFormat, Profile
from npuc.targets.tvm import markers

NO_PROFILE = Profile("", "", {}, {})


def widen(model: ir.Model) -> None:
    """Compute in place what follows from the codes of `passes.weight_only`, roundings included.

    Other dequantized constants stay: integer kernels want their codes.
    """
    if not sum(_replaced(model, node, _grouped(node)) for node in tuple(model.graph)):
        return
    FoldConstants(limit=sys.maxsize).apply(model, NO_PROFILE)
    for node in tuple(model.graph):
        _replaced(model, node, _rounded(node))


def _replaced(model: ir.Model, node: ir.Node, array: Array | None) -> bool:
    if array is None:
        return False
    old = node.outputs[0]
    new = initializer(model.graph, Names(model).new(f"{old.name}_wide"), array)
    old.replace_all_uses_with(new)
    model.graph.remove(node, safe=True)
    return True


def _grouped(node: ir.Node) -> Array | None:
    """Return the values of codes in rows of one group each, that Reshape puts together."""
    if node.op_type != "DequantizeLinear" or node.outputs[0].is_graph_output():
        return None
    known = [constant(value) for value in node.inputs]
    arrays = [array for array in known if array is not None]
    if len(arrays) != 3 or arrays[0].dtype == np.int32:
        return None
    codes, scales, zeros = arrays
    readers = {user.op_type for user, _ in node.outputs[0].uses()}
    if readers != {"Reshape"} or node.attributes.get_int("axis", 1) != 0 or codes.ndim != 2:
        return None
    shifted = codes.astype(np.int32) - zeros.astype(np.int32)[:, None]
    return np.asarray(shifted.astype(np.float32) * scales.astype(np.float32)[:, None])


def _rounded(node: ir.Node) -> Array | None:
    array = constant(node.inputs[0]) if node.domain == DOMAIN and node.inputs else None
    form = markers.form(node.op_type)
    if array is None or form is None or node.outputs[0].is_graph_output():
        return None
    exponent, mantissa, flush = form
    return round_to(array.astype(np.float32), FloatFormat(exponent, mantissa), flush=flush)
