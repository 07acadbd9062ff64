"""Boxes out of a detector's outputs: conversion, overlap, suppression of doubles."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from npuc.errors import UsageError

Array = np.ndarray[Any, Any]

FORMATS = ("xyxy", "xywh", "cxcywh")
"""Two corners; one corner and the size (COCO); the centre and the size (YOLO, DETR)."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes of one image as x1, y1, x2, y2 (n, 4) with class (n,) and score (n,)."""

    boxes: Array
    classes: Array
    scores: Array

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, chosen: Array | slice) -> "Boxes":
        """Return some of the boxes: a slice, a mask, or in the order of an index."""
        return Boxes(self.boxes[chosen], self.classes[chosen], self.scores[chosen])


def corners(boxes: Array, layout: str) -> Array:
    """Return boxes (..., 4) of a layout as x1, y1, x2, y2 in float64."""
    boxes = boxes.astype(np.float64)
    first, second = boxes[..., :2], boxes[..., 2:]
    if layout == "xywh":
        return np.concatenate((first, first + second), axis=-1)
    if layout == "cxcywh":
        return np.concatenate((first - second / 2, first + second / 2), axis=-1)
    if layout != "xyxy":
        raise UsageError(f"unknown layout of boxes {layout!r}", hint=", ".join(FORMATS))
    return boxes


def detections(parts: Mapping[str, Array], layout: str, floor: float) -> Boxes:
    """Read one image's outputs by role: what scores above `floor`, best first.

    boxes (1, n, 4) or (n, 4); scores (1, n), or (1, n, classes), where each box counts for its
    best class; classes (1, n), 0 throughout by default; objectness (1, n) multiplies the scores;
    count (1,): only so many first rows are real. Rows with NaN are no detections.
    """
    boxes = corners(parts["boxes"].reshape(-1, 4), layout)
    scores = parts["scores"].astype(np.float64)
    scores = scores.reshape(len(boxes), -1) if scores.size else scores.reshape(0, 1)
    if "objectness" in parts:
        scores = scores * parts["objectness"].astype(np.float64).reshape(-1, 1)
    if "classes" in parts:
        classes = parts["classes"].reshape(-1)
    else:
        classes = scores.argmax(axis=1) if len(scores) else np.zeros(0, np.int64)
    best = scores.max(axis=1, initial=-np.inf)
    kept = (best > floor) & np.isfinite(boxes).all(axis=1) & np.isfinite(best)
    if "count" in parts:
        kept &= np.arange(len(boxes)) < int(parts["count"].ravel()[0])
    found = Boxes(boxes, np.rint(classes).astype(np.int64), best).take(kept)
    return found.take(np.argsort(-found.scores, kind="stable"))


def overlap(first: Array, second: Array) -> Array:
    """Return intersection over union of boxes (n, 4) and (m, 4): (n, m). Empty boxes give 0."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (high - low).clip(min=0).prod(axis=-1)
    areas = [(b[:, 2:] - b[:, :2]).clip(min=0).prod(axis=-1) for b in (first, second)]
    union = areas[0][:, None] + areas[1][None] - shared
    shares: Array = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return shares


def suppress(found: Boxes, share: float) -> Boxes:
    """Drop a box where a better one of its class overlaps it by more than `share`."""
    shares = overlap(found.boxes, found.boxes)
    rivals = (shares > share) & (found.classes[:, None] == found.classes[None])
    kept = np.ones(len(found), bool)
    for at in range(len(found)):  # best first, as `detections` sorts
        if kept[at]:
            kept[at + 1 :] &= ~rivals[at, at + 1 :]
    return found.take(kept)
