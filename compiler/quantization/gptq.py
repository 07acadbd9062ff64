"""Codes of a weight that lose the least of its product: GPTQ, then coordinate descent.

All arrays are stacks over the groups of a product: a weight is [group, outputs, depth], second
moments H = E[x xᵀ] of what it multiplies are [group, depth, depth]. The mean squared error of the
product with codes q is then exactly Σ tr(E H Eᵀ), E = W - s·(q - z): no activation has to be kept.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
DAMPING = 0.01
"""Part of H's mean diagonal that is added to its diagonal (Frantar et al. 2022): directions that
the calibration data do not show must cost something."""
BLOCK = 128
"""Columns that are settled before the rest of the matrix hears of it: one product instead of 128
sweeps over it."""
SWEEPS = 4
"""Most times that coordinate descent goes through the columns; it stops where nothing moves."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The values that a weight can take: s·(q - z) for whole q from `low` to `high`.

    `scales` and `zeros` have the weight's shape.
    """

    scales: Array
    zeros: Array
    low: int
    high: int

    def nearest(self, weight: Array) -> Array:
        """Return the codes nearest to real values, ties to even."""
        codes: Array = np.rint(weight / self.scales) + self.zeros
        return np.clip(codes, self.low, self.high)

    def real(self, codes: Array) -> Array:
        """Return what codes stand for."""
        return np.asarray(self.scales * (codes - self.zeros))


def damped(moments: Array, damping: float = DAMPING) -> Array:
    """Return H + λI, λ a part of the mean diagonal; H of a group that saw only zeros becomes I."""
    depth = moments.shape[-1]
    mean = np.trace(moments, axis1=1, axis2=2) / depth
    strength = np.where(mean > 0, damping * mean, 1.0).astype(moments.dtype)
    return moments + strength[:, None, None] * np.eye(depth, dtype=moments.dtype)


def error(weight: Array, real: Array, moments: Array) -> Array:
    """Return the mean squared error of every output, e H eᵀ: [group, outputs]."""
    gap = (weight - real).astype(np.float64)
    return np.asarray(((gap @ moments.astype(np.float64)) * gap).sum(axis=2))


def gptq(weight: Array, moments: Array, grid: Grid, damping: float = DAMPING) -> Array:
    """Return codes, the error of each column made good by those after it, then refined.

    After Frantar et al., "GPTQ", 2022: columns in descending order of H's diagonal, with the upper
    Cholesky factor of (H + λI)⁻¹. Then `descended`. An output whose codes are not better than the
    nearest, on H + λI, keeps the nearest ones.
    """
    held = damped(moments, damping)
    work = weight.astype(held.dtype)
    codes = descended(work, held, grid, _propagated(work, held, grid))
    plain = grid.nearest(work)
    better = error(work, grid.real(codes), held) < error(work, grid.real(plain), held)
    return np.where(better[:, :, None], codes, plain)


def _propagated(weight: Array, moments: Array, grid: Grid) -> Array:
    order = np.argsort(-np.diagonal(moments, axis1=1, axis2=2), axis=1, kind="stable")
    back = np.argsort(order, axis=1, kind="stable")
    sorted_rows = np.take_along_axis(moments, order[:, :, None], axis=1)
    factor = _factor(np.take_along_axis(sorted_rows, order[:, None, :], axis=2))
    columns = order[:, None, :]
    left = np.take_along_axis(weight, columns, axis=2)
    scales, zeros = (np.take_along_axis(a, columns, axis=2) for a in (grid.scales, grid.zeros))
    depth, codes = weight.shape[2], np.empty_like(left)
    for start in range(0, depth, BLOCK):
        stop = min(start + BLOCK, depth)
        errors = np.empty_like(left[:, :, start:stop])
        for j in range(start, stop):
            now = Grid(scales[:, :, j], zeros[:, :, j], grid.low, grid.high)
            codes[:, :, j] = now.nearest(left[:, :, j])
            miss = left[:, :, j] - now.real(codes[:, :, j])
            errors[:, :, j - start] = miss / factor[:, j, j, None]
            left[:, :, j:stop] -= errors[:, :, j - start, None] * factor[:, j, None, j:stop]
        left[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return np.take_along_axis(codes, back[:, None, :], axis=2)


def _factor(moments: Array) -> Array:
    """Return the upper triangular U of H⁻¹ = Uᵀ·U."""
    inverse = np.linalg.inv(moments)
    inverse = (inverse + np.swapaxes(inverse, 1, 2)) / 2
    return np.swapaxes(np.linalg.cholesky(inverse), 1, 2)


def descended(weight: Array, moments: Array, grid: Grid, codes: Array) -> Array:
    """Move one code at a time to where the error is least, all others as they are.

    No move makes the error larger: the best real value of column j is ŵ_j + (E H)_j / H_jj, and
    along one column the error is a parabola around it.
    """
    codes, depth = codes.copy(), weight.shape[2]
    slope = (weight - grid.real(codes)) @ moments
    diagonal = np.diagonal(moments, axis1=1, axis2=2)
    for _ in range(SWEEPS):
        moved = False
        for start in range(0, depth, BLOCK):
            stop = min(start + BLOCK, depth)
            near, change = slope[:, :, start:stop].copy(), np.zeros_like(slope[:, :, start:stop])
            for j in range(start, stop):
                scales = grid.scales[:, :, j]
                best = codes[:, :, j] + near[:, :, j - start] / diagonal[:, j, None] / scales
                best = np.clip(np.rint(best), grid.low, grid.high)
                step = (best - codes[:, :, j]) * scales
                codes[:, :, j] = best
                change[:, :, j - start] = step
                near -= step[:, :, None] * moments[:, j, None, start:stop]
            moved = moved or bool(change.any())
            slope -= change @ moments[:, start:stop]
        if not moved:
            break
    return codes
