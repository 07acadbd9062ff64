"""Say which operator a wrong tensor speaks against, by how the graphs around it differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from npuc.blame.gaps import Cut
from npuc.passes.graphs import constant
from npuc.program import Program


@dataclass(frozen=True, slots=True)
class Parent:
    """The operator that makes a tensor in the good program, and the tensors that it reads."""

    operator: str
    op_type: str
    reads: tuple[str, ...]


Parents = Mapping[str, Parent]
"""By the name of the tensor."""


@dataclass
class Suspect:
    """An operator and a tensor, and why they rather than what was measured."""

    operator: str
    op_type: str
    tensor: str
    evidence: list[str] = field(default_factory=list)


def of_program(program: Program) -> Parents:
    """Return what makes every tensor of a program's main graph; constants are no tensors."""
    found = {}
    for node in program.model.graph:
        reads = tuple(
            v.name for v in node.inputs if v is not None and v.name and constant(v) is None
        )
        for value in node.outputs:
            found[value.name or ""] = Parent(node.name or "", node.op_type, reads)
    return found


def suspect(cut: Cut, wrong: Sequence[str], parents: Parents) -> Suspect:
    """Return the operator to blame for tensors that are wrong though their inputs are right.

    It makes the first of them, unless the bad program lacks an operator before it, reads one
    result of an operator for another, or puts something between a tensor and its readers.
    """
    name = wrong[0]
    node = cut.made[name].producer()
    assert node is not None
    plain = Suspect(node.name or "", node.op_type, name)
    before = parents.get(name)
    if before is None:
        return plain
    here = {*cut.made, *cut.given}
    read, gone = _before(name, parents, here)
    reads = cut.reads(name)
    lost, new = read - reads, reads - read
    if not lost and not new and gone and before.op_type == node.op_type:
        left = parents[gone[-1]]
        text = f"{left.op_type} {left.operator!r} is gone: {name!r} is made without {gone[-1]!r}"
        return Suspect(left.operator, left.op_type, gone[-1], [text])
    for tensor in sorted(lost):
        maker = parents.get(tensor)
        if maker is None:
            continue
        if new & set(maker.reads) and not _read_in(cut, tensor):
            text = f"{name!r} reads {', '.join(sorted(new))} where it read {tensor!r}"
            return Suspect(maker.operator, maker.op_type, tensor, [text])
        twins = [other for other in new if _same_maker(cut, tensor, other)]
        if twins:
            text = f"{name!r} reads {twins[0]!r} where it read {tensor!r}: two results of one node"
            return Suspect(maker.operator, maker.op_type, tensor, [text])
    if not lost and not new:
        return _between(cut, name, node, before, plain)
    return plain


def _before(name: str, parents: Parents, here: set[str]) -> tuple[set[str], list[str]]:
    """Return the tensors that both programs have from which the good one makes a tensor, and those
    on the way that the bad one has not."""
    pending, read, gone = list(parents[name].reads), set[str](), list[str]()
    while pending:
        tensor = pending.pop()
        if tensor in here:
            read.add(tensor)
        elif tensor in parents and tensor not in gone:
            gone.append(tensor)
            pending += parents[tensor].reads
        elif tensor not in parents:
            read.add(tensor)
    return read, gone


def _between(cut: Cut, name: str, node: ir.Node, before: Parent, plain: Suspect) -> Suspect:
    """Look for nodes that stand between a tensor and its readers and were not there."""
    if before.op_type and node.op_type != before.op_type:
        return plain
    added = [n for n in cut.cone(name) if n is not node and _data(cut, n)]
    if not added or not before.op_type:
        return plain
    tensor = _data(cut, added[0])[0]
    value = cut.given[tensor]
    listed = ", ".join(f"{n.op_type} {n.name or n.outputs[0].name!r}" for n in added)
    text = [f"between {tensor!r} and {plain.operator!r} there is {listed}"]
    users = [user for user, _ in value.uses()]
    maker = cut.made.get(tensor)
    producer = None if maker is None else maker.producer()
    if producer is not None and len(added[-1].outputs[0].uses()) > 1 and len(users) == 1:
        return Suspect(producer.name or "", producer.op_type, tensor, text)
    return Suspect(plain.operator, plain.op_type, tensor, text)


def _data(cut: Cut, node: ir.Node) -> list[str]:
    """Return the golden tensors that a node reads itself."""
    known = {id(v): n for n, v in cut.given.items()}
    return [known[id(v)] for v in node.inputs if v is not None and id(v) in known]


def _read_in(cut: Cut, tensor: str) -> bool:
    value = cut.given.get(tensor)
    return value is not None and bool(value.uses())


def _same_maker(cut: Cut, tensor: str, other: str) -> bool:
    makers = [cut.made[n].producer() for n in (tensor, other) if n in cut.made]
    return len(makers) == 2 and makers[0] is makers[1]
