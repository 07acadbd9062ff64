"""Activations in simpler operators. Every form is stable: no overflow where the original has none.

Formulas are those of the ONNX operators' documentation.
"""

import numpy as np
import onnx_ir as ir

from npuc.passes.forms.expand import Forms
from npuc.passes.graphs import constant
from npuc.passes.writer import Unfit, Writer, axis_of, fixed, floats, given, needed, shape_of


def erf_form(node: ir.Node, w: Writer) -> ir.Value:
    """Gelu(x) = x/2·(1 + erf(x/√2))"""
    x = floats(node)
    if node.attributes.get_string("approximate", "none") == "tanh":
        raise Unfit("it is the tanh approximation, another function")
    curve = w.op("Erf", w.op("Mul", x, w.number("root", np.sqrt(0.5), x)))
    half = w.op("Mul", x, w.number("half", 0.5, x))
    return w.op("Mul", half, w.op("Add", curve, w.number("one", 1, x)))


def tanh_form(node: ir.Node, w: Writer) -> ir.Value:
    """Gelu(x) ≈ x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))), where the model asks for that."""
    x = floats(node)
    if node.attributes.get_string("approximate", "none") != "tanh":
        raise Unfit("the tanh formula is another function than the exact Gelu")
    cube = w.op("Mul", w.op("Mul", x, x), x)
    inner = w.op("Add", x, w.op("Mul", cube, w.number("cubic", 0.044715, x)))
    curve = w.op("Tanh", w.op("Mul", inner, w.number("slope", np.sqrt(2 / np.pi), x)))
    half = w.op("Mul", x, w.number("half", 0.5, x))
    return w.op("Mul", half, w.op("Add", curve, w.number("one", 1, x)))


def gated(node: ir.Node, w: Writer) -> ir.Value:
    """HardSwish(x) = x·max(0, min(1, x/6 + 1/2))"""
    x = floats(node)
    return w.op("Mul", x, w.op("HardSigmoid", x, alpha=1 / 6, beta=0.5))


def clipped(node: ir.Node, w: Writer) -> ir.Value:
    """HardSigmoid(x) = max(0, min(1, a·x + b))"""
    x = floats(node)
    alpha = node.attributes.get_float("alpha", 0.2)
    line = w.op("Mul", x, w.number("alpha", alpha, x))
    line = w.op("Add", line, w.number("beta", node.attributes.get_float("beta", 0.5), x))
    return w.op("Clip", line, w.number("zero", 0, x), w.number("one", 1, x))


def relu6(node: ir.Node, w: Writer) -> ir.Value:
    """HardSigmoid(x) = a·max(0, min(1/a, x + b/a)): for a = 1/6 a Relu6."""
    x = floats(node)
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    if not alpha > 0:
        raise Unfit(f"alpha is {alpha}")
    line = w.op("Add", x, w.number("shift", beta / alpha, x))
    ramp = w.op("Clip", line, w.number("zero", 0, x), w.number("top", 1 / alpha, x))
    return w.op("Mul", ramp, w.number("alpha", alpha, x))


def times_sigmoid(node: ir.Node, w: Writer) -> ir.Value:
    """Swish(x) = x·sigmoid(a·x)"""
    x = floats(node)
    alpha = node.attributes.get_float("alpha", 1.0)
    inner = x if alpha == 1 else w.op("Mul", x, w.number("alpha", alpha, x))
    return w.op("Mul", x, w.op("Sigmoid", inner))


def times_tanh(node: ir.Node, w: Writer) -> ir.Value:
    """Mish(x) = x·tanh(Softplus(x))"""
    x = floats(node)
    return w.op("Mul", x, w.op("Tanh", w.op("Softplus", x)))


def log_exp(node: ir.Node, w: Writer) -> ir.Value:
    """Softplus(x) = max(x, 0) + log(1 + e^-|x|): e^x alone would overflow."""
    x = floats(node)
    small = w.op("Exp", w.op("Neg", w.op("Abs", x)))
    log = w.op("Log", w.op("Add", small, w.number("one", 1, x)))
    return w.op("Add", w.op("Relu", x), log)


