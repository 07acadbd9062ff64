"""Codes of a weight with a scale for every group of inputs: the arithmetic, in numpy alone.

A weight is a matrix of rows, [outputs, depth]; `size` values of a row that follow one another
share a scale and a zero point: real = scale · (code - zero). The last group of a row may be
smaller.
"""

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from npuc.errors import PassError
from npuc.passes.qdq.codes import TINY
from npuc.profile import WeightScheme

Array = np.ndarray[Any, Any]
SHRINK = np.linspace(1.0, 0.5, 26)
"""Parts of a group's range that are tried as its range: 2 % apart, far below a 4-bit step."""


@dataclass(frozen=True, slots=True)
class GroupCodes:
    """One weight in codes. `codes` are [outputs, depth], `scales` and `zeros` [outputs, groups].

    `bits` are those of a code on the device. `bias` takes the place of the product's bias, where
    that was corrected.
    """

    codes: Array
    scales: Array
    zeros: Array
    size: int
    bits: int
    symmetric: bool
    bias: Array | None = None

    @property
    def dtype(self) -> str:
        """The type of codes and zero points, without its width."""
        return "int" if self.symmetric else "uint"

    @property
    def nbytes(self) -> int:
        """Bytes on the device: codes packed, float32 scales, and zero points where there are any.

        Biases are not counted: they stay what they were.
        """
        points = 0 if self.symmetric else self.zeros.size
        return ceil((self.codes.size + points) * self.bits / 8) + 4 * self.scales.size

    @property
    def real(self) -> Array:
        """What the codes stand for, computed in float32 as DequantizeLinear does."""
        depth = self.codes.shape[1]
        zeros, scales = (spread(a, self.size, depth) for a in (self.zeros, self.scales))
        return (self.codes.astype(np.float32) - zeros.astype(np.float32)) * scales


def limits(bits: int, symmetric: bool) -> tuple[int, int]:
    """Return the lowest and the highest code."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)


def spread(array: Array, size: int, depth: int) -> Array:
    """Repeat what belongs to groups for every value: [..., groups] → [..., depth]."""
    return np.repeat(array, size, axis=-1)[..., :depth]


def nearest(
    rows: Array, scheme: WeightScheme, bits: int, importance: Array | None = None
) -> GroupCodes:
    """Code every value of [outputs, depth] by the nearest code, on the range of `fitted`."""
    scales, zeros = fitted(rows, scheme, bits, importance)
    size, depth = scheme.size(rows.shape[1]), rows.shape[1]
    wide, offset = (spread(a, size, depth) for a in (scales, zeros))
    low, high = limits(bits, scheme.symmetric)
    codes = np.clip(np.rint(rows.astype(np.float32) / wide) + offset, low, high)
    return GroupCodes(codes.astype(np.int16), scales, zeros, size, bits, scheme.symmetric)


def fitted(
    rows: Array, scheme: WeightScheme, bits: int, importance: Array | None = None
) -> tuple[Array, Array]:
    """Return (scales, zeros), [outputs, groups], that lose the least when rounding to nearest.

    Ranges from the whole of a group's down to half of it are tried, and the least
    Σ importance · (w - ŵ)² is taken; `importance` is [outputs or 1, depth], by default 1: the mean
    square of what a value is multiplied by makes that the product's error as if inputs were
    uncorrelated. The range always holds zero. Raises `PassError` for NaN or Inf.
    """
    if not np.isfinite(rows).all():
        raise PassError("a weight holds NaN or Inf")
    parts = _grouped(rows, scheme)
    cost = 1.0 if importance is None else _grouped(np.asarray(importance), scheme)
    low = np.minimum(parts.min(axis=2), 0.0)
    high = np.maximum(parts.max(axis=2), 0.0)
    best = np.full(low.shape, np.inf)
    scales, zeros = np.ones_like(low), np.zeros_like(low)
    for part in SHRINK:
        scale, zero = _affine(low * part, high * part, bits, scheme.symmetric)
        codes = np.rint(parts / scale[:, :, None]) + zero[:, :, None]
        codes = np.clip(codes, *limits(bits, scheme.symmetric))
        gap = (codes - zero[:, :, None]) * scale[:, :, None] - parts
        error = (gap * gap * cost).sum(axis=2)
        better = error < best
        best = np.where(better, error, best)
        scales, zeros = np.where(better, scale, scales), np.where(better, zero, zeros)
    return scales.astype(np.float32), zeros.astype(np.int16)


def _affine(low: Array, high: Array, bits: int, symmetric: bool) -> tuple[Array, Array]:
    if symmetric:
        scale = np.maximum(-low, high) / (2 ** (bits - 1) - 1)
        return np.maximum(scale, TINY).astype(np.float32), np.zeros_like(low)
    scale = np.maximum((high - low) / (2**bits - 1), TINY).astype(np.float32)
    return scale, np.clip(np.rint(-low / scale), 0, 2**bits - 1)


def _grouped(rows: Array, scheme: WeightScheme) -> Array:
    """[outputs, depth] → [outputs, groups, size], filled up with zeros, in float64."""
    outputs, depth = rows.shape
    size = scheme.size(depth)
    groups = ceil(depth / size)
    padded = np.zeros((outputs, groups * size))
    padded[:, :depth] = rows
    return padded.reshape(outputs, groups, size)
