"""Codes with a scale per group: the range that loses the least, and what codes take."""

import numpy as np
import pytest

from npuc.errors import PassError
from npuc.passes.qdq.groups import SHRINK, fitted, limits, nearest, spread
from npuc.profile import WeightScheme


def rows(
    outputs: int, depth: int, seed: int = 0
) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    """Return noise with a few large values, as weights have."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(outputs, depth)) * rng.lognormal(0, 1, (outputs, 1))
    noise[:, ::17] *= 4
    return noise.astype(np.float32)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("depth", "group"), [(64, 32), (80, 32), (33, 32), (7, 32), (48, 0)])
def test_codes_stay_in_their_limits(depth: int, group: int, bits: int, symmetric: bool) -> None:
    """A last group may be smaller, a weight smaller than a group; zero has a code of its own."""
    found = nearest(rows(5, depth), WeightScheme(bits, group, symmetric), bits)
    low, high = limits(bits, symmetric)
    size = min(group, depth) if group else depth
    assert found.codes.shape == (5, depth)
    assert found.scales.shape == found.zeros.shape == (5, -(-depth // size))
    for codes in (found.codes, found.zeros):
        assert low <= codes.min() and codes.max() <= high
    assert not found.zeros.any() or not symmetric


def test_an_error_is_at_most_half_a_step_where_nothing_is_clipped() -> None:
    """What lies within the codes' reach is rounded to the nearest of them."""
    weight = rows(8, 96)
    found = nearest(weight, WeightScheme(4, 32, False), 4)
    low, high = limits(4, False)
    step, zero = (spread(a, 32, 96) for a in (found.scales, found.zeros))
    inside = (weight >= (low - zero) * step) & (weight <= (high - zero) * step)
    gap = np.abs(found.real - weight)
    # 1e-6: the division by the scale and the product with it each round once in float32.
    assert (gap[inside] <= step[inside] * (0.5 + 1e-6) + 1e-6).all() and inside.mean() > 0.9


def test_the_range_is_the_best_of_those_tried() -> None:
    """A second implementation in plain loops finds no better part of the range."""
    weight = rows(3, 32).astype(np.float64)
    importance = np.linspace(0.1, 2.0, 32)[None]
    scheme = WeightScheme(4, 32, True)
    scales, _ = fitted(weight, scheme, 4, importance)
    for row, scale in zip(weight, scales[:, 0], strict=True):
        errors = []
        for part in SHRINK:
            s = float(np.float32(np.abs(row).max() * part / 7))
            codes = np.clip(np.rint(row / s), -8, 7)
            errors.append(float((importance[0] * (codes * s - row) ** 2).sum()))
        own = np.clip(np.rint(row / scale), -8, 7) * float(scale)
        assert float((importance[0] * (own - row) ** 2).sum()) == pytest.approx(min(errors))


def test_importance_moves_the_range() -> None:
    """A large value that nothing is multiplied by is clipped, so that the others are finer."""
    weight = np.concatenate([np.linspace(-1, 1, 31), [1.9]])[None]
    scheme = WeightScheme(4, 32, True)
    even = fitted(weight, scheme, 4)[0]
    skewed = fitted(weight, scheme, 4, np.array([[1.0] * 31 + [0.0]]))[0]
    assert skewed < even


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_number_is_refused(value: float) -> None:
    weight = rows(2, 8)
    weight[1, 3] = value
    with pytest.raises(PassError, match="NaN or Inf"):
        nearest(weight, WeightScheme(4, 0, True), 4)


def test_bytes_are_counted_packed() -> None:
    """80 inputs in groups of 32 are three groups: 4 bits a code and zero point, 4 bytes a scale."""
    found = nearest(rows(10, 80), WeightScheme(4, 32, False), 4)
    assert found.nbytes == (10 * 80 + 30) / 2 + 4 * 30
    assert nearest(rows(10, 80), WeightScheme(8, 0, True), 8).nbytes == 800 + 40


def test_zeros_are_zeros() -> None:
    """A group without any value has a scale that is no zero."""
    found = nearest(np.zeros((2, 40), np.float32), WeightScheme(4, 32, False), 4)
    assert not found.real.any() and (found.scales > 0).all()
