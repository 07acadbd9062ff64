"""Watch the values of a tensor go by in a fixed amount of memory.

Memory is a fixed number of bins per tensor, whatever the number of samples. The bins of a tensor
span [-R, R) with R a power of two, which doubles (merging bins in pairs) when a larger value
comes. Doubling merges bins exactly, so the final histogram does not depend on the order of the
samples (but for negative values 2^100 times smaller than the largest of their sample, which may
count as zero).
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_SMALLEST = -100
"""Exponent below which R does not go: BINS / R must stay a finite float32."""
BINS = 8192
"""Bins over [-R, R): the larger of |min| and |max| spans at least 2048, 16 per int8 step."""
_CHUNK = 1 << 15
"""Elements binned at a time, so that the temporaries stay in the cache."""
_LOCAL = threading.local()


@dataclass(frozen=True, slots=True)
class Importance:
    """How much an error in each channel along `axis` counts: whole numbers, at least 1."""

    axis: int
    weights: Array


class Observer:
    """Minimum, maximum and, where `bins` is set, the histogram of one tensor.

    `counts` are whole numbers of values; with `importance` every value counts as often as its
    channel's weight says. `zeros` is what values that are exactly zero contribute to them.
    """

    def __init__(self, bins: bool, importance: Importance | None = None) -> None:
        self.low = np.inf
        self.high = -np.inf
        self.zeros = 0
        self.counts: Array = np.zeros(BINS if bins else 0, np.int64)
        self.exponent: int | None = None
        self.importance = importance

    def see(self, values: Array) -> bool:
        """Take in one array; returns False, having counted nothing, where it has NaN or Inf."""
        found = self.digest(values)
        if found is None:
            return False
        self.merge(found)
        return True

    def digest(self, values: Array) -> "Observer | None":
        """Return an observer of one array alone; None where it has NaN or Inf."""
        found = Observer(bool(self.counts.size), self.importance)
        if values.size == 0:
            return found
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            return None
        found.low, found.high = low, high
        if found.counts.size:
            found._count(values, max(-low, high))
        return found

    def merge(self, other: "Observer") -> None:
        """Take in all that another observer of this tensor saw; it must not be used any more."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.zeros += other.zeros
        if other.exponent is not None:
            self._grow(other.exponent)
        if self.exponent is not None:
            other._grow(self.exponent)
        self.counts += other.counts

    def state(self) -> Mapping[str, Array]:
        """Return all that was seen, as arrays."""
        exponent = [] if self.exponent is None else [self.exponent]
        return {
            "ends": np.array([self.low, self.high]),
            "whole": np.array([self.zeros, *exponent], np.int64),
            "counts": self.counts,
        }

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on from what `state` returned."""
        self.low, self.high = map(float, state["ends"])
        zeros, *exponent = map(int, state["whole"])
        self.zeros, self.exponent = zeros, exponent[0] if exponent else None
        self.counts = state["counts"].astype(np.int64)

    @property
    def radius(self) -> float:
        """R: the histogram spans [-R, R)."""
        return 2.0 ** (self.exponent or 0)

    @property
    def width(self) -> float:
        """What one bin spans."""
        return self.radius / (BINS // 2)

    def _count(self, values: Array, peak: float) -> None:
        exponent = int(np.frexp(peak)[1]) if peak > 0 else None
        if exponent is not None:
            self._grow(max(exponent, _SMALLEST))
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        weights = self._weights(values)
        if weights is None:
            self.zeros = int(flat.size - np.count_nonzero(flat))
        else:
            self.zeros = int(weights[flat == 0].sum())
        factor = np.float32(BINS / 2 / self.radius)
        # Sums of whole numbers: exact below 2^53, whatever numpy's type for them.
        counts: Array | None = None
        for start in range(0, flat.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            index = _bins(flat[part], factor)
            found = np.bincount(index, None if weights is None else weights[part], BINS)
            counts = found if counts is None else np.add(counts, found, out=counts)
        if counts is not None:
            self.counts = counts.astype(np.int64, copy=False)

    def _weights(self, values: Array) -> Array | None:
        """Return the weight of every value, as float64 for numpy's sake."""
        if self.importance is None:
            return None
        shape = [1] * values.ndim
        shape[self.importance.axis] = -1
        weights = self.importance.weights.astype(np.float64).reshape(shape)
        return np.broadcast_to(weights, values.shape).reshape(-1)

    def _grow(self, exponent: int) -> None:
        if self.exponent is None:
            self.exponent = exponent
        while self.exponent < exponent:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
            self.exponent += 1


def _bins(values: Array, factor: np.float32) -> Array:
    """Return each value's bin, in memory that is used again: fresh pages cost more than counting.

    A power of two scales exactly, so floor() finds the true bin of every value.
    """
    buffers = getattr(_LOCAL, "buffers", None)
    if buffers is None:
        buffers = _LOCAL.buffers = (np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.intp))
    scaled, index = (buffer[: values.size] for buffer in buffers)
    np.multiply(values, factor, out=scaled)
    np.floor(scaled, out=scaled)
    np.copyto(index, scaled, casting="unsafe")
    index += BINS // 2
    found: Array = index
    return found
