"""Ranges chosen from histograms, against brute force on the values themselves."""

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from npuc.errors import UsageError
from npuc.passes.qdq import codes
from npuc.profile import IntScheme
from npuc.quantization.observers import Importance, Observer
from npuc.quantization.thresholds import COHERENT, METHODS, divergence, method

Array = np.ndarray[Any, Any]
SYMMETRIC = IntScheme(
    weight_dtype="int8",
    weight_range=(-128, 127),
    weight_per_channel=True,
    activation_dtype="int8",
    activation_range=(-128, 127),
    activation_symmetric=True,
    observer="percentile",
    percentile=99.9,
    ops=frozenset({"MatMul"}),
)
ASYMMETRIC = replace(SYMMETRIC, activation_symmetric=False)


def data(kind: str, count: int = 40_000) -> Array:
    rng = np.random.default_rng(11)
    values = {
        "normal": rng.normal(size=count),
        "relu": np.maximum(rng.normal(size=count), 0),
        "shifted": rng.normal(3, 1, count),
        "negative": -rng.gamma(2, 1, count),
        "outliers": np.concatenate([rng.normal(size=count - 3), [80.0, -60.0, 90.0]]),
        "laplace": rng.laplace(size=count),
    }[kind]
    return np.asarray(values, np.float32)


def choose(name: str, values: Array, scheme: IntScheme) -> tuple[Observer, tuple[float, float]]:
    seen = Observer(METHODS[name].bins)
    for part in np.array_split(values, 7):
        assert seen.see(part)
    return seen, METHODS[name].choose(seen, scheme)


KINDS = ["normal", "relu", "shifted", "negative", "outliers", "laplace"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", [SYMMETRIC, ASYMMETRIC], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("name", METHODS)
def test_a_range_lies_within_what_was_seen(name: str, kind: str, scheme: IntScheme) -> None:
    seen, (low, high) = choose(name, data(kind), scheme)
    assert seen.low <= low < high <= seen.high


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [90.0, 99.0, 99.9, 99.999, 100.0])
def test_percentile_of_the_magnitude(kind: str, share: float) -> None:
    values = data(kind)
    seen, (low, high) = choose("percentile", values, replace(SYMMETRIC, percentile=share))
    # numpy.percentile computes the rank in floats and lands one value too high at 99.9.
    rank = math.ceil(Fraction(str(share)) / 100 * values.size)
    exact = np.sort(np.abs(values))[rank - 1]
    assert exact <= max(-low, high) <= exact + seen.width


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [90.0, 99.0, 99.9, 99.999])
def test_percentile_of_both_ends(kind: str, share: float) -> None:
    values = data(kind)
    seen, (low, high) = choose("percentile", values, replace(ASYMMETRIC, percentile=share))
    outside = (100 - share) / 2
    exact_high = np.percentile(values, 100 - outside, method="inverted_cdf")
    exact_low = -np.percentile(-values, 100 - outside, method="inverted_cdf")
    # The exact ends are each right to one value; that value may lie in the next bin.
    inside = ((values >= low) & (values <= high)).mean() * 100
    assert inside >= share
    assert exact_high - seen.width <= high <= exact_high + 2 * seen.width
    assert exact_low - 2 * seen.width <= low <= exact_low + seen.width


def error(values: Array, low: float, high: float) -> float:
    """The mean squared error of symmetric int8 codes over the values themselves."""
    scale = max(-low, high) / 127
    codes = np.clip(np.rint(values / scale), -128, 127)
    return float(np.mean((values - codes * scale) ** 2))


@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_as_good_as_any_clipping(kind: str) -> None:
    values = data(kind).astype(np.float64)
    _, (low, high) = choose("mse", values.astype(np.float32), SYMMETRIC)
    peak = np.abs(values).max()
    best = min(error(values, -peak * k / 200, peak * k / 200) for k in range(1, 201))
    # The histogram stands for values by their bin's centre: a percent of the error at most.
    assert error(values, low, high) <= 1.02 * best


