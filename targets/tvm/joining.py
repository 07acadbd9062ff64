"""Plan a concatenation: one pass over memory, in vectors, with what follows it."""

from typing import Any

import numpy as np

from npuc.targets.tvm.emit import pieces
from npuc.targets.tvm.graph import dtype_of, is_tensor, shape_of
from npuc.targets.tvm.plan import Plan

REGISTER = 4
"""Bytes that a lane of a vector register has: narrower values come more to a vector."""


def plan(p: Plan) -> bool:
    """Write the kernel of a concatenation; False where an argument is no tensor."""
    from tvm import ir

    (items,) = p.anchor.args
    shape = p.shape
    if not isinstance(items, ir.Tuple) or not all(is_tensor(f) for f in items.fields):
        return False
    axis = int(p.anchor.attrs.axis or 0) % len(shape)
    alone = len(p.region.members) == 1
    kinds = {dtype_of(f) for f in items.fields}
    if len(kinds) > 1 or "bool" in kinds or not (alone or axis == len(shape) - 1):
        return False
    inputs = [(p.input(f), _size(shape_of(f)[axis:])) for f in items.fields]
    y = p.output()
    k, block, rows = p.kernel, _size(shape[axis:]), _size(shape[:axis])
    width = REGISTER // np.dtype(kinds.pop()).itemsize if alone else 1
    lanes = k.level.lanes * max(width, 1)
    with k.units(rows, rows * block * 2) as row:
        first = 0
        for x, size in inputs:
            source, target = k.let(row * size), k.let(row * block)
            whole = size // lanes

            def move(at: Any, count: int, x: Any = x, base: Any = source, start: Any = first,
                     row_start: Any = target) -> None:  # fmt: skip
                out = k.let(row_start + start + at)
                value = k.load(x, base + at, count)
                k.store(y, p.finish(value, count, k.let(start + at), out), out)

            if whole:
                with k.loop(whole) as step:
                    move(k.let(step * lanes), lanes)
            for at, count in pieces(size - whole * lanes, lanes):
                move(whole * lanes + at, count)
            first += size
    return p.done("concat")


def _size(shape: tuple[int, ...]) -> int:
    result = 1
    for dim in shape:
        result *= dim
    return result
