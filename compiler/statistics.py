"""Decide a gate on a rate or a score from a finite number of samples, or say that they cannot.

One method serves all: Gaffke's confidence bound for the mean of values that lie between two known
ends (N. Gaffke 2005; Learned-Miller and Thomas, arXiv 1905.06208). The upper bound of n values is
the quantile of their mean under random weights, uniform on the simplex, with one more value at
the upper end: the sample not seen yet. On values of 0 and 1 it is Clopper and Pearson's exact
bound; with n equal values it is the rule of three; on many values it is as narrow as Student's.

Its error rate is at most 1 - confidence, proven for 0/1 values. For others this is a conjecture
without a known counterexample; tests/compiler/test_statistics.py enumerates all outcomes of paired
0/1 scores at small n and simulates fractional ones. It assumes independent samples: frames of one
video or tokens of one text are one sample.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from npuc.errors import UsageError

Array = np.ndarray[Any, Any]

State = Literal["ok", "failed", "undecided"]

POWER_Z = 1.2815515655446004
"""Standard normal quantile of 0.9: with `needed` more samples nine repetitions of ten decide."""

FEW = 30
"""Samples below which no corpus metric is decided: its intervals hold for many samples only."""

GROUPS = 1000
"""Evaluations of a corpus metric, about: more samples than this are left out in groups."""

MOST = 1e12
"""A number of samples that nobody has: what needs more is not decided by samples."""

_STEP = 1 / 16
_GRID = np.arange(0, 3.6, _STEP)
_GRID_SINH = np.pi / 2 * np.sinh(_GRID)
_GRID_PACE = np.pi / 2 * np.cosh(_GRID)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the samples say about a bar.

    `low` and `high` are one-sided bounds of the true value, each at the asked confidence; what is
    measured is a rate, or how far a score dropped. `needed` counts the MORE samples that would
    decide with 90 % power if the observed effect is the true one, rounded up to two digits: 0
    where it is decided, infinite where no number would do.
    """

    state: State
    low: float
    high: float
    estimate: float
    samples: int
    needed: float = 0

    @property
    def wanted(self) -> str:
        """Say in words what would decide it; empty where it is decided."""
        if self.state != "undecided":
            return ""
        if math.isinf(self.needed):
            return "no number of samples would decide it: the estimate is at the bar"
        return f"undecided: {self.needed:,.0f} more samples needed"


CorpusScore = Callable[[Array], tuple[float, float]]
"""Scores the reference and the candidate on the samples of the given indices (int64, distinct)."""


def rate_at_least(hits: int, n: int, bar: float, confidence: float = 0.95) -> Verdict:
    """Decide whether a rate is at least `bar`, from `hits` of `n` independent 0/1 samples.

    Exact (Clopper and Pearson, one-sided). A bar of 1 can fail but no number of samples shows it.
    Raises `UsageError` for counts or a bar that make no sense.
    """
    if not 0 <= hits <= n or n < 1:
        raise UsageError(f"{hits} hits of {n} samples are no rate")
    _check("bar", bar, 0, 1)
    # The rate of misses is what may not exceed its bar.
    misses = _Values(np.array([0.0, 1.0]), np.array([hits, n - hits], np.float64), 0, 1)
    found = misses.at_most(1 - bar, confidence)
    return replace(found, low=1 - found.high, high=1 - found.low, estimate=hits / n)


def drop_at_most(
    reference: Array,
    candidate: Array,
    bar: float,
    confidence: float = 0.95,
    span: tuple[float, float] = (0, 1),
) -> Verdict:
    """Decide whether the mean of reference - candidate is at most `bar`, sample by sample.

    Both hold one score per independent sample, in the same order and inside `span`. A bar of 0
    is only met by a candidate that is better. Raises `UsageError` where they are not.
    """
    ref, got = (np.asarray(a, np.float64) for a in (reference, candidate))
    if ref.ndim != 1 or ref.shape != got.shape or not ref.size:
        raise UsageError(f"scores of shapes {ref.shape} and {got.shape} are not pairs of samples")
    low, high = span
    both = np.concatenate((ref, got))
    if not ((both >= low) & (both <= high)).all():  # also where NaN
        raise UsageError(f"scores from {both.min()} to {both.max()} leave the span {low} to {high}")
    width = high - low
    _check("bar", bar, -width, width)
    return _Values.of(ref - got, -width, width).at_most(bar, confidence)


