"""Distances between answers, against numbers worked out by hand."""

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npuc.errors import ParityError
from npuc.metrics import Difference, differences, has_choice, sqnr

Array = np.ndarray[Any, Any]


def one(ref: object, got: object, ties: float = 0.0, dtype: Any = np.float32) -> Difference:
    """Compare one call of one output."""
    a, b = (v if isinstance(v, np.ndarray) else np.array(v, dtype) for v in (ref, got))
    (found,) = differences([{"y": a}], [{"y": b}], ties)
    return found


def test_every_number_by_hand() -> None:
    found = one([[3, 4], [0, -12]], [[3, 4.5], [0, -10]])
    assert found.output == "y" and found.fault == "" and not found.integer
    assert found.max_abs == 2 and found.peak == 12
    assert found.max_rel == pytest.approx(2 / 12)
    assert found.rms == pytest.approx(math.sqrt(4.25 / 4))
    assert found.sqnr_db == pytest.approx(10 * math.log10(169 / 4.25))
    dot, power = 9 + 18 + 120, 9 + 20.25 + 100
    assert found.cosine == pytest.approx(dot / math.sqrt(169 * power))
    assert (found.agreement, found.rows) == (1.0, 2)


def test_several_calls_are_one_sum() -> None:
    """Two calls of different batches weigh by their values, not one each."""
    ref = [{"y": np.ones((3, 1))}, {"y": np.full((1, 1), 3.0)}]
    got = [{"y": np.ones((3, 1))}, {"y": np.full((1, 1), 5.0)}]
    (found,) = differences(ref, got)
    assert found.rms == pytest.approx(1.0)
    assert found.sqnr_db == pytest.approx(10 * math.log10(12 / 4))
    assert found.max_abs == 2 and found.peak == 3


def test_equal_answers_are_exact() -> None:
    found = one([[1, 2]], [[1, 2]])
    assert (found.sqnr_db, found.cosine, found.max_abs, found.rms) == (math.inf, 1.0, 0.0, 0.0)
    zero = one([0.0], [0.0])
    assert (zero.sqnr_db, zero.cosine) == (math.inf, 1.0)


def test_error_on_a_silent_reference_is_no_signal() -> None:
    found = one([0.0, 0.0], [0.0, 1e-3])
    assert (found.sqnr_db, found.cosine) == (-math.inf, 0.0)
    assert sqnr(0, 0) == math.inf and sqnr(100, 1) == pytest.approx(20)


@pytest.mark.parametrize(
    ("ref", "got", "words"),
    [
        ([1.0], [math.nan], "1 values are NaN or Inf on one side only"),
        ([1.0, math.inf], [1.0, 2.0], "1 values are NaN or Inf on one side only"),
        ([math.inf], [-math.inf], "on one side only"),
        ([math.nan, 1], [0.0, math.inf], "2 values are NaN or Inf on one side only"),
        ([math.nan, 1], [math.nan, 1], "1 values are NaN in the reference itself"),
        ([[1.0, 2.0]], [1.0, 2.0], r"shape (2,), expected (1, 2)"),
    ],
)
def test_what_no_number_excuses(ref: list[Any], got: list[Any], words: str) -> None:
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        found = one(ref, got, dtype=dtype)
        assert words in found.fault
        assert math.isnan(found.max_abs) and math.isnan(found.sqnr_db)
        assert found.agreement is None and found.rows == 0


def test_another_kind_of_number() -> None:
    found = one(np.array([1.0], np.float32), np.array([1], np.int32))
    assert found.fault == "dtype int32, expected float32"
    assert not one(np.array([1.0], np.float32), np.array([1.0], np.float64)).fault
    assert not one(np.array([1], np.int32), np.array([1], np.int64)).fault
    assert one(np.array([1], np.int32), np.array([1], np.uint8)).fault


def test_infinities_in_the_same_place_count_as_equal() -> None:
    found = one([1.0, -math.inf], [1.5, -math.inf])
    assert not found.fault and found.max_abs == 0.5 and found.peak == 1.0


def test_the_second_call_is_looked_at() -> None:
    calls = [{"y": np.ones(2)}, {"y": np.ones(2)}]
    (found,) = differences(calls, [calls[0], {"y": np.array([1, np.nan])}])
    assert "NaN" in found.fault


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
def test_an_empty_output_is_not_a_pass(shape: tuple[int, ...]) -> None:
    assert "nothing was compared" in one(np.zeros(shape), np.zeros(shape)).fault


def test_nothing_to_compare() -> None:
    y = {"y": np.ones(1)}
    with pytest.raises(ParityError, match="nothing to compare: 0 and 0"):
        differences([], [])
    with pytest.raises(ParityError, match="nothing to compare: 2 and 1"):
        differences([y, y], [y])
    with pytest.raises(ParityError, match=r"\['y'\] against \['z'\]"):
        differences([y], [{"z": np.ones(1)}])
    with pytest.raises(ParityError, match="outputs differ"):
        differences([{}], [{}])


