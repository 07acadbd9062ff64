"""margins: channels that few values were seen of are given room."""

import numpy as np
import pytest

from npuc.quantization.channel_stats import ChannelStatistics
from npuc.quantization.margins import NORMAL, extended, widened
from npuc.quantization.ranges import Ranges


def statistics(low: float, high: float, mean: float, count: int) -> ChannelStatistics:
    least, most, middle = (np.array([v, v / 2]) for v in (low, high, mean))
    return ChannelStatistics(least, most, middle, np.array([1.0, 1.0]), count)


def test_what_was_seen_often_stays() -> None:
    seen = {"t": statistics(-2.0, 3.0, 0.5, 10**6)}
    found = extended(seen)["t"]
    assert found.low.tolist() == [-2.0, -1.0] and found.high.tolist() == [3.0, 1.5]


def test_few_values_move_the_ends_away_from_the_mean() -> None:
    found = extended({"t": statistics(-2.0, 3.0, 0.5, 64)})["t"]
    factor = NORMAL / np.sqrt(2 * np.log(64))
    assert found.high[0] == pytest.approx(0.5 + 2.5 * factor)
    assert found.low[0] == pytest.approx(0.5 - 2.5 * factor)


def test_normal_values_get_four_deviations() -> None:
    """The rule's own claim, on the values it is about: the new ends are near 4, not at 2.4."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(2000, 64))
    low, high = draws.min(axis=1), draws.max(axis=1)
    seen = ChannelStatistics(low, high, draws.mean(axis=1), (draws**2).mean(axis=1), 64)
    found = extended({"t": seen})["t"]
    assert 2.2 < seen.high.mean() < 2.6
    # sqrt(2 ln n) is where the largest of n tends to; of 64 it is a fifth below.
    assert 3.0 < found.high.mean() < NORMAL


def test_what_is_never_negative_stays_so() -> None:
    seen = ChannelStatistics(np.zeros(1), np.ones(1), np.full(1, 0.5), np.ones(1), 8)
    found = extended({"t": seen})["t"]
    assert found.low[0] == 0.0 and found.high[0] > 1.0


def test_one_value_and_none() -> None:
    ones = np.ones(1)
    one = ChannelStatistics(ones, ones, ones, ones, 1)
    assert np.isfinite(extended({"t": one})["t"].high).all()
    assert extended({}) == {}


def test_ranges_widen_by_as_much_as_their_ends() -> None:
    seen = {"t": (-2.0, 4.0), "u": (-1.0, 1.0)}
    # An observer clipped t to half: the margin comes on top of what it chose.
    ranges = Ranges({"t": (-1.0, 2.0), "u": (-1.0, 1.0)}, seen, 64, "mse")
    found = widened(ranges, {"t": statistics(-3.0, 6.0, 0.0, 64)})
    assert found["t"] == (-1.5, 3.0)
    assert found["u"] == (-1.0, 1.0)
    assert found.seen == seen


def test_ranges_never_shrink() -> None:
    ranges = Ranges({"t": (-1.0, 2.0)}, {"t": (-1.0, 2.0)}, 64, "min-max")
    assert widened(ranges, {"t": statistics(-0.5, 0.5, 0.0, 64)})["t"] == (-1.0, 2.0)
    # A tensor that was never negative keeps its zero, whatever is expected of it.
    positive = Ranges({"t": (0.0, 2.0)}, {"t": (0.0, 2.0)}, 64, "min-max")
    assert widened(positive, {"t": statistics(-1.0, 4.0, 0.0, 64)})["t"] == (0.0, 4.0)
