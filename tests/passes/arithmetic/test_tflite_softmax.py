"""Softmax in fixed point: numpy and the ONNX function against a scalar model in Python's integers.

The model is written from gemmlowp's templates and uses none of the code it checks.
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from npuc.errors import PassError
from npuc.passes.arithmetic import fixed_point, tflite_softmax
from npuc.passes.arithmetic.round_to import DOMAIN
from npuc.passes.arithmetic.tflite_kernels import Coding
from npuc.program import Program
from npuc.runners import OnnxRunner

ONE = 2**31 - 1
FACTORS = {-2: 1672461947, -1: 1302514674, 0: 790015084, 1: 290630308, 2: 39332535, 3: 720401,
           4: 242}  # fmt: skip


def mul(a: int, b: int) -> int:
    """SaturatingRoundingDoublingHighMul."""
    if a == b == -(2**31):
        return ONE
    nudged = a * b + (2**30 if a * b >= 0 else 1 - 2**30)
    return abs(nudged) // 2**31 * (1 if nudged >= 0 else -1)


def shift_right(x: int, exponent: int) -> int:
    """RoundingDivideByPOT."""
    mask = (1 << exponent) - 1
    return (x >> exponent) + (1 if x & mask > (mask >> 1) + (x < 0) else 0)


def shift_left(x: int, exponent: int) -> int:
    """SaturatingRoundingMultiplyByPOT of a positive exponent."""
    return max(-(2**31), min(ONE, x << exponent))


def exp(a: int) -> int:
    """exp_on_negative_values of Q5.26, in Q0.31."""
    if a == 0:
        return ONE
    quarter = 1 << 24
    rest = (a & (quarter - 1)) - quarter
    x = shift_left(rest, 5) + (1 << 28)
    x2 = mul(x, x)
    x3, x4 = mul(x2, x), mul(x2, x2)
    inner = shift_right(mul(shift_right(x4, 2) + x3, 715827883) + x2, 1)
    result = 1895147668 + mul(1895147668, x + inner)
    for exponent, factor in FACTORS.items():
        if (rest - a) & (1 << (26 + exponent)):
            result = mul(result, factor)
    return result


def reciprocal(total: int) -> tuple[int, int]:
    """GetReciprocal of Q12.19: the value in Q0.31 and the bits over one."""
    headroom = 32 - total.bit_length()
    fraction = (total << headroom) - 2**31
    half = (fraction + ONE + 1) // 2  # RoundingHalfSum of a non-negative sum
    x = 1515870810 + mul(half, -1010580540)
    for _ in range(3):
        x += shift_left(mul(x, (1 << 29) - mul(half, x)), 2)
    return shift_left(x, 1), 12 - headroom


def softmax(codes: Sequence[int], scale: float) -> list[int]:
    """The kernel, one row."""
    fraction, left = math.frexp(min(scale * 2**26, ONE))
    q = math.floor(fraction * 2**31 + 0.5)
    if q == 2**31:
        q, left = q // 2, left + 1
    least = -math.floor(31 * 2.0**26 / 2.0**left)
    top = max(codes)
    kept = {d: exp(mul(d << left, q)) for d in {c - top for c in codes} if d >= least}
    scaled, bits = reciprocal(sum(shift_right(kept.get(c - top, 0), 12) for c in codes))
    found = []
    for code in codes:
        value = kept.get(code - top)
        unit = -128 if value is None else shift_right(mul(scaled, value), bits + 23) - 128
        found.append(max(-128, min(127, unit)))
    return found


def test_exponentials_of_every_difference() -> None:
    """All 256 differences for scales from where the kernel starts to where it skips all but one."""
    for scale in (2.0**-25.5, 1e-5, 1e-3, 0.0103, 1 / 16, 0.1234, 1.0, 7.5, 15.9, 16.0, 3e4):
        values, summands = tflite_softmax.tables(scale)
        fraction, left = math.frexp(min(scale * 2**26, ONE))
        q = math.floor(fraction * 2**31 + 0.5)
        least = -math.floor(31 * 2.0**26 / 2.0**left)
        want = [exp(mul(d << left, q)) if d >= least else 0 for d in range(-255, 1)]
        assert values.tolist() == want
        assert summands.tolist() == [shift_right(v, 12) for v in want]


@settings(max_examples=300, deadline=None)
@given(st.integers(-(2**31), 0))
@example(0)
@example(-1)
@example(-(2**24))
@example(-(2**31))
def test_exp_of_any_number(a: int) -> None:
    """Every Q5.26 number that is not positive."""
    assert int(tflite_softmax.exp(np.array(a))) == exp(a)


def test_exp_is_an_exponential() -> None:
    """Not only two copies of one mistake: within 2^-22 of math.exp on [-32, 0]."""
    a = np.arange(-(2**31), 1, 2**22 - 3)
    want = np.exp(a / 2**26)
    np.testing.assert_allclose(tflite_softmax.exp(a) / 2**31, want, rtol=0, atol=2.0**-22)


def run_function(totals: Sequence[int]) -> tuple[list[int], list[int]]:
    """Run the ONNX function alone."""
    total = ir.val("total", ir.DataType.INT64, [len(totals)])
    node = ir.Node(DOMAIN, tflite_softmax.SCALE, [total], num_outputs=2)
    for name, value in zip(("scale", "divisor"), node.outputs, strict=True):
        value.name, value.type, value.shape = name, total.type, total.shape
    graph = ir.Graph([total], node.outputs, nodes=[node], opset_imports={"": 20, DOMAIN: 1})
    functions = [tflite_softmax.function(20), fixed_point.function(fixed_point.HIGH_MUL, 20)]
    model = ir.Model(graph, ir_version=10, functions=functions)
    got = OnnxRunner(Program.from_model(model))({"total": np.array(totals, np.int64)})
    return got["scale"].tolist(), got["divisor"].tolist()


def test_reciprocals() -> None:
    """Both forms at and beside every power of two, and on random sums of 1 to 4095 ones."""
    edges = [2**k + d for k in range(19, 32) for d in (-1, 0, 1)]
    random = np.random.default_rng(0).integers(2**19, 2**31, 500).tolist()
    totals = [t for t in edges if 2**19 <= t < 2**31] + random
    want = [reciprocal(t) for t in totals]
    scale, divisor = tflite_softmax.reciprocal(np.array(totals))
    assert scale.tolist() == [w[0] for w in want]
    assert divisor.tolist() == [1 << (w[1] + 23) for w in want]
    assert run_function(totals) == (scale.tolist(), divisor.tolist())
    real = np.array([2.0 ** (w[1] + 19) for w in want]) / totals
    np.testing.assert_allclose(scale / 2**31, real, rtol=0, atol=2.0**-27)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(-128, 127), min_size=1, max_size=40),
    st.floats(2.0**-25, 40, width=32),
)
@example([5] * 300, 0.1)
@example([127, -128], 31.0)
@example([0] * 511, 0.1)
def test_rows(codes: list[int], scale: float) -> None:
    """Any row of codes in any scale."""
    got = tflite_softmax.softmax(np.array([codes]), 1, Coding(scale, 3))
    assert got[0].tolist() == softmax(codes, scale)


def test_it_is_a_softmax() -> None:
    """Within one code of the real function."""
    codes = np.random.default_rng(1).integers(-128, 128, (50, 10))
    power = np.exp((codes - codes.max(axis=1, keepdims=True)) * 0.04)
    want = power / power.sum(axis=1, keepdims=True)
    got = (tflite_softmax.softmax(codes, 1, Coding(0.04, 0)) + 128) / 256
    np.testing.assert_allclose(got, np.minimum(want, 255 / 256), rtol=0, atol=1 / 256)


def test_where_the_kernel_stops_shares_are_zero() -> None:
    """From 512 equal values on a share is at most half a code; the kernel aborts, this is 0."""
    for length in (512, 1000, tflite_softmax.LONGEST):
        got = tflite_softmax.softmax(np.full((1, length), 9), 1, Coding(0.1, 0))
        assert set(got.ravel().tolist()) <= {-128, -127}
        assert length == 512 or set(got.ravel().tolist()) == {-128}


def test_a_scale_below_the_kernels_is_refused() -> None:
    """The kernel's multiplier must be above one."""
    with pytest.raises(PassError, match="2\\^-26"):
        tflite_softmax.tables(2.0**-26)