def corpus_drop_at_most(
    score: CorpusScore,
    n: int,
    bar: float,
    confidence: float = 0.95,
    span: tuple[float, float] = (0, 1),
) -> Verdict:
    """Decide whether a metric of the whole corpus drops by at most `bar` (mAP, mIoU).

    Such a metric has no score per sample. What each sample adds to the drop is measured by
    leaving it out (jackknife pseudo-values, Tukey 1958), and those are judged like scores: paired,
    in any order the same, and never of width zero, as a bootstrap is where no sample differs.

    This is asymptotic: it holds for metrics that are smooth in the weight of a sample, and for
    many samples. Below `FEW` it decides nothing, nor where the metric is NaN without one of the
    samples: then it asks for as many again. Above `GROUPS` samples are left out in groups,
    drawn with a fixed seed; a group then counts as one sample.
    """
    if n < 1:
        raise UsageError("no samples to score")
    width = span[1] - span[0]
    _check("bar", bar, -width, width)
    reference, candidate = score(np.arange(n))
    drop = reference - candidate
    if not math.isfinite(drop):
        raise UsageError(f"the metric drops from {reference} to {candidate}: it needs a number")
    pseudo = _pseudo_values(score, n, drop, bar) if n > 1 else np.array([math.nan])
    if not np.isfinite(pseudo).all():  # one sample is all there is of something
        return Verdict("undecided", -width, width, drop, n, max(n, FEW - n))
    count = pseudo.size
    ends = min(-width, float(pseudo.min())), max(width, float(pseudo.max()))
    found = _Values.of(pseudo, *ends).at_most(bar, confidence)
    needed = _round_up(found.needed * n / count)
    if n < FEW:
        return replace(found, state="undecided", samples=n, needed=max(needed, FEW - n))
    return replace(found, samples=n, needed=needed)


def _pseudo_values(score: CorpusScore, n: int, drop: float, bar: float) -> Array:
    """Return what each sample, or group of samples, makes of the drop; their mean is the drop."""
    # Three times as many groups as the rule of three asks for: an unseen one fits in the bar.
    count = min(n, max(GROUPS, math.ceil(9 / abs(bar)) if bar else 0))
    group = np.random.default_rng(0).permutation(n) % count
    left = np.empty(count)
    for g in range(count):
        reference, candidate = score(np.flatnonzero(group != g))
        left[g] = reference - candidate
    pseudo: Array = drop + (count - 1) * (left.mean() - left)
    return pseudo


@dataclass(frozen=True, slots=True)
class _Values:
    """Distinct values with their counts, between two known ends."""

    values: Array
    counts: Array
    low: float
    high: float

    @classmethod
    def of(cls, sample: Array, low: float, high: float) -> "_Values":
        values, counts = np.unique(sample, return_counts=True)
        return cls(values, counts.astype(np.float64), low, high)

    @property
    def mirrored(self) -> "_Values":
        return _Values(-self.values, self.counts, -self.high, -self.low)

    @property
    def mean(self) -> float:
        return float(self.values @ self.counts / self.counts.sum())

    @property
    def deviation(self) -> float:
        share = self.counts / self.counts.sum()
        return math.sqrt(float((self.values - self.mean) ** 2 @ share))

    def at_most(self, bar: float, confidence: float) -> Verdict:
        """Decide whether the true mean is at most `bar`."""
        _check("confidence", confidence, 0.5, 1)
        alpha, mean = 1 - confidence, self.mean
        high, low = self.bound(alpha), -self.mirrored.bound(alpha)
        state, needed = self.state(bar, alpha), 0.0
        if state == "undecided":
            side, limit = (self, bar) if mean < bar else (self.mirrored, -bar)
            needed = side.needed(limit, alpha) if mean != bar else math.inf
        return Verdict(state, low, high, mean, int(self.counts.sum()), needed)

    def state(self, bar: float, alpha: float) -> State:
        """Return the decision alone: on which side of the bar the whole interval lies."""
        if self.above(bar) <= alpha:
            return "ok"
        # At a bar on the low end nothing can lie below: there, the mean alone tells.
        if self.mean > bar and self.mirrored.above(-bar) <= alpha:
            return "failed"
        return "undecided"

    def above(self, bar: float, times: float = 1.0) -> float:
        """Return the probability that the weighted mean with one more value at `high` is > bar.

        `times` multiplies the counts: what as many times the samples would say.
        """
        return _tail(np.append(self.values, self.high), np.append(self.counts * times, 1.0), bar)

    def bound(self, alpha: float) -> float:
        """Return the upper bound of the mean: where `above` is alpha."""
        low, high = self.mean, self.high
        for _ in range(26):  # to 1e-7 of the width
            middle = (low + high) / 2
            if self.above(middle) <= alpha:
                high = middle
            else:
                low = middle
        return high

    def shifted(self, by: float) -> "_Values":
        """Tilt the counts exponentially until the mean is `by` more: an unlucky draw of these."""
        values, width = self.values, float(np.ptp(self.values))
        if by == 0 or width == 0:
            return self
        below = (values - values[-1]) / width

        def tilted(by: float) -> _Values:
            counts = self.counts * np.exp(by * below)
            return replace(self, counts=counts * (self.counts.sum() / counts.sum()))

        low, high = 0.0, 700.0  # where nothing is left but the largest value
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if tilted(middle).mean < self.mean + by else (low, middle)
        return tilted(high)

    def needed(self, bar: float, alpha: float) -> float:
        """Return how many more samples bring the bound below the bar, nine times of ten."""
        n = float(self.counts.sum())

        def decides(count: float) -> bool:
            worse = self.shifted(POWER_Z * self.deviation / math.sqrt(count))
            return worse.mean < bar and worse.above(bar, count / n) <= alpha

        enough = n
        while not decides(enough):
            enough *= 2
            if enough > MOST:
                return math.inf
        few = enough / 2
        while enough - few > max(1, few / 500):  # finer than the two digits that are told
            middle = (few + enough) / 2
            few, enough = (few, middle) if decides(middle) else (middle, enough)
        return _round_up(max(1.0, enough - n))


