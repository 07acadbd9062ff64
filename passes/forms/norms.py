"""Normalizations as mean, difference, square and root."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from npuc.passes.forms.expand import Forms
from npuc.passes.graphs import constant
from npuc.passes.writer import Unfit, Writer, fixed, floats, given, needed, shape_of


def _alone(node: ir.Node) -> None:
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        raise Unfit("its mean or deviation is read")


def _from_axis(node: ir.Node, x: ir.Value) -> list[int]:
    """Return the normalized axes, counted from the back where the rank is not needed."""
    axis = node.attributes.get_int("axis", -1)
    if axis >= 0:
        if x.shape is None:
            raise Unfit("the rank of its input is unknown")
        axis -= len(x.shape)
    return list(range(axis, 0))


def _scaled(
    x: ir.Value, axes: Sequence[int], node: ir.Node, w: Writer, centre: bool = True
) -> ir.Value:
    """x = x - mean x;  x / √(mean x² + ε)"""
    if node.attributes.get_int("stash_type", 1) != 1 or x.dtype != ir.DataType.FLOAT:
        raise Unfit("it is not computed in float32")
    x = w.op("Sub", x, w.reduce("ReduceMean", x, axes)) if centre else x
    square = w.reduce("ReduceMean", w.op("Mul", x, x), axes)
    small = w.number("epsilon", node.attributes.get_float("epsilon", 1e-5), x)
    return w.op("Div", x, w.op("Sqrt", w.op("Add", square, small)))


def mean_and_deviation(node: ir.Node, w: Writer) -> ir.Value:
    """LayerNormalization(x) = (x - mean x) / √(mean (x - mean x)² + ε)·s + b"""
    x = floats(node)
    _alone(node)
    result = w.op("Mul", _scaled(x, _from_axis(node, x), node, w), needed(node, 1))
    bias = given(node, 2)
    return result if bias is None else w.op("Add", result, bias)


def root_mean_square(node: ir.Node, w: Writer) -> ir.Value:
    """RMSNormalization(x) = x / √(mean x² + ε)·s"""
    x = floats(node)
    scaled = _scaled(x, _from_axis(node, x), node, w, centre=False)
    return w.op("Mul", scaled, needed(node, 1))


def per_channel(node: ir.Node, w: Writer) -> ir.Value:
    """InstanceNormalization(x) = (x - mean x) / √(mean (x - mean x)² + ε)·s + b over the image"""
    x = floats(node)
    rank = len(shape_of(x))
    scaled = _scaled(x, range(2, rank), node, w)
    scale, bias = (_upright(needed(node, i), rank, w) for i in (1, 2))
    return w.op("Add", w.op("Mul", scaled, scale), bias)


def _upright(value: ir.Value, rank: int, w: Writer) -> ir.Value:
    """Shape a vector of channels so that it broadcasts over [N, C, …]."""
    array, shape = constant(value), [-1] + [1] * (rank - 2)
    if array is None:
        return w.reshape(value, shape)
    return w.constant("channels", array.reshape(shape))


def instances(node: ir.Node, w: Writer) -> ir.Value:
    """GroupNormalization = Reshape[N, G, -1] → InstanceNormalization → Reshape → ·s + b"""
    flat, dims, groups = _groups(node, w)
    kind = np.float32 if flat.dtype is None else flat.dtype.numpy()
    ones = w.constant("ones", np.ones(groups, kind))
    zeros = w.constant("zeros", np.zeros(groups, kind))
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    same = w.op("InstanceNormalization", flat, ones, zeros, epsilon=epsilon)
    return _affine(w.reshape(same, dims), node, dims, w)


def mean_of_groups(node: ir.Node, w: Writer) -> ir.Value:
    """GroupNormalization = Reshape[N, G, -1] → mean and deviation → Reshape → ·s + b"""
    flat, dims, _ = _groups(node, w)
    return _affine(w.reshape(_scaled(flat, [2], node, w), dims), node, dims, w)


def _groups(node: ir.Node, w: Writer) -> tuple[ir.Value, tuple[int, ...], int]:
    """Return x as [N, G, -1], its own shape, and G. Opset 18's is deprecated: no model has it."""
    x = floats(node)
    if w.opset < 21:
        raise Unfit("before opset 21 it has one scale per group")
    dims, groups = shape_of(x), node.attributes.get_int("num_groups", 1)
    return w.reshape(x, [dims[0], groups, int(np.prod(dims[1:])) // groups]), dims, groups


def _affine(x: ir.Value, node: ir.Node, dims: Sequence[int], w: Writer) -> ir.Value:
    """·s + b per channel"""
    scale, bias = (_upright(needed(node, i), len(dims), w) for i in (1, 2))
    return w.op("Add", w.op("Mul", x, scale), bias)


def line(node: ir.Node, w: Writer) -> ir.Value:
    """BatchNormalization(x) = x·s/√(v + ε) + (b - m·s/√(v + ε)), computed in float64"""
    x = floats(node)
    if node.attributes.get_int("training_mode", 0):
        raise Unfit("it is in training mode")
    rank, kind = len(shape_of(x)), fixed(node, 1, "scale").dtype
    scale, bias, mean, variance = (
        fixed(node, i, "statistics").astype(np.float64) for i in (1, 2, 3, 4)
    )
    factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    tall = [-1] + [1] * (rank - 2)
    slope = w.constant("slope", factor.astype(kind).reshape(tall))
    shift = w.constant("shift", (bias - mean * factor).astype(kind).reshape(tall))
    return w.op("Add", w.op("Mul", x, slope), shift)


FORMS: Forms = {
    "LayerNormalization": (mean_and_deviation,),
    "RMSNormalization": (root_mean_square,),
    "InstanceNormalization": (per_channel,),
    "GroupNormalization": (instances, mean_of_groups),
    "BatchNormalization": (line,),
}
