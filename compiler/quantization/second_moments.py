"""Second moments H = E[x xᵀ] of what products read, in one pass over the calibration calls."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from npuc.errors import ParityError, UsageError
from npuc.passes.qdq.products import Read
from npuc.program import Program, Tensors
from npuc.quantization.taps import Taps

Array = np.ndarray[Any, Any]
EXACT = 1024
"""Depth up to which moments are summed in float64; above, each product is float32 and 1e-6 of a
sum's size is far below the damping that its inverse needs."""


@dataclass
class Moments:
    """Sums over all columns x that a product reads, [group, depth, depth], and their number.

    `total` is the sum of x xᵀ; `cross`, where it is asked for, that of x₀ xᵀ, with x₀ the same
    column in the float program.
    """

    total: Array
    cross: Array | None
    count: int = 0

    def see(self, columns: Array, originals: Array | None) -> None:
        """Take in columns [group, n, depth], and what they were in the float program."""
        columns = columns.astype(self.total.dtype, copy=False)
        self.total += np.matmul(np.swapaxes(columns, 1, 2), columns)
        if self.cross is not None and originals is not None:
            originals = originals.astype(self.total.dtype, copy=False)
            self.cross += np.matmul(np.swapaxes(originals, 1, 2), columns)
        self.count += columns.shape[1]

    def plus(self, other: "Moments") -> "Moments":
        """Return the moments of both: of all that one weight multiplies."""
        cross = None if self.cross is None or other.cross is None else self.cross + other.cross
        return Moments(self.total + other.total, cross, self.count + other.count)


def nbytes(group: int, depth: int) -> int:
    """Return the bytes that one sum of a product takes."""
    return group * depth * depth * np.dtype(_dtype(depth)).itemsize


def collect(
    program: Program,
    calls: Iterable[Tensors],
    wanted: Mapping[Read, tuple[int, int]],
    *,
    reference: Program | None = None,
) -> dict[Read, Moments]:
    """Sum over all calls, one at a time; `wanted` has each product's (groups, depth).

    With `reference`, the float program, the `cross` sums as well. Memory is the programs, their
    tensors for one call, and `nbytes` for each sum: ask for as many at a time as there is room
    for. Columns are summed in the order of the calls, so the same calls give the same bits.
    Raises `UsageError` without calls; `ParityError` where a tensor holds NaN or Inf.
    """
    run = Taps(program, [read.data for read in wanted])
    other = None if reference is None else Taps(reference, [read.original for read in wanted])
    found = {
        read: Moments(zeros := _zeros(*size), None if other is None else zeros.copy())
        for read, size in wanted.items()
    }
    done = 0
    for call in calls:
        values = _finite(run(call, done), done)
        originals = {} if other is None else _finite(other(call, done), done)
        for read, moments in found.items():
            columns = read.layout.patches(values[read.data])
            if other is None:
                for part in columns:
                    moments.see(part, None)
                continue
            before = read.layout.patches(originals[read.original])
            for part, real in zip(columns, before, strict=True):
                moments.see(part, real)
        done += 1
    if done == 0:
        raise UsageError("no calibration samples", hint="save some with the model, or give --calib")
    return found


def _finite(values: dict[str, Array], number: int) -> dict[str, Array]:
    for name, array in values.items():
        if not np.isfinite(array).all():
            raise ParityError(
                f"tensor {name!r} holds NaN or Inf on calibration sample {number}",
                hint="check that sample, and the original model on it",
            )
    return values


def _zeros(group: int, depth: int) -> Array:
    return np.zeros((group, depth, depth), _dtype(depth))


def _dtype(depth: int) -> type[np.floating[Any]]:
    return np.float64 if depth <= EXACT else np.float32
