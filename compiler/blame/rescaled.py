"""Compare programs of which one has its channels scaled or moved, as equalization leaves them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from npuc.blame.gaps import BORN, Cut, Gap, Golden
from npuc.program import Tensors
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]

STEPS = frozenset({"equalize", "center"})
"""Passes that give channels of a tensor another scale or offset, and undo it where it is read."""

FITS = 1e-9
"""Noise to signal up to which a tensor is another one with scaled or moved channels: -90 dB."""


def born(golden: Golden, theirs: Golden, cut: Cut, calls: Sequence[Tensors]) -> dict[str, Gap]:
    """Return what is born in each tensor apart from scale and offset of its channels.

    A tensor of the bad program that is the good one's with scaled or moved channels counts as
    right, and is what its readers are fed; `theirs` gives it.
    """
    part = cut.part(cut.names)
    runner = OnnxRunner(part, "born")
    needed = tuple(dict.fromkeys((*cut.names, *(p.name for p in part.inputs))))
    good = [dict(golden(call, needed)) for call in calls]
    bad = [dict(theirs(call, needed)) for call in calls]
    for name in needed:
        if all(name in found for found in (*good, *bad)):
            right, wrong = [f[name] for f in good], [f[name] for f in bad]
            if fitted(right, wrong).ratio <= FITS:
                for mine, other in zip(good, bad, strict=True):
                    mine[name] = other[name]
    plain = [golden(call, cut.names) for call in calls]
    got = [runner(found) for found in good]
    return {
        name: fitted([p[name] for p in plain], [g[name + BORN] for g in got], name)
        for name in cut.names
    }


def fitted(right: Sequence[Array], got: Sequence[Array], name: str = "") -> Gap:
    """Return how far `got` is from `right` with the best scale, or the best offset, per channel."""
    pairs = list(zip(right, got, strict=True))
    alike = all(r.shape == right[0].shape == g.shape for r, g in pairs)
    if right[0].dtype.kind != "f" or not alike:
        gap = Gap(name)
        for r, g in pairs:
            gap = gap.plus(r, g)
        return gap
    a, b = (np.stack(x).astype(np.float64) for x in (right, got))
    best = Gap(name).plus(a, b)
    for axis in range(1, a.ndim):
        if a.size // a.shape[axis] < 2:
            continue  # one value per channel fits anything
        others = tuple(i for i in range(a.ndim) if i != axis)
        power = (a * a).sum(others, keepdims=True)
        scale = np.where(
            power > 0, (a * b).sum(others, keepdims=True) / np.where(power, power, 1), 1
        )
        moved = (b - a).mean(others, keepdims=True)
        for candidate in (a * scale, a + moved):
            gap = Gap(name).plus(candidate, b)
            if gap.ratio < best.ratio:
                best = gap
    return best
