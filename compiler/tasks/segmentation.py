"""Mean intersection over union, from logits or label maps."""

import math
from collections.abc import Sequence

import numpy as np

from npuc.errors import UsageError
from npuc.program import Tensors
from npuc.tasks.measured import Array, Corpus, Labels, alike, only, pick, truth


def measure(
    reference: Sequence[Tensors],
    candidate: Sequence[Tensors],
    labels: Sequence[Labels],
    *,
    scores: str = "",
    ignore: int = 255,
    ties: float = 0.0,
) -> Corpus:
    """Score by mIoU: per class over all samples, then over classes in the truth or the answer.

    `scores` names the output: float (1, classes, height, width), or integers that are classes
    (1, height, width). By default the only float output, else the only one of integers. Labels
    are maps of classes; `ignore` and negative ones are left out. Without labels the original's
    classes are the truth, and where others lie within `ties` of them those are as well.
    """
    kind = "f" if any(a.dtype.kind == "f" for a in reference[0].values()) else "biu"
    name = scores or only(reference[0], kind, "scores")
    before, after = pick(reference, name), pick(candidate, name)
    alike(before, after, name)
    classes = _classes(before, after, labels, ignore)
    areas = np.stack(
        [
            _areas(ref, got, label, classes, ignore, ties, at)
            for at, (ref, got, label) in enumerate(zip(before, after, labels, strict=True))
        ]
    )

    def score(chosen: Array) -> tuple[float, float]:
        sums = areas[chosen].sum(axis=0)  # (reference and candidate, shared and united, classes)
        first, second = (
            float((s[u > 0] / u[u > 0]).mean()) if u.any() else math.nan
            for s, u in zip(sums[:, 0], sums[:, 1], strict=True)
        )
        return first, second

    if not areas.any():
        raise UsageError("no pixel has a label that counts")
    return Corpus(score, len(before))


def _classes(
    before: Sequence[Array], after: Sequence[Array], labels: Sequence[Labels], ignore: int
) -> int:
    if before[0].dtype.kind == "f":
        if before[0].ndim < 3 or before[0].shape[1] < 2:
            raise UsageError(f"scores of shape {before[0].shape} are not (1, classes, ...)")
        return int(before[0].shape[1])
    known = [label for label in labels if isinstance(label, np.ndarray)]
    maps = [*before, *after, *(np.where(m == ignore, 0, m) for m in known)]
    return 1 + max(int(m.max(initial=0)) for m in maps)


def _areas(
    ref: Array, got: Array, label: Labels, classes: int, ignore: int, ties: float, at: int
) -> Array:
    """Return shared and united area of each class: (reference and candidate, 2, classes)."""
    shares = [_shares(a, classes) for a in (ref, got)]
    if label is None:
        best = shares[0].argmax(axis=0)
        wanted = np.stack((best, best))
        if ref.dtype.kind == "f":
            scores = np.moveaxis(ref, 1, 0).reshape(classes, -1).astype(np.float64)
            pick = shares[1].argmax(axis=0)[None]
            near = np.take_along_axis(scores, pick, axis=0)[0] >= scores.max(axis=0) - ties
            wanted[1] = np.where(near, pick[0], best)
    else:
        flat = truth(label, "segmentation").astype(np.int64).ravel()
        wanted = np.stack((flat, flat))
    if wanted.shape[1] != shares[0].shape[1]:
        raise UsageError(
            f"sample {at} has {shares[0].shape[1]} pixels and {wanted.shape[1]} labels"
        )
    kept = (wanted[0] >= 0) & ((wanted[0] != ignore) | (label is None))
    if wanted[:, kept].max(initial=0) >= classes:
        raise UsageError(
            f"sample {at} has a pixel of class {wanted[:, kept].max()}, of {classes} classes",
            hint="ignore = NUMBER leaves out pixels of that class",
        )
    found = np.empty((2, 2, classes))
    for side in (0, 1):
        share, want = shares[side][:, kept], wanted[side][kept]
        hit = np.take_along_axis(share, want[None], axis=0)[0]
        shared = np.bincount(want, hit, classes)
        found[side] = shared, np.bincount(want, minlength=classes) + share.sum(axis=1) - shared
    return found


def _shares(answer: Array, classes: int) -> Array:
    """Return which part of each pixel goes to each class: (classes, pixels).

    A pixel goes to its best class; classes that tie for it share it. NaN goes to no class.
    """
    if answer.dtype.kind == "f":
        scores = np.moveaxis(answer, 1, 0).reshape(classes, -1)
        best = (scores == scores.max(axis=0)).astype(np.float64)
        found: Array = best / np.maximum(best.sum(axis=0), 1)
        return found
    whole: Array = (np.arange(classes)[:, None] == answer.ravel()).astype(np.float64)
    return whole
