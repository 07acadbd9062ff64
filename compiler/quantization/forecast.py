"""Say what a calibration will take, from its first few calls."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from npuc.text import size

_PAGE = 4096
"""Bytes of a page in /proc/self/statm on the machines npuc runs on."""


class Forecast:
    """Measures the first calls of `total` (0 or less: unknown), `workers` at once.

    `bytes` is the size of the tensors that one call is observed on.
    """

    def __init__(self, total: int, workers: int) -> None:
        self.total, self.workers = total, workers
        self.bytes = 0
        self._began = 0.0
        self._first = 0.0

    def weigh(self, values: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Take the size of one call's tensors; the largest counts."""
        self.bytes = max(self.bytes, sum(array.nbytes for array in values.values()))

    def start(self, first: float) -> None:
        """Begin to measure; the first call took `first` seconds alone, and the machine was cold."""
        self._first, self._began = first, time.perf_counter()

    def after(self, done: int) -> str:
        """Return the forecast once enough calls were measured, and "" before and after."""
        measured = 2 * self.workers
        if done != measured + 1 or self.total <= done:
            return ""
        each = (time.perf_counter() - self._began) / measured
        seconds = self._first + each * (self.total - 1)
        # Memory is flat: what the process holds now it will hold, and a call's tensors at most.
        peak = _resident() + self.bytes
        return f"{self.total} samples, about {duration(seconds)}, {size(peak)}"


def duration(seconds: float) -> str:
    """Return seconds as people say them: ``12 s``, ``5 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * _PAGE
