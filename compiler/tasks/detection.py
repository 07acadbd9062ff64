"""Mean average precision as COCO defines it, from named outputs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from npuc.errors import UsageError
from npuc.program import Tensors
from npuc.tasks.boxes import Array, Boxes, corners, detections, overlap, suppress
from npuc.tasks.measured import Corpus, Labels, pick

COCO = tuple(0.5 + 0.05 * step for step in range(10))
"""IoU at which a detection counts as found: the average over all of them is COCO's AP."""

RECALLS = np.linspace(0, 1, 101)

TOP = 100
"""Detections of an image that count, the best ones, as in COCO."""


def measure(
    reference: Sequence[Tensors],
    candidate: Sequence[Tensors],
    labels: Sequence[Labels],
    *,
    boxes: str = "boxes",
    scores: str = "scores",
    classes: str = "",
    objectness: str = "",
    count: str = "",
    layout: str = "xyxy",
    overlaps: Sequence[float] = COCO,
    floor: float = 0.05,
    nms: float = 0.0,
    truth: float = 0.5,
) -> Corpus:
    """Score by mAP over `overlaps` (COCO's .5:.95, or (0.5,)); one image a sample.

    The first five name outputs (`boxes.detections` for their shapes). Detections below `floor` are
    left out; `nms` is the overlap above which a worse box of the same class is suppressed (0: the
    model did that). Labels are (1, n, 5): box and class in the layout of the outputs, padded
    with rows of class -1; or "boxes" and "classes" by name. Without labels the original's
    detections that score at least `truth` are what is to be found.

    Not covered: crowds, areas, boxes marked as difficult. Raises `UsageError` where outputs or
    labels do not fit.
    """
    names = {"boxes": boxes, "scores": scores, "classes": classes, "objectness": objectness,
             "count": count}  # fmt: skip
    names = {role: name for role, name in names.items() if name}
    found = []
    for calls in (reference, candidate):
        arrays = {role: pick(calls, name) for role, name in names.items()}
        found.append([_read({r: a[i] for r, a in arrays.items()}, names, layout, floor, nms, i)
                      for i in range(len(calls))])  # fmt: skip
    wanted = [
        _wanted(label, layout, ours, truth, at)
        for at, (label, ours) in enumerate(zip(labels, found[0], strict=True))
    ]
    if not any(len(w) for w in wanted):
        raise UsageError(
            "there is nothing to find: "
            + ("no label has a box" if labels and labels[0] is not None
               else f"the original detects nothing that scores at least {truth:g}"),
            hint="give labels, or lower truth",
        )  # fmt: skip
    tables = [Table.of(side, wanted, overlaps) for side in found]

    def score(chosen: Array) -> tuple[float, float]:
        first, second = (table.average_precision(chosen) for table in tables)
        return first, second

    return Corpus(score, len(wanted))


def _read(
    parts: Mapping[str, Array], names: Mapping[str, str], layout: str, floor: float, nms: float,
    at: int,
) -> Boxes:  # fmt: skip
    rows = parts["boxes"].size // 4
    wrong = [
        f"{names[role]} {array.shape}"
        for role, array in parts.items()
        if not _fits(role, array, rows)
    ]
    if wrong:
        raise UsageError(f"sample {at} has {rows} boxes; these do not fit: {', '.join(wrong)}")
    found = detections(parts, layout, floor)
    # Suppression comes before the best are counted: doubles would take the places of others.
    return (suppress(found, nms) if nms else found).take(np.s_[:TOP])


def _fits(role: str, array: Array, rows: int) -> bool:
    if role == "boxes":
        return bool(array.shape[-1:] == (4,))
    if role == "scores" and rows:
        return array.size % rows == 0
    return array.size == (1 if role == "count" else rows)


