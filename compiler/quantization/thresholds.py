"""Choose the range to quantize a tensor over from what its observer saw.

Every method is a function of the histogram alone, so it gives the same range whatever the order
of the samples.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from typing import Any

import numpy as np

from npuc.errors import UsageError
from npuc.passes.qdq import codes as qdq_codes
from npuc.profile import IntScheme
from npuc.quantization.observers import BINS, Observer

Array = np.ndarray[Any, Any]
Range = tuple[float, float]
Cost = Callable[[float, float], float]
STEPS = 128
"""Clipping is tried at this many fractions of each end of the range: one int8 step apart."""
COHERENT = 64.0
"""Terms over which a layer sums an error, roughly: random ones grow with the root of their number,
clipped ones with the number. Of 1, 4, 16 and 64, only 64 was worse than the full range on none of
eight trained networks."""
MERGED = 2
"""Bins that entropy takes as one: 1024 to 2048 on the larger side of zero, as TensorRT has."""
STRIDE = 4
"""Every fourth threshold is tried first, and then those around the best."""
ROUNDS = 8
"""How often both ends are improved in turn; searches on real tensors settle in two or three."""


def min_max(seen: Observer, scheme: IntScheme) -> Range:
    """Return the smallest and largest value seen."""
    return seen.low, seen.high


def percentile(seen: Observer, scheme: IntScheme) -> Range:
    """Clip the largest values, so that `scheme.percentile` percent of all values are inside.

    Symmetric schemes clip |x| at that percentile; asymmetric ones leave half of the rest outside
    at each end. Right to one histogram bin, always outwards.
    """
    total = int(seen.counts.sum())
    share = Fraction(str(scheme.percentile)) / 100  # exact: 99.9 % of 1000 values are 999
    if scheme.activation_symmetric:
        half = BINS // 2
        folded = seen.counts[half:] + seen.counts[:half][::-1]
        inside = math.ceil(total * share)
        index = int(np.searchsorted(np.cumsum(folded), inside))
        peak = (min(index, half - 1) + 1) * seen.width
        return max(seen.low, -peak), min(seen.high, peak)
    outside = math.floor(total * (1 - share) / 2)
    sums = np.cumsum(seen.counts)
    first = int(np.searchsorted(sums, outside, side="right"))
    last = int(np.searchsorted(sums, total - outside))
    low, high = ((index - BINS // 2) * seen.width for index in (first, last + 1))
    return max(seen.low, low), min(seen.high, high)


def mse(seen: Observer, scheme: IntScheme) -> Range:
    """Minimise Σ (x - dequantize(quantize(x)))² over the clipping range, x at its bin's centre."""
    centres, counts = _occupied(seen)

    def cost(low: float, high: float) -> float:
        affine = qdq_codes.activation(low, high, scheme)
        codes = np.rint(centres / float(affine.scale)) + affine.zero
        error = centres - (np.clip(codes, affine.low, affine.high) - affine.zero) * affine.scale
        return float(counts @ (error * error))

    return _search(cost, seen, scheme)


def output(seen: Observer, scheme: IntScheme) -> Range:
    """Minimise the error of what the layers that read the tensor make of it.

    As `mse`, but `seen` counts every value as often as it matters to its readers
    (see `importance`), and what clipping leaves counts `COHERENT` times: rounding errors point
    either way and average out where a layer sums them up; a clipped value is too small wherever
    it is read, and it is the same strong features that are clipped.
    """
    centres, counts = _occupied(seen)

    def cost(low: float, high: float) -> float:
        affine = qdq_codes.activation(low, high, scheme)
        codes = np.rint(centres / float(affine.scale)) + affine.zero
        kept = np.clip(codes, affine.low, affine.high)
        error = centres - (kept - affine.zero) * affine.scale
        return float((counts * np.where(codes == kept, 1.0, COHERENT)) @ (error * error))

    return _search(cost, seen, scheme)


