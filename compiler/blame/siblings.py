"""Find the wrong node in a rewritten operator by others of its kind that were rewritten right."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from npuc.blame.gaps import BORN, Cut, Gap
from npuc.blame.structure import Parents, Suspect
from npuc.passes.graphs import constant

Sketch = tuple[str, tuple[tuple[str, str], ...], tuple[str, ...]]
"""A node: its operator, its attributes, and its small constants."""

SMALL = 8
"""Values up to which a constant is part of the rewriting; larger ones are the model's weights."""


def unlike(
    cut: Cut, tensor: str, gaps: Mapping[str, Gap], parents: Parents, right: float
) -> Suspect | None:
    """Return the first node on the way to a wrong tensor that a right one's way does not have.

    The right tensor is made by an operator of the same kind in the good program, and by as many
    nodes or one or two fewer or more in the bad one; its noise to signal is at most `right`.
    """
    here = _way(cut, tensor)
    if len(here) < 2 or tensor not in parents:
        return None
    kind = parents[tensor].op_type
    twins = [
        name
        for name in cut.names
        if name != tensor and name in parents and parents[name].op_type == kind
        and gaps[name].ratio <= right
    ]  # fmt: skip
    ways = [(name, _way(cut, name)) for name in twins]
    near = [(name, way) for name, way in ways if abs(len(way) - len(here)) <= len(here) // 2]
    mine = [_sketch(node) for node in here]
    if any([_sketch(node) for node in way] == mine for _, way in near):
        return None  # rewritten alike: it is not how, but on what
    return next((_differing(here, way, name) for name, way in near), None)


def _differing(here: Sequence[ir.Node], there: Sequence[ir.Node], twin: str) -> Suspect | None:
    for at, node in enumerate(here):
        if at < len(there) and _sketch(node) == _sketch(there[at]):
            continue
        inserted = at >= len(there) or any(
            _sketch(later) == _sketch(there[at]) for later in here[at + 1 :]
        )
        read = next((v for v in node.inputs if v is not None and constant(v) is None), None)
        wrong = read if inserted and read is not None else node.outputs[0]
        name = (wrong.name or "").removesuffix(BORN)
        text = f"{node.op_type} {node.name!r} is not there where {twin!r} was rewritten, rightly"
        return Suspect(node.name or "", node.op_type, name, [text])
    return None


def _way(cut: Cut, tensor: str) -> list[ir.Node]:
    return [n for n in cut.cone(tensor) if any(constant(v) is None for v in n.inputs if v)]


def _sketch(node: ir.Node) -> Sketch:
    attributes = tuple(sorted((a.name, str(a.value)) for a in node.attributes.values()))
    held = [constant(v) for v in node.inputs if v is not None]
    small = tuple(np.array2string(a) for a in held if a is not None and a.size <= SMALL)
    return node.op_type, attributes, small
