"""Top-1 and top-k accuracy, with ties judged on values."""

from collections.abc import Sequence

import numpy as np

from npuc.errors import UsageError
from npuc.program import Tensors
from npuc.tasks.measured import Array, Labels, Scores, alike, only, pick, truth


def measure(
    reference: Sequence[Tensors],
    candidate: Sequence[Tensors],
    labels: Sequence[Labels],
    *,
    scores: str = "",
    k: int = 1,
    ties: float = 0.0,
) -> Scores:
    """Score each sample by whether its class is among the k best, 1 or 0 (`credit` for ties).

    `scores` names the output: float (..., classes), or integers that are classes. By default the
    only float output. Several positions of one sample (tokens, cells) make one score, their mean.
    Labels are class numbers, one a position; negative ones are left out. Without labels the
    original's best class is the truth, and any class within `ties` of it.
    """
    name = scores or only(reference[0], "f", "scores")
    before, after = pick(reference, name), pick(candidate, name)
    alike(before, after, name)
    found = np.array(
        [
            _sample(ref, got, label, k, ties, at)
            for at, (ref, got, label) in enumerate(zip(before, after, labels, strict=True))
        ]
    )
    return Scores(found[:, 0], found[:, 1])


def _sample(
    ref: Array, got: Array, label: Labels, k: int, ties: float, at: int
) -> tuple[float, float]:
    if label is None:
        if ref.dtype.kind != "f":
            return 1.0, float((ref == got).mean())
        ref, got = (a.astype(np.float64).reshape(-1, a.shape[-1]) for a in (ref, got))
        chosen = ref >= ref.max(axis=-1, keepdims=True) - ties
        return 1.0, float(_any_of(chosen, got, k).mean())
    wanted = truth(label, "classification").astype(np.int64).ravel()
    places = ref.size // ref.shape[-1] if ref.dtype.kind == "f" and ref.ndim else ref.size
    if wanted.size != places:
        raise UsageError(f"sample {at} has {places} answers and {wanted.size} labels")
    kept = wanted >= 0
    if not kept.any():
        raise UsageError(f"sample {at} has no label that is not negative")
    if ref.dtype.kind != "f":
        first, second = (float((a.ravel() == wanted)[kept].mean()) for a in (ref, got))
        return first, second
    if wanted.max() >= ref.shape[-1]:
        raise UsageError(f"sample {at} is of class {wanted.max()}; scores are for {ref.shape[-1]}")
    rows = [a.astype(np.float64).reshape(-1, a.shape[-1])[kept] for a in (ref, got)]
    first, second = (float(credit(row, wanted[kept], k).mean()) for row in rows)
    return first, second


def credit(scores: Array, wanted: Array, k: int = 1) -> Array:
    """Return for each row of scores (rows, classes) the chance that `wanted` is among its k best.

    That is 1 or 0 but where classes tie for the last places: those are shared, so that the order of
    classes does not matter and a model that answers all alike scores k/classes, not 1. A row with
    NaN scores 0.
    """
    own = np.take_along_axis(scores, wanted[:, None], axis=1)
    better, same = (scores > own).sum(axis=1), (scores == own).sum(axis=1)
    found = np.clip((k - better) / np.maximum(same, 1), 0, 1)
    return np.where(np.isnan(scores).any(axis=1), 0.0, found)


def _any_of(chosen: Array, scores: Array, k: int) -> Array:
    """Return the chance that the k best of each row contain one that is `chosen`; a bound if k > 1.

    For k = 1 picks exclude one another and chances add up; for more their sum is cut at 1.
    """
    rows, classes = np.nonzero(chosen)
    found = np.zeros(len(scores))
    np.add.at(found, rows, credit(scores[rows], classes, k))
    return np.minimum(found, 1.0)
