"""Elementwise operators by one another."""

from functools import partial

import numpy as np
import onnx_ir as ir

from npuc.passes.forms.expand import Forms
from npuc.passes.graphs import constant
from npuc.passes.writer import Array, Unfit, Writer, fixed, floats, given, needed, shape_of

MASK_LIMIT = 1 << 22
"""Elements of a constant that a form may bring along: 16 MiB of float32."""


def times_minus_one(node: ir.Node, w: Writer) -> ir.Value:
    """Neg(x) = x·(-1)"""
    x = needed(node)
    return w.op("Mul", x, w.number("minus", -1, x))


def from_zero(node: ir.Node, w: Writer) -> ir.Value:
    """Neg(x) = 0 - x"""
    x = needed(node)
    return w.op("Sub", w.number("zero", 0, x), x)


def add_negative(node: ir.Node, w: Writer) -> ir.Value:
    """Sub(a, b) = a + (-b)"""
    a, b = floats(node), needed(node, 1)
    array = constant(b)
    return w.op(
        "Add", a, w.op("Neg", b) if array is None else w.constant("minus", np.negative(array))
    )


def times_reciprocal(node: ir.Node, w: Writer) -> ir.Value:
    """Div(a, b) = a·(1/b), one rounding more unless b is a power of two"""
    a, b = floats(node), needed(node, 1)
    array = constant(b)
    if array is None:
        return w.op("Mul", a, w.op("Reciprocal", b))
    wide = np.asarray(array, np.float64)
    inverse = np.divide(1, wide, where=wide != 0, out=np.full_like(wide, np.inf))
    exact = inverse.astype(array.dtype)
    if not np.isfinite(exact).all():
        raise Unfit("it divides by zero, or by a number without a reciprocal")
    return w.op("Mul", a, w.constant("inverse", exact))


def one_over(node: ir.Node, w: Writer) -> ir.Value:
    """Reciprocal(x) = 1/x"""
    x = floats(node)
    return w.op("Div", w.number("one", 1, x), x)


def power(node: ir.Node, w: Writer, exponent: float) -> ir.Value:
    """Reciprocal(x) = x^-1, Sqrt(x) = x^½"""
    x = floats(node)
    return w.op("Pow", x, w.number("exponent", exponent, x))


def products(node: ir.Node, w: Writer) -> ir.Value:
    """Pow(x, n) = x·x·…·x, √x, 1/x for a constant n"""
    x = floats(node)
    exponents = np.unique(np.asarray(fixed(node, 1, "exponent"), np.float64))
    if exponents.size != 1:
        raise Unfit("its exponents differ")
    exponent = float(exponents[0])
    if given(node, 1) is not None and len(shape_of(given(node, 1))) > len(shape_of(x)):
        raise Unfit("its exponent has the higher rank")
    whole = int(abs(exponent))
    if abs(exponent) == 0.5:
        result = w.op("Sqrt", x)
    elif abs(exponent) == whole and 1 <= whole <= 4:
        result = x if whole == 1 else w.op("Mul", x, x)
        if whole > 2:
            result = w.op("Mul", result, x if whole == 3 else result)
    else:
        raise Unfit(f"its exponent is {exponent:g}")
    return w.op("Reciprocal", result) if exponent < 0 else result


def chain(node: ir.Node, w: Writer, op: str) -> ir.Value:
    """Sum, Mean, Min, Max of n values as n - 1 operators of two"""
    values = [v for v in node.inputs if v is not None]
    if op == node.op_type and len(values) < 3:
        raise Unfit("it has two inputs already")
    result = values[0]
    for value in values[1:]:
        result = w.op(op, result, value)
    if node.op_type == "Mean":
        result = w.op("Mul", result, w.number("nth", 1 / len(values), floats(node)))
    return result