def over_one_plus(node: ir.Node, w: Writer) -> ir.Value:
    """Softsign(x) = x / (1 + |x|)"""
    x = floats(node)
    return w.op("Div", x, w.op("Add", w.op("Abs", x), w.number("one", 1, x)))


def by_tanh(node: ir.Node, w: Writer) -> ir.Value:
    """sigmoid(x) = tanh(x/2)/2 + 1/2"""
    x = floats(node)
    half = w.number("half", 0.5, x)
    return w.op("Add", w.op("Mul", w.op("Tanh", w.op("Mul", x, half)), half), half)


def by_exp(node: ir.Node, w: Writer) -> ir.Value:
    """sigmoid(x) = 1 / (1 + e^-x), which is 0 where e^-x overflows."""
    x = floats(node)
    one = w.number("one", 1, x)
    return w.op("Div", one, w.op("Add", w.op("Exp", w.op("Neg", x)), one))


def by_sigmoid(node: ir.Node, w: Writer) -> ir.Value:
    """tanh(x) = 2·sigmoid(2x) - 1"""
    x = floats(node)
    two = w.number("two", 2, x)
    curve = w.op("Mul", w.op("Sigmoid", w.op("Mul", x, two)), two)
    return w.op("Add", curve, w.number("minus", -1, x))


def _below(x: ir.Value, w: Writer) -> ir.Value:
    """min(x, 0) as -max(-x, 0): x - max(x, 0) is no number at infinity."""
    return w.op("Neg", w.op("Relu", w.op("Neg", x)))


def exponential(node: ir.Node, w: Writer) -> ir.Value:
    """Elu, Selu, Celu: g·(max(x, 0) + a·(e^(min(x, 0)/s) - 1))"""
    x = floats(node)
    alpha = node.attributes.get_float("alpha", 1.6732632 if node.op_type == "Selu" else 1.0)
    gamma = node.attributes.get_float("gamma", 1.0507010) if node.op_type == "Selu" else 1.0
    low = _below(x, w)
    if node.op_type == "Celu" and alpha != 1:
        low = w.op("Mul", low, w.number("inverse", 1 / alpha, x))
    tail = w.op("Add", w.op("Exp", low), w.number("minus", -1, x))
    if alpha * gamma != 1:
        tail = w.op("Mul", tail, w.number("alpha", alpha * gamma, x))
    top = w.op("Relu", x)
    top = top if gamma == 1 else w.op("Mul", top, w.number("gamma", gamma, x))
    return w.op("Add", top, tail)


def larger(node: ir.Node, w: Writer) -> ir.Value:
    """LeakyRelu(x) = max(x, a·x), where 0 ≤ a ≤ 1"""
    x = floats(node)
    alpha = node.attributes.get_float("alpha", 0.01)
    if not 0 <= alpha <= 1:
        raise Unfit(f"alpha {alpha} is not in [0, 1]")
    return w.op("Max", x, w.op("Mul", x, w.number("alpha", alpha, x)))


def two_sided(node: ir.Node, w: Writer) -> ir.Value:
    """LeakyRelu(x), PRelu(x) = max(x, 0) - a·max(-x, 0)"""
    x = floats(node)
    if node.op_type == "PRelu":
        alpha = needed(node, 1)
        slope = constant(alpha)
        minus = w.op("Neg", alpha) if slope is None else w.constant("minus", np.negative(slope))
    else:
        minus = w.number("minus", -node.attributes.get_float("alpha", 0.01), x)
    return w.op("Add", w.op("Relu", x), w.op("Mul", w.op("Relu", w.op("Neg", x)), minus))


