"""Choose the channels' factors that cost least when the tensors are coded."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from npuc.passes.equalization.noise import Coded, Term, Weighted, tensors
from npuc.profile import IntScheme

Array = np.ndarray[Any, Any]

STRENGTHS = tuple(k / 8 for k in range(9))
"""From 0, all weights of a column one size, to 1, all channels of a tensor one size."""
SWEEPS = 2
"""How often each group is chosen again given the others'; a third changes nothing that counts."""
MOST = float(np.log(1e4))
"""A channel is scaled at most this far, in logarithms, from the middle of its group: what is
nearly silent on the calibration samples may speak later."""


@dataclass(frozen=True, slots=True)
class _Wish:
    """Channels that would be one size: log sizes, each with its factor's number and sign."""

    roots: Array
    signs: Array
    sizes: Array


def choose(terms: Sequence[tuple[Term, bool]], count: int, scheme: IntScheme) -> Array:
    """Return log s for every factor number.

    Per group of channels that are coded together, s = peak^a · (max|w|)^(a-1) with one strength
    a (SmoothQuant, Xiao et al. 2023; for a = 1/2 and two weights the cross-layer equalization of
    Nagel et al. 2019), and the strength that `noise` says costs least. Where all channels of a
    network are scaled at will, keeping its function, the network that comes out is the same.
    """
    group = _groups(terms, count)
    full, heard = _fitted([_peaks(t) for term, _ in terms for t in tensors(term)], group)
    made = _fitted([_power(t.out) for t, _ in terms if isinstance(t, Weighted)], group)
    full, heard = _completed(full, heard, *made, group)
    logs = full.copy()
    touching: dict[int, list[tuple[Term, bool]]] = {}
    for item in terms:
        for number in np.unique(np.concatenate([group[c.roots] for c in _touched(item[0])])):
            touching.setdefault(int(number), []).append(item)
    for _ in range(SWEEPS):
        for number in np.unique(group[group > 0]):
            near = touching[int(number)]
            wishes = [_weights(term, logs) for term, own in near if _shares(term, own)]
            flat, read = _fitted(wishes, np.where(group == number, group, 0))
            inside = np.flatnonzero((group == number) & (heard | read))
            _choose_strength(logs, inside, _ends(full, flat, heard, read, inside), near, scheme)
    return logs


def _choose_strength(
    logs: Array,
    inside: Array,
    ends: tuple[Array, Array],
    near: Sequence[tuple[Term, bool]],
    scheme: IntScheme,
) -> None:
    """Set `logs` of one group to what costs least of what they are and all strengths."""
    full, flat = ends
    mixed = [strength * full + (1 - strength) * flat for strength in STRENGTHS]
    best, least = logs[inside], np.inf
    for candidate in (logs[inside], *mixed):
        logs[inside] = candidate
        cost = sum(term.noise(logs, scheme, own) for term, own in near)
        if cost < least:
            best, least = candidate, cost
    logs[inside] = best


def _ends(
    full: Array, flat: Array, heard: Array, read: Array, inside: Array
) -> tuple[Array, Array]:
    """Return the logs of one group for strength 1 and 0.

    Channels that were silent, and those that no column of weights shares, have one of them.
    """
    both = inside[heard[inside] & read[inside]]
    apart = float(np.median(full[both] - flat[both])) if both.size else 0.0
    level = flat[inside] + apart
    loud = np.where(heard[inside], full[inside], level)
    quiet = np.where(read[inside], level, full[inside])
    return np.clip(loud, -MOST, MOST), np.clip(quiet, -MOST, MOST)


def _completed(
    full: Array, heard: Array, made: Array, known: Array, group: Array
) -> tuple[Array, Array]:
    """Give channels that were silent where they are coded the size they were made with.

    A Relu may keep a channel silent on all samples; its weights have a size all the same, and other
    weights are compared with them.
    """
    out = full.copy()
    for number in np.unique(group[group > 0]):
        inside = group == number
        both, silent = inside & heard & known, inside & ~heard & known
        out[silent] = made[silent] + (np.median((full - made)[both]) if both.any() else 0.0)
    return np.clip(out, -MOST, MOST), heard | (known & (group > 0))


