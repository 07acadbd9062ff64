"""requantize: every rule equals a scalar model written from its formula, in Python's integers.

The models below use `int`, `Fraction` and `struct` alone, and none of the code they check.
"""

import itertools
import math
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npuc.errors import PassError
from npuc.passes.arithmetic import requantize
from npuc.passes.arithmetic.requantize_onnx import limit_function, limit_operator
from npuc.program import Program
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]
LEAST, MOST = -(2**31), 2**31 - 1


# --- the scalar models -----------------------------------------------------------------------


def half_away(x: Fraction) -> int:
    return int(abs(x) + Fraction(1, 2)) * (1 if x >= 0 else -1)


def half_up(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2))


def even(x: Fraction) -> int:
    return round(x)  # of a Fraction: exact, ties to even


def wrap32(x: int) -> int:
    return (x + 2**31) % 2**32 - 2**31


def float32(x: Fraction | float) -> float:
    """Round to binary32; `x` is exact in binary64 wherever this is used."""
    assert Fraction(float(x)) == x
    return float(struct.unpack("<f", struct.pack("<f", float(x)))[0])


def float32_product(acc: int, scale: float) -> float:
    """f32(f32(acc) · scale): a product of two 24-bit numbers is exact in binary64."""
    return float32(float32(acc) * scale)


def q31(m: float) -> tuple[int, int]:
    fraction, e = math.frexp(m)
    q = half_away(Fraction(fraction) * 2**31)
    if q == 2**31:
        q, e = q // 2, e + 1
    return (0, 0) if e < -31 else (q, e)


def tflite_double(acc: int, m: float) -> int:
    q, e = q31(m)
    ab = wrap32(acc * 2 ** max(e, 0)) * q
    nudged = ab + (2**30 if ab >= 0 else 1 - 2**30)
    high = int(Fraction(nudged, 2**31))  # int() truncates, as C does
    return half_away(Fraction(high, 2 ** max(-e, 0)))


def tflite_single(acc: int, m: float) -> int:
    q, e = q31(m)
    if e > 30:
        q, e = 2**31 - 1, 30
    return (acc * q + (1 << (30 - e))) >> (31 - e)


def two_stage(acc: int, m: float) -> int:
    s0 = 0
    while Fraction(512) / Fraction(m) > 2 ** (15 + s0) and s0 < 40:
        s0 += 1
    fraction, e = math.frexp(m * 2.0**s0)
    mul, s1 = half_away(Fraction(fraction) * 2**15), 15 - e
    if mul == 2**15:
        mul, s1 = 2**14, s1 - 1
    word = max(-(2**15), min(2**15 - 1, (acc + (1 << s0 >> 1)) >> s0))
    return (word * mul + (1 << s1 >> 1)) >> s1


def int16_even(acc: int, m: float) -> int:
    bits = struct.unpack("<I", struct.pack("<f", m))[0]
    mul, shift = 2**14 + ((bits >> 9) & (2**14 - 1)) + 1, 141 - ((bits >> 23) & 255)
    if mul == 2**15:
        mul, shift = 2**14, shift - 1
    return even(Fraction(acc * mul, 2**shift))


def q16(acc: int, m: float) -> int:
    shift = min(15 - (math.frexp(m)[1] - 1), 47)
    q = half_away(Fraction(m) * 2**shift)
    if q == 2**16:
        q, shift = 2**15, shift - 1
    return half_up(Fraction(acc * q, 2**shift))


