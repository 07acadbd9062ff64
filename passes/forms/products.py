"""Matrix products by one another, and as convolutions."""

from functools import partial
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from npuc.passes.forms.expand import Forms
from npuc.passes.graphs import constant
from npuc.passes.writer import Unfit, Writer, fixed, floats, given, needed, shape_of


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
        bias = w.constant("bias", np.multiply(array, np.asarray(beta, array.dtype)))
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


FORMS: Forms = {
    "Gemm": (product_and_sum, pointwise),
    "MatMul": (gemm, pointwise, *(partial(partial_sums, count=n) for n in (2, 3, 4, 8))),
}
