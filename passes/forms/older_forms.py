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


def not_last(node: ir.Node) -> str:
    """Say why a softmax is another one before opset 13, which flattened to two dimensions."""
    source, axis = node.inputs[0], node.attributes.get_int("axis", -1)
    rank = None if source is None or source.shape is None else len(source.shape)
    if axis == -1 or (rank is not None and axis == rank - 1):
        return ""
    return f"it runs along axis {axis}; before opset 13 only the last is alike"


def last_axis(node: ir.Node, build: Builder) -> str:
    """Keep a softmax along the last axis, where flattening changes nothing."""
    node.attributes["axis"] = ir.AttrInt64("axis", -1)
    return not_last(node)


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
