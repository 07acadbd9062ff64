"""Scales and codes: properties that hold for every range and every weight."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from npuc.errors import PassError
from npuc.passes.qdq import codes as qdq_codes
from npuc.profile import IntScheme

Array = np.ndarray[Any, Any]
FINITE = st.floats(-1e6, 1e6, width=32).filter(lambda v: v == 0 or abs(v) > 1e-6)
RANGES = {
    "int8": [(-128, 127), (-127, 127)],
    "uint8": [(0, 255), (0, 254)],
    "int16": [(-32768, 32767)],
}


@st.composite
def schemes(draw: st.DrawFn) -> IntScheme:
    dtype = draw(st.sampled_from(sorted(RANGES)))
    weight = draw(st.sampled_from(["int8", "uint8"]))
    return IntScheme(
        weight_dtype=weight,
        weight_range=draw(st.sampled_from(RANGES[weight])),
        weight_per_channel=True,
        activation_dtype=dtype,
        activation_range=draw(st.sampled_from(RANGES[dtype])),
        activation_symmetric=draw(st.booleans()),
        observer="min-max",
        percentile=99.9,
        ops=frozenset(),
    )


@settings(max_examples=300, deadline=None, derandomize=True)
@given(scheme=schemes(), ends=st.tuples(FINITE, FINITE), share=st.floats(0, 1))
def test_an_activation_inside_its_range_is_off_by_half_a_step_at_most(
    scheme: IntScheme, ends: tuple[float, float], share: float
) -> None:
    low, high = sorted(ends)
    assume(low != high)
    affine = qdq_codes.activation(low, high, scheme)
    step = float(affine.scale)
    assert step > 0 and affine.low <= affine.zero <= affine.high
    x = low + share * (high - low)
    code = np.clip(np.rint(x / step) + affine.zero, affine.low, affine.high)
    # The zero point is rounded to a code, which can push one end out by up to half a step more.
    slack = 0.5 if scheme.activation_symmetric else 1.0
    assert abs(step * (code - affine.zero) - x) <= step * (slack + 1e-4)
    assert np.rint(0 / step) + affine.zero == affine.zero


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    scheme=schemes(),
    array=hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4), elements=FINITE),
    data=st.data(),
)
def test_a_weight_is_off_by_half_a_step_of_its_channel(
    scheme: IntScheme, array: Array, data: st.DataObject
) -> None:
    axis = data.draw(st.none() | st.integers(0, array.ndim - 1))
    scales = qdq_codes.weight_scales(array, axis, scheme, np.zeros(()))
    assert scales.dtype == np.float32 and (scales > 0).all()
    assert scales.shape == (() if axis is None else (array.shape[axis],))
    codes = qdq_codes.weight_codes(array, scales, axis, scheme)
    assert codes.dtype == scheme.weight_dtype
    assert codes.min() >= scheme.weight_range[0] and codes.max() <= scheme.weight_range[1]
    steps = scales if axis is None else scales.reshape([-1] + [1] * (array.ndim - axis - 1))
    back = (codes.astype(np.float64) - qdq_codes.weight_zero(scheme)) * steps
    assert (np.abs(back - array) <= steps * 0.5001).all()


def test_a_tie_goes_to_the_even_code() -> None:
    scheme = IntScheme(
        "int8", (-128, 127), False, "int8", (-128, 127), True, "min-max", 99.9, frozenset()
    )
    array = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 127], np.float32)
    codes = qdq_codes.weight_codes(array, np.ones((), np.float32), None, scheme)
    np.testing.assert_array_equal(codes, [0, 2, 2, 0, -2, 127])


def test_a_bias_saturates_at_its_limit() -> None:
    codes = qdq_codes.bias_codes(np.array([1.0, -1.0, 0.5]), np.array([1e-12, 1e-12, 1.0]), 2**30)
    np.testing.assert_array_equal(codes, [2**30, -(2**30), 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite(bad: float) -> None:
    scheme = IntScheme(
        "int8", (-128, 127), True, "int8", (-128, 127), True, "min-max", 99.9, frozenset()
    )
    with pytest.raises(PassError, match="NaN or Inf"):
        qdq_codes.weight_scales(np.array([[1, bad]], np.float32), 0, scheme, np.zeros(()))
