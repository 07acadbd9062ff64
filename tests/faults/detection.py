"""Compile with a fault and say whether npuc noticed; ask `npuc blame` where it is."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from seams import Fault

from npuc import pipeline
from npuc.errors import NpucError, ParityError
from npuc.load import Loaded, load
from npuc.report import Report


@dataclass(frozen=True)
class Found:
    """Whether a compile failed for its answers, and in whose words."""

    caught: bool
    how: str
    touched: frozenset[str] = field(default=frozenset())


def attempt(fault: Fault, folder: Path) -> Found:
    """Compile with the fault under the default policy."""
    source = _source(fault, folder)
    with fault.inject() as touched:
        try:
            (done,) = pipeline.compile(source, output=folder / "x.npuc", **_call(fault))
        except ParityError as error:
            return Found(True, f"refused: {error}".replace("\n", " ")[:300], frozenset(touched))
    if not touched and fault.sited:
        raise LookupError(f"{fault.name} changed nothing")
    return Found(*_verdict(done.report), frozenset(touched))


def blamed(fault: Fault, folder: Path) -> dict[str, Any]:
    """Ask for the cause; returns what was named, whether it is right, and the runs it took."""
    from npuc import blame

    source = _source(fault, folder)
    with fault.inject() as touched:
        try:
            found = blame.find(source, **_call(fault))
        except NpucError as error:  # counts as naming nothing
            found = blame.Blame("", "", f"blame raised {error}", 0, 0)
    named = {found.operator, found.tensor} - {""}
    said = f"{found.kind} {found.step}: {found.op_type} {found.operator}".strip()
    said = said if found.found else found.why[:300]
    return {
        "step_right": (found.kind, found.step) == (fault.kind, fault.step),
        "sited": fault.sited,
        "operator": bool(named & touched),
        "runs": found.runs,
        "steps": found.steps,
        "said": said,
        "touched": sorted(touched),
    }


@cache
def _loaded(name: str) -> Loaded:
    """Load a model and capture it once: many faults share it."""
    return load(name)


def _source(fault: Fault, folder: Path) -> Loaded:
    """Return what is compiled, loaded before anything is wrong."""
    if fault.source is None:
        return _loaded(f"zoo:{fault.model}")
    return load(fault.source(folder))


def _call(fault: Fault) -> dict[str, Any]:
    how = {"target": fault.target, "precision": fault.precision, "vendor": "skip"}
    return {**how, **fault.call}


def _verdict(report: Report) -> tuple[bool, str]:
    """A step that was undone, and named, was caught as well: the artifact is sound."""
    undone = [f"{r.stage} rolled back: {r.note}" for r in report.rows if r.state == "rolled back"]
    failed = [f"{r.stage}: {text}" for r in report.failures for text in r.faults]
    return bool(undone or not report.passed), "; ".join((*failed, *undone))[:300]
