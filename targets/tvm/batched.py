"""Batched matrix products of two activations: attention scores and values.

The right side is copied into the packed form that `direct` reads, one matrix at a time, by the
thread that uses it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from npuc.targets.tvm.direct import Direct, Finish
from npuc.targets.tvm.dots import FLOAT, PLAIN
from npuc.targets.tvm.emit import Kernel, cast, constant, pieces
from npuc.targets.tvm.staging import Geometry


@dataclass(frozen=True)
class Batched:
    """Writes the kernel for [*left, rows, depth] x [*right, depth, columns], broadcast."""

    k: Kernel
    left: tuple[int, ...]
    right: tuple[int, ...]
    rows: int
    depth: int
    columns: int
    finish: Finish
    zeros: tuple[int, int] | None = None
    """Zero points of int8 sides, whose products are summed in int32; None for float32."""
    heavy: bool = False

    def write(self, a: Any, b: Any, y: Any) -> None:
        """Write the body."""
        k = self.k
        batch = _broadcast(self.left, self.right)
        count = _product(batch)
        g = Geometry(1, 1, self.rows, self.depth, self.columns)
        with k.units(count, count * g.multiply_adds) as unit:
            at_a = k.let(_index(unit, batch, self.left) * (self.rows * self.depth))
            at_b = k.let(_index(unit, batch, self.right) * (self.depth * self.columns))
            at_y = k.let(unit * (self.rows * self.columns))
            packed = self._pack(b, at_b)
            dot, zero = (FLOAT, 0) if self.zeros is None else (PLAIN, self.zeros[0])
            inner = Direct(_Serial(k), g, self.finish, dot, zero=zero, heavy=self.heavy)
            inner.sweep(a, packed, None, y, at_a, at_y)

    def _pack(self, b: Any, base: Any) -> Any:
        """Copy one right side to [vectors, depth, lanes], zeros in the lanes beyond its columns."""
        k, lanes = self.k, self.k.level.lanes
        vectors = -(-self.columns // lanes)
        dtype = "float32" if self.zeros is None else "int32"
        packed = k.scratch(vectors * self.depth * lanes, dtype)
        for v in range(vectors):
            used = pieces(min(lanes, self.columns - v * lanes), lanes)
            with k.loop(self.depth) as step:
                target = k.let((v * self.depth + step) * lanes)
                if sum(width for _, width in used) < lanes:
                    k.store(packed, constant(0, dtype, lanes), target)
                source = k.let(base + step * self.columns + v * lanes)
                for offset, width in used:
                    value = k.load(b, source + offset, width)
                    if self.zeros is not None:
                        value = cast(value, "int32") - constant(self.zeros[1], "int32", width)
                    k.store(packed, value, target + offset)
        return packed


class _Serial(Kernel):
    """A kernel inside a parallel loop: what it writes goes to the outer one, without threads."""

    def __init__(self, outer: Kernel):
        self.__dict__ = outer.__dict__

    def units(self, count: int, work: int) -> Any:
        return self.loop(count)


def _broadcast(left: Sequence[int], right: Sequence[int]) -> tuple[int, ...]:
    rank = max(len(left), len(right))
    a = (1,) * (rank - len(left)) + tuple(left)
    b = (1,) * (rank - len(right)) + tuple(right)
    return tuple(max(x, y) for x, y in zip(a, b, strict=True))


def _product(dims: Sequence[int]) -> int:
    result = 1
    for dim in dims:
        result *= dim
    return result


def _index(unit: Any, batch: tuple[int, ...], own: tuple[int, ...]) -> Any:
    """Which of a side's matrices a position in the broadcast batch uses."""
    if own == batch:
        return unit
    own = (1,) * (len(batch) - len(own)) + own
    result: Any = 0
    for axis, dim in enumerate(own):
        if dim > 1:
            position = unit // _product(batch[axis + 1 :]) % batch[axis]
            result = result + position * _product(own[axis + 1 :])
    return result
