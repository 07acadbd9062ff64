"""Find the wrong node inside what a torch operator was exported to, by the values that occur.

Exporters write one torch operator as many nodes, whose tensors have no names in torch. torch can
take the same operator apart too. A tensor of the export whose values also occur there, in whatever
layout, is right; the first that occurs nowhere is not.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from npuc.blame.gaps import Cut, Golden, read_by
from npuc.blame.structure import Suspect
from npuc.blame.torch_values import run
from npuc.capture import Captured
from npuc.passes.graphs import constant
from npuc.program import Program, Tensors
from npuc.quiet import quiet
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]

NEAR = 1e-4
"""Values are the same up to this share of the largest: single precision, through a few sums."""


def within(
    captured: Captured, golden: Golden, cut: Cut, tensor: str, calls: Sequence[Tensors]
) -> Suspect | None:
    """Return the first node on the way to a wrong tensor whose values do not occur in torch.

    None where no value inside occurs there, so that nothing can be told.
    """
    cone = [n for n in cut.cone(tensor) if not _stored(n)]
    model = cut.model.clone()
    by_name = {v.name: v for n in model.graph for v in n.outputs}
    names = [v.name or "" for n in cone for v in n.outputs if v.name]
    model.graph.outputs.extend(by_name[name] for name in names)
    common.RemoveUnusedNodesPass()(model)
    for value in [v for v in model.graph.inputs if not v.uses()]:
        model.graph.inputs.remove(value)
    part = Program.from_model(model)
    call = calls[0]
    good = golden(call, [p.name for p in part.inputs])
    found = OnnxRunner(part, "cone")(good)
    occurring = _Occurring(captured, call)
    known = {name for name in names if occurring.has(found[name])}
    if not known:
        return None
    return _first_unknown(cut.made[tensor], cone, known)


def _first_unknown(value: ir.Value, cone: Sequence[ir.Node], known: set[str]) -> Suspect | None:
    """Walk back from a wrong tensor to the node that reads known values and makes an unknown."""
    inside = {id(n) for n in cone}
    node = value.producer()
    while node is not None:
        wrong = [
            v
            for v in read_by(node)
            if v is not None and v.producer() is not None and id(v.producer()) in inside
            and v.name not in known
        ]  # fmt: skip
        if not wrong:
            name = node.outputs[0].name or ""
            text = f"what {name!r} holds occurs nowhere in torch's own run; what it reads does"
            return Suspect(node.name or "", node.op_type, name, [text])
        node = wrong[0].producer()
    return None


class _Occurring:
    """The values of all tensors of a torch model, taken apart as far as torch does."""

    def __init__(self, captured: Captured, call: Tensors) -> None:
        with quiet():
            program = captured.program.run_decompositions()
        self._sorted: dict[int, list[Array]] = {}
        self._masks: set[tuple[int, int]] = set()
        for array in run(program, captured, call, None).values():
            if array.dtype.kind == "f" and array.size > 1:
                self._sorted.setdefault(array.size, []).append(np.sort(array, axis=None))
            elif array.dtype.kind == "b":
                held = int(array.sum())
                self._masks |= {(array.size, held), (array.size, array.size - held)}

    def has(self, array: Array) -> bool:
        """Whether a tensor of the same values occurs, in whatever layout; integers are not told.

        Of a mask only how much it hides is compared, and either value may be the one that hides.
        """
        if array.dtype.kind == "b" and array.size > 1:
            return (array.size, int(array.sum())) in self._masks
        if array.dtype.kind != "f" or array.size < 2:
            return True
        mine = np.sort(array, axis=None)
        near = NEAR * float(np.abs(mine[np.isfinite(mine)]).max(initial=0.0))
        return any(
            bool(np.allclose(mine, other, rtol=0, atol=near, equal_nan=True))
            for other in self._sorted.get(array.size, ())
        )


def _stored(node: ir.Node) -> bool:
    """Whether a node computes from constants alone."""
    return all(v is None or constant(v) is not None for v in node.inputs)
