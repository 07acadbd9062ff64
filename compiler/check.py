"""Say, without compiling, what stands between a model and a device, and what npuc mends itself."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from npuc import partition, per_target, pipeline, plugins, source_lines
from npuc import samples as sampling
from npuc.errors import PassError
from npuc.export import export
from npuc.inputs import random
from npuc.ledger import REFUSED, Fixed, Ledger, Open
from npuc.legality import Finding, judge, leads_with_batch, work
from npuc.load import Loaded, load
from npuc.passes import standard
from npuc.passes.base import Pass, run
from npuc.passes.fix_shapes import FixShapes
from npuc.passes.graphs import infer_shapes, label
from npuc.passes.place import Place
from npuc.profile import Profile
from npuc.program import Program
from npuc.targets.base import Target

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

ALL = "all"
"""The name that stands for every installed target."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A program as a pass left it."""

    name: str
    program: Program


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a target says of a model, after the passes that npuc applies for it.

    `left` is what those cannot mend, `fixed` what they do. `operators` counts the nodes that
    compute, of which `host` run on the host: node name → operator kind. `crossings` are the
    tensors that go there and back, `touched` names those of them that each node reads or makes.
    `written` has the operators, by kind, that a pass put in place of a node: (pass, node) → kinds,
    as far as their names tell. `options` are what `npuc compile` must be told.
    """

    name: str
    title: str
    operators: int
    left: tuple[Open, ...]
    fixed: tuple[Fixed, ...]
    host: Mapping[str, str]
    crossings: tuple[partition.Crossing, ...]
    touched: Mapping[str, frozenset[str]]
    written: Mapping[tuple[str, str], Mapping[str, int]]
    options: tuple[str, ...]
    program: Program
    """The model after those passes, with the places of its nodes."""

    def of(self, *verdicts: str) -> tuple[Open, ...]:
        """Return what is left with one of these verdicts."""
        return tuple(item for item in self.left if item.finding.verdict in verdicts)

    @property
    def steps(self) -> tuple[str, ...]:
        """The passes that mend something, in order."""
        return tuple(dict.fromkeys(item.step for item in self.fixed))

    @property
    def passed(self) -> bool:
        """Whether nothing is blocked or has to run on the host, as far as is public."""
        return not self.host and not self.of(*REFUSED)


def check(
    source: "str | Path | torch.nn.Module",
    *,
    target: str | Sequence[str],
    dims: Mapping[str, int] | None = None,
    inputs: Sequence[str] = (),
    model: str = "",
    model_path: str = "",
    trust_pickle: bool = False,
    eval_mode: bool = False,
    opset: int = 20,
) -> list[Outcome]:
    """Hold a model against the profiles of one or more targets (``all``: every installed one).

    Nothing is compiled and nothing runs but the passes. Raises `NpucError` where the model cannot
    be loaded or exported, or a dimension or target has no such name; what a target refuses is no
    error but an outcome.
    """
    wanted = (target,) if isinstance(target, str) else tuple(target)
    names = plugins.names() if ALL in wanted else wanted
    targets = [plugins.find(name) for name in names]
    loaded = load(
        source, model=model, model_path=model_path, inputs=inputs,
        trust_pickle=trust_pickle, eval_mode=eval_mode,
    )  # fmt: skip
    exported = _named(export(loaded, opset=opset, eval_mode=eval_mode))
    sizes = _sizes(loaded, exported)
    usual = {**sizes, **(dims or {})}
    common: dict[tuple[tuple[str, int], ...], list[Stage]] = {}
    # What comes before dimensions are bound is the same for all, and the slowest of it.
    early = list(takewhile(lambda item: not isinstance(item, FixShapes), standard({})))
    shared = _required(exported, early)
    outcomes = []
    for item in targets:
        bound = _bound(exported, sizes, dims or {}, item.profile)
        key = tuple(sorted(bound.items()))
        if key not in common:
            start = shared[-1].program if shared else exported
            common[key] = [*shared, *_required(start, standard(bound)[len(early) :])]
        options = [f"--dim {name}={size}" for name, size in bound.items() if usual[name] != size]
        outcomes.append(_outcome(item, exported, common[key], tuple(options)))
    return outcomes


def _required(program: Program, passes: Sequence[Pass]) -> list[Stage]:
    """Run the passes that no target goes without; raises `PassError`."""
    stages, faults = _stages(program, passes, pipeline.ANY)
    if faults:
        raise PassError(f"in pass {faults[0].value!r}: {faults[0].bound}")
    return stages


def _named(program: Program) -> Program:
    """Return a copy whose nodes all have a name of their own; files need not give them one."""
    copy = program.clone()
    taken: set[str] = set()
    for node in copy.model.graph.all_nodes():
        wanted = node.name or label(node)
        if wanted in taken:
            wanted = f"{wanted} → {node.outputs[0].name}"
        node.name = wanted
        taken.add(wanted)
    return copy


def _sizes(loaded: Loaded, exported: Program) -> dict[str, int]:
    """Return the size that compile gives each dynamic dimension by itself; nothing is run."""
    if not exported.symbols:
        return {}
    if loaded.reference is not None:
        sample = loaded.reference.samples[0]
    elif loaded.program is not None:
        sample = random(exported.inputs)[0]
    else:
        call = (loaded.samples[0], {}) if loaded.samples else (loaded.args, loaded.kwargs)
        sample = loaded.captured.signature.flatten(*call)
    return sampling.sizes_of(sample, exported)


def _bound(
    exported: Program, sizes: Mapping[str, int], dims: Mapping[str, int], profile: Profile
) -> dict[str, int]:
    """Return the size of every dimension: the user's, the device's only batch, the sample's."""
    batch = profile.get("shapes.batch")
    leading = [port.shape[0] for port in exported.inputs if leads_with_batch(port)]
    first = {n: int(batch) for n in leading if isinstance(n, str)} if batch is not None else {}
    return {**sizes, **first, **dims}


