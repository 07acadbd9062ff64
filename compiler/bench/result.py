"""What a benchmark found, as values and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from npuc.jsonable import plain

SCHEMA = "npuc-bench-1"


@dataclass(frozen=True, slots=True)
class Times:
    """One side's calls. Seconds of wall time per call in `calls`; `cpu` of all threads per call.

    `cpu` is the least mean of a block of calls, since a process's CPU time has no finer grain.
    """

    calls: tuple[float, ...]
    cpu: float

    def percentile(self, share: float) -> float:
        """Return the nearest-rank percentile in seconds, `share` in (0, 1]."""
        ordered = sorted(self.calls)
        return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)]

    @property
    def least(self) -> float:
        """The fastest call in seconds."""
        return min(self.calls)


@dataclass(frozen=True, slots=True)
class Side:
    """One runtime: the artifact's own is the first. `why` says why it was not run, else "".

    `peak_bytes` is the high-water mark of a fresh process's resident memory, `model_bytes` what of
    it came after the runtime's own libraries. `difference` is the largest distance of an output
    from the artifact's, as a share of the artifact's largest value.
    """

    name: str
    what: str
    times: Times | None = None
    peak_bytes: int | None = None
    model_bytes: int | None = None
    difference: float | None = None
    why: str = ""


Arithmetic = Literal["float32", "bfloat16", "integer"]
"""What a kernel multiplies: floats, pairs of bfloat16, or 8-bit codes."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """What this machine does at most on the threads used: operations and bytes per second."""

    float32: float
    bfloat16: float
    integer: float
    bandwidth: float

    def of(self, arithmetic: Arithmetic) -> float:
        """Return the operations per second of one arithmetic."""
        rates = {"float32": self.float32, "bfloat16": self.bfloat16, "integer": self.integer}
        return rates[arithmetic]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel call. `operators` are the program's that it computes, as "Kind name".

    `seconds` is the least of several runs; `operations` counts two per multiply-add, and is 0 for
    what is no product; `bytes` is the size of all its tensors.
    """

    name: str
    seconds: float
    operations: int
    bytes: int
    arithmetic: Arithmetic
    operators: tuple[str, ...]

    def share_of_peak(self, peaks: Peaks) -> float | None:
        """Return the share of the arithmetic peak that is reached; None for what is no product."""
        rate = self.operations / self.seconds
        return rate / peaks.of(self.arithmetic) if self.operations else None


@dataclass(frozen=True, slots=True)
class Bench:
    """A whole benchmark of one artifact."""

    artifact: str
    model: str
    target: str
    precision: str
    threads: int
    batch: int
    cpu: str
    sides: tuple[Side, ...]
    peaks: Peaks | None = None
    kernels: tuple[Kernel, ...] = ()
    notes: tuple[str, ...] = ()
    weight_bytes: int = 0

    @property
    def own(self) -> Side:
        """The artifact's own side."""
        return self.sides[0]

    def ratio(self, side: Side) -> tuple[float, float] | None:
        """Return the artifact's time over a side's, (of medians, of minima); None if not run."""
        own, other = self.own.times, side.times
        if own is None or other is None or side is self.own:
            return None
        return own.percentile(0.5) / other.percentile(0.5), own.least / other.least

    @property
    def operations(self) -> int:
        """Operations of the products of one call."""
        return sum(kernel.operations for kernel in self.kernels)

    def reached(self) -> Mapping[str, float]:
        """Return what a call reaches: shares of the arithmetic peak and of memory bandwidth.

        The first is the time its products would take at the peak over the median call; the second
        the time that its weights take to be read from memory, once, over the same.
        """
        if self.peaks is None or self.own.times is None or not self.operations:
            return {}
        median = self.own.times.percentile(0.5)
        ideal = sum(kernel.operations / self.peaks.of(kernel.arithmetic) for kernel in self.kernels)
        memory = self.weight_bytes / self.peaks.bandwidth
        return {"arithmetic": ideal / median, "bandwidth": memory / median}

    def to_json(self) -> dict[str, Any]:
        """Return all of it in JSON types, with percentiles and ratios worked out."""
        return {
            "schema": SCHEMA,
            **{
                name: plain(getattr(self, name))
                for name in ("artifact", "model", "target", "precision", "threads", "batch", "cpu",
                             "weight_bytes", "peaks")
            },
            "notes": list(self.notes),
            "reached": dict(self.reached()),
            "sides": [self._side(side) for side in self.sides],
            "kernels": [plain(kernel) for kernel in self.kernels],
        }  # fmt: skip

    def _side(self, side: Side) -> dict[str, Any]:
        data = {k: plain(getattr(side, k)) for k in side.__dataclass_fields__ if k != "times"}
        if side.times is not None:
            data["seconds"] = {
                "min": side.times.least,
                **{f"p{share}": side.times.percentile(share / 100) for share in (50, 90, 99)},
                "cpu": side.times.cpu,
            }
            data["calls"] = len(side.times.calls)
            data["per_second"] = self.batch / side.times.percentile(0.5)
            ratio = self.ratio(side)
            data["ratio"] = None if ratio is None else {"p50": ratio[0], "min": ratio[1]}
        return data


def worst_first(kernels: Sequence[Kernel]) -> list[Kernel]:
    """Return calls of kernels by their time, the longest first."""
    return sorted(kernels, key=lambda kernel: -kernel.seconds)