def one_slope(node: ir.Node, w: Writer) -> ir.Value:
    """PRelu(x) = LeakyRelu(x), where all slopes are one number"""
    slope = fixed(node, 1, "slope").reshape(-1)
    if slope.size == 0 or not (slope == slope[0]).all():
        raise Unfit("its slopes differ")
    return w.op("LeakyRelu", floats(node), alpha=float(slope[0]))


def moved_axis(node: ir.Node, w: Writer) -> ir.Value:
    """Softmax over axis k = Transpose → Softmax over the last axis → Transpose"""
    return _softmax_along(node, w, -1)


def second_axis(node: ir.Node, w: Writer) -> ir.Value:
    """Softmax over axis k = Transpose → Softmax over axis 1 → Transpose"""
    return _softmax_along(node, w, 1)


def _softmax_along(node: ir.Node, w: Writer, target: int) -> ir.Value:
    x = floats(node)
    rank = len(shape_of(x))
    if w.opset < 13:
        raise Unfit("before opset 13 it runs over all axes from its own")
    axis, target = axis_of(node, rank), target % rank
    if axis == target:
        raise Unfit("it runs along that axis already")
    order = list(range(rank))
    order[axis], order[target] = order[target], order[axis]
    moved = w.op(node.op_type, w.transpose(x, order), axis=target)
    return w.transpose(moved, order)


def exp_over_sum(node: ir.Node, w: Writer) -> ir.Value:
    """Softmax(x) = e^(x - max x) / Σ e^(x - max x)"""
    x = floats(node)
    axis = _one_axis(node, w)
    top = w.op("Exp", w.op("Sub", x, w.reduce("ReduceMax", x, [axis])))
    return w.op("Div", top, w.reduce("ReduceSum", top, [axis]))


def minus_log_sum(node: ir.Node, w: Writer) -> ir.Value:
    """LogSoftmax(x) = z - log Σ e^z, z = x - max x"""
    x = floats(node)
    axis = _one_axis(node, w)
    low = w.op("Sub", x, w.reduce("ReduceMax", x, [axis]))
    return w.op("Sub", low, w.op("Log", w.reduce("ReduceSum", w.op("Exp", low), [axis])))


def by_entropy(node: ir.Node, w: Writer) -> ir.Value:
    """LogSoftmax(x) = x - Σ p·(x - log p), p = Softmax(x).

    log p alone is -∞ where p underflows; in the sum, which is log Σ e^x, such a p weighs nothing.
    """
    x = floats(node)
    axis = _one_axis(node, w)
    if x.dtype is None or x.dtype == ir.DataType.FLOAT16:
        raise Unfit("float16 has no number small enough to keep log p finite")
    p = w.op("Softmax", x, axis=axis)
    log = w.op("Log", w.op("Add", p, w.number("tiny", 2e-38, x)))
    total = w.reduce("ReduceSum", w.op("Mul", p, w.op("Sub", x, log)), [axis])
    return w.op("Sub", x, total)


def _one_axis(node: ir.Node, w: Writer) -> int:
    rank = len(shape_of(given(node, 0)))
    axis = axis_of(node, rank, -1 if w.opset >= 13 else 1)
    if w.opset < 13 and axis != rank - 1:
        raise Unfit("before opset 13 it runs over all axes from its own")
    return axis


FORMS: Forms = {
    "Gelu": (erf_form, tanh_form),
    "HardSwish": (gated,),
    "HardSigmoid": (clipped, relu6),
    "Swish": (times_sigmoid,),
    "Mish": (times_tanh,),
    "Softplus": (log_exp,),
    "Softsign": (over_one_plus,),
    "Sigmoid": (by_tanh, by_exp),
    "Tanh": (by_sigmoid,),
    "Elu": (exponential,),
    "Selu": (exponential,),
    "Celu": (exponential,),
    "LeakyRelu": (larger, two_sided),
    "PRelu": (one_slope, two_sided),
    "Softmax": (moved_axis, second_axis, exp_over_sum),
    "LogSoftmax": (moved_axis, second_axis, minus_log_sum, by_entropy),
}
