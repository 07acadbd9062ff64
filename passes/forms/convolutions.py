"""Convolutions whose kernel, stride, dilation, groups or rank a device does not take."""

from functools import partial
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from npuc.passes.forms.expand import Forms
from npuc.passes.writer import Array, Unfit, Writer, fixed, floats, shape_of

LARGEST = 1 << 24
"""Elements of a weight that a form may blow one up to: 64 MiB of float32."""


def _attributes(node: ir.Node) -> dict[str, list[int]]:
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        raise Unfit("its padding is automatic")
    names = ("kernel_shape", "strides", "pads", "dilations", "output_padding")
    return {n: list(node.attributes[n].as_ints()) for n in names if n in node.attributes}


def flat_image(node: ir.Node, w: Writer) -> ir.Value:
    """Conv, ConvTranspose or pool over [N, C, L] = the same over [N, C, 1, L]"""
    x = floats(node)
    dims = shape_of(x)
    if len(dims) != 3:
        raise Unfit(f"its input has rank {len(dims)}, not 3")
    attributes = {n: [*a] for n, a in _attributes(node).items()}
    default = {"kernel_shape": 1, "strides": 1, "dilations": 1, "output_padding": 0}
    for name, value in attributes.items():
        attributes[name] = [0, value[0], 0, value[1]] if name == "pads" else [default[name], *value]
    plain = {
        n: node.attributes.get_int(n, 0)
        for n in ("group", "ceil_mode", "count_include_pad")
        if n in node.attributes
    }
    inputs = [w.reshape(x, [dims[0], dims[1], 1, dims[2]])]
    if "Conv" in node.op_type:
        weight = fixed(node, 1, "weight")
        inputs.append(w.constant("weight", np.asarray(weight[:, :, None, :], order="C")))
        inputs += [v for v in node.inputs[2:] if v is not None]
    elif any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        raise Unfit("its indices are read")
    result = w.op(node.op_type, *inputs, **attributes, **plain)
    return w.reshape(result, shape_of(node.outputs[0]))


def whole_weight(node: ir.Node, w: Writer) -> ir.Value:
    """Conv in groups = Conv whose weight is zero between the groups

    A ConvTranspose's weight is [in, out/group, …]: the blocks lie alike.
    """
    x, weight, groups = floats(node), fixed(node, 1, "weight"), node.attributes.get_int("group", 1)
    if groups == 1:
        raise Unfit("it has one group")
    rows, columns = weight.shape[0] // groups, weight.shape[1]
    if weight.size * groups > LARGEST:
        raise Unfit(f"its weight would have {weight.size * groups:,} elements")
    whole: Array = np.zeros((weight.shape[0], columns * groups, *weight.shape[2:]), weight.dtype)
    for g in range(groups):
        block = slice(g * rows, (g + 1) * rows)
        whole[block, g * columns : (g + 1) * columns] = weight[block]
    rest = [v for v in node.inputs[2:] if v is not None]
    return w.op(node.op_type, x, w.constant("weight", whole), *rest, **_attributes(node))


def filled_kernel(node: ir.Node, w: Writer) -> ir.Value:
    """Conv, dilated = Conv whose kernel has zeros between its weights"""
    x, weight, attributes = floats(node), fixed(node, 1, "weight"), _attributes(node)
    steps = attributes.pop("dilations", [1])
    if set(steps) == {1}:
        raise Unfit("it is not dilated")
    size = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], steps, strict=True)]
    filled: Array = np.zeros((*weight.shape[:2], *size), weight.dtype)
    spread: tuple[slice, ...] = tuple(slice(None, None, d) for d in (1, 1, *steps))
    filled[spread] = weight
    attributes["kernel_shape"] = size
    rest = [v for v in node.inputs[2:] if v is not None]
    group = node.attributes.get_int("group", 1)
    return w.op(node.op_type, x, w.constant("weight", filled), *rest, **attributes, group=group)


def patches(node: ir.Node, w: Writer) -> ir.Value:
    """Conv whose stride is its kernel, k x k = SpaceToDepth(k) → Conv 1x1"""
    x, weight, attributes = floats(node), fixed(node, 1, "weight"), _attributes(node)
    size = list(weight.shape[2:])
    whole = len(size) == 2 and all(d % k == 0 for d, k in zip(shape_of(x)[2:], size, strict=True))
    plain = not any(attributes.get("pads", ())) and set(attributes.get("dilations", ())) <= {1}
    if not (whole and plain and size[0] == size[1] == attributes.get("strides", [1])[0] > 1):
        raise Unfit("it does not cut the image into square patches")
    if size != attributes["strides"] or node.attributes.get_int("group", 1) != 1:
        raise Unfit("its patches overlap, or it has groups")
    deep = w.op("SpaceToDepth", x, blocksize=size[0])
    flat = weight.transpose(0, 2, 3, 1).reshape(weight.shape[0], -1, 1, 1)
    rest = [v for v in node.inputs[2:] if v is not None]
    return w.op("Conv", deep, w.constant("weight", np.asarray(flat, order="C")), *rest)


