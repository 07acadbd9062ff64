"""Spread over threads what TVM's own operator definitions compute."""

from typing import Any

from npuc.targets.tvm.emit import CHUNKS, PARALLEL_WORK

SPATIAL = 0
"""TVM's number for a loop over the result, as opposed to a sum."""


def run(module: Any, lanes: int) -> Any:
    """Schedule every function that has no kernel of npuc's."""
    from tvm import tirx

    for var, function in list(module.functions.items()):
        if isinstance(function, tirx.PrimFunc) and not function.attrs.get("tirx.is_scheduled"):
            module[var] = _scheduled(function, lanes)
    return module


def _scheduled(function: Any, lanes: int) -> Any:
    from tvm import ir, s_tir

    schedule = s_tir.Schedule(ir.IRModule({"main": function}))
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        _spread(schedule, block, _flat(function), lanes)
    return schedule.mod["main"].with_attrs(function.attrs)


def _flat(function: Any) -> bool:
    """Whether every tensor has the same shape: elementwise, one long loop."""
    shapes = {tuple(str(d) for d in p.ty.shape) for p in function.params if hasattr(p.ty, "shape")}
    return len(shapes) == 1


def _spread(schedule: Any, block: Any, flat: bool, lanes: int) -> None:
    """Cut the outer loops into a fixed number of parallel pieces, and vectorise the innermost."""
    kinds = [int(v.iter_type) for v in schedule.get(block).iter_vars]
    loops = list(schedule.get_loops(block))
    if not loops or len(loops) != len(kinds):
        return
    own = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == SPATIAL]
    sums = [loop for loop, kind in zip(loops, kinds, strict=True) if kind != SPATIAL]
    if not own or [SPATIAL] * len(own) != kinds[: len(own)]:
        return
    if len(schedule.get(block).writes) > 1 or _product(schedule, loops) == 0:
        # A pair of results, as ArgMax has, depends on the order of its loop.
        return
    work = _product(schedule, loops)
    if flat and not sums:
        inner, outer = schedule.fuse(*own), []
    else:
        inner, outer = own[-1], own[:-1]
    if sums and outer:
        schedule.reorder(*outer, *sums, inner)
    width = _width(int(schedule.get(inner).extent), lanes)
    if width > 1:
        rest, vector = schedule.split(inner, factors=[None, width])
        schedule.vectorize(vector)
        if not outer:
            outer = [rest]
    if work < PARALLEL_WORK or not outer:
        return
    fused = schedule.fuse(*outer) if len(outer) > 1 else outer[0]
    count = int(schedule.get(fused).extent)
    cut = max(d for d in range(1, CHUNKS + 1) if count % d == 0)
    if cut > 1:
        chunk, _ = schedule.split(fused, factors=[cut, None])
        schedule.parallel(chunk)


def _width(extent: int, lanes: int) -> int:
    """The widest vector that divides a loop."""
    while extent % lanes:
        lanes //= 2
    return lanes


def _product(schedule: Any, loops: list[Any]) -> int:
    result = 1
    for loop in loops:
        result *= int(schedule.get(loop).extent)
    return result
