"""Choose the channels' factors that cost least when the tensors are coded."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from npuc.passes.equalization.noise import Coded, Term, Weighted, tensors
from npuc.profile import IntScheme

Array = np.ndarray[Any, Any]

STRENGTHS = tuple(k / 8 for k in range(9))
"""From 0, all weights of a column one size, to 1, all channels of a tensor one size."""
SWEEPS = 2
"""How often each group is chosen again given the others'; a third changes nothing that counts."""
MOST = 1e4
"""A channel is scaled at most this far from the middle of its group: what is nearly silent on the
calibration samples may speak later."""


def choose(terms: Sequence[tuple[Term, bool]], count: int, scheme: IntScheme) -> Array:
    """Return log s for every factor number.

    Per group of channels that are coded together, s = peak^a · (max|w|)^(a-1) with one strength
    a (SmoothQuant, Xiao et al. 2023; for a = 1/2 and two weights the cross-layer equalization of
    Nagel et al. 2019), and the strength that `noise` says costs least.
    """
    logs, weight = _average(terms, count)
    group = _groups(terms, count)
    logs = _centred(logs, weight > 0, group)
    peaks = logs.copy()
    touching: dict[int, list[tuple[Term, bool]]] = {}
    for item in terms:
        for number in np.unique(np.concatenate([group[c.roots] for c in _touched(item[0])])):
            touching.setdefault(int(number), []).append(item)
    members = {int(g): np.flatnonzero(group == g) for g in np.unique(group) if g}
    for _ in range(SWEEPS):
        for number, inside in members.items():
            near = touching.get(number, [])
            wants, known = _weights(near, count, logs)
            both = known[inside] & (weight[inside] > 0)
            if not both.any():
                continue
            best = (np.inf, logs[inside])
            shift = np.median(peaks[inside][both] + wants[inside][both])
            flat = np.where(known[inside], shift - wants[inside], peaks[inside])
            full = np.where(weight[inside] > 0, peaks[inside], flat)
            for strength in STRENGTHS:
                logs[inside] = strength * full + (1 - strength) * flat
                cost = sum(term.noise(logs, scheme, channel) for term, channel in near)
                best = min(best, (cost, logs[inside]), key=lambda pair: pair[0])
            logs[inside] = best[1]
    return logs


def _average(terms: Sequence[tuple[Term, bool]], count: int) -> tuple[Array, Array]:
    """Return the mean over the tensors that are coded of log peak, and in how many each occurs."""
    total, times = np.zeros(count), np.zeros(count)
    for term, _ in terms:
        for tensor in tensors(term):
            peak = np.maximum(-tensor.low, tensor.high)
            some = (peak > 0) & (tensor.roots > 0)
            np.add.at(total, tensor.roots[some], np.log(peak[some]) * tensor.signs[some])
            np.add.at(times, tensor.roots[some], 1)
    return total / np.maximum(times, 1), times


def _weights(terms: Sequence[tuple[Term, bool]], count: int, logs: Array) -> tuple[Array, Array]:
    """Return the mean of log max|w| over the columns that read each channel, and where one does.

    A column that is alone with its scale, as in a depthwise convolution, wants nothing.
    """
    total, times = np.zeros(count), np.zeros(count)
    for term, channel in terms:
        if isinstance(term, Weighted) and (term.norms.shape[1] > 1 or not channel):
            wants = term.wants(logs)
            some = np.isfinite(wants) & (term.data.roots > 0)
            np.add.at(total, term.data.roots[some], wants[some] * term.data.signs[some])
            np.add.at(times, term.data.roots[some], 1)
    return total / np.maximum(times, 1), times > 0


def _centred(logs: Array, known: Array, group: Array) -> Array:
    """Let each group's factors be 1 in the middle: what all have in common changes nothing."""
    out = logs.copy()
    for number in np.unique(group):
        inside = (group == number) & known
        if number and inside.any():
            middle = np.median(logs[inside])
            limit = np.log(MOST)
            out[inside] = np.clip(logs[inside] - middle, -limit, limit)
    out[0] = 0.0
    return out


def _groups(terms: Sequence[tuple[Term, bool]], count: int) -> Array:
    """Number the factors so that those which occur in one coded tensor have one number, 0 held."""
    group = np.arange(count)
    sets = [np.unique(t.roots[t.roots > 0]) for term, _ in terms for t in tensors(term)]
    changed = True
    while changed:
        changed = False
        for inside in sets:
            if inside.size:
                least = group[inside].min()
                if (group[inside] != least).any():
                    group[np.isin(group, group[inside])] = least
                    changed = True
    used = np.zeros(count, bool)
    for inside in sets:
        used[inside] = True
    return np.where(used, group, 0)


def _touched(term: Term) -> tuple[Coded, ...]:
    return (term.data, term.out) if isinstance(term, Weighted) else tensors(term)
