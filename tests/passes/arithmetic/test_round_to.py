"""Rounding to a short float: numpy, the ONNX function, and a model in Python's integers."""

from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npuc.errors import PassError
from npuc.passes.arithmetic.round_to import DOMAIN, function, function_name, round_to
from npuc.profile import FloatFormat
from npuc.program import Program
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]
BF16, CF16, HALF = FloatFormat(8, 7), FloatFormat(6, 9), FloatFormat(5, 10)
FORMATS = [BF16, CF16, FloatFormat(7, 8), HALF, FloatFormat(5, 2), FloatFormat(2, 1)]


def scalar(x: float, fmt: FloatFormat, *, flush: bool = False) -> float:
    """Round one float32 by the definition, in exact rational arithmetic."""
    if x != x or x in (float("inf"), float("-inf")) or x == 0:
        return x
    value, bias = abs(Fraction(x)), 2 ** (fmt.exponent - 1) - 1
    if flush and value < Fraction(2) ** (1 - bias):
        return float(np.copysign(0.0, x))
    exponent = 1 - bias
    while Fraction(2) ** (exponent + 1) <= value:
        exponent += 1
    unit = Fraction(2) ** (exponent - fmt.mantissa)
    steps, rest = divmod(value, unit)
    if 2 * rest > unit or (2 * rest == unit and steps % 2 == 1):
        steps += 1
    magnitude = float(steps * unit)
    if steps * unit >= Fraction(2) ** (bias + 1):
        magnitude = float("inf")
    return float(np.copysign(magnitude, x))


def runner(fmt: FloatFormat, *, flush: bool = False) -> OnnxRunner:
    """Return the ONNX function alone as a program over a vector of any length."""
    x = ir.val("x", ir.DataType.FLOAT, ["n"])
    node = ir.node(function_name(fmt, flush=flush), [x], domain=DOMAIN)
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y", x.type, x.shape
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 20, DOMAIN: 1})
    return OnnxRunner(
        Program.from_model(
            ir.Model(graph, ir_version=10, functions=[function(fmt, 20, flush=flush)])
        )
    )


def bits(array: Array) -> Array:
    """Return bit patterns with every NaN as one pattern, so that -0 is not 0 and NaN is NaN."""
    raw = np.asarray(array, np.float32).view(np.uint32).copy()
    raw[np.isnan(array)] = 0x7FC00000
    return raw


def awkward(fmt: FloatFormat) -> Array:
    """Return float32 numbers at every exponent near representable values, ties and limits."""
    low = 23 - fmt.mantissa
    tie = 1 << (low - 1)
    heads = [0, 1 << low, 3 << low, (1 << 23) - (1 << low)]
    fractions = sorted({(h + d) % (1 << 23) for h in heads for d in (0, 1, tie - 1, tie, tie + 1)})
    exponents = np.arange(256, dtype=np.uint32) << 23
    patterns = (exponents[:, None] | np.array(fractions, np.uint32)).ravel()
    return np.concatenate([patterns, patterns | np.uint32(1 << 31)]).view(np.float32)


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_every_exponent_against_the_definition(fmt: FloatFormat, flush: bool) -> None:
    """Ties, neighbours, subnormals, the overflow limit, Inf, NaN and -0, at all 256 exponents."""
    x = awkward(fmt)
    want = np.array([scalar(float(v), fmt, flush=flush) for v in x], np.float32)
    assert np.array_equal(bits(round_to(x, fmt, flush=flush)), bits(want))
    assert np.array_equal(bits(runner(fmt, flush=flush)({"x": x})["y"]), bits(want))


@pytest.mark.parametrize("fmt", [BF16, CF16], ids=lambda f: f.name)
def test_every_significand(fmt: FloatFormat) -> None:
    """All 2²³ significands of one exponent: the splitting is scale-free, so this is all of them."""
    run = runner(fmt)
    for start in range(0, 1 << 23, 1 << 21):
        raw = np.arange(start, start + (1 << 21), dtype=np.uint32) | np.uint32(127 << 23)
        x = raw.view(np.float32)
        shift = np.uint32(23 - fmt.mantissa)
        odd = (raw >> shift) & np.uint32(1)
        half = (np.uint32(1) << (shift - np.uint32(1))) - np.uint32(1)
        want = (raw + half + odd) >> shift << shift
        assert np.array_equal(run({"x": x})["y"].view(np.uint32), want)
        assert np.array_equal(round_to(x, fmt).view(np.uint32), want)


