"""Find the operator to blame in an artifact that answers unlike the program it was made of."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from npuc import plugins
from npuc import samples as sampling
from npuc.blame.gaps import Gap
from npuc.blame.judge import Judge
from npuc.blame.minimal import Answer, Case
from npuc.blame.operators import CALLS, Located, place_of
from npuc.blame.trail import Lowered, Trail
from npuc.blame.windows import Lower, Window, Windows
from npuc.metrics import differences
from npuc.passes.graphs import infer_types
from npuc.program import Program, Tensors
from npuc.runners import OnnxRunner
from npuc.targets.base import Handover, LowerOptions, Runner, Toolchain

_CODES = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast", "Identity", "Clip"})
"""Operators that stand around the one that a part of a program is about."""


def locate(trail: Trail, judge: Judge, lowered: Lowered, call: Mapping[str, Any]) -> Located:
    """Return the operator whose lowered form is wrong by itself, fed what its program feeds it."""

    def count(runs: int) -> None:
        judge.runs += runs

    program = lowered.program.clone()
    infer_types(program.model)
    calls = _worst(judge, lowered)
    if not calls:
        return Located(why_not="it answers otherwise when asked again, not at the first time")
    windows = Windows(
        Program.from_model(program.model), _lower(lowered.target, call, lowered.kind), calls, count
    )
    found = windows.find()
    if found is None:
        return Located(why_not="it cannot be compiled again in parts, or is right then")
    located = _said(found)
    located.bad = located.good = found.program
    fed = [windows.golden(c, [p.name for p in found.program.inputs]) for c in calls]
    located.case = lambda: _case(found.program, windows.lower, fed)
    located.place = place_of(trail, located) if located.operator else ""
    return located


def _said(found: Window) -> Located:
    nodes = [n for n in found.program.model.graph if any(v is not None for v in n.inputs)]
    core = [n for n in nodes if n.op_type not in _CODES and n.domain != "ai.npuc"]
    node = (core or nodes)[-1]
    kinds = ", ".join(dict.fromkeys(n.op_type for n in nodes))
    located = Located(
        node.name or "", node.op_type, found.gap.tensor, born=found.gap.text,
        evidence=[f"lowered alone, {len(nodes)} nodes ({kinds}) are wrong: {found.gap.text}"],
    )  # fmt: skip
    if found.spread:
        located.why_not = "no single operator: without it the rest is as wrong"
        located.operator = located.op_type = located.tensor = ""
    elif len(core) > 1:
        located.why_not = "it is wrong only together with the nodes it is fused with"
    return located


def _case(part: Program, lower: Lower, calls: Sequence[Tensors]) -> Case | None:
    """Return the part on the call that shows most."""
    best: Case | None = None
    expected = OnnxRunner(part, "part")
    with tempfile.TemporaryDirectory(prefix="npuc-") as work:
        runner = lower(part, Path(work))
        for call in calls:
            right, got = expected(call), runner(call)
            ratio = max(Gap(n).plus(right[n], got[n]).ratio for n in right)
            if best is None or ratio > best.ratio:
                best = Case(part, None, call, right, got, ratio)
    return best


def again(path: Path, target: str, call: Mapping[str, Any], inputs: Tensors) -> Tensors:
    """Compile a part of a program for a target again, run it on one call and return its answer.

    What the `reproduce.py` of a bundle does. Raises what compiling raises.
    """
    return answering(target, call)(Program.load(path), inputs)


def answering(target: str, call: Mapping[str, Any], kind: str = "lowering") -> Answer:
    """Return what compiles a program for a target and runs it on one call."""

    def answer(program: Program, inputs: Tensors) -> Tensors:
        with tempfile.TemporaryDirectory(prefix="npuc-") as work:
            return _lower(target, call, kind)(program, Path(work))(inputs)

    return answer


def _worst(judge: Judge, lowered: Lowered) -> list[Tensors]:
    """Return the calls on which the artifact is farthest from its program, in its shapes."""
    fitted = sampling.Rebatched(lowered.runner, lowered.program, judge.exported)
    program = OnnxRunner(lowered.program, "program")
    scored: list[tuple[float, Tensors]] = []
    judge.runs += 2
    for sample in judge.reference.samples:
        for part in fitted.parts(sample, sample):
            found = differences([program(part)], [lowered.runner(part)])
            score = max(1e30 if d.fault else d.rms / (d.peak or 1.0) for d in found)
            scored.append((score, part))
    scored.sort(key=lambda item: -item[0])
    return [part for score, part in scored[:CALLS] if score > 0]


def _lower(name: str, call: Mapping[str, Any], kind: str = "lowering") -> Lower:
    target = plugins.find(name)
    precision = call.get("precision") or target.profile.precisions[0]
    precision = "int8" if precision == "auto" else precision
    vendor: Literal["use", "skip"] = "use" if kind == "vendor" else "skip"
    if vendor == "skip":
        target = _bare(target)

    def lower(program: Program, work: Path) -> Runner:
        options = LowerOptions(
            precision=precision, cpu=call.get("cpu", "native"), fallback=call.get("fallback", ""),
            vendor=vendor, timeout=call.get("timeout", 3600.0),
            handover=Handover(program, precision=precision, quantized=program),
        )  # fmt: skip
        payload = target.lower(program, options, work)
        runner: Runner = target.runner(payload.files, program)
        return runner

    return lower


def _bare(target: Any) -> Any:
    """Return a target without its vendor's tool, where it has one."""
    if is_dataclass(target) and not isinstance(target, type) and hasattr(target, "tool"):
        return replace(target, tool=_NoKit())
    return target


@dataclass(frozen=True)
class _NoKit:
    """Stands in for a vendor's tool where only the host twin is asked for."""

    name: str = "no tool"
    evidence: str = "twin"

    def find(self, profile: Any) -> Toolchain:
        """Say that it is not here."""
        return Toolchain(self.name, missing="not asked for")

    def kit(self, job: Any, profile: Any) -> Mapping[str, bytes]:
        """Return no files."""
        return {}

    def lacks(self, kit: Any) -> str:
        """Say that all is missing."""
        return "not asked for"
