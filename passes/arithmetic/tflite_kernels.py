"""What the TFLite reference kernels compute on int8 codes, in numpy: the elementwise ones.

Codes go in and out as arrays of any integer type; the results are int64 codes in [-128, 127].
Formulas: LiteRT ``tflite/kernels/internal/reference`` (double rounding).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from npuc.errors import PassError
from npuc.passes.arithmetic.fixed_point import Multiplier, divide, multiply

Array = np.ndarray[Any, Any]
LOW, HIGH = -128, 127
ADD_SHIFT = 20
"""Bits by which Add and Sub shift 8-bit operands left, for precision."""


@dataclass(frozen=True, slots=True)
class Coding:
    """real = scale · (code - zero); `scale` is a float32 number."""

    scale: float
    zero: int

    def code(self, real: float) -> int:
        """Return the code of a bound: z + round(f32(real / s)), ties away from zero."""
        with np.errstate(over="ignore"):
            ratio = float(np.float32(real) / np.float32(self.scale))
        if math.isinf(ratio):
            return HIGH if ratio > 0 else LOW
        return self.zero + int(half_away(np.float64(ratio)))


@dataclass(frozen=True, slots=True)
class AddFactors:
    """The three multipliers of Add and Sub: of the operands, and of their sum."""

    a: Multiplier
    b: Multiplier
    out: Multiplier

    @classmethod
    def of(cls, a: Coding, b: Coding, out: Coding) -> "AddFactors":
        """With t = 2·max(s_a, s_b): s_a / t, s_b / t and t / (2^20 · s_out), in double."""
        twice = 2 * max(a.scale, b.scale)
        factors = (a.scale / twice, b.scale / twice, twice / ((1 << ADD_SHIFT) * out.scale))
        return cls(*(Multiplier.of(factor) for factor in factors))


def clamp(x: Array, low: int = LOW, high: int = HIGH) -> Array:
    """Limit to codes; like the kernel's min(max()), an empty range gives `high`."""
    return np.minimum(np.maximum(x, low), high)


def half_away(x: Any) -> Any:
    """Round a double to an integer, ties away from zero: C's round."""
    return np.sign(x) * np.floor(np.abs(x) + 0.5)


def add(a: Array, b: Array, codings: tuple[Coding, Coding, Coding], *, subtract: bool) -> Array:
    """Add or subtract codes; `codings` are those of a, b and the result."""
    first, second, out = codings
    by = AddFactors.of(first, second, out)
    left = multiply((_wide(a) - first.zero) << ADD_SHIFT, by.a)
    right = multiply((_wide(b) - second.zero) << ADD_SHIFT, by.b)
    total = left - right if subtract else left + right
    return clamp(multiply(total, by.out) + out.zero)


def mul_factor(a: Coding, b: Coding, out: Coding) -> Multiplier:
    """Return Mul's factor: s_a · s_b / s_out, each step in float32."""
    with np.errstate(over="ignore", under="ignore"):
        product = np.float32(a.scale) * np.float32(b.scale)
        return Multiplier.of(float(product / np.float32(out.scale)))


def mul(a: Array, b: Array, codings: tuple[Coding, Coding, Coding]) -> Array:
    """Multiply codes; `codings` are those of a, b and the result."""
    first, second, out = codings
    product = (_wide(a) - first.zero) * (_wide(b) - second.zero)
    return clamp(multiply(product, mul_factor(first, second, out)) + out.zero)


