"""Measure a node of an ONNX graph: its kernel, its axis, its dtype, and what else a limit bounds.

Shapes are those on the values, so run `npuc.passes.graphs.infer_shapes` first. A measure is a
number, a bool, a string, or a tuple (over spatial axes, or of axes). `UNKNOWN` says that it
depends on a shape or value that is not known here; the empty tuple says that the node has nothing
of the kind (a Relu has no kernel), so no bound can be broken.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from npuc.nodes import ABSENT, UNKNOWN, attribute, data, is_constant, operand, shape
from npuc.passes.graphs import constant

Value = int | float | bool | str | tuple[Any, ...] | None
Array = np.ndarray[Any, Any]

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "ConvInteger", "QLinearConv"})
POOLS = frozenset({"AveragePool", "MaxPool", "LpPool"})
GLOBAL_POOLS = frozenset({"GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"})
PRODUCTS = frozenset({"MatMul", "Gemm", "MatMulInteger", "QLinearMatMul"})
_WEIGHT = {"QLinearConv": 3, "QLinearMatMul": 3}


def measure(node: ir.Node, name: str) -> Value:
    """Return one measure of a node, by the name a profile gives it (`MEASURES` has them all)."""
    return MEASURES[name](node)


def _weight(node: ir.Node) -> ir.Value | None:
    return operand(node, _WEIGHT.get(node.op_type, 1))


def _dim(value: ir.Value | None, axis: int) -> Value:
    """Return one dimension; `ABSENT` where the rank is too low for it."""
    sizes = shape(value)
    if sizes is None:
        return UNKNOWN
    return sizes[axis] if -len(sizes) <= axis < len(sizes) else ABSENT


def _spatial(value: ir.Value | None) -> tuple[int, ...] | None:
    sizes = shape(value)
    if sizes is None or None in sizes[2:]:
        return None
    return tuple(d for d in sizes[2:] if d is not None)


def _kernel(node: ir.Node) -> Value:
    if node.op_type in CONVOLUTIONS:
        given = attribute(node, "kernel_shape")
        return given if given != ABSENT else _spatial(_weight(node))
    if node.op_type in POOLS:
        return tuple(attribute(node, "kernel_shape"))
    return _spatial(operand(node, 0)) if node.op_type in GLOBAL_POOLS else ABSENT


def _per_axis(name: str, default: int) -> Callable[[ir.Node], Value]:
    def read(node: ir.Node) -> Value:
        if node.op_type not in CONVOLUTIONS | POOLS:
            return ABSENT
        if name == "output_padding" and node.op_type != "ConvTranspose":
            return ABSENT
        given, kernel = attribute(node, name), _kernel(node)
        if given != ABSENT:
            return tuple(given)
        return (default,) * len(kernel) if isinstance(kernel, tuple) else UNKNOWN

    return read


_stride, _dilation = _per_axis("strides", 1), _per_axis("dilations", 1)
_output_padding = _per_axis("output_padding", 0)


def _pad(node: ir.Node) -> Value:
    if node.op_type == "Pad":
        given = constant(operand(node, 1)) if len(node.inputs) > 1 else attribute(node, "pads")
        return UNKNOWN if given is None else tuple(int(n) for n in given)
    kernel = _kernel(node)
    if node.op_type not in CONVOLUTIONS | POOLS or not isinstance(kernel, tuple):
        return ABSENT if node.op_type not in CONVOLUTIONS | POOLS else UNKNOWN
    if str(attribute(node, "auto_pad")).startswith("SAME"):
        return _same(node, kernel)
    given = attribute(node, "pads")
    return tuple(given) if given != ABSENT else (0,) * (2 * len(kernel))


def _same(node: ir.Node, kernel: Sequence[int]) -> Value:
    """Return what auto_pad SAME pads in all, per axis halved (ONNX, Conv and ConvTranspose)."""
    sizes, strides, dilations = _spatial(operand(node, 0)), _stride(node), _dilation(node)
    if sizes is None or not isinstance(strides, tuple) or not isinstance(dilations, tuple):
        return UNKNOWN
    extra = _output_padding(node) or (0,) * len(kernel)
    assert isinstance(extra, tuple)
    halves = []
    for size, k, stride, dilation, more in zip(
        sizes, kernel, strides, dilations, extra, strict=True
    ):
        reach = (k - 1) * dilation + 1
        if node.op_type == "ConvTranspose":
            total = max(reach - stride + more, 0)
        else:
            total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
        halves.append((total // 2, total - total // 2))
    upper = attribute(node, "auto_pad") == "SAME_UPPER"
    return (*(h[not upper] for h in halves), *(h[upper] for h in halves))


def _kernel_area(node: ir.Node) -> Value:
    kernel = _kernel(node)
    return math.prod(kernel) if isinstance(kernel, tuple) and kernel else kernel


def _group(node: ir.Node) -> Value:
    return attribute(node, "group") if node.op_type in CONVOLUTIONS else ABSENT


def _depthwise(node: ir.Node) -> Value:
    group, channels = _group(node), _channels(node)
    if not isinstance(group, int) or channels is UNKNOWN:
        return ABSENT if group == ABSENT else UNKNOWN
    return group == channels and group > 1


def _channels(node: ir.Node) -> Value:
    if node.op_type in CONVOLUTIONS:  # the weights say it even where the data's shape does not
        inner = _dim(_weight(node), 0 if node.op_type == "ConvTranspose" else 1)
        if isinstance(inner, int):
            return inner if node.op_type == "ConvTranspose" else inner * attribute(node, "group")
    return _dim(data(node), 1)


def _output_channels(node: ir.Node) -> Value:
    if node.op_type == "ConvTranspose":
        inner = _dim(_weight(node), 1)
        return inner * attribute(node, "group") if isinstance(inner, int) else inner
    if node.op_type in CONVOLUTIONS:
        return _dim(_weight(node), 0)
    return _dim(node.outputs[0], -1) if node.op_type in PRODUCTS else ABSENT


def _rank(node: ir.Node) -> Value:
    """Return the larger rank of what a node reads and what it makes."""
    sizes = [shape(value) for value in (data(node), *node.outputs[:1]) if value is not None]
    known = [len(found) for found in sizes if found is not None]
    return max(known, default=0) if len(known) == len(sizes) else UNKNOWN


def _side(axis: int) -> Callable[[ir.Node], Value]:
    """Measure height (-2) or width (-1) of NCHW data; a sequence NCW has a width only."""

    def read(node: ir.Node) -> Value:
        sizes = shape(data(node))
        if sizes is None:
            return UNKNOWN
        return sizes[axis] if len(sizes) - 2 >= -axis else ABSENT

    return read


def _axis(node: ir.Node) -> Value:
    if node.op_type == "CumSum":
        given = constant(operand(node, 1))
        axis: Any = UNKNOWN if given is None else int(given.reshape(-1)[0])
    else:
        axis = attribute(node, "axis")
    return _positive(axis, node) if isinstance(axis, int) else axis


def _positive(axis: int, node: ir.Node) -> int | None:
    sizes = shape(data(node))
    if axis >= 0:
        return axis
    return UNKNOWN if sizes is None else axis + len(sizes)


def _axis_length(node: ir.Node) -> Value:
    axis = _axis(node)
    return _dim(data(node), axis) if isinstance(axis, int) else axis


def _reduced_axes(node: ir.Node) -> Value:
    if not node.op_type.startswith("Reduce"):
        return ABSENT
    given: Any = attribute(node, "axes")
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        found = constant(node.inputs[1])
        if found is None:
            return UNKNOWN
        given = tuple(int(n) for n in found.reshape(-1))
    if given == ABSENT:
        if attribute(node, "noop_with_empty_axes") == 1:
            return ABSENT
        sizes = shape(data(node))
        return UNKNOWN if sizes is None else tuple(range(len(sizes)))
    axes = [_positive(axis, node) for axis in given]
    return UNKNOWN if None in axes else tuple(sorted(a for a in axes if a is not None))


def _k(node: ir.Node) -> Value:
    if node.op_type not in PRODUCTS:
        return ABSENT
    left = _dim(operand(node, 0), 0 if attribute(node, "transA") == 1 else -1)
    if left is not UNKNOWN:
        return left
    weight = _weight(node)
    rank = len(shape(weight) or ())
    return _dim(weight, -1 if attribute(node, "transB") == 1 or rank == 1 else -2)


def _dtype(node: ir.Node) -> Value:
    """Return the dtype of the data; of coded data that of its codes."""
    value = data(node)
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "DequantizeLinear":
        value = operand(producer, 0)
    if value is None:
        return ABSENT
    return UNKNOWN if value.dtype is None else value.dtype.numpy().name


def _integer_scale(node: ir.Node) -> Value:
    if node.op_type not in ("Resize", "Upsample"):
        return ABSENT
    scales = constant(operand(node, 2 if node.op_type == "Resize" else 1))
    if scales is not None and scales.size:
        return bool(np.all(scales == np.round(scales.astype(np.float64))))
    before, after = shape(operand(node, 0)), shape(node.outputs[0])
    if before is None or after is None or None in before or None in after:
        return UNKNOWN
    pairs = zip(before, after, strict=True)
    return all(b is not None and a is not None and b > 0 and a % b == 0 for b, a in pairs)


def _constant_weights(node: ir.Node) -> Value:
    if node.op_type in PRODUCTS:
        return is_constant(_weight(node)) or is_constant(operand(node, 0))
    return is_constant(_weight(node)) if node.op_type in CONVOLUTIONS else ABSENT


def _weight_abs_sum(node: ir.Node) -> Value:
    """Sum |code| per output channel and return the largest.

    Float weights are coded symmetrically to 127 per output channel, as the int8 schemes of
    devices that bound this sum do.
    """
    if node.op_type not in CONVOLUTIONS | PRODUCTS:
        return ABSENT
    weight = _weight(node)
    if node.op_type in PRODUCTS and not is_constant(weight):
        return ABSENT  # a product of two results has no weights
    producer = weight.producer() if weight is not None else None
    if producer is not None and producer.op_type == "DequantizeLinear":
        weight = producer.inputs[0]
    array = constant(weight)
    if array is None or not array.size:
        return UNKNOWN
    return _largest_sum(_by_output(node, array))


def _by_output(node: ir.Node, array: Array) -> Array:
    """Reshape weights to [groups of outputs, what each output sums]."""
    if node.op_type == "ConvTranspose":
        groups = int(attribute(node, "group"))
        parts = array.reshape(groups, array.shape[0] // groups, array.shape[1], -1)
        return parts.transpose(0, 2, 1, 3).reshape(groups * array.shape[1], -1)
    if node.op_type in CONVOLUTIONS or attribute(node, "transB") == 1:
        return array.reshape(array.shape[0], -1)
    moved: Array = np.swapaxes(array, -1, -2) if array.ndim > 1 else array
    return moved.reshape(-1, moved.shape[-1])


def _largest_sum(rows: Array) -> int:
    if rows.dtype.kind in "iu":
        return int(np.abs(rows.astype(np.int64)).sum(axis=1).max())
    sizes = np.abs(rows.astype(np.float32, copy=False))
    peaks = sizes.max(axis=1, keepdims=True)
    codes = np.round(sizes * (127 / np.where(peaks > 0, peaks, 1)))
    return int(codes.sum(axis=1, dtype=np.float64).max())


def _index_rank(node: ir.Node) -> Value:
    if node.op_type != "Gather":
        return ABSENT
    sizes = shape(operand(node, 1))
    return UNKNOWN if sizes is None else len(sizes)


def _flag(name: str) -> Callable[[ir.Node], Value]:
    def read(node: ir.Node) -> Value:
        found = attribute(node, name)
        return bool(found) if isinstance(found, int) else found

    return read


def _named(name: str) -> Callable[[ir.Node], Value]:
    def read(node: ir.Node) -> Value:
        found: Value = attribute(node, name)
        return found

    return read


MEASURES: Mapping[str, Callable[[ir.Node], Value]] = {
    "kernel": _kernel,
    "kernel_area": _kernel_area,
    "stride": _stride,
    "dilation": _dilation,
    "pad": _pad,
    "output_padding": _output_padding,
    "group": _group,
    "depthwise": _depthwise,
    "rank": _rank,
    "batch": lambda node: _dim(data(node), 0),
    "channels": _channels,
    "height": _side(-2),
    "width": _side(-1),
    "last_dim": lambda node: _dim(data(node), -1),
    "axis": _axis,
    "axis_length": _axis_length,
    "reduced_axes": _reduced_axes,
    "k": _k,
    "output_channels": _output_channels,
    "dtype": _dtype,
    "mode": _named("mode"),
    "coordinates": _named("coordinate_transformation_mode"),
    "integer_scale": _integer_scale,
    "ceil_mode": _flag("ceil_mode"),
    "constant_weights": _constant_weights,
    "index_rank": _index_rank,
    "weight_abs_sum": _weight_abs_sum,
    "p": _named("p"),
    "trans_a": _flag("transA"),
    "alpha": _named("alpha"),
    "beta": _named("beta"),
    "inputs": lambda node: sum(value is not None for value in node.inputs),
}
"""What a limit may bound, by name."""