def test_a_choice_within_the_ties_is_the_same_choice() -> None:
    ref, got = [[1.0, 1.01, 0.0]], [[1.01, 1.0, 0.0]]
    assert one(ref, got).agreement == 0.0
    assert one(ref, got, ties=0.005).agreement == 0.0
    assert one(ref, got, ties=0.02).agreement == 1.0
    assert one([[1.0, 1.0]], [[0.0, 1.0]]).agreement == 1.0  # a tie of the reference's own
    half = one([[0, 1], [0, 1], [0, 1], [0, 1]], [[0, 1], [1, 0], [0, 1], [1, 0]])
    assert (half.agreement, half.rows) == (0.5, 4)


def test_where_there_is_a_choice() -> None:
    assert has_choice(np.zeros((1, 2)))
    for array in (np.zeros((4,)), np.zeros((4, 1)), np.zeros((2, 2), np.int64)):
        assert not has_choice(array)
    assert one([1, 2, 3], [3, 2, 1]).agreement is None


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64])
def test_integers_count_equal_values(dtype: type) -> None:
    top = np.iinfo(dtype).max
    found = one([top, 1, 2, 3], [top, 1, 2, 5], dtype=dtype)
    assert found.integer and (found.agreement, found.rows) == (0.75, 4)
    assert found.max_abs == 2
    assert one([0], [top], dtype=dtype).max_abs == float(top)


def test_booleans_count_equal_values() -> None:
    found = one([True, False], [True, True], dtype=np.bool_)
    assert found.integer and found.agreement == 0.5 and found.max_abs == 1


def test_integers_that_a_double_cannot_tell_apart() -> None:
    found = one([2**53, -(2**62)], [2**53 + 1, -(2**62)], dtype=np.int64)
    assert found.max_abs == 1 and found.agreement == 0.5
    limits = np.iinfo(np.int64)
    assert one([limits.min], [limits.max], dtype=np.int64).max_abs == 2.0**64


def test_the_imaginary_part_counts() -> None:
    for shape in ((), (1,), (1, 1)):
        ref, got = (np.full(shape, v, np.complex64) for v in (1 + 2j, 1 + 3j))
        found = one(ref, got)
        assert found.max_abs == 1 and not found.fault
    assert "NaN" in one(np.array([1j]), np.array([complex(0, math.nan)])).fault
    assert "nothing" in one(np.zeros(0, np.complex64), np.zeros(0, np.complex64)).fault


def test_a_difference_in_bfloat16_is_seen() -> None:
    found = one([1, 2], [1, 2.5], dtype=ml_dtypes.bfloat16)
    assert found.max_abs == 0.5 and not found.integer


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-60, 120), st.floats(-20, 20), st.integers(1, 4))
def test_sqnr_finds_noise_of_a_known_power(seed: int, db: float, scale: float, calls: int) -> None:
    """Noise scaled to a wanted SQNR is measured at it, whatever the answer's magnitude."""
    random = np.random.default_rng(seed)
    ref = [random.standard_normal((3, 5)) * 2.0**scale for _ in range(calls)]
    noise = [random.standard_normal((3, 5)) for _ in range(calls)]
    power, error = (sum(float((a * a).sum()) for a in group) for group in (ref, noise))
    factor = math.sqrt(power / error) * 10 ** (-db / 20)
    got = [a + factor * b for a, b in zip(ref, noise, strict=True)]
    (found,) = differences([{"y": a} for a in ref], [{"y": b} for b in got])
    assert found.sqnr_db == pytest.approx(db, abs=1e-3)
    assert found.rms == pytest.approx(math.sqrt(power / (15 * calls)) * 10 ** (-db / 20), rel=1e-4)
    assert -1 - 1e-9 <= found.cosine <= 1 + 1e-9


def test_answers_compared_together_are_compared_one_by_one() -> None:
    generator = np.random.default_rng(0)
    shapes = [(1, 4), (1, 4), (2, 4), (1, 4), (3,), (3,), (), ()]
    for kind in ("f4", "i4"):
        for name in ("", *range(3)):
            some = shapes[:4] if name == "" else shapes[4:6] if name == 0 else shapes[6:]
            ref = [(9 * generator.normal(size=s)).astype(kind) for s in some]
            got = [(9 * generator.normal(size=s)).astype(kind) for s in some]
            (whole,) = differences([{"y": a} for a in ref], [{"y": a} for a in got])
            parts = [differences([{"y": a}], [{"y": b}])[0] for a, b in zip(ref, got, strict=True)]
            assert whole.max_abs == max(p.max_abs for p in parts)
            assert whole.rows == sum(p.rows for p in parts)
            hits = sum((p.agreement or 0) * p.rows for p in parts)
            assert whole.agreement is None or whole.agreement * whole.rows == pytest.approx(hits)
            count = sum(a.size for a in ref)
            power = sum(p.rms**2 * a.size for p, a in zip(parts, ref, strict=True))
            assert whole.rms == pytest.approx((power / count) ** 0.5)


def test_the_first_fault_of_many_answers_is_named() -> None:
    ref = [np.zeros((1, 2), np.float32) for _ in range(9)]
    got = [a.copy() for a in ref]
    got[5][0, 0] = np.nan
    got[7][0] = np.nan
    (found,) = differences([{"y": a} for a in ref], [{"y": a} for a in got])
    assert found.fault == "1 values are NaN or Inf on one side only"
