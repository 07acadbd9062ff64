"""Observers: a histogram that grows is the histogram of all the data."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from npuc.quantization.observers import BINS, Importance, Observer

Array = np.ndarray[Any, Any]
NUMBERS = st.floats(-(2.0**40), 2.0**40, width=32).filter(lambda v: v == 0 or abs(v) > 1e-20)
"""Below that, scaling to bins may underflow beside the largest; see the module's docstring."""
CHUNKS = st.lists(
    hnp.arrays(
        np.float32,
        st.integers(0, 50),
        elements=NUMBERS | st.sampled_from([0.0, -0.0, 1.0, -2.0]),
    ),
    min_size=1,
    max_size=6,
)


def observe(chunks: list[Array]) -> Observer:
    seen = Observer(bins=True)
    for chunk in chunks:
        assert seen.see(chunk)
    return seen


@settings(max_examples=200, deadline=None, derandomize=True)
@given(chunks=CHUNKS)
def test_counts_and_ends_are_exact(chunks: list[Array]) -> None:
    values = np.concatenate(chunks)
    seen = observe(chunks)
    assert seen.counts.sum() == values.size
    assert seen.zeros == (values == 0).sum()
    if values.size:
        assert (seen.low, seen.high) == (values.min(), values.max())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(chunks=CHUNKS)
def test_the_order_of_samples_does_not_matter(chunks: list[Array]) -> None:
    one, other = observe(chunks), observe(chunks[::-1])
    np.testing.assert_array_equal(one.counts, other.counts)
    assert (one.exponent, one.low, one.high, one.zeros) == (
        other.exponent,
        other.low,
        other.high,
        other.zeros,
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(chunks=CHUNKS)
def test_every_value_is_in_its_own_bin(chunks: list[Array]) -> None:
    seen = observe(chunks)
    values = np.concatenate(chunks).astype(np.float64)
    edges = (np.arange(BINS + 1) - BINS // 2) * seen.width
    np.testing.assert_array_equal(seen.counts, np.histogram(values, edges)[0])
    if values.any():
        assert np.abs(values).max() < seen.radius <= max(2 * np.abs(values).max(), 2.0**-100)


def test_growth_over_many_doublings() -> None:
    seen = observe([np.array([3e-6], np.float32), np.array([5e5, -2e5], np.float32)])
    assert seen.counts.sum() == 3
    assert seen.counts[BINS // 2] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bins", [True, False])
def test_values_that_are_not_finite_are_told(bad: float, bins: bool) -> None:
    seen = Observer(bins)
    assert not seen.see(np.array([1, bad, 2], np.float32))
    assert (seen.low, seen.high) == (np.inf, -np.inf)


def test_min_max_keeps_no_bins() -> None:
    seen = Observer(bins=False)
    seen.see(np.array([[-1.5, 2.5]], np.float32))
    assert (seen.low, seen.high, seen.counts.size) == (-1.5, 2.5, 0)


def test_arrays_of_any_layout() -> None:
    values = np.arange(-60, 60, dtype=np.float32).reshape(4, 5, 6)
    flat, turned = observe([values]), observe([values.transpose(2, 0, 1)[::-1]])
    np.testing.assert_array_equal(flat.counts, turned.counts)


def test_more_than_one_chunk() -> None:
    values = np.random.default_rng(0).normal(size=300_000).astype(np.float32)
    assert observe([values]).counts.sum() == values.size


@settings(max_examples=100, deadline=None, derandomize=True)
@given(chunks=CHUNKS, cut=st.integers(0, 6))
def test_what_was_seen_apart_adds_up(chunks: list[Array], cut: int) -> None:
    """However samples are grouped: by merging observers, or joined to one array."""
    whole = observe(chunks)
    one, other = observe(chunks[:cut]), observe(chunks[cut:])
    one.merge(other)
    joined = observe([np.concatenate(chunks)])
    for found in (one, joined):
        np.testing.assert_array_equal(found.counts, whole.counts)
        assert (found.low, found.high, found.zeros) == (whole.low, whole.high, whole.zeros)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    values=hnp.arrays(np.float32, (5, 3), elements=NUMBERS | st.just(0.0)),
    weights=st.lists(st.integers(1, 255), min_size=3, max_size=3),
)
def test_importance_repeats_values(values: Array, weights: list[int]) -> None:
    seen = Observer(True, Importance(-1, np.array(weights)))
    assert seen.see(values)
    repeated = observe([np.repeat(values, weights, axis=1)])
    np.testing.assert_array_equal(seen.counts, repeated.counts)
    assert seen.zeros == repeated.zeros
