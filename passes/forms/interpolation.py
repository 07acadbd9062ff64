"""The weights of Resize along one axis: ONNX's coordinates, nearest, linear and cubic."""

from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

COORDINATES = (
    "half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners", "half_pixel_symmetric",
)  # fmt: skip
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@dataclass(frozen=True, slots=True)
class Rule:
    """How one axis is resized. `cubic` is cubic_coeff_a; `outside` is exclude_outside."""

    mode: str
    coordinates: str
    nearest: str = "round_prefer_floor"
    cubic: float = -0.75
    outside: bool = False


def matrix(size: int, wanted: int, scale: float, rule: Rule) -> Array:
    """Return [wanted, size] float64 weights: output = weights · input.

    The formulas are those of the ONNX operator Resize, version 19; borders repeat.
    """
    weights = np.zeros((wanted, size))
    for row in range(wanted):
        place = _coordinate(row, size, wanted, scale, rule.coordinates)
        for index, weight in _taps(place, size, rule):
            weights[row, min(max(index, 0), size - 1)] += weight
    return weights


def _coordinate(row: int, size: int, wanted: int, scale: float, kind: str) -> float:
    if kind == "asymmetric":
        return row / scale
    if kind == "align_corners":
        return 0.0 if wanted == 1 else row * (size - 1) / (wanted - 1)
    if kind == "pytorch_half_pixel" and wanted == 1:
        return 0.0
    if kind == "half_pixel_symmetric":
        adjustment = wanted / (scale * size)
        return size / 2 * (1 - adjustment) + (row + 0.5) / scale - 0.5
    return (row + 0.5) / scale - 0.5


def _taps(place: float, size: int, rule: Rule) -> list[tuple[int, float]]:
    if rule.mode == "nearest":
        return [(_nearest(place, rule.nearest), 1.0)]
    low = floor(place)
    ratio = place - low
    if rule.mode == "linear":
        place = min(max(place, 0.0), size - 1.0)
        low = floor(place)
        return [(low, 1 - (place - low)), (low + 1, place - low)]
    taps = [(low + i, _cubic(abs(ratio - i), rule.cubic)) for i in (-1, 0, 1, 2)]
    if rule.outside:
        taps = [(i, weight) for i, weight in taps if 0 <= i < size]
        total = sum(weight for _, weight in taps)
        taps = [(i, weight / total) for i, weight in taps]
    return taps


def _nearest(place: float, kind: str) -> int:
    if kind == "floor":
        return floor(place)
    if kind == "ceil":
        return ceil(place)
    if kind == "round_prefer_ceil":
        return floor(place + 0.5)
    return ceil(place - 0.5)


def _cubic(s: float, a: float) -> float:
    """Keys' kernel: support 2, `a` is its slope at 1."""
    if s <= 1:
        return ((a + 2) * s - (a + 3)) * s * s + 1
    if s < 2:
        return ((a * s - 5 * a) * s + 8 * a) * s - 4 * a
    return 0.0