def weighed(values: Array, low: float, high: float, scheme: IntScheme) -> float:
    """The mean squared error, with that of clipped values counted as `output` counts it."""
    affine = codes.activation(low, high, scheme)
    steps = np.rint(values / float(affine.scale)) + affine.zero
    kept = np.clip(steps, affine.low, affine.high)
    found = (values - (kept - affine.zero) * float(affine.scale)) ** 2
    return float(np.mean(np.where(steps == kept, found, COHERENT * found)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", [SYMMETRIC, ASYMMETRIC], ids=["symmetric", "asymmetric"])
def test_output_never_clips_what_costs_more_than_it_gains(kind: str, scheme: IntScheme) -> None:
    values = data(kind).astype(np.float64)
    seen, (low, high) = choose("output", values.astype(np.float32), scheme)
    full = weighed(values, seen.low, seen.high, scheme)
    # The histogram stands for values by their bin's centre: a percent of the error at most.
    assert weighed(values, low, high, scheme) <= 1.01 * full
    plain = choose("mse", values.astype(np.float32), scheme)[1]
    assert high - low >= plain[1] - plain[0]


def test_output_clips_where_it_hardly_matters() -> None:
    """Outliers in a channel that no weight reads do not take the codes of the others."""
    values = np.random.default_rng(0).normal(size=(300_000, 4)).astype(np.float32)
    values[:10, 3] = 8
    ends = []
    for weights in ([255, 255, 255, 1], [1, 1, 1, 255]):
        seen = Observer(True, Importance(1, np.array(weights)))
        assert seen.see(values)
        ends.append(METHODS["output"].choose(seen, SYMMETRIC)[1])
    assert ends[0] < 0.8 * ends[1]


@pytest.mark.parametrize("scheme", [SYMMETRIC, ASYMMETRIC], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("name", ["percentile", "mse", "entropy"])
def test_outliers_are_clipped(name: str, scheme: IntScheme) -> None:
    if name == "mse":
        values = np.concatenate([data("normal", 10**6), np.array([40, -40], np.float32)])
    else:
        values = data("outliers")
    seen, (low, high) = choose(name, values, scheme)
    assert high < seen.high / 2 and low > seen.low / 2


def test_divergence_by_hand() -> None:
    # Eight bins in two levels of four; level sums 10 and 6 are spread over 4 and 3 filled bins.
    counts = np.array([4, 3, 2, 1, 0, 1, 2, 3], np.float64)
    p = counts / 16
    q = np.array([2.5] * 4 + [0, 2, 2, 2]) / 16
    expected = sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
    assert divergence(counts, 0, 8, 2) == pytest.approx(expected, rel=1e-12)
    # The last two bins are clipped into bin 5: P gains 5 there, Q does not.
    p = np.array([4, 3, 2, 1, 0, 6]) / 16
    q = np.array([3, 3, 3, 1, 0, 1]) / 11
    expected = sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
    assert divergence(counts, 0, 6, 2) == pytest.approx(expected, rel=1e-12)


def test_entropy_ignores_how_many_values_are_exactly_zero() -> None:
    values = data("relu")
    more = np.concatenate([values, np.zeros(10**6, np.float32)])
    assert choose("entropy", values, SYMMETRIC)[1] == choose("entropy", more, SYMMETRIC)[1]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scheme", [SYMMETRIC, ASYMMETRIC], ids=["symmetric", "asymmetric"])
def test_constants(name: str, scheme: IntScheme) -> None:
    assert choose(name, np.zeros(100, np.float32), scheme)[1] == (0, 0)
    low, high = choose(name, np.full(100, 5, np.float32), scheme)[1]
    assert (low, high) == pytest.approx((5, 5), rel=0.05)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scheme", [SYMMETRIC, ASYMMETRIC], ids=["symmetric", "asymmetric"])
def test_the_order_of_samples_does_not_matter(name: str, scheme: IntScheme) -> None:
    values = data("outliers")
    assert choose(name, values, scheme)[1] == choose(name, values[::-1], scheme)[1]


def test_an_unknown_observer() -> None:
    with pytest.raises(
        UsageError, match="there are min-max, percentile, entropy, mse, output"
    ) as caught:
        method("percentil")
    assert caught.value.hint == "did you mean percentile?"