def _peaks(tensor: Coded) -> _Wish:
    """Say that the channels of a coded tensor would have one peak."""
    peaks = np.maximum(-tensor.low, tensor.high)
    some = peaks > 0
    return _Wish(tensor.roots[some], tensor.signs[some], np.log(peaks[some]))


def _power(tensor: Coded) -> _Wish:
    """Say that the channels of a product would have one mean square."""
    some = tensor.square > 0
    return _Wish(tensor.roots[some], tensor.signs[some], np.log(tensor.square[some]) / 2)


def _weights(term: Term, logs: Array) -> _Wish:
    """Say that the columns of a weight would have one peak: factors multiply them."""
    assert isinstance(term, Weighted)
    wants = term.wants(logs)
    some = np.isfinite(wants)
    return _Wish(term.data.roots[some], term.data.signs[some], -wants[some])


def _shares(term: Term, own: bool) -> bool:
    """Whether columns of a weight share a scale; each has its own in a depthwise convolution."""
    return isinstance(term, Weighted) and (term.norms.shape[1] > 1 or not own)


def _fitted(wishes: Iterable[_Wish], group: Array) -> tuple[Array, Array]:
    """Return the log s that fulfil wishes best, and for which numbers there was one.

    Least squares of sign·log s - (size - m), m one free number per wish: that of the largest held
    channel where some are, since the others may fill the range that these need. A group without
    held channels is centred, which changes nothing.
    """
    found, known = np.zeros(group.size), np.zeros(group.size, bool)
    sets: dict[int, list[_Wish]] = {}
    for wish in wishes:
        free = group[wish.roots] > 0
        if free.any():
            sets.setdefault(int(group[wish.roots][free][0]), []).append(wish)
    for number, members in sets.items():
        inside = np.flatnonzero(group == number)
        place = np.full(group.size, -1)
        place[inside] = np.arange(inside.size)
        logs, times, anchored = _solved(members, place, inside.size)
        if not anchored:
            logs = np.where(times > 0, logs - np.median(logs[times > 0]), 0.0)
        found[inside], known[inside] = np.clip(logs, -MOST, MOST), times > 0
    return found, known


def _solved(wishes: Sequence[_Wish], place: Array, size: int) -> tuple[Array, Array, bool]:
    """Return log s of one group, in how many wishes each occurs, and whether one was anchored."""
    signs, sums = np.zeros((size, len(wishes))), np.zeros((size, len(wishes)))
    times, counts, totals = np.zeros(size), np.zeros(len(wishes)), np.zeros(len(wishes))
    anchors: dict[int, float] = {}
    for column, wish in enumerate(wishes):
        at = place[wish.roots]
        free = at >= 0
        np.add.at(signs[:, column], at[free], wish.signs[free])
        np.add.at(sums[:, column], at[free], wish.signs[free] * wish.sizes[free])
        np.add.at(times, at[free], 1)
        counts[column], totals[column] = free.sum(), wish.sizes[free].sum()
        if not free.all():
            anchors[column] = float(wish.sizes[~free].max())
    each = np.maximum(times, 1)[:, None]
    # Without s, which is the mean of sign·(size - m): one equation per wish in the m alone.
    left = np.diag(counts) - signs.T @ (signs / each)
    right = totals - signs.T @ (sums.sum(axis=1, keepdims=True) / each)[:, 0]
    for column, level in anchors.items():
        left[column], right[column] = np.eye(len(wishes))[column], level
    levels = np.linalg.lstsq(left, right, rcond=None)[0]
    return (sums.sum(axis=1) - signs @ levels) / each[:, 0], times, bool(anchors)


def _groups(terms: Sequence[tuple[Term, bool]], count: int) -> Array:
    """Number the factors so that those which occur in one coded tensor have one number, 0 held."""
    group, used = np.arange(count), np.zeros(count, bool)
    sets = [np.unique(t.roots[t.roots > 0]) for term, _ in terms for t in tensors(term)]
    sets = [inside for inside in sets if inside.size]
    changed = True
    while changed:
        changed = False
        for inside in sets:
            least = group[inside].min()
            if (group[inside] != least).any():
                group[np.isin(group, group[inside])] = least
                changed = True
    for inside in sets:
        used[inside] = True
    return np.where(used, group, 0)


def _touched(term: Term) -> tuple[Coded, ...]:
    return (term.data, term.out) if isinstance(term, Weighted) else tensors(term)
