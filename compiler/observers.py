"""Watch the values of a tensor go by in a fixed amount of memory.

Memory is a fixed number of bins per tensor, whatever the number of samples. The bins of a tensor
span [-R, R) with R a power of two, which doubles (merging bins in pairs) when a larger value
comes. Doubling merges bins exactly, so the final histogram does not depend on the order of the
samples (but for negative values 2^100 times smaller than the largest, which may count as zero).
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_SMALLEST = -100
"""Exponent below which R does not go: BINS / R must stay a finite float32."""
BINS = 8192
"""Bins over [-R, R): the larger of |min| and |max| spans at least 2048, 16 per int8 step."""
_CHUNK = 1 << 16
"""Elements binned at a time, so that the temporaries stay in the cache."""


class Observer:
    """Minimum, maximum and, where `bins` is set, the histogram of one tensor."""

    def __init__(self, bins: bool) -> None:
        self.low = np.inf
        self.high = -np.inf
        self.zeros = 0
        self.counts: Array = np.zeros(BINS if bins else 0, np.int64)
        self.exponent: int | None = None

    def see(self, values: Array) -> bool:
        """Take in one array; returns False, having counted nothing, where it has NaN or Inf."""
        if values.size == 0:
            return True
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            return False
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.counts.size:
            self._count(values, max(-low, high))
        return True

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
        self.zeros += int(flat.size - np.count_nonzero(flat))
        factor = np.float32(BINS / 2 / self.radius)
        for start in range(0, flat.size, _CHUNK):
            # A power of two scales exactly, so floor() finds the true bin of every value.
            index = np.floor(flat[start : start + _CHUNK] * factor).astype(np.intp)
            index += BINS // 2
            self.counts += np.bincount(index, minlength=BINS)

    def _grow(self, exponent: int) -> None:
        if self.exponent is None:
            self.exponent = exponent
        while self.exponent < exponent:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
            self.exponent += 1
