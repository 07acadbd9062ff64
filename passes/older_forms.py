"""How to say in an older ONNX opset what one node says in a newer one."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_ir as ir

from npuc.passes.builder import Builder
from npuc.passes.graphs import constant

_KINDS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")


def axes_to_attribute(node: ir.Node, build: Builder) -> str:
    """Turn a constant `axes` input into the attribute; returns why it cannot."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    empty_is_nothing = node.attributes.pop("noop_with_empty_axes", None)
    if value is None:
        nothing = empty_is_nothing is not None and empty_is_nothing.as_int() == 1
        return "no axes means nothing to reduce" if nothing else ""
    axes = constant(value)
    if axes is None:
        return "its axes are not a constant"
    node.attributes["axes"] = ir.AttrInt64s("axes", [int(a) for a in axes.reshape(-1)])
    node.resize_inputs(1)
    return ""


def split_sizes(node: ir.Node, build: Builder) -> str:
    """Turn Split's `num_outputs` into sizes."""
    if "num_outputs" not in node.attributes:
        return ""
    source, axis = node.inputs[0], node.attributes.get_int("axis", 0)
    size = None if source is None or source.shape is None else source.shape[axis]
    if not isinstance(size, int):
        return "it splits a dimension that is not a number"
    parts = node.attributes.pop("num_outputs").as_int()
    each = -(-size // parts)
    sizes = [each] * (parts - 1) + [size - each * (parts - 1)]
    node.resize_inputs(2)
    node.replace_input_with(1, build.constant("split", np.asarray(sizes, np.int64)))
    return ""


def split_to_attribute(node: ir.Node, build: Builder) -> str:
    """Turn Split's constant sizes into the attribute of opset 11."""
    sizes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if sizes is None:
        return "its sizes are not a constant"
    node.attributes["split"] = ir.AttrInt64s("split", [int(s) for s in sizes])
    node.resize_inputs(1)
    return ""


def plain_reshape(node: ir.Node, build: Builder) -> str:
    """Drop `allowzero` where the target shape is known to hold no zero."""
    if not node.attributes.get_int("allowzero", 0):
        return ""
    shape = constant(node.inputs[1])
    if shape is None or (shape == 0).any():
        return "allowzero with a shape that may hold a zero"
    node.attributes.pop("allowzero")
    return ""


def last_axis(node: ir.Node, build: Builder) -> str:
    """Keep a softmax along the last axis, where flattening to two dimensions changes nothing."""
    source, axis = node.inputs[0], node.attributes.get_int("axis", -1)
    rank = None if source is None or source.shape is None else len(source.shape)
    if axis != -1 and (rank is None or axis != rank - 1):
        return f"it runs along axis {axis}; before opset 13 only the last is alike"
    node.attributes["axis"] = ir.AttrInt64("axis", -1)
    return ""


def no_ceil(node: ir.Node, build: Builder) -> str:
    """Drop unit dilations; a ceil_mode average counts its last window otherwise since opset 19."""
    if node.attributes.get_int("ceil_mode", 0):
        return "ceil_mode divides the last window by another count before opset 19"
    if set(node.attributes.get_ints("dilations", ())) <= {1}:
        node.attributes.pop("dilations", None)
    return ""


def grid_mode(node: ir.Node, build: Builder) -> str:
    """Give GridSample's modes the names they had in opset 16."""
    old = {"linear": "bilinear", "cubic": "bicubic", "nearest": "nearest"}
    mode = node.attributes.get_string("mode", "linear")
    node.attributes["mode"] = ir.AttrString("mode", old.get(mode, mode))
    return ""


def empty_inputs(node: ir.Node, build: Builder) -> str:
    """Give Resize an empty region and empty scales where opset 11 may not leave them out."""
    node.resize_inputs(max(len(node.inputs), 3))
    for index, name in ((1, "roi"), (2, "scales")):
        if node.inputs[index] is None:
            node.replace_input_with(index, build.constant(name, np.zeros(0, np.float32)))
    return ""


def layer_norm(node: ir.Node, build: Builder) -> str:
    """y = (x - mean) / √(mean((x - mean)²) + ε) · scale + b."""
    x, scale = node.inputs[0], node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    assert x is not None and scale is not None
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return "its mean or deviation is read"
    if x.dtype != ir.DataType.FLOAT or node.attributes.get_int("stash_type", 1) != 1:
        return "it is not computed in float32"
    axis = node.attributes.get_int("axis", -1)
    if axis >= 0 and x.shape is None:
        return "the rank of its input is unknown"
    first = axis - len(x.shape) if axis >= 0 and x.shape is not None else axis
    axes = list(range(first, 0))
    epsilon = np.asarray(node.attributes.get_float("epsilon", 1e-5), np.float32)
    centred = build.op("Sub", x, build.op("ReduceMean", x, axes=axes, keepdims=1))
    square = build.op("Mul", centred, centred)
    variance = build.op("ReduceMean", square, axes=axes, keepdims=1)
    deviation = build.op("Sqrt", build.op("Add", variance, build.constant("epsilon", epsilon)))
    result = build.op("Mul", build.op("Div", centred, deviation), scale)
    build.replace(node, [result if bias is None else build.op("Add", result, bias)])
    return ""


def gelu(node: ir.Node, build: Builder) -> str:
    """y = x/2·(1 + erf(x/√2)), or x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))."""
    x = node.inputs[0]
    assert x is not None and x.dtype is not None
    kind = x.dtype.numpy()

    def number(name: str, value: float) -> ir.Value:
        return build.constant(name, np.asarray(value, kind))

    if node.attributes.get_string("approximate", "none") == "tanh":
        cube = build.op("Mul", build.op("Mul", x, x), x)
        inner = build.op("Add", x, build.op("Mul", cube, number("cubic", 0.044715)))
        curve = build.op("Tanh", build.op("Mul", inner, number("slope", np.sqrt(2 / np.pi))))
    else:
        curve = build.op("Erf", build.op("Div", x, number("root", np.sqrt(2))))
    half = build.op("Mul", x, number("half", 0.5))
    build.replace(node, [build.op("Mul", half, build.op("Add", curve, number("one", 1)))])
    return ""


def hard_swish(node: ir.Node, build: Builder) -> str:
    """y = x·max(0, min(1, x/6 + 1/2))."""
    x = node.inputs[0]
    assert x is not None
    gate = build.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)
    build.replace(node, [build.op("Mul", x, gate)])
    return ""