def phases(node: ir.Node, w: Writer) -> ir.Value:
    """Conv of stride s = Pad → Reshape[N, C, H/s, s, …] → Transpose[N, C·s·…, H/s, …] → Conv

    The pixels of a stride become channels; the kernel, filled with zeros to a multiple of the
    stride, becomes as many times smaller.
    """
    x, weight, attributes = floats(node), fixed(node, 1, "weight"), _attributes(node)
    dims, size, rank = shape_of(x), weight.shape[2:], len(weight.shape) - 2
    strides = attributes.get("strides", [1] * rank)
    if node.attributes.get_int("group", 1) != 1 or set(attributes.get("dilations", ())) - {1}:
        raise Unfit("it is dilated or has groups")
    if set(strides) == {1}:
        raise Unfit("it has no stride")
    pads, out = attributes.get("pads", [0] * 2 * rank), shape_of(node.outputs[0])[2:]
    small = [-(-k // s) for k, s in zip(size, strides, strict=True)]
    rows = [o - 1 + k for o, k in zip(out, small, strict=True)]
    for axis, (row, step) in enumerate(zip(rows, strides, strict=True), 2):
        x = _fitted(x, dims, axis, pads[axis - 2], row * step, w)
        dims = (*dims[:axis], row * step, *dims[axis + 1 :])
    pairs = [n for pair in zip(rows, strides, strict=True) for n in pair]
    order = [0, 1, *range(3, 3 + 2 * rank, 2), *range(2, 2 + 2 * rank, 2)]
    tall = w.transpose(w.reshape(x, [*dims[:2], *pairs]), order)
    deep = w.reshape(tall, [dims[0], dims[1] * int(np.prod(strides)), *rows])
    filled: Array = np.zeros((*weight.shape[:2], *np.multiply(small, strides)), weight.dtype)
    filled[(..., *(slice(k) for k in size))] = weight  # type: ignore[index]
    pairs = [n for pair in zip(small, strides, strict=True) for n in pair]
    kernel = filled.reshape(*weight.shape[:2], *pairs).transpose(order)
    kernel = kernel.reshape(weight.shape[0], -1, *small)
    rest = [v for v in node.inputs[2:] if v is not None]
    return w.op("Conv", deep, w.constant("weight", np.asarray(kernel, order="C")), *rest)


def _fitted(
    x: ir.Value, dims: tuple[int, ...], axis: int, before: int, wanted: int, w: Writer
) -> ir.Value:
    """Pad an axis with zeros in front, and pad or cut it behind, to a wanted length."""
    after = wanted - dims[axis] - before
    if after < 0:
        x, after = w.slice(x, axis, 0, wanted - before), 0
    if before == after == 0:
        return x
    amounts = [0] * 2 * len(dims)
    amounts[axis], amounts[axis + len(dims)] = before, after
    return w.op("Pad", x, w.integers("pads", amounts))


def pieces(node: ir.Node, w: Writer, count: int) -> ir.Value:
    """Conv = Σ Conv over slices of its kernel, each on the part of the image that it meets"""
    x, weight, attributes = floats(node), fixed(node, 1, "weight"), _attributes(node)
    dims, size = shape_of(x), weight.shape[2:]
    axis = int(np.argmax(size)) + 2
    rank, long = len(size), size[axis - 2]
    if long < count or set(attributes.get("dilations", ())) - {1}:
        raise Unfit(f"its kernel does not split into {count}, or is dilated")
    pads = attributes.pop("pads", [0] * 2 * rank)
    whole = dims[axis] + pads[axis - 2] + pads[axis - 2 + rank]
    if pads[axis - 2] or pads[axis - 2 + rank]:
        x = _fitted(x, dims, axis, pads[axis - 2], whole, w)
        pads = [p if i % rank != axis - 2 else 0 for i, p in enumerate(pads)]
    edges = [long * i // count for i in range(count + 1)]
    bias = [v for v in node.inputs[2:] if v is not None]
    result = None
    for start, stop in pairwise(edges):
        part = w.slice(x, axis, start, whole - long + stop)
        cut = weight.take(range(start, stop), axis)
        attributes["kernel_shape"] = list(cut.shape[2:])
        term = w.op(
            "Conv", part, w.constant("weight", np.asarray(cut, order="C")), *bias, **attributes,
            pads=pads, group=node.attributes.get_int("group", 1),
        )  # fmt: skip
        result, bias = term if result is None else w.op("Add", result, term), []
    assert result is not None
    return result


_PIECES = tuple(partial(pieces, count=n) for n in (2, 3, 4, 6, 8))
FORMS: Forms = {
    "Conv": (flat_image, patches, filled_kernel, phases, *_PIECES, whole_weight),
    "ConvTranspose": (flat_image, filled_kernel, whole_weight),
    "MaxPool": (flat_image,),
    "AveragePool": (flat_image,),
}