def single(m: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", m))[0])


def fp19(acc: int, m: float) -> int:
    bits = struct.unpack("<I", struct.pack("<f", m))[0] >> 13 << 13
    scale = struct.unpack("<f", struct.pack("<I", bits))[0]
    return even(Fraction(max(-256.0, min(255.0, float32_product(acc, scale)))))


def float32_even(acc: int, m: float) -> int:
    return even(Fraction(float32_product(acc, single(m))))


MODELS: dict[str, Callable[[int, float], int]] = {
    "float32-even": float32_even,
    "tflite-double": tflite_double,
    "tflite-single": tflite_single,
    "two-stage": two_stage,
    "int16-even": int16_even,
    "fp19-truncate": fp19,
    "q16": q16,
}
INT8, UINT8, RELU = (-7, -128, 127), (3, 0, 255), (-128, -128, 127)


def code(name: str, acc: int, m: float, edge: tuple[int, int, int]) -> int:
    zero, low, high = edge
    return max(low, min(high, MODELS[name](acc, m) + zero))


def expected(name: str, acc: Array, m: float, edge: tuple[int, int, int]) -> Array:
    return np.array([code(name, int(a), m, edge) for a in acc], np.int32)


def got(name: str, acc: Array, m: float, edge: tuple[int, int, int]) -> Array:
    rule = requantize.rule(name)
    return rule.apply(acc, rule.parameters(m), *edge)


# --- against the models ----------------------------------------------------------------------

SMALL = np.arange(-1100, 1101, dtype=np.int32)
MULTIPLIERS = [
    1.0, 0.5, 0.25, 0.125, 2.0**-9, 1.5 / 2**4, 3 / 2**3, 0.1, 0.99999999999, 1 - 2.0**-15,
    1 - 2.0**-16, 1 - 2.0**-25, 1 + 2.0**-10, 1.75, 7.3, 0.0123456789, 2.0**-31, 3e-10, 1e-12,
]  # fmt: skip


def test_every_rule_of_a_profile_has_a_model() -> None:
    assert set(MODELS) == set(requantize.RULES)


@pytest.mark.parametrize("edge", [INT8, UINT8, RELU], ids=["int8", "uint8", "relu"])
@pytest.mark.parametrize("name", MODELS)
def test_small_sums_exhaustively(name: str, edge: tuple[int, int, int]) -> None:
    for m in MULTIPLIERS:
        np.testing.assert_array_equal(got(name, SMALL, m, edge), expected(name, SMALL, m, edge))


@pytest.mark.parametrize("name", MODELS)
def test_large_sums(name: str, rng: np.random.Generator) -> None:
    for exponent in range(-34, 13):
        m = float(rng.uniform(0.5, 1) * 2.0**exponent)
        reach = min(600 / m, 2.0**31)
        acc = np.concatenate(
            [
                rng.uniform(-reach, reach, 150).astype(np.int64).clip(LEAST, MOST),
                rng.integers(LEAST, MOST, 50),
                [LEAST, LEAST + 1, -1, 0, 1, MOST - 1, MOST],
            ]
        ).astype(np.int32)
        np.testing.assert_array_equal(got(name, acc, m, INT8), expected(name, acc, m, INT8), str(m))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(MODELS)),
    acc=st.integers(LEAST, MOST),
    fraction=st.floats(0.5, 1, exclude_max=True),
    exponent=st.integers(-45, 12),
    zero=st.integers(-128, 127),
)
def test_anything(name: str, acc: int, fraction: float, exponent: int, zero: int) -> None:
    m = math.ldexp(fraction, exponent)
    edge = (zero, -128, 127)
    assert got(name, np.array([acc], np.int32), m, edge)[0] == code(name, acc, m, edge)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(k=st.integers(-127, 126), shift=st.integers(1, 20))
def test_ties(k: int, shift: int) -> None:
    """(k + ½) codes exactly. Rules whose M is a power of two exactly show their tie rule bare."""
    acc = np.array([(2 * k + 1) << (shift - 1)], np.int32)
    edge, m = (0, -128, 127), 2.0**-shift
    # The high half of the product rounds ties up; the shift after it, there from ¼ down, away.
    twice = k + 1 if k >= 0 or shift == 1 else k
    assert got("tflite-single", acc, m, edge)[0] == k + 1
    assert got("q16", acc, m, edge)[0] == k + 1
    assert got("two-stage", acc, m, edge)[0] == k + 1
    assert got("tflite-double", acc, m, edge)[0] == twice
    assert got("float32-even", acc, m, edge)[0] == k + k % 2
    assert got("fp19-truncate", acc, m, edge)[0] == k + k % 2


