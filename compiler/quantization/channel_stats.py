"""What each channel of a tensor holds over the calibration samples: peak, ends, mean, power."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from npuc.errors import UsageError
from npuc.program import Program, Tensors
from npuc.quantization.checkpoint import Checkpoint
from npuc.quantization.streaming import stream

Array = np.ndarray[Any, Any]
BLOCK = 8192
"""Values that are summed up in float32: BLAS would give more of them to several threads, and round
by how many there are."""


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

    def divided(self, by: Array) -> "ChannelStatistics":
        """Return the statistics of a tensor each of whose channels is divided by a factor > 0."""
        ends = self.low / by, self.high / by
        return ChannelStatistics(*ends, self.mean / by, self.square / by**2, self.count)

    def less(self, offset: Array) -> "ChannelStatistics":
        """Return the statistics of a tensor from whose channels an offset was subtracted."""
        ends = self.low - offset, self.high - offset
        square = self.square - 2 * offset * self.mean + offset**2
        return ChannelStatistics(*ends, self.mean - offset, square, self.count)


def packed(found: Mapping[str, ChannelStatistics]) -> dict[str, Array]:
    """Return statistics as one array for each tensor (see `unpacked`)."""
    return {
        name: np.stack([s.low, s.high, s.mean, s.square, np.full(s.low.shape, float(s.count))])
        for name, s in found.items()
    }


def unpacked(arrays: Mapping[str, Array]) -> dict[str, ChannelStatistics]:
    """Return the statistics that `packed` wrote, to the last bit."""
    found = {}
    for name, (low, high, mean, square, counts) in arrays.items():
        found[name] = ChannelStatistics(low, high, mean, square, int(counts[0]))
    return found


class ChannelMeans:
    """Watches the mean of each channel of one tensor; the same bits as `ChannelObserver`'s."""

    def __init__(self, *axes: int) -> None:
        self.axes = axes
        self.count = 0
        self._sums: Array = np.zeros(0)

    def digest(self, values: Array) -> "ChannelMeans | None":
        """Return an observer of one array alone; None where it has NaN or Inf."""
        rows, found = _rows(values, self.axes), ChannelMeans(*self.axes)
        if rows.size:
            found.count, found._sums = rows.shape[1], _sums(rows)
        return found if np.isfinite(found._sums).all() else None

    def merge(self, other: "ChannelMeans") -> None:
        """Take in all that another observer saw, after what this one saw."""
        if other.count:
            _same_channels(self.axes, other._sums.size, self._sums.size if self.count else None)
            self._sums = self._sums + other._sums if self.count else other._sums
            self.count += other.count

    def state(self) -> Mapping[str, Array]:
        """Return all that was seen, as arrays."""
        return {"sums": self._sums, "count": np.array([self.count])}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on from what `state` returned."""
        self._sums, self.count = state["sums"], int(state["count"][0])

    def mean(self) -> Array | None:
        """Return the mean of each channel; None where no value was seen."""
        return self._sums / self.count if self.count else None


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
        found = self.digest(values)
        if found is None:
            return False
        self.merge(found)
        return True

    def digest(self, values: Array) -> "ChannelObserver | None":
        """Return an observer of one array alone; None where it has NaN or Inf."""
        rows, found = _rows(values, self.axes), ChannelObserver(*self.axes)
        if rows.size == 0:
            return found
        low, high = rows.min(axis=1).astype(np.float64), rows.max(axis=1).astype(np.float64)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            return None
        found.count, found._ends = rows.shape[1], [low, high]
        found._sums = [_sums(rows), _squares(rows)]
        return found

    def merge(self, other: "ChannelObserver") -> None:
        """Take in all that another observer saw, after what this one saw.

        Raises `UsageError` where it saw another number of channels.
        """
        if not other.count:
            return
        low, high, *sums = *other._ends, *other._sums
        if self.count:
            _same_channels(self.axes, low.size, self._ends[0].size)
            low, high = np.minimum(low, self._ends[0]), np.maximum(high, self._ends[1])
            sums = [old + new for old, new in zip(self._sums, sums, strict=True)]
        self._ends, self._sums = [low, high], sums
        self.count += other.count

    def state(self) -> Mapping[str, Array]:
        """Return all that was seen, as arrays."""
        rows = np.stack([*self._ends, *self._sums]) if self.count else np.zeros((4, 0))
        return {"rows": rows, "count": np.array([self.count])}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on from what `state` returned."""
        self.count = int(state["count"][0])
        rows = list(state["rows"]) if self.count else []
        self._ends, self._sums = rows[:2], rows[2:]

    def statistics(self) -> ChannelStatistics | None:
        """Return what was seen; None where no value was."""
        if not self.count:
            return None
        mean, square = (total / self.count for total in self._sums)
        low, high = self._ends
        return ChannelStatistics(low, high, mean, square, self.count)


