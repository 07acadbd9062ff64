"""The arithmetic of devices, number by number, in Python integers.

Written from the formulas that vendors and third parties published and from nothing of npuc's: two
ways to the same number that share no code. Floats are doubles that hold float32 numbers.
"""

import math
import struct
from collections.abc import Callable, Sequence

import numpy as np


def f32(x: float) -> float:
    """Round a double to float32, ties to even."""
    return float(np.float32(x))


def half_up(n: int, d: int) -> int:
    """Return n / d, d > 0, ties toward +∞."""
    return (2 * n + d) // (2 * d)


def half_away(n: int, d: int) -> int:
    """Return n / d, d > 0, ties away from zero."""
    return half_up(n, d) if n >= 0 else -half_up(-n, d)


def half_even(n: int, d: int) -> int:
    """Return n / d, d > 0, ties to even."""
    down, rest = divmod(n, d)
    return down + (2 * rest > d or (2 * rest == d and down % 2))


def away(x: float) -> int:
    """Round a double to an integer, ties away from zero."""
    n, d = x.as_integer_ratio()
    return half_away(n, d)


def clip(x: int, low: int, high: int) -> int:
    """Limit to [low, high]."""
    return min(max(x, low), high)


def wrap(x: int, bits: int) -> int:
    """Keep the low bits, two's complement."""
    half = 1 << (bits - 1)
    return (x + half) % (2 * half) - half


def held(x: int, bits: int, overflow: str) -> int:
    """Return a sum as an accumulator holds it."""
    half = 1 << (bits - 1)
    return wrap(x, bits) if overflow == "wrap" else clip(x, -half, half - 1)


# --- TFLite reference kernels ---------------------------------------------------------------------


def multiplier(real: float) -> tuple[int, int]:
    """Return (q, e) with real ≈ q · 2^(e - 31): QuantizeMultiplier."""
    m, e = math.frexp(real)
    q = away(m * 2.0**31)
    if q == 1 << 31:
        q, e = q // 2, e + 1
    return (0, 0) if e < -31 else (q, e)


def high_mul(a: int, b: int) -> int:
    """Return a·b / 2^31, ties up: SaturatingRoundingDoublingHighMul."""
    return half_up(a * b, 1 << 31)


def mbqm(x: int, real: tuple[int, int]) -> int:
    """Return x · real: MultiplyByQuantizedMultiplier, double rounding."""
    q, e = real
    return half_away(high_mul(wrap(x << max(e, 0), 32), q), 1 << max(-e, 0))


def add(a: int, b: int, scales: tuple[float, float, float], sign: int = 1) -> int:
    """Return (a ± b) in units of the result; a and b have no zero point any more."""
    s1, s2, out = scales
    twice = 2 * max(s1, s2)
    left = mbqm(a << 20, multiplier(s1 / twice))
    right = mbqm(b << 20, multiplier(s2 / twice))
    return mbqm(left + sign * right, multiplier(twice / (2**20 * out)))


