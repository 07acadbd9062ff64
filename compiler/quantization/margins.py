"""Allow for what a few calibration samples did not show.

The largest of n values is exceeded by the next one with probability 1/(n + 1). Where every channel
of a tensor was scaled by its own largest value, as `npuc.passes.equalize` does, some channel of
nearly every new sample exceeds it, if few values were seen of each.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from npuc.quantization.channel_stats import ChannelStatistics
from npuc.quantization.ranges import Range, Ranges

NORMAL = 4.0
"""Standard deviations that codes should reach: for 8 bits and normal values the least squared
error is at 3.9 (Banner, Nahshan and Soudry 2019, "Post training 4-bit quantization", table 1)."""


def extended(seen: Mapping[str, ChannelStatistics]) -> dict[str, ChannelStatistics]:
    """Move each channel's ends to where normal values would have had theirs at `NORMAL`.

    The largest of n normal values is near sqrt(2 ln n) standard deviations from the mean: both
    ends move away from the mean by `NORMAL` over that, and stay where enough was seen.
    """
    found = {}
    for name, item in seen.items():
        factor = max(1.0, NORMAL / math.sqrt(2 * math.log(max(item.count, 2))))
        low = np.where(item.low < 0, item.mean + (item.low - item.mean) * factor, item.low)
        high = np.where(item.high > 0, item.mean + (item.high - item.mean) * factor, item.high)
        found[name] = replace(item, low=low, high=high)
    return found


def widened(ranges: Ranges, expected: Mapping[str, ChannelStatistics]) -> Ranges:
    """Widen chosen ranges as far as the `expected` ends go beyond what was seen."""
    chosen: dict[str, Range] = dict(ranges.chosen)
    for name, item in expected.items():
        if name in chosen:
            (low, high), (least, most) = chosen[name], ranges.seen[name]
            down, up = float(item.low.min(initial=0.0)), float(item.high.max(initial=0.0))
            low *= max(1.0, down / least) if least < 0 else 1.0
            high *= max(1.0, up / most) if most > 0 else 1.0
            chosen[name] = (low, high)
    return replace(ranges, chosen=chosen)
