"""Attention (opset 23) as MatMul and Softmax."""

import numpy as np
import onnx_ir as ir

from npuc.passes.forms.expand import Forms
from npuc.passes.graphs import constant
from npuc.passes.writer import Unfit, Writer, floats, given, needed, shape_of


def product_softmax_product(node: ir.Node, w: Writer) -> ir.Value:
    """Attention(Q, K, V, M) = Softmax(√s·Q·(√s·K)ᵀ + M)·V

    Q, K, V are [N, heads, tokens, size], or [N, tokens, heads·size]. Where there are fewer heads
    of K and V each is repeated for its group of queries; a mask of booleans adds -∞ where false.
    Takes no caches and no softcap.
    """
    x = floats(node)
    if any(given(node, i) is not None for i in (4, 5, 6)):
        raise Unfit("it reads a cache of keys and values")
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        raise Unfit("its caches or scores are read")
    if node.attributes.get_float("softcap", 0.0):
        raise Unfit("it has a softcap")
    if x.dtype != ir.DataType.FLOAT:
        raise Unfit("it is not computed in float32")
    flat = len(shape_of(x)) == 3
    q, k, v = (_heads(node, i, w) for i in range(3))
    many, few = q[1][1], k[1][1]
    if few == 0 or many % few:
        raise Unfit(f"{many} heads of queries do not divide by {few} of keys")
    key, value = (_repeated(*pair, many // few, w) for pair in (k, v))
    scale = node.attributes.get_float("scale", 0.0) or q[1][3] ** -0.5
    if scale < 0:
        raise Unfit(f"its scale is {scale}")
    root = w.number("root", float(np.sqrt(scale)), x)
    query = w.op("Mul", q[0], root)
    turned = w.op("Mul", w.transpose(key, [0, 1, 3, 2]), root)
    scores = w.op("MatMul", query, turned)
    for mask in _masks(node, q[1][2], k[1][2], w):
        scores = w.op("Add", scores, mask)
    answer = w.op("MatMul", w.op("Softmax", scores, axis=-1), value)
    if not flat:
        return answer
    n, heads, tokens, _ = q[1]
    return w.reshape(w.transpose(answer, [0, 2, 1, 3]), [n, tokens, heads * v[1][3]])


def _heads(node: ir.Node, index: int, w: Writer) -> tuple[ir.Value, tuple[int, ...]]:
    """Return an operand as [N, heads, tokens, size], with that shape."""
    value = needed(node, index)
    dims = shape_of(value)
    if len(dims) == 4:
        return value, dims
    heads = node.attributes.get_int("q_num_heads" if index == 0 else "kv_num_heads", 0)
    if len(dims) != 3 or not heads or dims[2] % heads:
        raise Unfit(f"operand {index} of shape {dims} has no {heads} heads")
    shape = (dims[0], dims[1], heads, dims[2] // heads)
    tall = w.transpose(w.reshape(value, shape), [0, 2, 1, 3])
    return tall, (dims[0], heads, dims[1], dims[2] // heads)


def _repeated(value: ir.Value, dims: tuple[int, ...], times: int, w: Writer) -> ir.Value:
    """Repeat each head: [N, h, t, s] → [N, h, 1, t·s] → [N, h, times, t·s] → [N, h·times, t, s]"""
    if times == 1:
        return value
    n, heads, tokens, size = dims
    row = w.reshape(value, [n, heads, 1, tokens * size])
    row.shape, row.type = ir.Shape([n, heads, 1, tokens * size]), value.type
    wide = w.op("Expand", row, w.integers("wide", [n, heads, times, tokens * size]))
    return w.reshape(wide, [n, heads * times, tokens, size])


def _masks(node: ir.Node, queries: int, keys: int, w: Writer) -> list[ir.Value]:
    """Return what is added to the scores: the mask, and the triangle of is_causal."""
    found = []
    mask, low = given(node, 3), np.asarray(-np.inf, np.float32)
    if mask is not None:
        array = constant(mask)
        if shape_of(mask)[-1] != keys:
            raise Unfit("its mask is shorter than its keys")
        if mask.dtype != ir.DataType.BOOL:
            found.append(mask)
        elif array is not None:
            found.append(w.constant("mask", np.where(array, np.float32(0), low)))
        else:
            zero, minus = w.constant("zero", np.zeros((), np.float32)), w.constant("minus", low)
            found.append(w.op("Where", mask, zero, minus))
    if node.attributes.get_int("is_causal", 0):
        seen = np.tril(np.ones((queries, keys), bool))
        found.append(w.constant("causal", np.where(seen, np.float32(0), low)))
    return found


FORMS: Forms = {"Attention": (product_softmax_product,)}
