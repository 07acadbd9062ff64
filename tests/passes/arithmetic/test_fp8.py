"""8-bit floats against ml_dtypes' conversions: every code, every tie, and random numbers."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npuc.passes.arithmetic.fp8 import FORMATS, exponent, rounded

Array = np.ndarray[Any, Any]
TYPES = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
LAST = {"e4m3": 0x7E, "e5m2": 0x7B}
"""The code of the largest number, by the standard's tables."""


def saturated(x: Array, name: str) -> Array:
    """Convert with ml_dtypes what was clipped to the format's own largest number before."""
    end = largest(name)
    with np.errstate(invalid="ignore"):  # signalling NaN
        return np.clip(x, -end, end).astype(TYPES[name]).astype(np.float32)


def largest(name: str) -> float:
    """Return the largest number as ml_dtypes has it."""
    return float(np.array(LAST[name], np.uint8).view(TYPES[name]))


def same(a: Array, b: Array) -> bool:
    """Whether two arrays are alike, the sign of zero included; NaN is NaN."""
    number = ~np.isnan(a)
    signs = np.signbit(a[number]) == np.signbit(b[number])
    return bool(np.array_equal(a, b, equal_nan=True) and signs.all())


@pytest.mark.parametrize("name", FORMATS)
def test_the_largest_number(name: str) -> None:
    assert FORMATS[name].largest == largest(name)


@pytest.mark.parametrize("name", FORMATS)
def test_every_code_stays_and_every_tie_goes_to_even(name: str) -> None:
    """All 256 codes, the middle of every pair that follow one another, and their neighbours."""
    codes = np.arange(256, dtype=np.uint8).view(TYPES[name]).astype(np.float32)
    finite = np.unique(codes[np.isfinite(codes)])
    ties = (finite[1:] + finite[:-1]) / 2
    near = [np.nextafter(ties, np.float32(end), dtype=np.float32) for end in (-np.inf, np.inf)]
    beyond = np.array([np.inf, -np.inf, 464, 465, 61440, 65536, 1e38, np.nan, -0.0], np.float32)
    x = np.concatenate([codes, ties, *near, beyond]).astype(np.float32)
    assert same(rounded(x, 0, FORMATS[name]), saturated(x, name))
    kept = codes[np.isfinite(codes)]
    assert same(rounded(kept, 0, FORMATS[name]), kept)


@pytest.mark.parametrize("name", FORMATS)
def test_every_exponent_of_float32(name: str) -> None:
    """Every upper half of a float32, subnormals and NaN among them."""
    x = (np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)).view(np.float32)
    assert same(rounded(x, 0, FORMATS[name]), saturated(x, name))


@settings(max_examples=200, deadline=None)
@given(x=st.floats(width=32), k=st.integers(-20, 20), name=st.sampled_from(sorted(FORMATS)))
def test_a_power_of_two_as_the_scale(x: float, k: int, name: str) -> None:
    """Scaling is exact: it is the conversion of x / 2^k, times 2^k."""
    with np.errstate(over="ignore", under="ignore"):
        array = np.array([x], np.float32)
        want = np.ldexp(saturated(np.ldexp(array, -k), name), k)
        assert same(rounded(array, k, FORMATS[name]), want)


@pytest.mark.parametrize("name", FORMATS)
def test_the_exponent_is_the_least_that_fits(name: str) -> None:
    form = FORMATS[name]
    peaks = np.array([form.largest, np.nextafter(form.largest, np.inf), 1.0, 3e-20, 7e20])
    k = exponent(peaks, form)
    assert k[0] == 0 and k[1] == 1
    assert (np.ldexp(peaks, -k) <= form.largest).all()
    assert (np.ldexp(peaks, -(k - 1)) > form.largest).all()
    assert exponent(np.array(0.0), form) == 0