def entropy(seen: Observer, scheme: IntScheme) -> Range:
    """Minimise the Kullback-Leibler divergence between the clipped histogram and its coding.

    The method of TensorRT's calibrator (Migacz, "8-bit inference with TensorRT", GTC 2017): P is
    the histogram inside the range with the clipped counts added to its end bins; Q is the
    unclipped inside, merged into as many levels as there are codes and spread again over the bins
    that are not empty. Exact zeros are left out: every range codes them exactly, and after a Relu
    their one bin would outweigh all others.
    """
    levels = scheme.activation_range[1] - scheme.activation_range[0]
    counts = _without_zeros(seen).astype(np.float64).reshape(-1, MERGED).sum(axis=1)
    width, bins = seen.width * MERGED, BINS // MERGED

    def cost(low: float, high: float) -> float:
        start = max(int(np.floor(low / width)) + bins // 2, 0)
        stop = min(int(np.ceil(high / width)) + bins // 2, bins)
        return np.inf if stop - start < levels else divergence(counts, start, stop, levels)

    return _search(cost, seen, scheme)


def divergence(counts: Array, start: int, stop: int, levels: int) -> float:
    """Return KL(P ‖ Q) in nats for the bins [start, stop) coded in `levels`; see `entropy`."""
    filled = np.flatnonzero(counts[start:stop])
    inside = counts[start:stop][filled]
    if inside.size == 0:
        return float("inf")
    level = filled * levels // (stop - start)
    sums = np.bincount(level, weights=inside, minlength=levels)
    q = (sums / np.maximum(np.bincount(level, minlength=levels), 1))[level]
    p = inside.astype(np.float64)
    # Clipped counts may land in an empty end bin: Q gets a millionth there instead of nothing.
    ends = ((counts[:start].sum(), 0, 0), (counts[stop:].sum(), filled.size - 1, stop - start - 1))
    for clipped, at, place in ends:
        if filled[at] == place:
            p[at] += clipped
        elif clipped:
            p, q = np.append(p, clipped), np.append(q, 1e-6 * counts.sum())
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p * np.log(p / q)))


def _search(cost: Cost, seen: Observer, scheme: IntScheme) -> Range:
    """Return the range of least cost; of equal ones the widest.

    A symmetric range is found by trying every threshold. An asymmetric one by improving one end
    after the other from the full range: the least cost of a line, not of the whole plane.
    """
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    if low == high:
        return seen.low, seen.high
    cost = cache(cost)  # the last round finds nothing new
    if scheme.activation_symmetric:
        peak = max(-low, high)
        best = _least([peak * k / STEPS for k in range(STEPS, 0, -1)], lambda t: cost(-t, t))
        return max(seen.low, -best), min(seen.high, best)
    lows = [low * k / STEPS for k in range(STEPS, -1, -1)] if low < 0 else [low]
    highs = [high * k / STEPS for k in range(STEPS, -1, -1)] if high > 0 else [high]
    for _ in range(ROUNDS):
        # At least one end stays off zero: an empty range has no scale.
        before = low, high
        high = _least([h for h in highs if h > low], partial(cost, low))
        low = _least([v for v in lows if v < high], partial(_flipped, cost, high))
        if (low, high) == before:
            break
    return max(seen.low, low), min(seen.high, high)


def _least(candidates: list[float], cost: Callable[[float], float]) -> float:
    """Return the candidate of least cost, of equal ones the first: one in `STRIDE`, then near it.

    Costs are smooth over a stride of a few steps, which clips a few percent of the range.
    """
    coarse = {i: cost(candidates[i]) for i in range(0, len(candidates), STRIDE)}
    best = min(coarse, key=lambda i: (coarse[i], i))
    near = range(max(0, best - STRIDE + 1), min(len(candidates), best + STRIDE))
    found = coarse | {i: cost(candidates[i]) for i in near}
    return candidates[min(found, key=lambda i: (found[i], i))]


def _flipped(cost: Cost, high: float, low: float) -> float:
    return cost(low, high)


def _without_zeros(seen: Observer) -> Array:
    counts = seen.counts.copy()
    counts[BINS // 2] -= seen.zeros
    return counts


def _occupied(seen: Observer) -> tuple[Array, Array]:
    counts = _without_zeros(seen)
    index = np.flatnonzero(counts)
    return (index - BINS // 2 + 0.5) * seen.width, counts[index].astype(np.float64)


@dataclass(frozen=True, slots=True)
class Method:
    """How a range is chosen, and whether that takes a histogram."""

    choose: Callable[[Observer, IntScheme], Range]
    bins: bool
    weighted: bool = False
    """Whether values count by what they matter to the layers that read them."""


METHODS: Mapping[str, Method] = {
    "min-max": Method(min_max, False),
    "percentile": Method(percentile, True),
    "entropy": Method(entropy, True),
    "mse": Method(mse, True),
    "output": Method(output, True, weighted=True),
}


def method(name: str) -> Method:
    """Return the method of that name; raises `UsageError` listing the names there are."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1)
        raise UsageError(
            f"unknown observer {name!r}; there are {', '.join(METHODS)}",
            hint=f"did you mean {near[0]}?" if near else "",
        )
    return METHODS[name]