def _bound(node: ir.Node) -> tuple[ir.Value, float]:
    """Return the operand and the one number that it is compared with."""
    values = [v for v in node.inputs if v is not None]
    if len(values) != 2:
        raise Unfit(f"it compares {len(values)} values")
    for value, other in (values, values[::-1]):
        array = constant(other)
        if array is not None and constant(value) is None:
            numbers = np.unique(array)
            if numbers.size == 1 and array.ndim <= len(shape_of(value)):
                return value, float(numbers[0])
    raise Unfit("it does not compare with one number")


def clip(node: ir.Node, w: Writer) -> ir.Value:
    """Max(x, c) = Clip(x, min = c);  Min(x, c) = Clip(x, max = c)"""
    x, bound = _bound(node)
    limit = w.number("bound", bound, x)
    return _clip(
        x, limit if node.op_type == "Max" else None, limit if node.op_type == "Min" else None, w
    )


def _clip(x: ir.Value, low: ir.Value | None, high: ir.Value | None, w: Writer) -> ir.Value:
    values = [x, low] if high is None else [x, low, high]
    return w.optional("Clip", values)


def rectified(node: ir.Node, w: Writer) -> ir.Value:
    """Max(x, 0), Clip(x, 0) = Relu(x)"""
    if node.op_type == "Max":
        x, bound = _bound(node)
    else:
        x, bound = floats(node), float(fixed(node, 1, "lower bound"))
        if given(node, 2) is not None:
            raise Unfit("it has an upper bound")
    if bound != 0 or x.dtype is None or not x.dtype.is_floating_point():
        raise Unfit("its bound is not the float 0")
    return w.op("Relu", x)


def min_of_max(node: ir.Node, w: Writer) -> ir.Value:
    """Clip(x, a, b) = Min(Max(x, a), b)"""
    result = needed(node)
    for index, op in ((1, "Max"), (2, "Min")):
        bound = given(node, index)
        if bound is not None:
            result = w.op(op, result, bound)
    return result


def two_relus(node: ir.Node, w: Writer) -> ir.Value:
    """Clip(x, 0, b) = b - Relu(b - Relu(x)), within a rounding of b"""
    x = floats(node)
    low, high = float(fixed(node, 1, "lower bound")), float(fixed(node, 2, "upper bound"))
    if low != 0 or not high > 0:
        raise Unfit("it does not clip to [0, b]")
    top = w.number("top", high, x)
    return w.op("Sub", top, w.op("Relu", w.op("Sub", top, w.op("Relu", x))))


def clip_at_zero(node: ir.Node, w: Writer) -> ir.Value:
    """Relu(x) = Clip(x, min = 0)"""
    x = needed(node)
    return w.op("Clip", x, w.number("zero", 0, x))


def max_with_zero(node: ir.Node, w: Writer) -> ir.Value:
    """Relu(x) = Max(x, 0)"""
    x = needed(node)
    return w.op("Max", x, w.number("zero", 0, x))


def larger_sign(node: ir.Node, w: Writer) -> ir.Value:
    """|x| = Max(x, -x)"""
    x = needed(node)
    return w.op("Max", x, w.op("Neg", x))


def both_sides(node: ir.Node, w: Writer) -> ir.Value:
    """|x| = Relu(x) + Relu(-x)"""
    x = floats(node)
    return w.op("Add", w.op("Relu", x), w.op("Relu", w.op("Neg", x)))


def negated(node: ir.Node, w: Writer) -> ir.Value:
    """Min(a, b) = -Max(-a, -b)"""
    return w.op("Neg", w.op("Max", *(w.op("Neg", v) for v in node.inputs if v is not None)))


