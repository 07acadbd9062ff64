"""`npuc.blame.find`: compile again, find the step, then the operator and tensor in it."""

from collections.abc import Mapping
from typing import Any

from npuc.blame import lowering, operators, steps
from npuc.blame.cause import Blame
from npuc.blame.judge import Judge
from npuc.blame.trail import Trail, collect
from npuc.progress import Progress, Silent


def find(
    source: Any,
    *,
    target: str,
    samples: Any = None,
    progress: Progress | None = None,
    undone: tuple[int, ...] = (),
    **call: Any,
) -> Blame:
    """Say which step, operator and tensor make a compiled model answer unlike its original.

    `source` is a file, ``zoo:NAME``, a torch module or what `npuc.load.load` returned; `call` are
    further arguments of `npuc.compile`. `undone` are steps (as `Made.ordinal`) that a compile
    rolled back. Nothing to blame is an answer too: see `Blame.found`. Raises `UsageError`,
    `LoadError` and `ExportError` as a compile does.
    """
    shown = progress or Silent()
    spent, steps_there = 0, 0
    rolled: list[tuple[Trail, Judge, steps.Found]] = []
    while True:
        trail = collect(
            source, target=target, samples=samples, undone=undone, progress=shown, **call
        )
        shown.stage("blame: find the step")
        judge = Judge(trail)
        found = steps.search(trail, judge)
        spent, steps_there = spent + judge.runs, len(trail.names)
        if found is None or not found.optional or found.index is None:
            break
        # A compile undoes this step by itself; what fails without it?
        rolled.append((trail, judge, found))
        undone = (*undone, trail.made[found.index].ordinal)
    if found is None and rolled:
        trail, judge, found = rolled[0]
        return _blame(trail, judge, found, spent - judge.runs, steps_there, call, rolled_back=True)
    if found is None:
        ok = f"all {steps_there} steps answer within their bars"
        return Blame("", "", ok, spent, steps_there)
    return _blame(trail, judge, found, spent - judge.runs, steps_there, call)


def _blame(
    trail: Trail, judge: Judge, found: steps.Found, spent: int, there: int,
    call: Mapping[str, Any], rolled_back: bool = False,
) -> Blame:  # fmt: skip
    located = operators.Located()
    if found.index is not None and 0 <= found.index < len(trail.made):
        located = operators.locate(trail, judge, found)
    elif found.index is None and trail.lowered is not None:
        located = lowering.locate(trail, judge, trail.lowered, call)
    return Blame(
        found.step, found.kind, "; ".join(found.faults[:3]), spent + judge.runs, there,
        (*found.evidence, *located.evidence), located.operator, located.op_type, located.tensor,
        located.place, located.why_not, found.masked, rolled_back,
    )  # fmt: skip
