"""The TFLite kernels in numpy against scalar models in Python's integers, written from C++ rules.

The models use `int`, `math` and `struct` alone, and none of the code they check.
"""

import itertools
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from npuc.errors import PassError
from npuc.passes.arithmetic import tflite_kernels as kernels
from npuc.passes.arithmetic.fixed_point import Multiplier, divide, high_mul, multiply
from npuc.passes.arithmetic.tflite_kernels import Coding

Array = np.ndarray[Any, Any]
CODES = range(-128, 128)
PAIRS = np.array(list(itertools.product(CODES, CODES)))


# --- the scalar models -----------------------------------------------------------------------


def f32(x: float) -> float:
    """Round to binary32; an overflow is infinite."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", x))[0])
    except OverflowError:
        return math.copysign(math.inf, x)


def cdiv(a: int, b: int) -> int:
    """Divide as C does, toward zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def int32(x: int) -> int:
    """Keep 32 bits."""
    return (x + 2**31) % 2**32 - 2**31


def c_round(x: float) -> int:
    """C's round: half away from zero."""
    return int(math.copysign(math.floor(abs(x) + 0.5), x))


def quantize(real: float) -> tuple[int, int]:
    """QuantizeMultiplier."""
    if real == 0:
        return 0, 0
    fraction, shift = math.frexp(real)
    q = c_round(fraction * 2.0**31)
    if q == 2**31:
        q, shift = q // 2, shift + 1
    return (0, 0) if shift < -31 else (q, shift)


def doubling_high_mul(a: int, b: int, bits: int = 32) -> int:
    """SaturatingRoundingDoublingHighMul of `bits`-bit integers."""
    if a == b == -(1 << (bits - 1)):
        return (1 << (bits - 1)) - 1
    ab = a * b
    nudge = 1 << (bits - 2) if ab >= 0 else 1 - (1 << (bits - 2))
    return cdiv(ab + nudge, 1 << (bits - 1))


def divide_by_pot(x: int, exponent: int) -> int:
    """RoundingDivideByPOT."""
    mask = (1 << exponent) - 1
    threshold = (mask >> 1) + (1 if x < 0 else 0)
    return (x >> exponent) + (1 if x & mask > threshold else 0)


def mbqm(x: int, q: int, shift: int) -> int:
    """MultiplyByQuantizedMultiplier, double rounding."""
    left, right = max(shift, 0), max(-shift, 0)
    return divide_by_pot(doubling_high_mul(int32(x << left), q), right)


def clip(x: int) -> int:
    return max(-128, min(127, x))


def add_scalar(p: int, q: int, a: Coding, b: Coding, o: Coding, sign: int) -> int:
    twice = 2 * max(a.scale, b.scale)
    x = mbqm((p - a.zero) << 20, *quantize(a.scale / twice))
    y = mbqm((q - b.zero) << 20, *quantize(b.scale / twice))
    return clip(mbqm(x + sign * y, *quantize(twice / ((1 << 20) * o.scale))) + o.zero)


def mul_scalar(p: int, q: int, a: Coding, b: Coding, o: Coding) -> int:
    real = f32(f32(a.scale * b.scale) / o.scale)
    return clip(mbqm((p - a.zero) * (q - b.zero), *quantize(real)) + o.zero)


def hard_swish_scalar(code: int, a: Coding, o: Coding) -> int:
    def short(q: int) -> int:
        return 32767 if q >= 2**31 - 1 - 2**15 else (q + 2**15) >> 16

    def int16(x: int) -> int:
        return max(-32768, min(32767, x))

    fine = f32(f32(1 / 128) * a.scale)
    q_out, e_out = quantize(f32(fine / o.scale))
    q_relu, e_relu = quantize(f32(fine / f32(3.0 / 32768.0)))
    x = (code - a.zero) * 128
    before = doubling_high_mul(x, short(q_out), 16)
    ramp = int16(x << (e_relu - 1)) if e_relu > 0 else x
    ramp = doubling_high_mul(ramp, short(q_relu), 16)
    if e_relu > 0:
        ramp = int16(ramp << 1)
    if e_relu < 0:
        ramp = divide_by_pot(ramp, -e_relu)
    ramp = (ramp + 2**15) >> 1
    return clip(divide_by_pot(cdiv(ramp * before, 2**15), -e_out) + o.zero)


