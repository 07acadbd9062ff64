"""What each channel of a tensor holds over the calibration samples: peak, ends, mean, power."""

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from npuc.errors import ParityError, UsageError
from npuc.program import Program, Tensors
from npuc.taps import Taps

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """One entry per channel, float64. `mean` and `square` are over `count` values each.

    `low` and `high` are the smallest and largest value, `square` the mean of x².
    """

    low: Array
    high: Array
    mean: Array
    square: Array
    count: int

    @property
    def peak(self) -> Array:
        """The largest |x| of each channel."""
        return np.maximum(-self.low, self.high)


class ChannelObserver:
    """Watches one tensor go by, channel by channel, in memory of a few floats per channel.

    `axes` are those whose places are channels of their own, such as (1, 3) for the features of
    all heads; the statistics list them in row-major order.
    """

    def __init__(self, *axes: int) -> None:
        self.axes = axes
        self.count = 0
        self._ends: list[Array] = []
        self._sums: list[Array] = []

    def see(self, values: Array) -> bool:
        """Take in one array; returns False, having counted nothing, where it has NaN or Inf.

        Raises `UsageError` where the array has no such axis, or another number of channels than
        the arrays before.
        """
        if missing := [axis for axis in self.axes if not -values.ndim <= axis < values.ndim]:
            raise UsageError(f"a tensor of shape {values.shape} has no axis {missing[0]}")
        channels = math.prod(values.shape[axis] for axis in self.axes)
        if self._sums and channels != self._sums[0].size:
            raise UsageError(
                f"axes {self.axes}: {channels} channels; before it had {self._sums[0].size}"
            )
        first = np.moveaxis(values, self.axes, range(len(self.axes)))
        rows = first.reshape(channels, -1 if values.size else 0)
        if rows.size == 0:
            return True
        low, high = rows.min(axis=1).astype(np.float64), rows.max(axis=1).astype(np.float64)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            return False
        sums = [rows.sum(axis=1, dtype=np.float64), _squares(rows)]
        if self._sums:
            low, high = np.minimum(low, self._ends[0]), np.maximum(high, self._ends[1])
            sums = [old + new for old, new in zip(self._sums, sums, strict=True)]
        self._ends, self._sums = [low, high], sums
        self.count += rows.shape[1]
        return True

    def statistics(self) -> ChannelStatistics | None:
        """Return what was seen; None where no value was."""
        if not self.count:
            return None
        mean, square = (total / self.count for total in self._sums)
        low, high = self._ends
        return ChannelStatistics(low, high, mean, square, self.count)


def collect(
    program: Program,
    samples: Iterable[Tensors],
    axes: Mapping[str, int | tuple[int, ...]],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, ChannelStatistics]:
    """Observe the channels of tensors: name → axis or axes of its channels (negative from the end).

    One pass, in the order of the samples: the same samples give the same bits. Inputs of the
    program may be named. Memory is the program, its tensors for one sample and a few floats per
    channel. A tensor that was empty on every sample is left out.

    Raises `UsageError` without samples, for a name or axis there is not, or a sample that lacks
    an input; `ParityError` where a tensor holds NaN or Inf, or ONNX Runtime fails.
    """
    run = Taps(program, tuple(axes))
    watching = {
        name: ChannelObserver(*((along,) if isinstance(along, int) else along))
        for name, along in axes.items()
    }
    total, done = operator.length_hint(samples, 0), 0
    for sample in samples:
        values = run(sample, done)
        for name, seen in watching.items():
            if not seen.see(values.pop(name)):
                raise ParityError(
                    f"tensor {name!r} holds NaN or Inf on calibration sample {done}",
                    hint="check that sample, and the original model on it",
                )
        done += 1
        if progress is not None:
            progress(done, total)
    if done == 0:
        raise UsageError("no calibration samples", hint="save some with the model, or give --calib")
    found = {name: seen.statistics() for name, seen in watching.items()}
    return {name: stats for name, stats in found.items() if stats is not None}


def _squares(rows: Array) -> Array:
    wide = rows.astype(np.float64)
    wide *= wide
    total: Array = wide.sum(axis=1)
    return total
