"""Find the operator and the tensor in a step: where equal inputs first give unequal results."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from npuc import samples as sampling
from npuc import source_lines
from npuc.blame import matching, minimal, readings, rescaled, siblings, structure
from npuc.blame.gaps import Cut, Gap, Golden, born, shared, taps, tensors_of
from npuc.blame.judge import Judge
from npuc.blame.minimal import Case
from npuc.blame.steps import Found
from npuc.blame.torch_values import Values
from npuc.blame.trail import Trail
from npuc.errors import ParityError
from npuc.metrics import differences
from npuc.program import Program, Tensors
from npuc.validate import MENDING

CALLS = 8
"""Calls that operators are compared on: those of all samples on which the step errs most."""

ALONE = 0.3
"""The share of all that is born in a step which makes one operator the culprit."""

EXACT = 1e-10
"""Noise to signal (-100 dB) that operators of exact programs differ by without being wrong: single
precision rounds at -140 dB, and a sum of a million terms loses 30 dB of that."""

NEAR = 1e-3
"""Operators of an exact step that are born with this share of the worst's error are wrong too."""


@dataclass
class Located:
    """The operator to blame and what shows it; `good` and `bad` are the programs around the step.

    `shown` is a tensor on the way of what is wrong, and `case` cuts out what shows it.
    """

    operator: str = ""
    op_type: str = ""
    tensor: str = ""
    place: str = ""
    why_not: str = ""
    evidence: list[str] = field(default_factory=list)
    born: str = ""
    shown: str = ""
    bad: Program | None = None
    good: Program | None = None
    case: Callable[[], Case | None] | None = None


def locate(trail: Trail, judge: Judge, found: Found) -> Located:
    """Return the operator to blame in a step that made a program."""
    assert found.index is not None and found.index >= 0
    bad = trail.made[found.index].program
    good = None if found.index == 0 else trail.made[found.index - 1].program
    answered = judge.answered(found.index)
    calls = worst_calls(judge, found.index)
    if not calls:
        return Located(why_not="no single call shows it", bad=bad, good=good)
    golden, names, parents = _golden(trail, good, bad)
    try:
        located = _among(trail, judge, found, golden, shared(names, bad), parents, calls)
    except ParityError as error:  # not even operator by operator does it run
        said = answered if isinstance(answered, ParityError) else error
        return _refused(said, bad, good)
    located.bad, located.good = bad, good
    if located.tensor or located.operator:
        located.place = place_of(trail, located)
    return located


def _golden(
    trail: Trail, good: Program | None, bad: Program
) -> tuple[Golden, set[str], "structure.Parents"]:
    """Return what gives golden tensors, their names, and what reads what there."""
    if good is not None:
        return taps(good), tensors_of(good), structure.of_program(good)
    assert trail.loaded is not None  # only a torch model is exported
    values = Values(trail.loaded.captured)
    return values, values.names, values.parents


def _among(
    trail: Trail, judge: Judge, found: Found, golden: Golden, names: Sequence[str],
    parents: "structure.Parents", calls: list[Tensors],
) -> Located:  # fmt: skip
    assert found.index is not None
    made = trail.made[found.index]
    cut = Cut(made.program, names)
    sizes = _sizes(made.program)

    def count(runs: int) -> None:
        judge.runs += runs

    if made.step in rescaled.STEPS:
        gaps = rescaled.born(golden, taps(made.program), cut, calls)
        count(3)
    else:
        gaps = born(golden, cut, calls, sizes, count)
    lossy = made.item is not None and not made.item.exact
    if made.step in MENDING:
        gaps = _worsened(trail, found.index, cut.names, calls, sizes, count)
        found = replace(found, coded=())
    if lossy:
        return _largest(golden, cut, gaps, trail, found, calls, count)
    return _first(golden, cut, gaps, parents, trail, found, calls, count)


def _worsened(
    trail: Trail, index: int, names: Sequence[str], calls: list[Tensors],
    sizes: Mapping[str, int], count: Callable[[int], None],
) -> dict[str, Gap]:  # fmt: skip
    """Return what is born in tensors that a step should have mended, against the float program.

    Of those that are worse after it than before; what differs from before is not wrong by itself.
    """
    floats = next(m.program for m in reversed(trail.made[:index]) if not m.lossy)
    shared_here = [name for name in names if name in tensors_of(floats)]
    golden = taps(floats)
    programs = [trail.made[at].program for at in (index - 1, index)]
    before, after = (born(golden, Cut(p, shared_here), calls, sizes, count) for p in programs)
    equal = {name: Gap(name) for name in names}
    worse = {
        name: replace(gap, error=gap.error - before[name].error)
        for name, gap in after.items()
        if name in before and gap.error > before[name].error
    }
    return {**equal, **worse}