# --- primitives ------------------------------------------------------------------------------

words = st.integers(-(2**31), 2**31 - 1)
positive = st.floats(2.0**-40, 2.0**31 - 1, allow_nan=False)


@settings(max_examples=500, deadline=None)
@given(words, positive)
@example(-(2**31), 2.0**31 - 1)
@example(3, 0.5)
@example(-3, 0.5)
@example(-1, 0.25)
@example(2**30, 4.0)
@example(123456, math.nextafter(1.0, 0.0))
@example(1, 2.0**-33)
def test_multiply_equals_the_scalar_model(x: int, real: float) -> None:
    """Any 32-bit number by any factor: ties of both roundings, overflow of the shift, zero."""
    by = Multiplier.of(real)
    assert (by.significand, by.exponent) == quantize(real)
    assert int(multiply(np.array(x), by)) == mbqm(x, *quantize(real))


@settings(max_examples=300, deadline=None)
@given(words, words, st.integers(0, 31))
@example(-(2**31), 2**31 - 1, 31)
@example(2**30, 1, 0)
@example(-(2**30), 1, 1)
def test_the_two_roundings(a: int, b: int, exponent: int) -> None:
    """Ties up after the product, ties away from zero after the shift."""
    if not a == b == -(2**31):
        assert int(high_mul(np.array(a), np.int64(b))) == doubling_high_mul(a, b)
    assert int(divide(np.array(a), np.int64(1 << exponent))) == divide_by_pot(a, exponent)


@pytest.mark.parametrize("real", [-1.0, math.inf, math.nan, 2.0**31])
def test_a_factor_without_multiplier_is_refused(real: float) -> None:
    """No 32-bit multiplier stands for it."""
    with pytest.raises(PassError, match="multiplier"):
        Multiplier.of(real)


# --- kernels ---------------------------------------------------------------------------------

scales = st.floats(2.0**-18, 2.0**6, width=32)
codings = st.builds(Coding, scales, st.integers(-128, 127))
EXHAUSTIVE = [
    (Coding(f32(0.05), 3), Coding(f32(0.021), -128), Coding(f32(0.07), -7)),
    (Coding(0.5, 0), Coding(0.5, 0), Coding(1.0, 0)),  # every odd sum is a tie
    (Coding(f32(3e-5), 127), Coding(f32(11.7), -128), Coding(f32(0.004), 127)),  # saturates
]


@pytest.mark.parametrize("case", range(len(EXHAUSTIVE)))
def test_all_pairs_of_codes(case: int) -> None:
    """Add, Sub and Mul of all 65536 pairs."""
    a, b, o = EXHAUSTIVE[case]
    p, q = PAIRS.T
    for subtract in (False, True):
        want = [add_scalar(int(x), int(y), a, b, o, -1 if subtract else 1) for x, y in PAIRS]
        assert np.array_equal(kernels.add(p, q, (a, b, o), subtract=subtract), want)
    want = [mul_scalar(int(x), int(y), a, b, o) for x, y in PAIRS]
    assert np.array_equal(kernels.mul(p, q, (a, b, o)), want)


@settings(max_examples=100, deadline=None)
@given(codings, codings, codings, st.lists(st.integers(0, 65535), min_size=1, max_size=30))
def test_any_codings(a: Coding, b: Coding, o: Coding, chosen: list[int]) -> None:
    """Add and Mul for scales that differ by up to 2^24, where int32 overflows as well."""
    pairs = PAIRS[chosen]
    p, q = pairs.T
    want = [add_scalar(int(x), int(y), a, b, o, 1) for x, y in pairs]
    assert np.array_equal(kernels.add(p, q, (a, b, o), subtract=False), want)
    want = [mul_scalar(int(x), int(y), a, b, o) for x, y in pairs]
    assert np.array_equal(kernels.mul(p, q, (a, b, o)), want)


