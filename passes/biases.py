"""Biases of products: where they are, and what a constant input adds to them."""

from typing import Any

import numpy as np
import onnx_ir as ir

from npuc.passes.graphs import Names, constant, drop_if_unused, initializer
from npuc.passes.qdq.codes import bias_limit
from npuc.passes.qdq.results import bias_of, only_reader
from npuc.passes.qdq.sites import dequantized
from npuc.profile import IntScheme

Array = np.ndarray[Any, Any]
Place = tuple[ir.Node, int]


def place(node: ir.Node) -> Place | str:
    """Return the node and input that hold a node's bias; a reason where it has none.

    That of a MatMul is what the Add that alone reads it adds.
    """
    holder, index = node, 2
    if node.op_type == "MatMul":
        reader = only_reader(node.outputs[0])
        if reader is None or reader.op_type != "Add":
            return "it has no bias"
        holder = reader
        index = reader.inputs.index(bias_of(reader, node.outputs[0]))
    if node.op_type == "Gemm" and node.attributes.get_float("beta", 1.0) == 0:
        return "its bias is multiplied by zero"
    if index >= len(holder.inputs) or holder.inputs[index] is None:
        return "it has no bias"
    if not dequantized(holder.inputs[index]) and constant(holder.inputs[index]) is None:
        return "its bias is not a constant"
    return holder, index


def refusal(node: ir.Node, size: int) -> str:
    """Say why `subtract` cannot take `size` values from a node's bias; "" where it can."""
    found = place(node)
    if isinstance(found, str):
        return found
    value = found[0].inputs[found[1]]
    source = value.producer() if value is not None and dequantized(value) else None
    array = constant(value if source is None else source.inputs[0])
    fits = array is not None and array.size == size and array.ndim > 0
    return "" if fits else "its bias is not one value per output channel"


def subtract(node: ir.Node, shift: Array, scheme: IntScheme, names: Names) -> None:
    """Take `shift`, one value per output channel, from what a node answers.

    A bias that is coded keeps its scale. Call it only where `refusal` says nothing.
    """
    found = place(node)
    assert not isinstance(found, str)
    holder, index = found
    value = holder.inputs[index]
    if node.op_type == "Gemm":  # Y = alpha·A·B + beta·C
        shift = shift / node.attributes.get_float("beta", 1.0)
    source = value.producer() if value is not None and dequantized(value) else None
    if source is None:
        bias = np.asarray(constant(value), np.float64)
        new = (bias - shift.reshape(bias.shape)).astype(np.float32)
        _replace(holder, index, new, names)
        return
    codes, scales = (np.asarray(constant(v)) for v in source.inputs[:2])
    steps = np.rint(shift.reshape(codes.shape) / scales.astype(np.float64).reshape(-1))
    limit = bias_limit(scheme)
    _replace(source, 0, np.clip(codes - steps, -limit, limit).astype(codes.dtype), names)


def matrix(node: ir.Node, weight: Array) -> Array | None:
    """Return a product's weight as float64 [outputs, inputs of a group], a kernel summed up.

    It is what the product does to an input that is the same everywhere; None for others than
    Conv, Gemm and MatMul with their weight on the right. Gemm's alpha is in it.
    """
    if node.op_type == "Conv":
        flat = weight.reshape(*weight.shape[:2], -1)
        alone = flat.shape[2] == 1  # numpy takes its time to sum up each number alone
        return np.asarray(flat[..., 0] if alone else flat.sum(axis=2, dtype=np.float64), np.float64)
    if weight.ndim != 2 or node.op_type not in ("Gemm", "MatMul"):
        return None
    array = weight.astype(np.float64)
    if node.op_type == "Gemm":
        array = array * node.attributes.get_float("alpha", 1.0)
    turned = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    return np.asarray(array if turned else array.T)


def response(weight: Array, means: Array) -> Array:
    """Return W·m per output, for the `matrix` of a product and one value per input channel."""
    groups = means.size // weight.shape[1]
    parts = weight.reshape(groups, -1, weight.shape[1])
    return np.asarray(parts @ means.reshape(groups, -1, 1)).reshape(-1)


def _replace(node: ir.Node, index: int, array: Array, names: Names) -> None:
    value, graph = node.inputs[index], node.graph
    assert value is not None and isinstance(graph, ir.Graph)
    new = initializer(graph, names.new(f"{value.name}_corrected"), array)
    node.replace_input_with(index, new)
    drop_if_unused(value)