def _first(
    golden: Golden, cut: Cut, gaps: Mapping[str, Gap], parents: "structure.Parents",
    trail: Trail, found: Found, calls: list[Tensors], count: Callable[[int], None],
) -> Located:  # fmt: skip
    """Blame the first operator of an exact step that is wrong by itself."""
    worst = max((g.ratio for g in gaps.values()), default=0.0)
    if worst <= EXACT:
        what = "no operator is wrong by itself: the error adds up, or needs several together"
        return Located(why_not=what)
    least = max(EXACT, NEAR * worst if worst < math.inf else EXACT)
    wrong = [name for name in cut.names if gaps[name].ratio >= least]
    suspect = structure.suspect(cut, wrong, parents)
    if isinstance(golden, Values) and len(cut.cone(wrong[0])) > 1:
        within = matching.misread(golden, cut, wrong[0], calls[0])
        within = within or matching.within(golden, cut, wrong[0], calls)
        suspect = suspect if within is None else within
    elif not suspect.evidence and len(cut.cone(wrong[0])) > 1:
        suspect = siblings.unlike(cut, wrong[0], gaps, parents, least) or suspect
    located = Located(suspect.operator, suspect.op_type, suspect.tensor)
    located.case = _case(golden, trail, found, cut, wrong[0], calls)
    located.born = gaps[wrong[0]].text
    located.evidence.append(f"fed equal inputs, {wrong[0]!r} differs: {located.born}")
    located.evidence += suspect.evidence
    if len(wrong) > 1:
        located.why_not = f"{len(wrong) - 1} other operators are wrong by themselves too"
    return located


def _largest(
    golden: Golden, cut: Cut, gaps: Mapping[str, Gap], trail: Trail, found: Found,
    calls: list[Tensors], count: Callable[[int], None],
) -> Located:  # fmt: skip
    """Blame the operator, or coded tensor, in which most of the loss of a step is born."""
    codes = _codes(trail, found)
    if codes is not None:
        shown = next((name for name in cut.names if _passes(cut, name, codes.shown)), None)
        if shown is not None:
            codes.case = _case(golden, trail, found, cut, shown, calls)
        return codes
    known = [gaps[c.tensor] for c in found.coded if c.tensor in gaps]
    ranked = known or sorted(gaps.values(), key=lambda g: -min(g.ratio, 1e6))
    total = sum(min(g.ratio, 1e6) for g in ranked)
    if total == 0:
        return Located(why_not="no operator is wrong by itself")
    assert found.index is not None
    made = trail.made[found.index]
    good = None if not found.index else trail.made[found.index - 1].program
    readers: dict[str, list[readings.Reading]] = {}
    for gap in ranked[: readings.WORST]:
        reading = readings.read(golden, good, cut, gap, calls)
        readers.setdefault(reading.tensor, []).append(reading)
    count(2 * min(len(ranked), readings.WORST))
    shares = {
        name: sum(min(r.gap.ratio, 1e6) for r in group) / total for name, group in readers.items()
    }
    order = list(shares) if known else sorted(shares, key=lambda name: -shares[name])
    lost = "lost too much" if known else "lost"
    lines = [
        f"{shares[name]:.0%} of what is {lost} is born at {readers[name][0].title}: "
        f"{readers[name][0].gap.text}"
        for name in order[:5]
    ]
    top = readers[order[0]][0]
    located = Located(evidence=lines, born=top.gap.text)
    located.case = _case(golden, trail, found, cut, top.gap.tensor, calls)
    own = made.kind == "numerics" or made.step in MENDING  # it costs more than it can, somewhere
    if not known and not own and shares[order[0]] < ALONE:
        located.why_not = (
            f"no single operator: the most is born at {top.title} ({shares[order[0]]:.0%}), "
            f"and it is spread over {len(gaps)} tensors"
        )
        return located
    located.operator, located.op_type, located.tensor = top.operator, top.op_type, top.tensor
    if not known and shares[order[0]] < ALONE:
        located.why_not = f"several operators: this is the worst of {len(order)} looked at"
    if good is not None and made.kind == "numerics":
        within = matching.between(good, golden, cut, top.gap.tensor, calls)
        if within is not None:
            located.evidence += within.evidence
            located.operator, located.op_type = within.operator, within.op_type
    return located


