"""Softmax on int8 codes as the TFLite reference kernel computes it: fixed point throughout.

Qi.f is a fixed-point number of i integer bits and f bits of fraction. Formulas: LiteRT
``reference/softmax.h``, gemmlowp ``fixedpoint/fixedpoint.h`` (double rounding). The kernel stops
where the exponentials sum up to 512 or more; here the results, less than half a code, become 0.
"""

import math
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from npuc.errors import PassError
from npuc.passes.arithmetic.fixed_point import DIVIDE, HIGH_MUL, Multiplier, divide, high_mul
from npuc.passes.arithmetic.round_to import DOMAIN
from npuc.passes.arithmetic.tflite_kernels import LOW, Coding, clamp

Array = np.ndarray[Any, Any]
SCALE = "SoftmaxScale"
"""Name of the ONNX function of `reciprocal` in npuc's domain."""
OUTPUT = Coding(1 / 256, -128)
"""The only coding that the kernel writes."""
LONGEST = 4095
"""Values that can be summed: 12 integer bits hold less than 4096."""
_ONE = (1 << 31) - 1
_EXP_EIGHTH, _THIRD = 1895147668, 715827883
"""exp(-1/8) and 1/3 in Q0.31."""
_EXP = {24: 1672461947, 25: 1302514674, 26: 790015084, 27: 290630308, 28: 39332535, 29: 720401,
        30: 242}  # fmt: skip
"""exp(-2^(bit - 26)) in Q0.31 by the bit of a Q5.26 number: 1/4, 1/2, 1, 2, 4, 8, 16."""
_A, _B = 1515870810, -1010580540
"""48/17 and -32/17 in Q2.29: the line from which Newton's steps start."""


def exp(x: Array) -> Array:
    """Return e^x in Q0.31 for x <= 0 in Q5.26: a polynomial of degree 4, then a factor per bit."""
    x = np.asarray(x, np.int64)
    rest = (x & ((1 << 24) - 1)) - (1 << 24)
    t = (rest << 5) + (1 << 28)
    t2 = high_mul(t, t)
    t3, t4 = high_mul(t2, t), high_mul(t2, t2)
    tail = high_mul(divide(t4, np.int64(4)) + t3, np.int64(_THIRD)) + t2
    result = _EXP_EIGHTH + high_mul(np.int64(_EXP_EIGHTH), t + divide(tail, np.int64(2)))
    whole = rest - x
    for bit, factor in _EXP.items():
        result = np.where(whole >> bit & 1, high_mul(result, np.int64(factor)), result)
    return np.where(x == 0, _ONE, result)


def reciprocal(total: Array) -> tuple[Array, Array]:
    """Return 1/total in Q0.31 of the sum's leading bits, and what a product is divided by.

    `total` is a sum in Q12.19 from 2^19 up to 2^31 - 1. With total = m · 2^k, m in [1, 2), in
    units of 1.0: the first is 1/m, the second 2^(k + 23), which leaves codes of 1/256.
    """
    total = np.asarray(total, np.int64)
    zeros = sum((total < (1 << bit)).astype(np.int64) for bit in range(32))
    half = (total << zeros) // 2
    x = _A + high_mul(half, np.int64(_B))
    for _ in range(3):
        x = x + (high_mul(x, (1 << 29) - high_mul(half, x)) << 2)
    return np.minimum(x << 1, _ONE), np.asarray(np.int64(1) << (12 - zeros + 23))


def tables(scale: float) -> tuple[Array, Array]:
    """Return, by 255 + (code - largest code), exponentials in Q0.31 and summands in Q12.19.

    Both are 0 for differences so large that the kernel skips them. Raises `PassError` for a scale
    of the operand that the kernel refuses.
    """
    if scale * 2**26 <= 1:
        raise PassError(f"Softmax cannot take an operand of scale {scale!r}: the least is 2^-26")
    by = Multiplier.of(min(scale * 2**26, _ONE))
    least = -math.floor(31 * 2**26 / by.left)
    difference = np.arange(-255, 1, dtype=np.int64)
    kept = difference >= least
    scaled = high_mul(np.where(kept, difference, 0) * by.left, np.int64(by.significand))
    values = np.where(kept, exp(scaled), 0)
    return values, divide(values, np.int64(1 << 12))


def softmax(codes: Array, axis: int, source: Coding) -> Array:
    """Return the codes of softmax along an axis, of scale 1/256 and zero point -128."""
    values, summands = tables(source.scale)
    wide = np.asarray(codes).astype(np.int64)
    index = wide - wide.max(axis=axis, keepdims=True) + 255
    scale, divisor = reciprocal(summands[index].sum(axis=axis, keepdims=True))
    return clamp(divide(high_mul(scale, values[index]), divisor) + LOW)


def function(opset: int) -> ir.Function:
    """Build `reciprocal` as an ONNX function of int64.

    Less and Where limit the result: ONNX Runtime 1.31.1's Min, Max, Clip and Sign of int64 compare
    the low words as signed, so 2^31 is below 2^31 - 1.
    """
    powers = ", ".join(str(1 << bit) for bit in range(32))
    steps = "".join(
        f"""
  product{i} = {DOMAIN}.{HIGH_MUL} (half, x{i})
  rest{i} = Sub (unity, product{i})
  step{i} = {DOMAIN}.{HIGH_MUL} (x{i}, rest{i})
  whole{i} = Mul (step{i}, four)
  x{i + 1} = Add (x{i}, whole{i})"""
        for i in range(3)
    )
    constants = {
        "double": 2, "four": 4, "one": _ONE, "unity": 1 << 29, "line": _A, "slope": _B,
        "places": 1 << 35,
    }  # fmt: skip
    declared = "".join(
        f"\n  {name} = Constant <value = int64 {{{value}}}> ()" for name, value in constants.items()
    )
    text = f"""
<domain: "{DOMAIN}", opset_import: ["": {opset}, "{DOMAIN}": 1]>
{SCALE} (total) => (scale, divisor)
{{{declared}
  powers = Constant <value = int64[32] {{{powers}}}> ()
  last = Constant <value = int64[1] {{-1}}> ()
  column = Unsqueeze (total, last)
  under = Less (column, powers)
  counted = Cast <to = {int(ir.DataType.INT64)}> (under)
  zeros = ReduceSum <keepdims = 0> (counted, last)
  shift = Gather (powers, zeros)
  shifted = Mul (total, shift)
  half = Div (shifted, double)
  scaled = {DOMAIN}.{HIGH_MUL} (half, slope)
  x0 = Add (line, scaled){steps}
  doubled = Mul (x3, double)
  fits = Less (doubled, one)
  scale = Where (fits, doubled, one)
  divisor = Div (places, shift)
}}
"""
    return ir.serde.deserialize_function(onnx.parser.parse_function(text))


FUNCTIONS = (HIGH_MUL, DIVIDE)
"""What `function`, and a graph that uses it, call besides."""