class Spare:
    """Watches a tensor that nobody may ask for: nothing that it holds is an error.

    One that held NaN or Inf, or another number of channels than before, has no statistics.
    """

    def __init__(self, *axes: int, seen: ChannelObserver | None = None) -> None:
        self.seen: ChannelObserver = seen or ChannelObserver(*axes)
        self.odd = False

    def digest(self, values: Array) -> "Spare":
        """Return a watcher of one array alone."""
        seen = self.seen.digest(values)
        found = Spare(*self.seen.axes, seen=seen)
        found.odd = seen is None
        return found

    def merge(self, other: "Spare") -> None:
        """Take in all that another saw, after what this one saw."""
        self.odd = self.odd or other.odd
        try:
            self.seen.merge(other.seen)
        except UsageError:  # said to whoever asks for it
            self.odd = True

    def state(self) -> Mapping[str, Array]:
        """Return all that was seen, as arrays."""
        return {**self.seen.state(), "odd": np.array([self.odd])}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on from what `state` returned."""
        self.seen.restore(state)
        self.odd = bool(state["odd"][0])

    def statistics(self) -> ChannelStatistics | None:
        """Return what was seen; None where no value was, or an odd one."""
        return None if self.odd else self.seen.statistics()


def collect(
    program: Program,
    samples: Iterable[Tensors],
    axes: Mapping[str, int | tuple[int, ...]],
    *,
    progress: Callable[[int, int], None] | None = None,
    forecast: Callable[[str], None] | None = None,
    checkpoint: Checkpoint | None = None,
    spare: bool = False,
) -> dict[str, ChannelStatistics]:
    """Observe the channels of tensors: name → axis or axes of its channels (negative from the end).

    One pass, in the order of the samples: the same samples give the same bits. Inputs of the
    program may be named. Memory is the program, its tensors for one sample and a few floats per
    channel. A tensor that was empty on every sample is left out; where all are `spare`, so is one
    that holds NaN or Inf, or has other channels on another sample.

    Raises `UsageError` without samples, for a name or axis there is not, or a sample that lacks
    an input; `ParityError` where a tensor holds NaN or Inf, or ONNX Runtime fails.
    """
    watch = Spare if spare else ChannelObserver
    watching = {
        name: watch(*((along,) if isinstance(along, int) else along))
        for name, along in axes.items()
    }
    stream(program, samples, watching, progress=progress, forecast=forecast, checkpoint=checkpoint)
    found = {name: seen.statistics() for name, seen in watching.items()}
    return {name: stats for name, stats in found.items() if stats is not None}


def means(
    program: Program,
    samples: Iterable[Tensors],
    axes: Mapping[str, int],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Array]:
    """Return the mean of each channel of tensors, float64, as `collect` finds it in more time.

    Raises as `collect` does.
    """
    watching = {name: ChannelMeans(along) for name, along in axes.items()}
    stream(program, samples, watching, progress=progress)
    found = {name: seen.mean() for name, seen in watching.items()}
    return {name: mean for name, mean in found.items() if mean is not None}


def _rows(values: Array, axes: tuple[int, ...]) -> Array:
    """Return a tensor with one row per channel; raises `UsageError` where it has no such axis."""
    if missing := [axis for axis in axes if not -values.ndim <= axis < values.ndim]:
        raise UsageError(f"a tensor of shape {values.shape} has no axis {missing[0]}")
    channels = math.prod(values.shape[axis] for axis in axes)
    first = np.moveaxis(values, axes, range(len(axes)))
    return first.reshape(channels, -1 if values.size else 0)


def _same_channels(axes: tuple[int, ...], now: int, before: int | None) -> None:
    if before not in (None, now):
        raise UsageError(f"axes {axes}: {now} channels; before it had {before}")


def _sums(rows: Array) -> Array:
    """Return the sum of each row, float64."""
    if rows.dtype == np.float32:
        found = _dots(rows)
        if np.isfinite(found).all():
            return found
    return np.asarray(rows.sum(axis=1, dtype=np.float64))


def _squares(rows: Array) -> Array:
    """Return the sum of squares of each row, float64."""
    if rows.dtype == np.float32:
        found = _dots(rows, rows)
        if np.isfinite(found).all():  # a square may be beyond float32
            return found
    wide = rows.astype(np.float64)
    wide *= wide
    return np.asarray(wide.sum(axis=1))


def _dots(rows: Array, others: Array | None = None) -> Array:
    """Return each row's dot product with another's, or with ones, block by block in float32.

    A tenth of the time of float64. BLAS adds up many lanes apart, each of some hundred values at
    most: 1e-5 of the sum of magnitudes at the very worst, 1e-7 for values at random.
    """
    total = np.zeros(len(rows))
    ones = np.ones(min(BLOCK, rows.shape[1]), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # seen in the result
        for at in range(0, rows.shape[1], BLOCK):
            part = rows[:, at : at + BLOCK]
            other = ones[: part.shape[1]] if others is None else others[:, at : at + BLOCK]
            total += np.vecdot(part, other)
    return total