def test_e8m7_is_bfloat16() -> None:
    """torch's own conversion agrees on every upper half of float32 and its surroundings."""
    tops = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    x = np.concatenate([tops | np.uint32(d) for d in (0, 1, 0x7FFF, 0x8000, 0x8001)])
    x = x.view(np.float32)
    want = torch.from_numpy(x.copy()).to(torch.bfloat16).float().numpy()
    assert np.array_equal(bits(round_to(x, BF16)), bits(want))
    assert np.array_equal(bits(runner(BF16)({"x": x})["y"]), bits(want))


def test_flushed_bfloat16_keeps_no_subnormal() -> None:
    """Every upper half of float32, its neighbours and ties, against integers alone.

    A float32 subnormal becomes a zero of its sign even where rounding alone would carry it into
    the smallest normal number; nothing else changes.
    """
    tops = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    raw = np.concatenate([tops | np.uint32(d) for d in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    sign, size = raw & np.uint32(1 << 31), raw & np.uint32((1 << 31) - 1)
    odd = (size >> np.uint32(16)) & np.uint32(1)
    want = (size + np.uint32(0x7FFF) + odd) >> np.uint32(16) << np.uint32(16)
    want = np.where(size < np.uint32(1 << 23), np.uint32(0), want)
    want = np.where(size > np.uint32(0x7F800000), np.uint32(0x7FC00000), want | sign)
    x = raw.view(np.float32)
    assert np.array_equal(bits(round_to(x, BF16, flush=True)), want)
    assert np.array_equal(bits(runner(BF16, flush=True)({"x": x})["y"]), want)
    largest = np.array([0x007FFFFF, 0x807FFFFF], np.uint32).view(np.float32)
    assert bits(round_to(largest, BF16)).tolist() == [0x00800000, 0x80800000]
    assert bits(round_to(largest, BF16, flush=True)).tolist() == [0, 0x80000000]


def test_variants_have_names_of_their_own() -> None:
    """Two variants can live in one model."""
    assert function_name(BF16) == "RoundTo_e8m7"
    assert function_name(BF16, flush=True) == "RoundTo_e8m7_flushed"
    assert function(BF16, 20, flush=True).name == "RoundTo_e8m7_flushed"


def test_e5m10_is_binary16() -> None:
    """numpy's conversion agrees on every half, its neighbours in float32, and every tie."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = halves[np.isfinite(halves)]
    ordered = np.unique(halves)
    ties = (ordered[:-1] + ordered[1:]) / 2
    limit = np.float32(65520)
    x = np.concatenate([halves, ties, [limit, -limit, np.nextafter(limit, np.float32(0))]])
    x = np.concatenate([x, np.nextafter(x, np.float32(np.inf)), np.nextafter(x, -x)])
    x = x.astype(np.float32)
    with np.errstate(over="ignore"):
        want = x.astype(np.float16).astype(np.float32)
    assert np.array_equal(bits(round_to(x, HALF)), bits(want))
    assert np.array_equal(bits(runner(HALF)({"x": x})["y"]), bits(want))


@settings(max_examples=300, deadline=None)
@given(
    x=st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True),
    exponent=st.integers(2, 8),
    mantissa=st.integers(1, 22),
)
def test_any_format_against_the_definition(x: float, exponent: int, mantissa: int) -> None:
    """numpy's rounding is the definition for every format that float32 can hold."""
    fmt = FloatFormat(exponent, mantissa)
    got = round_to(np.array([x], np.float32), fmt)
    assert np.array_equal(bits(got), bits(np.array([scalar(x, fmt)], np.float32)))


def test_formats_satisfy_the_stated_conversions() -> None:
    """8.9922 → 9 and -6.0039 → -6 hold for both assumed formats and exclude binary16."""
    x = np.array([8.9922, -6.0039], np.float16).astype(np.float32)
    for fmt in (BF16, CF16):
        assert round_to(x, fmt).tolist() == [9.0, -6.0]
    assert round_to(x, HALF).tolist() == x.tolist() != [9.0, -6.0]


@pytest.mark.parametrize("fmt", [FloatFormat(9, 7), FloatFormat(8, 23), FloatFormat(1, 1)])
def test_formats_wider_than_float32_are_refused(fmt: FloatFormat) -> None:
    """A format that float32 cannot hold has no meaning here."""
    with pytest.raises(PassError, match=fmt.name):
        round_to(np.zeros(1, np.float32), fmt)
