"""Rewrites in ONNX: what TVM's importer gets wrong or lacks, in operators it gets right."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from npuc.errors import PassError
from npuc.passes.fold_constants import FoldConstants
from npuc.passes.graphs import Names, constant, infer_shapes, initializer
from npuc.profile import Profile
from npuc.targets.tvm import markers
from npuc.targets.tvm.widen import widen

DOMAIN = "ai.npuc"
OLDEST, PROVEN = 18, 20
"""From opset 18 on operators are written as in 20, which tests/targets/tvm proves them in."""
NO_PROFILE = Profile("", "", {}, {})

Array = np.ndarray[Any, Any]


def prepare(model: ir.Model) -> ir.Model:
    """Return a copy ready for import: functions inlined, constants folded, shapes known.

    npuc's float roundings stay: they have kernels. Raises `PassError` where the model is
    inconsistent.
    """
    # Weights beside the file would be looked for where this process happens to run.
    copy = ir.external_data.load_to_model(model.clone())
    InlinePass(lambda f: f.domain != DOMAIN or not markers.is_rounding(f.name))(copy)
    copy = raised(copy)
    widen(copy)  # while Reshape still shows which codes are in groups
    FoldConstants().apply(copy, NO_PROFILE)
    infer_shapes(copy)
    if Rewriter(copy).run():
        infer_shapes(copy)
    return copy


def raised(model: ir.Model) -> ir.Model:
    """Return a model in opset 18 or later: what operators mean was proven for those.

    Raises `PassError` with the converter's reason where it cannot be said in a later opset.
    """
    opset = model.opset_imports.get("", PROVEN)
    if opset >= OLDEST:
        return model
    if opset < 13 and any(node.op_type == "Hardmax" for node in model.graph):
        # onnx's converter forgets that it worked on flattened rows then.
        raise PassError(
            "Hardmax of opsets below 13", hint="export the model with opset 18 or later"
        )
    proto = ir.to_proto(model)
    own = list(proto.functions)
    del proto.functions[:]
    try:
        later = onnx.version_converter.convert_version(proto, PROVEN)
    except (RuntimeError, onnx.version_converter.ConvertError) as error:
        raise PassError(
            f"opset {opset} cannot be raised to {PROVEN}: {str(error).splitlines()[0]}",
            hint="export the model with opset 18 or later",
        ) from error
    later.functions.extend(own)
    return ir.from_proto(later)


class Rewriter:
    """Applies `RULES` to every node of the main graph once."""

    def __init__(self, model: ir.Model):
        self.graph = model.graph
        self.opset = model.opset_imports.get("", 1)
        self.names = Names(model)

    def run(self) -> int:
        """Rewrite in place; return how many nodes were replaced."""
        count = 0
        for node in list(self.graph):
            rule = RULES.get(node.op_type) if node.domain == "" else None
            result = rule(self, node) if rule is not None else None
            if result is None:
                continue
            count += 1
            old = node.outputs[0]
            result.shape, result.type = old.shape, old.type
            name = old.name
            ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
            self.graph.remove(node, safe=True)
            result.name = name
        return count

    def node(
        self, before: ir.Node, op: str, inputs: list[ir.Value | None], **attributes: Any
    ) -> ir.Value:
        """Insert a node in front of another and return its output."""
        name = self.names.new(f"{before.outputs[0].name}/{op}")
        made = ir.node(op, inputs, attributes, outputs=[ir.Value(name=name)])
        self.graph.insert_before(before, made)
        return made.outputs[0]

    def constant(self, array: Array) -> ir.Value:
        """Add an initializer."""
        return initializer(self.graph, self.names.new("npuc/constant"), array)


def shape_of(value: ir.Value | None) -> tuple[int, ...]:
    """Return a value's static shape."""
    assert value is not None and value.shape is not None
    return tuple(int(d) for d in value.shape.numpy())