def test_ties_of_the_measured_rule_need_its_own_multiplier() -> None:
    """MUL is never a power of two without a carry: 2¹⁴ + 2¹³ / 2¹⁴ is 1.5, less one unit."""
    m = (2**14 + 2**13 - 1) / 2**15  # stored as 1.5·2¹⁴ with shift 15, so acc = 2k+1 times ⅔ …
    acc = np.arange(-63, 64, dtype=np.int32) * 2
    stored = requantize.rule("int16-even").parameters(m)
    assert (int(stored["multiplier"]), int(stored["divisor"])) == (2**14 + 2**13, 2**15)
    halves = [even(Fraction(3 * int(a), 4)) for a in acc]
    np.testing.assert_array_equal(got("int16-even", acc, m, (0, -128, 127)), halves)
    assert any(Fraction(3 * int(a), 4).denominator == 2 for a in acc)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(set(MODELS) - {"fp19-truncate"})),
    acc=st.integers(-(2**22), 2**22),
    m=st.floats(2.0**-20, 0.99),
)
def test_a_code_is_near_the_real_value(name: str, acc: int, m: float) -> None:
    """Half a code, and a gain error of 2⁻¹⁴ at most, which is 2⁻⁶ of a code at ±255; rounding
    twice takes a quarter of a code more."""
    real = acc * m
    if abs(real) < 255:
        value = int(got(name, np.array([acc], np.int32), m, (0, -300, 300))[0])
        assert abs(value - real) <= (0.75 if name == "tflite-double" else 0.5) + 2.0**-5


@pytest.mark.parametrize("name", MODELS)
def test_order_is_kept_and_the_ends_saturate(name: str) -> None:
    acc = np.linspace(LEAST, MOST, 5001).astype(np.int32)
    for m in (2.0**-23, 1e-6, 0.3, 0.99):
        codes = got(name, acc, m, (5, -128, 127))
        assert (np.diff(codes) >= 0).all()
        assert (codes[0], codes[-1]) == (-128, 127)


def test_rounding_once_or_twice_differs_by_one_at_most(rng: np.random.Generator) -> None:
    m = rng.uniform(1e-4, 0.5, 40_000)
    acc = (rng.uniform(-140, 140, m.size) / m).astype(np.int32)
    once, twice = requantize.rule("tflite-single"), requantize.rule("tflite-double")
    gap = once.apply(acc, once.parameters(m), 0, -128, 127) - twice.apply(
        acc, twice.parameters(m), 0, -128, 127
    )
    assert set(np.unique(gap)) <= {-1, 0, 1}
    # A tie below zero goes up once, away from zero twice.
    tie = np.array([-6], np.int32)
    assert got("tflite-single", tie, 0.25, INT8)[0] - got("tflite-double", tie, 0.25, INT8)[0] == 1


def test_the_carry_of_the_measured_rule() -> None:
    """The largest mantissa rounds to the next power of two instead of doubling MUL."""
    stored = requantize.rule("int16-even").parameters(1 - 2.0**-20)
    assert (int(stored["multiplier"]), int(stored["divisor"])) == (2**14, 2**14)


# --- as ONNX functions -----------------------------------------------------------------------


def program(name: str, acc: Array, real: Array, edge: tuple[int, int, int]) -> Program:
    rule = requantize.rule(name)
    parameters = [
        ir.Value(name=f"p{i}", const_value=ir.tensor(np.asarray(v)))
        for i, v in enumerate(rule.parameters(real).values())
    ]
    edges = [
        ir.Value(name=f"e{i}", const_value=ir.tensor(np.array(v, np.int32)))
        for i, v in enumerate(edge)
    ]
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape(acc.shape))
    y = ir.Value(name="y", type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape(acc.shape))
    node = ir.Node("ai.npuc", rule.operator, [x, *parameters, *edges], outputs=[y])
    return _program(rule.function(20), node, x, y, [*parameters, *edges])