def _codes(trail: Trail, found: Found) -> Located | None:
    """Name the tensor whose codes are wrong, where that is known: its range, or how it is read."""
    assert found.index is not None
    model = trail.made[found.index].program.model
    for node in model.graph:
        value = node.outputs[0]
        if readings.miscoded(value) is not None:
            name = value.name or ""
            said = [f"{name!r} is read with another scale or zero point than it was written with"]
            return Located(node.name or "", node.op_type, name, evidence=said, shown=name)
    if not found.coded or not found.coded[0].codes:
        return None
    tensor = found.coded[0].tensor
    maker = next((n for n in model.graph if any(v.name == tensor for v in n.outputs)), None)
    coder = next(
        n for n in model.graph
        if n.op_type == "QuantizeLinear" and n.inputs[0] is not None and n.inputs[0].name == tensor
    )  # fmt: skip
    node = maker or coder
    said = [f"the range of {tensor!r} does not fit its values"]
    shown = coder.outputs[0].name or ""
    return Located(node.name or "", node.op_type, tensor, evidence=said, shown=shown)


def _passes(cut: Cut, name: str, through: str) -> bool:
    """Whether a tensor is computed by way of another that is not golden."""
    return any(v.name == through for node in cut.cone(name) for v in node.outputs)


def _case(
    golden: Golden, trail: Trail, found: Found, cut: Cut, tensor: str, calls: list[Tensors]
) -> Callable[[], Case | None]:
    good = None if not found.index else trail.made[found.index - 1].program
    return lambda: minimal.case(golden, good, cut, tensor, calls)


def worst_calls(judge: Judge, index: int) -> list[Tensors]:
    """Return the calls on which a program errs most, cut to its shapes."""
    answered = judge.answered(index)
    program = judge.trail.made[index].program
    fitted = sampling.Rebatched(_nobody, program, judge.exported)  # type: ignore[arg-type]
    if isinstance(answered, ParityError):
        first = judge.reference.samples[0]
        return fitted.parts(first, first)[:1]
    scored = []
    for asked, expected, got in zip(judge.groups, judge.expected, answered, strict=False):
        for call, right, answer in zip(asked, expected, got, strict=True):
            scored.append((_error(right, answer), call))
    scored.sort(key=lambda item: -item[0])
    chosen = [call for score, call in scored[:CALLS] if score > 0]
    return [part for call in chosen for part in fitted.parts(call, call)][:CALLS]


def _nobody(inputs: Tensors) -> Tensors:
    raise AssertionError("only the shapes are asked for")


def _error(right: Tensors, answer: Tensors) -> float:
    found = [
        math.inf if d.fault else d.rms / (d.peak or 1.0) for d in differences([right], [answer])
    ]
    return max(found)


def place_of(trail: Trail, located: Located) -> str:
    """Return the user's source line of an operator, or ""."""
    assert trail.exported is not None
    places = source_lines.known(trail.exported.model)
    for name in (located.operator, located.tensor):
        if name in places:
            return " ".join(filter(None, places[name]))
    if located.bad is None:
        return ""
    copy = located.bad.clone()
    source_lines.restore(copy.model, places)
    for node in copy.model.graph:
        if located.operator and node.name == located.operator:
            return " ".join(filter(None, (source_lines.line(node), source_lines.module(node))))
    return ""


def _refused(error: ParityError, bad: Program, good: Program | None) -> Located:
    """Read the operator off what ONNX Runtime says of a program that it does not run."""
    by_name = {node.name: node for node in bad.model.graph.all_nodes() if node.name}
    said = re.findall(r"[\w./:@-]+", error.message)
    node = next((by_name[word] for word in said if word in by_name), None)
    if node is None:
        by_tensor = {v.name: n for n in bad.model.graph for v in n.outputs if v.name}
        node = next((by_tensor[word] for word in said if word in by_tensor), None)
    if node is None:
        return Located(why_not="ONNX Runtime does not say which", bad=bad, good=good)
    return Located(node.name or "", node.op_type, node.outputs[0].name or "", bad=bad, good=good)


def _sizes(program: Program) -> dict[str, int]:
    found = {}
    for node in program.model.graph:
        for value in node.outputs:
            if value.shape is not None and value.dtype is not None and value.name:
                dims = [d if isinstance(d, int) else 1 for d in value.shape]
                found[value.name] = int(np.prod(dims, dtype=np.int64)) * max(
                    1, int(value.dtype.itemsize)
                )
    return found