def ints(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """Return an attribute of several integers."""
    attribute = node.attributes.get(name)
    return default if attribute is None else tuple(attribute.as_ints())


def text(node: ir.Node, name: str, default: str) -> str:
    """Return an attribute of text."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


WINDOWED = ("Conv", "ConvInteger", "ConvTranspose")


def _windows(r: Rewriter, node: ir.Node) -> ir.Value | None:
    """Spell out ``auto_pad``, and turn a 1-D convolution into a 2-D one of height 1."""
    mode = text(node, "auto_pad", "NOTSET")
    data = node.inputs[0]
    if mode != "NOTSET":
        node.attributes["pads"] = ir.AttrInt64s("pads", _pads(node, mode))
        node.attributes.pop("auto_pad")
    weights = node.inputs[1] if len(node.inputs) > 1 else None
    if node.op_type not in WINDOWED or len(shape_of(data)) != 3 or weights is None:
        return None
    return _two_dimensional(r, node)


def _pads(node: ir.Node, mode: str) -> list[int]:
    data, result = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    rank = len(data) - 2
    if mode == "VALID":
        return [0] * (2 * rank)
    kernel = ints(node, "kernel_shape", ())
    if not kernel:
        kernel = shape_of(node.inputs[1])[2:]
    strides, dilations = ints(node, "strides", (1,) * rank), ints(node, "dilations", (1,) * rank)
    begin, end = [], []
    for axis in range(rank):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        if node.op_type == "ConvTranspose":
            more = ints(node, "output_padding", (0,) * rank)[axis]
            total = (data[axis + 2] - 1) * strides[axis] + more + reach - result[axis + 2]
        else:
            total = (result[axis + 2] - 1) * strides[axis] + reach - data[axis + 2]
        total = max(total, 0)
        small, big = total // 2, total - total // 2
        begin.append(small if mode == "SAME_UPPER" else big)
        end.append(big if mode == "SAME_UPPER" else small)
    return begin + end


def _two_dimensional(r: Rewriter, node: ir.Node) -> ir.Value:
    axis = r.constant(np.array([2], np.int64))
    wide = [r.node(node, "Unsqueeze", [node.inputs[0], axis]), _wide_weights(r, node)]
    attributes = dict(node.attributes.items())
    plain = {"strides": (1,), "dilations": (1,), "output_padding": (0,)}
    options: dict[str, Any] = (
        {"group": attributes["group"].as_int()} if "group" in attributes else {}
    )
    for name, default in plain.items():
        if name in attributes:
            options[name] = [default[0], *ints(node, name, default)]
    before, after = ints(node, "pads", (0, 0))
    options["pads"] = [0, before, 0, after]
    result = r.node(node, node.op_type, [*wide, *node.inputs[2:]], **options)
    return r.node(node, "Squeeze", [result, axis])


def _wide_weights(r: Rewriter, node: ir.Node) -> ir.Value | None:
    """Give filters a height of 1, where they are constants or dequantized ones."""
    weights = node.inputs[1]
    array = constant(weights)
    if array is not None:
        return r.constant(np.expand_dims(array, 2))
    source = weights.producer() if weights is not None else None
    codes = constant(source.inputs[0]) if source is not None else None
    if source is None or source.op_type != "DequantizeLinear" or codes is None:
        return r.node(node, "Unsqueeze", [weights, r.constant(np.array([2], np.int64))])
    options = {a.name: a.value for a in source.attributes.values()}
    wide = r.constant(np.expand_dims(codes, 2))
    return r.node(node, "DequantizeLinear", [wide, *source.inputs[1:]], **options)


def _pow(r: Rewriter, node: ir.Node) -> ir.Value | None:
    """Give a power's exponent the type of its base."""
    base, exponent = node.inputs
    assert base is not None and exponent is not None
    if base.dtype == exponent.dtype or base.dtype != ir.DataType.FLOAT:
        return None
    cast = r.node(node, "Cast", [exponent], to=int(ir.DataType.FLOAT))
    return r.node(node, "Pow", [base, cast])


def _half_pixel(r: Rewriter, node: ir.Node) -> ir.Value | None:
    """Name pytorch_half_pixel half_pixel where they are the same: no side is a single pixel."""
    key = "coordinate_transformation_mode"
    sides = shape_of(node.outputs[0])[2:]
    if text(node, key, "") == "pytorch_half_pixel" and all(side > 1 for side in sides):
        node.attributes[key] = ir.AttrString(key, "half_pixel")
    return None


def _celu(r: Rewriter, node: ir.Node) -> ir.Value:
    """Celu(x) = max(0, x) + min(0, alpha·(e^(x/alpha) - 1))."""
    alpha = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 1.0
    scale, one, zero = (r.constant(np.array(v, np.float32)) for v in (alpha, 1.0, 0.0))
    power = r.node(node, "Exp", [r.node(node, "Div", [node.inputs[0], scale])])
    below = r.node(node, "Mul", [r.node(node, "Sub", [power, one]), scale])
    low = r.node(node, "Min", [below, zero])
    return r.node(node, "Add", [r.node(node, "Max", [node.inputs[0], zero]), low])


def _lp_normalization(r: Rewriter, node: ir.Node) -> ir.Value | None:
    """x / ‖x‖ along one axis; ONNX gives 0 where the norm is 0, which 0/0 would not."""
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    p = node.attributes["p"].as_int() if "p" in node.attributes else 2
    axes, zero, one = (
        r.constant(a) for a in (np.array([axis]), np.array(0, np.float32), np.array(1, np.float32))
    )
    norm = r.node(node, "ReduceL1" if p == 1 else "ReduceL2", [node.inputs[0], axes], keepdims=1)
    empty = r.node(node, "Equal", [norm, zero])
    return r.node(node, "Div", [node.inputs[0], r.node(node, "Where", [empty, one, norm])])


def _cumsum(r: Rewriter, node: ir.Node) -> ir.Value | None:
    """A running sum of float32 as a product with a triangle of ones, along the last axis."""
    data, position = node.inputs
    axis_value = constant(position)
    if axis_value is None or data is None or data.dtype != ir.DataType.FLOAT:
        return None
    shape = shape_of(data)
    axis = int(axis_value.reshape(-1)[0]) % len(shape)
    exclusive, reverse = (
        node.attributes[n].as_int() if n in node.attributes else 0 for n in ("exclusive", "reverse")
    )
    ones = np.ones((shape[axis], shape[axis]), np.float32)
    triangle = np.triu(ones, 1 if exclusive else 0)
    weights = r.constant(np.ascontiguousarray(triangle.T if reverse else triangle))
    if axis == len(shape) - 1:
        return r.node(node, "MatMul", [data, weights])
    order = [a for a in range(len(shape)) if a != axis] + [axis]
    moved = r.node(node, "MatMul", [r.node(node, "Transpose", [data], perm=order), weights])
    return r.node(node, "Transpose", [moved], perm=[order.index(a) for a in range(len(shape))])


def _equal(r: Rewriter, node: ir.Node) -> ir.Value | None:
    """Compare truth values by ¬(a ⊕ b): TVM compares vectors of them as floats."""
    first = node.inputs[0]
    if first is None or first.dtype != ir.DataType.BOOL:
        return None
    return r.node(node, "Not", [r.node(node, "Xor", list(node.inputs))])


def _group_norm(r: Rewriter, node: ir.Node) -> ir.Value:
    """Normalise groups of channels as instances: [N, C, ...] → [N, groups, all the rest].

    Below opset 21 scale and bias are per group, as InstanceNormalization takes them; from then
    on they are per channel, and follow.
    """
    data, scale, bias = node.inputs
    shape = shape_of(data)
    groups = node.attributes["num_groups"].as_int()
    options = {}
    if "epsilon" in node.attributes:
        options["epsilon"] = node.attributes["epsilon"].as_float()
    cut = r.node(node, "Reshape", [data, r.constant(np.array([shape[0], groups, -1]))])
    whole = r.constant(np.array(shape))
    if r.opset < 21:
        done = r.node(node, "InstanceNormalization", [cut, scale, bias], **options)
        return r.node(node, "Reshape", [done, whole])
    one, zero = (r.constant(np.full(groups, v, np.float32)) for v in (1, 0))
    done = r.node(node, "InstanceNormalization", [cut, one, zero], **options)
    along = r.constant(np.array([shape[1], *[1] * (len(shape) - 2)]))
    factor, shift = (r.node(node, "Reshape", [v, along]) for v in (scale, bias))
    product = r.node(node, "Mul", [r.node(node, "Reshape", [done, whole]), factor])
    return r.node(node, "Add", [product, shift])


RULES: dict[str, Callable[[Rewriter, ir.Node], ir.Value | None]] = {
    "AveragePool": _windows,
    "Celu": _celu,
    "Conv": _windows,
    "ConvInteger": _windows,
    "ConvTranspose": _windows,
    "CumSum": _cumsum,
    "Equal": _equal,
    "GroupNormalization": _group_norm,
    "LpNormalization": _lp_normalization,
    "LpPool": _windows,
    "MaxPool": _windows,
    "Pow": _pow,
    "Resize": _half_pixel,
}
"""Operator → (rewriter, node) → what takes its place, or None to keep the node."""
