"""Say what is wrong with calibration data, and what that costs the answer."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from npuc.metrics import differences
from npuc.program import Program, Tensors
from npuc.quantization.observers import Observer
from npuc.quantization.ranges import Range, Ranges
from npuc.quantization.streaming import stream
from npuc.runners import OnnxRunner

OUTSIDE = 0.005
"""Share of a tensor's values outside its range above which calibration did not foresee them: an
observer that clips on purpose leaves less."""
UNUSED = 1 / 3
"""Held-out values that use less than this part of a range leave more than a bit unused."""
FELT = 1.0
"""dB below which an unforeseen range is not worth a word."""

Make = Callable[[Mapping[str, Range]], Program]


def of_calls(calls: Sequence[Tensors], program: Program) -> list[str]:
    """Say what is odd about calibration calls by themselves."""
    found = []
    if len(calls) == 1 and all(array.shape[:1] in ((), (1,)) for array in calls[0].values()):
        found.append("there is a single calibration sample: ranges are what it happens to hold")
    elif len(calls) > 1 and all(_same(calls[0], call) for call in calls[1:]):
        found.append(f"all {len(calls)} calibration samples are the same one")
    for port in program.inputs:
        first = calls[0][port.name].reshape(-1)[:1]
        if port.dtype.startswith("float") and all((c[port.name] == first).all() for c in calls):
            value = f"{first[0]:.4g}" if first.size else "empty"
            found.append(f"input {port.name!r} is constant ({value}) in all calibration samples")
    return found


def of_ranges(
    prepared: Program, ranges: Ranges, held_out: Sequence[Tensors], make: Make, oddities: list[str]
) -> list[str]:
    """Hold ranges against samples that calibration did not see; returns notes.

    `make` returns the integer program for given ranges. `oddities` (`of_calls`) are returned with
    what they cost: the distance from what ranges fitted to the held-out samples would give. Without
    them a cost below `FELT` is not noted, and not looked for where all values are foreseen.
    """
    if not held_out or not ranges:
        return [f"{text}; no other samples are here to tell what that costs" for text in oddities]
    fitted, outside = _held_out(prepared, ranges, held_out)
    oddities = [*oddities, *_dead(ranges, fitted)]
    unused = {
        name: _span(ends) / _span(ranges[name])
        for name, ends in fitted.items()
        if _span(ranges[name])
    }
    inputs = {port.name for port in prepared.inputs}
    # What the user can look at is named rather than what follows from it.
    widest = max(
        outside.items(), key=lambda i: (i[1] > OUTSIDE and i[0] in inputs, i[1]), default=("", 0.0)
    )
    least = min(
        unused.items(),
        key=lambda i: (i[1] >= UNUSED or i[0] not in inputs, i[1]),
        default=("", 1.0),
    )
    if not oddities and widest[1] <= OUTSIDE and least[1] >= UNUSED:
        return []
    cost = _worst(prepared, make({**ranges, **fitted}), held_out) - _worst(
        prepared, make(ranges), held_out
    )
    if math.isnan(cost) or (cost < FELT and not oddities):
        return []
    price = (
        f"ranges fitted to the held-out samples would give {cost:.1f} dB more"
        if cost >= FELT
        else "on the held-out samples it costs nothing"
    )
    found = [f"{text}; {price}" for text in oddities]
    if widest[1] > OUTSIDE and cost >= FELT:
        low, high = ranges[widest[0]]
        reach = "{:.4g} to {:.4g}".format(*fitted[widest[0]])
        found.append(
            f"{widest[1]:.1%} of the held-out values of {widest[0]!r} lie outside its calibrated "
            f"range {low:.4g} to {high:.4g} (they reach from {reach}) and are clipped: {price}; "
            "calibrate on data like that which the model will see"
        )
    elif least[1] < UNUSED and cost >= FELT:
        low, high = ranges[least[0]]
        reach = "{:.4g} to {:.4g}".format(*fitted[least[0]])
        found.append(
            f"the held-out values of {least[0]!r} reach from {reach} and use {least[1]:.1%} of its "
            f"calibrated range {low:.4g} to {high:.4g}: {price}; calibrate on data like that "
            "which the model will see"
        )
    return found


class _Inside(Observer):
    """Also counts the values outside a range."""

    def __init__(self, span: Range) -> None:
        super().__init__(bins=False)
        # Quantization widens a range to hold zero, and rounds the outermost half step inwards.
        self.span = min(span[0], 0.0), max(span[1], 0.0)
        self.total = self.outside = 0

    def digest(self, values: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> "_Inside":
        """Count one array; NaN and Inf count as outside."""
        found = _Inside(self.span)
        finite = values[np.isfinite(values)]
        found.low = float(finite.min(initial=np.inf))
        found.high = float(finite.max(initial=-np.inf))
        inside = (values >= self.span[0]) & (values <= self.span[1])
        found.total, found.outside = values.size, values.size - int(inside.sum())
        return found

    def merge(self, other: Observer) -> None:
        """Add up."""
        assert isinstance(other, _Inside)
        super().merge(other)
        self.total += other.total
        self.outside += other.outside


def _held_out(
    prepared: Program, ranges: Ranges, calls: Sequence[Tensors]
) -> tuple[dict[str, Range], dict[str, float]]:
    """Return the range of every tensor on these calls, and the share outside `ranges`."""
    known = {v.name for node in prepared.model.graph for v in node.outputs}
    known |= {port.name for port in prepared.inputs}
    watching = {name: _Inside(ranges[name]) for name in ranges if name in known}
    stream(prepared, calls, watching)
    fitted = {n: (w.low, w.high) for n, w in watching.items() if w.low <= w.high}
    return fitted, {n: w.outside / w.total for n, w in watching.items() if w.total}


def _dead(ranges: Ranges, fitted: Mapping[str, Range]) -> list[str]:
    """Say which tensors calibration never saw anything of."""
    found = [n for n, ends in fitted.items() if tuple(ranges[n]) == (0, 0) and any(ends)]
    if not found:
        return []
    names = ", ".join(map(repr, found[:3])) + (f" and {len(found) - 3} more" * (len(found) > 3))
    return [
        f"always zero in calibration, but not on the held-out samples: {names}; what reads them "
        "stays in float"
    ]


def _worst(original: Program, quantized: Program, calls: Sequence[Tensors]) -> float:
    """Return the SQNR in dB of the worst output."""
    runners = OnnxRunner(original), OnnxRunner(quantized)
    expected, got = ([runner(call) for call in calls] for runner in runners)
    found = [d.sqnr_db for d in differences(expected, got) if not d.integer]
    return min(found, default=math.nan)


def _span(ends: Range) -> float:
    return max(ends[1], 0.0) - min(ends[0], 0.0)


def _same(one: Tensors, other: Tensors) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)