Rewrite = Callable[[ir.Node, Builder], str]
CHANGED: Mapping[str, tuple[tuple[int, Rewrite], ...]] = {
    **{f"Reduce{kind}": ((18, axes_to_attribute),) for kind in _KINDS},
    "ReduceSum": ((13, axes_to_attribute),),
    "Squeeze": ((13, axes_to_attribute),),
    "Unsqueeze": ((13, axes_to_attribute),),
    "Split": ((18, split_sizes), (13, split_to_attribute)),
    "Reshape": ((14, plain_reshape),),
    "Softmax": ((13, last_axis),),
    "LogSoftmax": ((13, last_axis),),
    "Hardmax": ((13, last_axis),),
    "AveragePool": ((19, no_ceil),),
    "GridSample": ((20, grid_mode),),
    "Resize": ((13, empty_inputs),),
}
"""Operator → (opset that changed it, how to undo that change), newest first."""
MISSING: Mapping[str, Rewrite] = {
    "LayerNormalization": layer_norm,
    "Gelu": gelu,
    "HardSwish": hard_swish,
}
"""Operators that can be written in older ones."""


def fits(node: ir.Node, new: onnx.defs.OpSchema, old: onnx.defs.OpSchema) -> str:
    """Drop attributes at their default that `old` lacks; returns what still does not fit it."""
    for name, attribute in list(node.attributes.items()):
        if name in old.attributes:
            continue
        default = new.attributes[name].default_value
        same = int(default.type) == int(attribute.type) and _value(default) == attribute.value
        if not same:
            return f"{name}={attribute.value} came with a later opset"
        node.attributes.pop(name)
    while node.inputs and node.inputs[-1] is None:
        node.resize_inputs(len(node.inputs) - 1)
    if len(node.inputs) > old.max_input:
        return f"it has {len(node.inputs)} inputs, opset {old.since_version} knows {old.max_input}"
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    for index, formal in enumerate(old.inputs):
        given = node.inputs[index] if index < len(node.inputs) else None
        if given is None and formal.option != optional and index < old.min_input:
            return f"opset {old.since_version} needs its input {formal.name!r}"
    return ""


def _value(attribute: onnx.AttributeProto) -> object:
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value