@settings(max_examples=60, deadline=None)
@given(codings, codings, st.floats(-3, 3, width=32), st.floats(-200, 200), st.floats(-200, 200))
def test_one_operand(a: Coding, o: Coding, alpha: float, low: float, high: float) -> None:
    """Requantize, Relu with any limits and LeakyRelu, on all 256 codes."""
    codes = np.array(CODES)
    q, e = quantize(a.scale / o.scale)
    want = [clip(mbqm(c - a.zero, q, e) + o.zero) for c in CODES]
    assert np.array_equal(kernels.requantize(codes, a, o), want)

    ends = (
        max(-128, o.zero + c_round(f32(f32(low) / o.scale))),
        min(127, o.zero + c_round(f32(f32(high) / o.scale))),
    )
    assert (max(-128, o.code(low)), min(127, o.code(high))) == ends
    q, e = quantize(f32(a.scale / o.scale))
    want = [min(max(mbqm(c - a.zero, q, e) + o.zero, ends[0]), ends[1]) for c in CODES]
    assert np.array_equal(kernels.relu(codes, a, o, ends), want)

    want = [clip(mbqm(abs(c - a.zero), q, e) + o.zero) for c in CODES]
    assert np.array_equal(kernels.absolute(codes, a, o), want)

    below = quantize(f32(f32(a.scale * abs(alpha)) / o.scale))
    sign = -1 if alpha < 0 else 1
    want = [
        clip(o.zero + (mbqm(x, q, e) if x >= 0 else sign * mbqm(x, *below)))
        for x in (c - a.zero for c in CODES)
    ]
    assert np.array_equal(kernels.leaky_relu(codes, alpha, a, o), want)


@settings(max_examples=60, deadline=None)
@given(codings, codings)
@example(Coding(1.0, 0), Coding(0.5, -128))  # roots of squares are exact
def test_square_root_is_cut(a: Coding, o: Coding) -> None:
    """Toward zero, in binary32; below zero there is no root."""

    def root(x: float) -> int:
        return -128 if x < 0 else clip(int(f32(f32(math.sqrt(x)) / o.scale)) + o.zero)

    want = [root(f32(a.scale * (c - a.zero))) for c in CODES]
    assert np.array_equal(kernels.square_root(np.array(CODES), a, o), want)


@settings(max_examples=100, deadline=None)
@given(codings, codings)
@example(Coding(f32(0.05), -5), Coding(f32(0.04), 3))
@example(Coding(10.0, 0), Coding(10.0, 0))
def test_hard_swish(a: Coding, o: Coding) -> None:
    """All 256 codes; a result far finer than the operand is refused, as the kernel does."""
    if quantize(f32(f32(f32(1 / 128) * a.scale) / o.scale))[1] > 0:
        with pytest.raises(PassError, match="HardSwish"):
            kernels.hard_swish(np.array(CODES), a, o)
        return
    want = [hard_swish_scalar(c, a, o) for c in CODES]
    assert np.array_equal(kernels.hard_swish(np.array(CODES), a, o), want)


@settings(max_examples=100, deadline=None)
@given(codings, codings, st.integers(1, 3000), st.integers(0, 2**32 - 1))
@example(Coding(1.0, 0), Coding(1.0, 0), 2, 0)
def test_mean(a: Coding, o: Coding, count: int, seed: int) -> None:
    """The factor is divided by the count with as many bits as int32 has room for."""
    codes = np.random.default_rng(seed).integers(-128, 128, (3, count))
    q, e = quantize(a.scale / o.scale)
    shift = min(int(math.log2(count)), 32, 31 + e)
    q, e = (q << shift) // count, e - shift
    want = [clip(mbqm(int(row.sum()) - count * a.zero, q, e) + o.zero) for row in codes]
    assert np.array_equal(kernels.mean(codes, (1,), a, o)[:, 0], want)


def test_average_rounds_away_from_code_zero() -> None:
    """Every sum that up to nine codes can have, positive and negative, ties included."""
    for count in range(1, 10):
        sums = list(range(-128 * count, 127 * count + 1))
        want = [cdiv(s + (count // 2 if s > 0 else -(count // 2)), count) for s in sums]
        assert np.array_equal(kernels.average(np.array(sums), np.array(count)), want)


def test_a_bound_beyond_float32_is_the_last_code() -> None:
    """Clip with no real limit has infinite ones."""
    coding = Coding(2.0**-126, 5)
    assert (coding.code(-3e38), coding.code(3e38), coding.code(0.0)) == (-128, 127, 5)
