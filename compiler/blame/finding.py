"""`npuc.blame.find`: compile again, find the step, then the operator and tensor in it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from npuc.blame import bundle as bundles
from npuc.blame import checked, lowering, minimal, operators, steps
from npuc.blame.cause import Blame
from npuc.blame.judge import Judge
from npuc.blame.operators import Located
from npuc.blame.trail import Trail, collect
from npuc.progress import Progress, Silent


def find(
    source: Any,
    *,
    target: str,
    samples: Any = None,
    progress: Progress | None = None,
    undone: tuple[int, ...] = (),
    bundle: Path | None = None,
    randomize: bool = False,
    **call: Any,
) -> Blame:
    """Say which step, operator and tensor make a compiled model answer unlike its original.

    `source` is a file, ``zoo:NAME``, a torch module or what `npuc.load.load` returned; `call` are
    further arguments of `npuc.compile`. `undone` are steps (as `Made.ordinal`) that a compile
    rolled back. With `bundle` the smallest graph that shows the fault is written there, with
    random weights where `randomize` asks for them or it were too large, and they still show it.
    Nothing to blame is an answer too: see `Blame.found`. Raises `UsageError`, `LoadError` and
    `ExportError` as a compile does.
    """
    shown = progress or Silent()
    spent, there = 0, 0
    rolled: list[tuple[Trail, Judge, steps.Found]] = []
    while True:
        trail = collect(
            source, target=target, samples=samples, undone=undone, progress=shown, **call
        )
        shown.stage("blame: find the step")
        judge = Judge(trail)
        found = steps.search(trail, judge)
        spent, there = spent + judge.runs, len(trail.names)
        if found is None or not found.optional or found.index is None:
            break
        # A compile undoes this step by itself; what fails without it?
        rolled.append((trail, judge, found))
        undone = (*undone, trail.made[found.index].ordinal)
    if found is None:
        found, more = checked.search(trail, target, samples, call, shown)
        spent += more
    undone_alone = found is None and bool(rolled)
    if undone_alone:
        trail, judge, found = rolled[0]
    if found is None:
        return Blame("", "", f"all {there} steps answer within their bars", spent, there)
    return concluded(
        trail, judge, found, target, call, bundle=bundle, randomize=randomize, progress=shown,
        spent=spent - judge.runs, rolled_back=undone_alone,
    )  # fmt: skip


def concluded(
    trail: Trail,
    judge: Judge,
    found: steps.Found,
    target: str,
    call: Mapping[str, Any],
    *,
    bundle: Path | None = None,
    randomize: bool = False,
    progress: Progress | None = None,
    spent: int = 0,
    rolled_back: bool = False,
) -> Blame:
    """Find the operator in the step that was found, and write the bundle; see `find`."""
    shown = progress or Silent()
    shown.stage("blame: find the operator")
    located = _located(trail, judge, found, call)
    there = len(trail.names)
    blamed = _blamed(found, located, spent + judge.runs, there, rolled_back)
    if bundle is None:
        return blamed
    shown.stage("blame: cut out what shows it")
    about = {"target": target, "call": {"precision": call.get("precision"), **_kept(call)}}
    return packed(blamed, located, trail, bundle, randomize, about)


def _located(trail: Trail, judge: Judge, found: steps.Found, call: Mapping[str, Any]) -> Located:
    if found.index is None:
        assert trail.lowered is not None  # only what was lowered is blamed without an index
        return lowering.locate(trail, judge, trail.lowered, call)
    if 0 <= found.index < len(trail.made):
        return operators.locate(trail, judge, found)
    return Located()


def _blamed(
    found: steps.Found, located: Located, runs: int, there: int, rolled_back: bool
) -> Blame:
    return Blame(
        found.step, found.kind, "; ".join(found.faults[:3]), runs, there,
        (*found.evidence, *located.evidence), located.operator, located.op_type, located.tensor,
        located.place, located.why_not, found.masked, rolled_back,
    )  # fmt: skip


def packed(
    blamed: Blame,
    located: Located,
    trail: Trail,
    path: Path,
    randomize: bool,
    about: Mapping[str, Any],
) -> Blame:
    """Write what shows a fault to `path`; the blame returned says where, or why not."""
    case = located.case() if located.case is not None else None
    if case is None:
        note = "no bundle: no graph smaller than the model shows it by itself"
        return replace(blamed, why_not="; ".join(filter(None, (blamed.why_not, note))))
    lower = blamed.kind in ("lowering", "vendor")
    title = f"{blamed.kind} step {blamed.step!r}: {blamed.op_type} {blamed.operator!r} is wrong"
    told = {**about, "title": title, "lines": [blamed.why, *blamed.evidence], "lowering": lower}
    environment = _environment(trail, about)
    content = bundles.packed(case, told, environment)
    if randomize or len(content) >= bundles.LIMIT:
        answer = None
        if lower:
            answer = lowering.answering(about["target"], about["call"], blamed.kind)
        drawn = minimal.randomized(case, answer)
        if drawn is not None:
            case, content = drawn, bundles.packed(drawn, told, environment)
    bundles.write(path, content)
    note = blamed.why_not
    if randomize and not case.randomized:
        note = "; ".join(
            filter(None, (note, "the fault needs the real weights: they are in the bundle"))
        )
    if len(content) >= bundles.LIMIT:
        note = "; ".join(filter(None, (note, f"the bundle has {len(content) / 1e6:.1f} MB")))
    return replace(
        blamed, bundle=path, randomized=case.randomized, command=bundles.command(path), why_not=note
    )


def _environment(trail: Trail, about: Mapping[str, Any]) -> dict[str, Any]:
    payload = None if trail.lowered is None else trail.lowered.payload
    reference = trail.reference
    return {
        "target": about["target"],
        "precision": about["call"]["precision"],
        "toolchain": {} if payload is None else dict(payload.toolchain),
        "fingerprint": {} if reference is None else dict(reference.fingerprint),
    }


def _kept(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that lowering again depends on."""
    return {name: call[name] for name in ("cpu", "fallback") if name in call}