def _wanted(label: Labels, layout: str, ours: Boxes, truth: float, at: int) -> Boxes:
    if label is None:
        return ours.take(ours.scores >= truth)
    if isinstance(label, np.ndarray):
        if label.ndim < 2 or label.shape[-1] != 5:
            raise UsageError(f"labels of sample {at} have shape {label.shape}, not (boxes, 5)")
        rows = label.reshape(-1, 5)
        places, kinds = rows[:, :4], rows[:, 4]
    else:
        if missing := {"boxes", "classes"} - set(label):
            raise UsageError(f"labels have no {' and no '.join(sorted(missing))}")
        places, kinds = label["boxes"].reshape(-1, 4), label["classes"].ravel()
    real = kinds >= 0
    kinds = kinds[real].astype(np.int64)
    return Boxes(corners(places[real], layout), kinds, np.ones(len(kinds)))


@dataclass(frozen=True, slots=True)
class Table:
    """All detections of a class over all images, best first, and which of them found something.

    One row of `classes` per class that is to be found: (scores, images, hits (overlaps, n)).
    `wanted` counts boxes to be found: (classes, images).
    """

    classes: tuple[tuple[Array, Array, Array], ...]
    wanted: Array

    @classmethod
    def of(
        cls, found: Sequence[Boxes], wanted: Sequence[Boxes], overlaps: Sequence[float]
    ) -> "Table":
        """Match each image's detections to what is to be found there."""
        kinds = np.unique(np.concatenate([w.classes for w in wanted]))
        counts = np.array([[int((w.classes == k).sum()) for w in wanted] for k in kinds])
        tables = []
        for kind in kinds:
            pairs = [(f.take(f.classes == kind), w.take(w.classes == kind))
                     for f, w in zip(found, wanted, strict=True)]  # fmt: skip
            scores = np.concatenate([f.scores for f, _ in pairs])
            images = np.repeat(np.arange(len(pairs)), [len(f) for f, _ in pairs])
            hits = np.concatenate([match(f.boxes, w.boxes, overlaps) for f, w in pairs], axis=1)
            order = np.argsort(-scores, kind="stable")
            tables.append((scores[order], images[order], hits[:, order]))
        return cls(tuple(tables), counts)

    def average_precision(self, chosen: Array) -> float:
        """Return mAP over the images of an index: the mean over overlaps and wanted classes.

        NaN where there is nothing to find.
        """
        inside = np.zeros(self.wanted.shape[1], bool)
        inside[chosen] = True
        found = [
            average_precision(scores[keep], hits[:, keep], int(total))
            for (scores, images, hits), total in zip(
                self.classes, self.wanted[:, inside].sum(axis=1), strict=True
            )
            if total
            for keep in (inside[images],)
        ]
        return float(np.mean(found)) if found else math.nan


def match(found: Array, wanted: Array, overlaps: Sequence[float]) -> Array:
    """Say at each overlap which boxes find something: bool (overlaps, n).

    Boxes come best first; each takes the box of the largest overlap that none before it took, if
    that is enough (COCO's greedy matching).
    """
    shares = overlap(found, wanted)
    hits = np.zeros((len(overlaps), len(found)), bool)
    for row, least in enumerate(overlaps):
        free = np.ones(len(wanted), bool)
        for at in range(len(found)):
            if not free.any():
                break
            best = int(np.where(free, shares[at], -1).argmax())
            # An overlap that is equal but for rounding is enough.
            if shares[at, best] >= min(least, 1) - 1e-10:
                hits[row, at], free[best] = True, False
    return hits


def average_precision(scores: Array, hits: Array, wanted: int) -> Array:
    """Return the area under precision over recall at 101 recalls (COCO): one a row of `hits`.

    Detections come best first. Those of equal score count together, so that their order, which
    codes of eight bits often leave open, does not matter; where none are equal this is COCO's.
    """
    if not scores.size:
        return np.zeros(len(hits))
    last = np.append(np.diff(scores) != 0, True)
    found = hits.cumsum(axis=1)[:, last]
    precision = found / np.arange(1, len(scores) + 1)[last]
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = found / wanted
    areas = []
    for row in range(len(hits)):
        place = np.searchsorted(recall[row], RECALLS - 1e-12)
        reached = place < len(precision[row])
        areas.append(np.where(reached, precision[row][np.minimum(place, len(recall[row]) - 1)], 0))
    means: Array = np.mean(areas, axis=1)
    return means
