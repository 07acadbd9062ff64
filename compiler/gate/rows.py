"""Cut calls into samples: the rows of the batch axis, which are independent of one another."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from npuc.errors import UsageError
from npuc.program import Tensors

Array = np.ndarray[Any, Any]


def counts(samples: Sequence[Tensors], answers: Sequence[Tensors]) -> list[int]:
    """Return how many samples each call holds.

    That is the size of the first axis where all inputs and outputs share it, else one: what is
    not cut along the batch may not be cut at all.
    """
    found = []
    for call, answer in zip(samples, answers, strict=True):
        sizes = {a.shape[0] if a.ndim else 0 for a in (*call.values(), *answer.values())}
        found.append(sizes.pop() if len(sizes) == 1 and 0 not in sizes else 1)
    return found


def agreement(
    name: str,
    samples: Sequence[Tensors],
    expected: Sequence[Tensors],
    got: Sequence[Tensors],
    ties: float,
) -> Array:
    """Return for every sample the share of its choices that are the original's, float64.

    Another choice is the same where the original's own value for it lies within `ties` of its best.
    """
    shares: list[Array] = []
    sizes = counts(samples, [{name: call[name]} for call in expected])
    for size, want, have in zip(sizes, expected, got, strict=True):
        same = _same(want[name], have[name], ties)
        shares.append(same.reshape(size, -1).mean(axis=1, dtype=np.float64))
    return np.concatenate(shares)


def _same(want: Array, have: Array, ties: float) -> Array:
    if want.dtype.kind in "biu":
        equal: Array = want == have
        return equal
    chosen = np.take_along_axis(want, have.argmax(axis=-1, keepdims=True), axis=-1)
    best = want.max(axis=-1, keepdims=True)
    near: Array = chosen.astype(np.float64) >= best.astype(np.float64) - ties
    return near


def singles(calls: Sequence[Tensors], sizes: Sequence[int]) -> list[Tensors]:
    """Cut calls into calls of one sample each, which keep their first axis."""
    return [
        call if size == 1 else {name: array[at : at + 1] for name, array in call.items()}
        for call, size in zip(calls, sizes, strict=True)
        for at in range(size)
    ]


Labels = Array | dict[str, Array] | None


def labels(arrays: Mapping[str, Array], sizes: Sequence[int], place: str) -> list[Labels]:
    """Deal labels out to calls: an array each, or a dict where there are several arrays.

    Their first axis counts samples over all calls, or it counts calls and the second their
    samples. Raises `UsageError` where they are more or fewer than the samples.
    """
    total, calls = sum(sizes), len(sizes)
    faults, dealt = [], {}
    for name, array in arrays.items():
        shape = array.shape
        if shape[:1] == (total,):
            dealt[name] = np.split(array, np.cumsum(sizes)[:-1])
        elif shape[:1] == (calls,) and shape[1:2] == (sizes[0],) and len(set(sizes)) == 1:
            dealt[name] = list(array)
        else:
            faults.append(f"{name} has shape {shape}")
    if faults or not dealt:
        listed = "; ".join(faults) or "it holds no array"
        raise UsageError(
            f"{place} does not hold labels for {total} samples (in {calls} calls): {listed}",
            hint=f"give each array a first axis of {total}, in the order of the samples",
        )
    if len(dealt) == 1:
        return list(next(iter(dealt.values())))
    return [{name: parts[at] for name, parts in dealt.items()} for at in range(calls)]