def blend(node: ir.Node, w: Writer) -> ir.Value:
    """Where(m, a, b) = a·m + b·(1 - m) for a constant m, exact while a and b are finite"""
    mask = fixed(node, 0, "condition").astype(bool)
    a, b = floats(node, 1), needed(node, 2)
    result, seen = None, ()
    for value, part in ((a, mask), (b, ~mask)):
        array = constant(value)
        if array is not None:
            kept = np.where(part, array, np.zeros((), array.dtype))
            term, dims = w.constant("kept", _small(kept)), kept.shape
        elif part.all():
            term, dims = value, shape_of(value)
        elif part.any():
            factor = w.constant("mask", _small(part.astype(a.dtype.numpy() if a.dtype else "f4")))
            term, dims = (
                w.op("Mul", value, factor),
                np.broadcast_shapes(part.shape, shape_of(value)),
            )
        else:
            continue
        seen = np.broadcast_shapes(seen, dims)
        result = term if result is None else w.op("Add", result, term)
    if result is None:
        raise Unfit("it has no elements")
    wanted = shape_of(node.outputs[0])
    if seen == wanted:
        return result
    zeros = np.zeros(wanted, a.dtype.numpy() if a.dtype else np.float32)
    return w.op("Add", result, w.constant("shape", _small(zeros)))


def weighed(node: ir.Node, w: Writer) -> ir.Value:
    """Where(c, a, b) = a·m + b·(1 - m), m = Cast(c), for finite a, b"""
    a, b = floats(node, 1), floats(node, 2)
    if constant(given(node, 0)) is not None:
        raise Unfit("its condition is a constant")
    for value in (a, b):
        array = constant(value)
        if array is not None and not np.isfinite(array).all():
            raise Unfit("it fills in a value that is not finite")
    assert a.dtype is not None
    mask = w.op("Cast", needed(node, 0), to=int(a.dtype))
    other = w.op("Sub", w.number("one", 1, a), mask)
    return w.op("Add", w.op("Mul", a, mask), w.op("Mul", b, other))


def triangle_mask(node: ir.Node, w: Writer) -> ir.Value:
    """Trilu(x) = x·mask, exact while x is finite"""
    x = floats(node)
    dims = shape_of(x)
    k = int(fixed(node, 1, "diagonal")) if given(node, 1) is not None else 0
    upper = node.attributes.get_int("upper", 1)
    ones = np.ones(dims[-2:], x.dtype.numpy() if x.dtype else np.float32)
    return w.op("Mul", x, w.constant("mask", np.triu(ones, k) if upper else np.tril(ones, k)))


def triangle(node: ir.Node, w: Writer) -> ir.Value:
    """CumSum(x) = x·T, T a triangle of ones"""
    x = floats(node)
    dims = shape_of(x)
    axis = int(fixed(node, 1, "axis")) % len(dims)
    size = dims[axis]
    if size > 2048:
        raise Unfit(f"its axis has {size} elements, and the triangle that many squared")
    low = np.triu(np.ones((size, size), x.dtype.numpy() if x.dtype else np.float32))
    if node.attributes.get_int("exclusive", 0):
        low -= np.eye(size, dtype=low.dtype)
    if node.attributes.get_int("reverse", 0):
        low = low.T
    order = list(range(len(dims)))
    order[axis], order[-1] = order[-1], order[axis]
    matrix = w.constant("triangle", np.asarray(low, order="C"))
    if len(dims) == 1:
        return w.reshape(w.op("MatMul", w.reshape(x, [1, size]), matrix), [size])
    return w.transpose(w.op("MatMul", w.transpose(x, order), matrix), order)


def _small(array: Array) -> Array:
    if array.size > MASK_LIMIT:
        raise Unfit(f"its mask has {array.size:,} elements")
    return np.asarray(array, order="C")


FORMS: Forms = {
    "Neg": (times_minus_one, from_zero),
    "Sub": (add_negative,),
    "Div": (times_reciprocal,),
    "Reciprocal": (one_over, partial(power, exponent=-1)),
    "Sqrt": (partial(power, exponent=0.5),),
    "Pow": (products,),
    "Sum": (partial(chain, op="Add"),),
    "Mean": (partial(chain, op="Add"),),
    "Min": (clip, partial(chain, op="Min"), negated),
    "Max": (rectified, clip, partial(chain, op="Max")),
    "Clip": (rectified, min_of_max, two_relus),
    "Relu": (clip_at_zero, max_with_zero),
    "Abs": (larger_sign, both_sides),
    "Where": (blend, weighed),
    "Trilu": (triangle_mask,),
    "CumSum": (triangle,),
}
