"""Matrix products and convolutions by one another."""

from functools import partial
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from npuc.passes.expand import Forms
from npuc.passes.graphs import constant
from npuc.passes.writer import Array, Unfit, Writer, fixed, floats, given, needed, shape_of


def product_and_sum(node: ir.Node, w: Writer) -> ir.Value:
    """Gemm(a, b, c) = alpha·a·b + beta·c"""
    values = [floats(node), needed(node, 1)]
    for index, name in enumerate(("transA", "transB")):
        if node.attributes.get_int(name, 0):
            array = constant(values[index])
            if array is None:
                values[index] = w.transpose(values[index], [1, 0])
            else:
                values[index] = w.constant("turned", np.transpose(array))
    result = w.op("MatMul", *values)
    alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    if alpha != 1:
        result = w.op("Mul", result, w.number("alpha", alpha, result_like(node)))
    bias = given(node, 2)
    if bias is None:
        return result
    array = constant(bias)
    if beta != 1 and array is not None:
        bias = w.constant("bias", (np.asarray(array) * np.asarray(beta, array.dtype)))
    elif beta != 1:
        bias = w.op("Mul", bias, w.number("beta", beta, result_like(node)))
    return w.op("Add", result, bias)


def result_like(node: ir.Node) -> ir.Value:
    """Return a value of the result's dtype."""
    return needed(node)


def gemm(node: ir.Node, w: Writer) -> ir.Value:
    """MatMul(a, w) = Reshape to rows → Gemm(w) → Reshape, for a constant w of rank 2"""
    a = floats(node)
    dims, weight = shape_of(a), fixed(node, 1, "right side")
    if weight.ndim != 2 or len(dims) < 2:
        raise Unfit("its right side is no matrix")
    if len(dims) == 2:
        return w.op("Gemm", a, needed(node, 1))
    rows = w.reshape(a, [int(np.prod(dims[:-1])), dims[-1]])
    return w.reshape(w.op("Gemm", rows, needed(node, 1)), [*dims[:-1], weight.shape[1]])


def pointwise(node: ir.Node, w: Writer) -> ir.Value:
    """MatMul(a, w), Gemm(a, w, b) = Conv 1x1 over [1, k, rows, 1], for constant weights"""
    a = floats(node)
    dims, weight = shape_of(a), fixed(node, 1, "right side")
    if weight.ndim != 2 or len(dims) < 2 or node.attributes.get_int("transA", 0) == 1:
        raise Unfit("its right side is no matrix")
    if {node.attributes.get_float(n, 1.0) for n in ("alpha", "beta")} != {1.0}:
        raise Unfit("it is scaled by alpha or beta")
    weight = weight if node.attributes.get_int("transB", 0) else weight.T
    kernel = w.constant("kernel", np.asarray(weight[:, :, None, None], order="C"))
    inputs = [kernel]
    if given(node, 2) is not None:
        bias = fixed(node, 2, "bias").reshape(-1)
        inputs.append(w.constant("bias", np.broadcast_to(bias, weight.shape[:1]).copy()))
    rows = int(np.prod(dims[:-1]))
    tall = w.transpose(w.reshape(a, [1, rows, dims[-1], 1]), [0, 2, 1, 3])
    made = w.transpose(w.op("Conv", tall, *inputs, kernel_shape=[1, 1]), [0, 2, 1, 3])
    return w.reshape(made, [*dims[:-1], weight.shape[0]])


def partial_sums(node: ir.Node, w: Writer, count: int) -> ir.Value:
    """MatMul(a, b) = Σ MatMul(aᵢ, bᵢ) over slices of the inner size"""
    a, b = floats(node), needed(node, 1)
    left, right = shape_of(a), shape_of(b)
    inner = left[-1]
    if len(left) < 2 or len(right) < 2 or inner < count:
        raise Unfit(f"its inner size {inner} does not split into {count}")
    edges = [inner * i // count for i in range(count + 1)]
    array, result = constant(b), None
    for start, stop in pairwise(edges):
        part = w.slice(a, len(left) - 1, start, stop)
        if array is None:
            rows = w.slice(b, len(right) - 2, start, stop)
        else:
            rows = w.constant("rows", np.asarray(array[..., start:stop, :], order="C"))
        term = w.op("MatMul", part, rows)
        result = term if result is None else w.op("Add", result, term)
    assert result is not None
    return result


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
        n: node.attributes.get_int(n)
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
    """Conv in groups = Conv whose weight is zero between the groups"""
    x, weight, groups = floats(node), fixed(node, 1, "weight"), node.attributes.get_int("group", 1)
    if groups == 1:
        raise Unfit("it has one group")
    rows, columns = weight.shape[0] // groups, weight.shape[1]
    turned = node.op_type == "ConvTranspose"
    if weight.size * groups > 1 << 24:
        raise Unfit(f"its weight would have {weight.size * groups:,} elements")
    whole: Array = np.zeros((weight.shape[0], columns * groups, *weight.shape[2:]), weight.dtype)
    for g in range(groups):
        block = slice(g * rows, (g + 1) * rows)
        whole[block, g * columns : (g + 1) * columns] = weight[block]
    del turned  # a ConvTranspose's weight is [in, out/group, …]: the same blocks
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


FORMS: Forms = {
    "Gemm": (product_and_sum, pointwise),
    "MatMul": (gemm, pointwise, *(partial(partial_sums, count=n) for n in (2, 3, 4, 8))),
    "Conv": (flat_image, patches, filled_kernel, whole_weight),
    "ConvTranspose": (flat_image, filled_kernel, whole_weight),
}
POOLS: Forms = {"MaxPool": (flat_image,), "AveragePool": (flat_image,)}