def _tail(values: Array, counts: Array, bar: float) -> float:
    """Return P(Σ w·values > bar) for Dirichlet weights w with the parameters `counts`.

    This is P(Σ G·(values - bar) > 0) with G gamma variables. The integral of the sum's moment
    generating function over a vertical line through its saddle point, taken by the trapezoidal
    rule after a double exponential substitution, gives it to about 1e-5 of itself.
    """
    present = (counts > 0) & (values != bar)
    counts, gaps = counts[present], (values - bar)[present]
    if not gaps.size or gaps.max() < 0:
        return 0.0
    if gaps.min() > 0:
        return 1.0
    if float(counts @ gaps) > 0:  # the pole at zero is far from a saddle point: mirror it
        return 1.0 - _line(-gaps, counts)
    return _line(gaps, counts)


def _line(gaps: Array, counts: Array) -> float:
    gaps = gaps / gaps.max()  # the integrand is defined for arguments up to 1
    low, high = 0.0, 1.0
    for _ in range(50):
        saddle = (low + high) / 2
        if float(counts @ (gaps / (1 - saddle * gaps))) < 1 / saddle:
            low = saddle
        else:
            high = saddle
    saddle = low or high
    slope = gaps / (1 - saddle * gaps)
    second = float(counts @ slope**2) + 1 / saddle**2
    third = 2 * (float(counts @ slope**3) - 1 / saddle**3)
    width = 1 / math.sqrt(second)
    # The way of steepest descent starts upright and bends by the skewness: off it, the integrand
    # oscillates. All its poles are on the real axis, so any bend is allowed.
    bend = float(np.clip(third * width**3 / 3, -0.5, 0.5))
    rise, pace = np.sinh(_GRID_SINH), np.cosh(_GRID_SINH) * _GRID_PACE
    round_off = np.sqrt(1 + rise**2)
    at = saddle + width * (bend * (round_off - 1) + 1j * rise)
    speed = width * pace * (1 - 1j * bend * rise / round_off)
    log = counts @ np.log(1 - np.multiply.outer(gaps, at))
    found = (np.exp(-log) / at * speed).real
    return float(np.clip((found.sum() - found[0] / 2) * _STEP / np.pi, 0, 1))


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UsageError(f"a {name} of {value} is not between {low:g} and {high:g}")


def _round_up(count: float) -> float:
    """Round up to two digits: what an estimate of a number of samples is worth at most."""
    if not math.isfinite(count) or count < 100:
        return float(math.ceil(count)) if math.isfinite(count) else count
    unit = 10 ** (math.floor(math.log10(count)) - 1)
    return float(math.ceil(count / unit) * unit)