def mean(total: int, count: int, source: float, out: float) -> int:
    """Return a mean in units of the result; `total` has no zero points any more."""
    q, e = multiplier(source / out)
    k = min(count.bit_length() - 1, 32, 31 + e)
    return mbqm(total, ((q << k) // count, e - k))


def average(total: int, count: int) -> int:
    """Return a mean of raw codes, ties away from code zero."""
    size = (abs(total) + count // 2) // count
    return size if total > 0 else -size


def hard_swish(x: int, source: float, out: float) -> int:
    """Return x · relu6(x + 3) / 6 in units of the result; x has no zero point any more."""

    def narrow(real: float) -> tuple[int, int]:
        q, e = multiplier(real)
        return min((q + (1 << 15)) >> 16, 32767), e

    def short(a: int) -> int:
        return clip(a, -(1 << 15), (1 << 15) - 1)

    fine = f32(source * f32(1 / 128))
    (qo, eo), (qr, er) = narrow(f32(fine / out)), narrow(f32(fine / f32(3 / 32768)))
    x <<= 7
    scaled = half_up(x * qo, 1 << 15)
    ramp = short(x << (er - 1)) if er > 0 else x
    ramp = half_up(ramp * qr, 1 << 15)
    ramp = short(ramp << 1) if er > 0 else half_away(ramp, 1 << -er)
    ramp = (ramp + (1 << 15)) >> 1
    product = ramp * scaled
    product = abs(product) // (1 << 15) * (1 if product >= 0 else -1)
    return half_away(product, 1 << -eo)


def _exp(a: int) -> int:
    """Return e^a in Q0.31 for a <= 0 in Q5.26."""
    if a == 0:
        return (1 << 31) - 1
    rest = a % (1 << 24) - (1 << 24)
    t = (rest << 5) + (1 << 28)
    t2 = high_mul(t, t)
    t3, t4 = high_mul(t2, t), high_mul(t2, t2)
    tail = high_mul(half_away(t4, 4) + t3, round(2**31 / 3)) + t2
    eighth = round(math.exp(-1 / 8) * 2**31)
    value = eighth + high_mul(eighth, t + half_away(tail, 2))
    for power in range(-2, 5):
        if (rest - a) >> (26 + power) & 1:
            value = high_mul(value, round(math.exp(-(2.0**power)) * 2**31))
    return value


def softmax(codes: Sequence[int], scale: float) -> list[int]:
    """Return codes of scale 1/256 and zero point -128."""
    q, e = multiplier(min(scale * 2**26, 2.0**31 - 1))
    least = -math.floor(31 * 2**26 / 2**e)
    top = max(codes)
    kept = [c - top >= least for c in codes]
    powers = [
        _exp(high_mul((c - top) << e, q)) if k else 0 for c, k in zip(codes, kept, strict=True)
    ]
    total = sum(half_away(p, 1 << 12) for p in powers)
    zeros = 32 - total.bit_length()
    half = half_away((total << zeros) - (1 << 31) + (1 << 31), 2)
    x = round(48 / 17 * 2**29) + high_mul(half, round(-32 / 17 * 2**29))
    for _ in range(3):
        x += high_mul(x, (1 << 29) - high_mul(half, x)) << 2
    inverse = min(x << 1, (1 << 31) - 1)
    shift = 12 - zeros + 31 - 8
    out = [half_away(high_mul(inverse, p), 1 << shift) - 128 for p in powers]
    return [clip(y, -128, 127) if k else -128 for y, k in zip(out, kept, strict=True)]


def square_root(x: int, source: float, out: float) -> int:
    """Return √x in float32, cut toward zero: LiteRT's SqrtEvalQuantized; 0 where x < 0."""
    return int(f32(f32(math.sqrt(f32(source * max(x, 0)))) / out))


def lookup(function: Callable[[float], float], q: int, source: float, out: float) -> int:
    """Return f(source · q) in units of the result, q without zero point: LUTPopulate."""
    value = f32(function(f32(source * q)))
    return away(f32(value * f32(1 / out)))


# --- from accumulators to codes: M is a double, the result has no zero point yet ------------------


def _double(acc: int, real: float) -> int:
    return mbqm(acc, multiplier(real))


def _single(acc: int, real: float) -> int:
    q, e = multiplier(real)
    return half_up(acc * q, 1 << (31 - e))


def _two_stage(acc: int, real: float) -> int:
    """Shift, multiply by 15 bits, shift: SAPEON. That both words have 16 bits is assumed.

    The first shift is the least at which whatever lands within 511 codes fits its word.
    """
    s0 = 0
    while 2.0**9 / real > 2.0 ** (15 + s0):
        s0 += 1
    fraction, exponent = math.frexp(real * 2.0**s0)
    m, s1 = away(fraction * 2.0**15), 15 - exponent
    word = clip(half_up(acc, 1 << s0), -(1 << 15), (1 << 15) - 1)
    return half_up(word * m, 1 << s1)


def _int16_even(acc: int, real: float) -> int:
    """Take MUL and SHIFT from the bits of the float32 scale: measured on RK3588."""
    (bits,) = struct.unpack("<I", struct.pack("<f", real))
    mul, shift = (1 << 14) + (bits >> 9 & 0x3FFF) + 1, 141 - (bits >> 23)
    if mul == 1 << 15:
        mul, shift = 1 << 14, shift - 1
    return half_even(acc * mul, 1 << shift)


def _q16(acc: int, real: float) -> int:
    """Multiply by 16 bits and shift: Arm Ethos-N. That it rounds half up is assumed."""
    shift = min(15 - math.floor(math.log2(real)), 47)
    return half_up(acc * away(real * 2.0**shift), 1 << shift)


def _fp19(acc: int, real: float) -> int:
    """Multiply by a float32 without its low 13 bits, clip to 9 bits: Ascend's REQ8."""
    (bits,) = struct.unpack("<I", struct.pack("<f", real))
    (cut,) = struct.unpack("<f", struct.pack("<I", bits & ~0x1FFF))
    return round(min(max(f32(f32(acc) * cut), -256.0), 255.0))


def _float32(acc: int, real: float) -> int:
    return round(f32(f32(acc) * f32(real)))


REQUANTIZE: dict[str, Callable[[int, float], int]] = {
    "float32-even": _float32,
    "tflite-double": _double,
    "tflite-single": _single,
    "two-stage": _two_stage,
    "int16-even": _int16_even,
    "q16": _q16,
    "fp19-truncate": _fp19,
}


# --- short floats ---------------------------------------------------------------------------------


def short(x: float, exponent: int, mantissa: int, *, flush: bool = False) -> float:
    """Round a float32 number to a shorter IEEE-like float by its bits, ties to even."""
    (bits,) = struct.unpack("<I", struct.pack("<f", x))
    sign, size = -1.0 if bits >> 31 else 1.0, bits & 0x7FFFFFFF
    if size >= 0x7F800000:
        return x
    least = 1 - (2 ** (exponent - 1) - 1)
    biased = size >> 23
    significand, power = (size & 0x7FFFFF) | (1 << 23), biased - 150
    if not biased:
        significand, power = size, -149
    if flush and significand * 2.0**power < 2.0**least:
        return math.copysign(0.0, sign)
    step = max(power + significand.bit_length() - 1, least) - mantissa
    if step > power:
        significand, power = half_even(significand, 1 << (step - power)), step
    value = math.ldexp(significand, power)
    overflow = value >= 2.0 ** (2 ** (exponent - 1))
    return sign * (math.inf if overflow else value)