def _program(
    fn: ir.Function, node: ir.Node, x: ir.Value, y: ir.Value, stored: list[ir.Value]
) -> Program:
    graph = ir.Graph(
        [x], [y], nodes=[node], initializers=stored, opset_imports={"": 20, "ai.npuc": 1}, name="g"
    )
    return Program.from_model(ir.Model(graph, ir_version=10, functions=[fn]))


@pytest.mark.parametrize("edge", [INT8, UINT8], ids=["int8", "uint8"])
@pytest.mark.parametrize("name", MODELS)
def test_the_function_equals_numpy(
    name: str, edge: tuple[int, int, int], rng: np.random.Generator
) -> None:
    real = np.concatenate([MULTIPLIERS, np.exp(rng.uniform(-20, 2, 45))]).reshape(-1, 1)
    reach = np.minimum(400 / real, 2.0**31)
    acc = (rng.uniform(-1, 1, (len(real), 400)) * reach).clip(LEAST, MOST).astype(np.int32)
    acc[:, :5] = [LEAST, -1, 0, 1, MOST]
    acc[:, 5:55] = np.arange(-25, 25)
    rule = requantize.rule(name)
    answer = OnnxRunner(program(name, acc, real, edge))({"x": acc})["y"]
    np.testing.assert_array_equal(answer, rule.apply(acc, rule.parameters(real), *edge))
    assert len(np.unique(answer)) > 200


@pytest.mark.parametrize(
    ("bits", "overflow"), list(itertools.product((24, 32), ("wrap", "saturate")))
)
def test_the_accumulator(bits: int, overflow: str) -> None:
    x = np.array([LEAST, -(2**23) - 1, -(2**23), -1, 0, 2**23 - 1, 2**23, MOST], np.int32)
    for bias in (0, -5, 2**30, -(2**30)):
        exact = [int(v) + bias for v in x]
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        if overflow == "wrap":
            held = [(v - low) % 2**bits + low for v in exact]
        else:
            held = [max(low, min(high, v)) for v in exact]
        np.testing.assert_array_equal(requantize.limit(np.array(exact), bits, overflow), held)
        value = ir.Value(name="x", type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape(x.shape))
        y = ir.Value(name="y", type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape(x.shape))
        b = ir.Value(name="b", const_value=ir.tensor(np.array(bias, np.int32)))
        node = ir.Node("ai.npuc", limit_operator(bits, overflow), [value, b], outputs=[y])
        run = OnnxRunner(_program(limit_function(bits, overflow, 20), node, value, y, [b]))
        np.testing.assert_array_equal(run({"x": x})["y"], held)


# --- what it refuses -------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_multiplier_that_is_none(name: str, bad: float) -> None:
    with pytest.raises(PassError, match="not a positive number"):
        requantize.rule(name).parameters(np.array([0.5, bad]))


@pytest.mark.parametrize(
    ("name", "m"),
    [("tflite-double", 2.0**31), ("two-stage", 2.0**16), ("int16-even", 2.0**15), ("q16", 2.0**16),
     ("q16", 2.0**16 * (1 - 2.0**-20)), ("fp19-truncate", 1e39), ("float32-even", 1e39)],
)  # fmt: skip
def test_a_multiplier_out_of_reach(name: str, m: float) -> None:
    with pytest.raises(PassError, match=f"{name}: a multiplier must"):
        requantize.rule(name).parameters(m)


def test_an_unknown_rule_and_an_unknown_overflow() -> None:
    with pytest.raises(PassError, match="no requantize rule 'half'"):
        requantize.rule("half")
    with pytest.raises(PassError, match="'wrap' or 'saturate'"):
        requantize.limit(np.zeros(1, np.int64), 24, "trap")