def _outcome(
    target: Target, exported: Program, common: Sequence[Stage], options: tuple[str, ...]
) -> Outcome:
    profile = target.profile
    start = common[-1].program if common else exported
    own, fault = _stages(start, per_target.prepare(target), profile)
    places = source_lines.known(exported.model)
    program, kinds = exported, _kinds(exported)
    ledger = Ledger.of(judge(exported, profile), kinds)
    written: dict[tuple[str, str], Mapping[str, int]] = {}
    for stage in (*common, *own):
        program, before, kinds = stage.program, kinds, _kinds(stage.program)
        source_lines.restore(program.model, places)
        places |= source_lines.known(program.model)  # a folded result has a new owner
        ledger = ledger.after(stage.name, judge(program, profile))
        for node, count in _written(before, kinds).items():
            written.setdefault((stage.name, node), count)
    final = run(program, [Place()], profile)
    hosted, crossings = partition.host_nodes(final.model), partition.crossings(final.model)
    return Outcome(
        target.name, profile.title, len(work(program.model)),
        (*map(Open, fault), *ledger.open), ledger.fixed,
        {label(node): partition.kind(node) for node in hosted},
        crossings, _touched(hosted, crossings), written, options, final,
    )  # fmt: skip


def _kinds(program: Program) -> dict[str, str]:
    return {label(node): partition.kind(node) for node in work(program.model)}


def _written(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, Counter[str]]:
    """Return for each node that a pass took out what it put there, by kind.

    npuc's passes name what they write after the node that they replace.
    """
    gone = {name for name, kind in before.items() if after.get(name) != kind}
    found: dict[str, Counter[str]] = {}
    for name, kind in after.items():
        if before.get(name) == kind:
            continue
        owner = next((name[:end] for end in range(len(name), 0, -1) if name[:end] in gone), None)
        if owner is not None:
            found.setdefault(owner, Counter())[kind] += 1
    return found


def _stages(
    program: Program, passes: Sequence[Pass], profile: Profile
) -> tuple[list[Stage], list[Finding]]:
    """Run passes; return what those left that changed it, and why one could not run, if so."""
    stages: list[Stage] = []
    for item in passes:
        before = program.opset
        try:
            program = run(program, [item], profile)
        except PassError as error:
            said = " ".join(error.message.split())
            refused = Finding("", "", "pass", item.name, said, "blocked")
            return stages, [refused]
        if program.steps[-1].changes or program.opset != before:
            program = _shaped(program)
            stages.append(Stage(item.name, program))
    return stages, []


def _shaped(program: Program) -> Program:
    """Return a program whose values all have shapes, as far as ONNX infers them."""
    if all(value.shape is not None for node in program.model.graph for value in node.outputs):
        return program
    model = program.model.clone()
    infer_shapes(model)
    return replace(program, model=model)


def _touched(
    nodes: Sequence["ir.Node"], crossings: Sequence[partition.Crossing]
) -> dict[str, frozenset[str]]:
    crossing = {item.tensor for item in crossings}
    return {
        label(node): frozenset(
            v.name for v in (*partition.reads(node), *node.outputs) if v.name in crossing
        )
        for node in nodes
    }
