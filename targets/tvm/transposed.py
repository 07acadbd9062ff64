"""A transposed convolution as plain ones: each computes the output pixels of one phase.

With stride s, output o gathers the taps t with t ≡ o + pad (mod s) only; the others would meet the
zeros that spreading the input puts between its values. So s² small filters do the work of one big
one, and nothing is spread.
"""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from npuc.targets.tvm.graph import Array
from npuc.targets.tvm.staging import Geometry, Place


@dataclass(frozen=True, slots=True)
class Phase:
    """A plain convolution over the whole input, its filters, and where its outputs go."""

    geometry: Geometry
    filters: Array


def phases(g: Geometry, filters: Array) -> list[Phase] | None:
    """Cut a spread convolution (`convolution._geometry`) up; None where that cannot be done.

    `filters` are [out, in / groups, height, width], turned by 180° already.
    """
    if g.dilation != (1, 1) or g.spread == (1, 1):
        return None
    rows = _axis(g.kernel[0], g.spread[0], g.pads[0], g.height, g.out_h)
    columns = _axis(g.kernel[1], g.spread[1], g.pads[1], g.width, g.out_w)
    if rows is None or columns is None:
        return None
    result = []
    for row, column in product(rows, columns):
        own = filters[:, :, row.taps[:, None], column.taps]
        geometry = replace(
            g,
            kernel=(len(row.taps), len(column.taps)),
            spread=(1, 1),
            pads=(row.pads[0], column.pads[0], row.pads[1], column.pads[1]),
            place=Place(g.out_h, g.out_w, g.spread, (row.first, column.first)),
        )
        if geometry.staged and min(geometry.pads) < 0:
            return None
        result.append(Phase(geometry, np.ascontiguousarray(own)))
    return result


@dataclass(frozen=True, slots=True)
class _Part:
    """One axis of a phase: the turned filter's taps, the pads, and the first output."""

    taps: Array
    pads: tuple[int, int]
    first: int


def _axis(size: int, step: int, before: int, length: int, out: int) -> list[_Part] | None:
    pad = size - 1 - before
    result = []
    for phase in range(step):
        count = -(-(size - phase) // step)
        first = (phase - pad) % step
        outputs = -(-(out - first) // step)
        if count < 1:
            # No tap belongs to these outputs: they are biases alone.
            return None
        if outputs < 1:
            continue
        taps = size - 1 - phase - step * (count - 1 - np.arange(count))
        start = count - 1 - (first + pad - phase) // step
        result.append(_Part(taps, (start, outputs - 1 + count - length - start), first))
    return result
