"""Elementwise operators on integers or codes that follow no kernel, as one pass over memory.

TVM's own fusion would store every int64 in between, and dequantize value by value.
"""

from typing import Any

from npuc.targets.tvm import whole
from npuc.targets.tvm.coded import coded
from npuc.targets.tvm.emit import pieces
from npuc.targets.tvm.graph import is_var, key, operator
from npuc.targets.tvm.plan import Plan
from npuc.targets.tvm.regions import leaf_kind, shaped_args, supported


def starts(expr: Any, sources: dict[int, Any]) -> bool:
    """Whether an expression may be a chain's first: an operator on integers, doubles or codes."""
    if whole.supported(expr) and whole.computes_integers(expr):
        return True
    if operator(expr) == "relax.dequantize" or not supported(expr):
        return False  # a dequantization is what the operators that read it begin with
    reads = [sources.get(key(a)) for a in shaped_args(expr) if is_var(a)]
    return any(coded(source) is not None for source in reads)


def plan(p: Plan) -> bool:
    """Write the chain; False where the first operator reads what no kernel can."""
    shape = p.shape
    if not shape or not all(leaf_kind(a, shape) for a in shaped_args(p.anchor)):
        return False
    y = p.output(first=0)
    size = 1
    for dim in shape:
        size *= dim
    # Where no tensor is one value per channel or row, all of it is one long row.
    length = shape[-1] if p.reads & {"channel", "row"} else size
    k, lanes = p.kernel, p.level.lanes
    work = size * len(p.region.members)

    def end(at: Any, channel: Any, width: int) -> None:
        k.store(y, p.finish(None, width, channel, at), at)

    whole_vectors = length // lanes
    rows = size // length
    if rows > 1:
        with k.units(rows, work) as row:
            start = k.let(row * length)
            with k.loop(whole_vectors) as step:
                channel = k.let(step * lanes)
                end(k.let(start + channel), channel, lanes)
            for first, width in pieces(length - whole_vectors * lanes, lanes):
                channel = whole_vectors * lanes + first
                end(k.let(start + channel), channel, width)
        return p.done("chain")
    if whole_vectors:
        with k.units(whole_vectors, work) as unit:
            at = k.let(unit * lanes)
            end(at, at, lanes)
    for first, width in pieces(length - whole_vectors * lanes, lanes):
        at = whole_vectors * lanes + first
        end(at, at, width)
    return p.done("chain")