def mean_factor(count: int, source: Coding, out: Coding) -> Multiplier:
    """Return s_in / (n · s_out); the division by n keeps as many bits as int32 has room for."""
    by = Multiplier.of(source.scale / out.scale)
    shift = min(count.bit_length() - 1, 32, 31 + by.exponent)
    return Multiplier((by.significand << shift) // count, by.exponent - shift)


def mean(codes: Array, axes: tuple[int, ...], source: Coding, out: Coding) -> Array:
    """Average codes over axes, which stay with length 1."""
    count = math.prod(codes.shape[axis] for axis in axes)
    total = _wide(codes).sum(axis=axes, keepdims=True) - count * source.zero
    return clamp(multiply(total, mean_factor(count, source, out)) + out.zero)


def average(total: Array, count: Array) -> Array:
    """Divide sums of codes by how many they are, ties away from code 0: average pooling."""
    total = _wide(total)
    size = (np.abs(total) + count // 2) // count
    return clamp(np.sign(total) * size)


def requantize(codes: Array, source: Coding, out: Coding) -> Array:
    """Code the same reals anew."""
    by = Multiplier.of(source.scale / out.scale)
    return clamp(multiply(_wide(codes) - source.zero, by) + out.zero)


def relu(codes: Array, source: Coding, out: Coding, limits: tuple[int, int]) -> Array:
    """Clamp to codes of the result, the rescaling done in the Relu kernels' precision."""
    by = Multiplier.of(_ratio(source.scale, out.scale))
    return clamp(multiply(_wide(codes) - source.zero, by) + out.zero, *limits)


def leaky_relu(codes: Array, alpha: float, source: Coding, out: Coding) -> Array:
    """x where x >= 0, else alpha · x."""
    x = _wide(codes) - source.zero
    size = np.float32(source.scale) * np.abs(np.float32(alpha))
    above = multiply(x, Multiplier.of(_ratio(source.scale, out.scale)))
    below = multiply(x, Multiplier.of(_ratio(float(size), out.scale)))
    return clamp(np.where(x >= 0, above, -below if alpha < 0 else below) + out.zero)


def absolute(codes: Array, source: Coding, out: Coding) -> Array:
    """|x|, rescaled as Relu is."""
    by = Multiplier.of(_ratio(source.scale, out.scale))
    return clamp(multiply(np.abs(_wide(codes) - source.zero), by) + out.zero)


def square_root(codes: Array, source: Coding, out: Coding) -> Array:
    """√x in float32, cut to an integer, not rounded; the kernel refuses x < 0, here code -128."""
    x = np.float32(source.scale) * (_wide(codes) - source.zero).astype(np.float32)
    units = np.trunc(np.sqrt(np.maximum(x, 0)) / np.float32(out.scale))
    return np.where(x < 0, LOW, clamp(np.minimum(units, 2 * HIGH + 1).astype(np.int64) + out.zero))


def hard_swish(codes: Array, source: Coding, out: Coding) -> Array:
    """x · relu6(x + 3) / 6 in 16-bit fixed point.

    Raises `PassError` where the result's scale is under 1/128 of the operand's.
    """
    fine = float(np.float32(source.scale) * np.float32(1 / 128))
    by_out = Multiplier.of(_ratio(fine, out.scale))
    by_relu = Multiplier.of(_ratio(fine, float(np.float32(3) / np.float32(32768))))
    if by_out.exponent > 0:
        raise PassError(f"HardSwish cannot scale {source.scale!r} up to {out.scale!r}")
    x = (_wide(codes) - source.zero) << 7
    scaled = _high_mul16(x, by_out)
    ramp = _saturate16(x << max(by_relu.exponent - 1, 0))
    ramp = _high_mul16(ramp, by_relu)
    if by_relu.exponent > 0:
        ramp = _saturate16(ramp << 1)
    ramp = divide(ramp, np.int64(by_relu.right))
    ramp = (ramp + (1 << 15)) >> 1
    product = ramp * scaled
    product = np.sign(product) * (np.abs(product) >> 15)
    return clamp(divide(product, np.int64(by_out.right)) + out.zero)


def _wide(codes: Array) -> Array:
    return np.asarray(codes).astype(np.int64)


def _ratio(a: float, b: float) -> float:
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float32(a) / np.float32(b))


def _high_mul16(x: Array, by: Multiplier) -> Array:
    """Return x · m / 2^15 rounded to nearest, ties up; m is the multiplier in 15 bits."""
    short = min((by.significand + (1 << 15)) >> 16, 32767)
    return np.asarray((x * short + (1 << 14)) >> 15)


def _saturate16(x: Array) -> Array:
    return np.asarray(np.clip(x, -32768, 32767))
