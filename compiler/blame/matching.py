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
from npuc.blame.rescaled import fitted
from npuc.blame.structure import Suspect
from npuc.blame.torch_values import run
from npuc.capture import Captured
from npuc.passes.graphs import constant
from npuc.program import Program, Tensors
from npuc.quiet import quiet
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]

CODES = 1e-4
"""Noise to signal up to which integers stand for reals: their bias is rounded to an integer."""

NEAR = 1e-4
"""Values are the same up to this share of the largest: single precision, through a few sums."""


def within(
    captured: Captured, golden: Golden, cut: Cut, tensor: str, calls: Sequence[Tensors]
) -> Suspect | None:
    """Return the first node on the way to a wrong tensor whose values do not occur in torch.

    None where no value inside occurs there, so that nothing can be told.
    """
    found = _values(golden, cut, tensor, calls[:1])[0]
    occurring = _Occurring(captured, calls[0])
    known = {name for name, array in found.items() if occurring.has(array)}
    return _first_unknown(cut, tensor, known, "in torch's own run") if known else None


def between(
    good: Program, golden: Golden, cut: Cut, tensor: str, calls: Sequence[Tensors]
) -> Suspect | None:
    """Return the first node on the way to a wrong tensor that holds none of the good program's.

    What a device computes in integers is what the good program has in reals, but for scale and
    offset of its channels.
    """
    names = _region(good, tensor, cut.reads(tensor))
    right = [golden(call, names) for call in calls]
    found = _values(golden, cut, tensor, calls)
    known = set()
    for name in found[0]:
        got = [call[name] for call in found]
        for other in names:
            theirs = [call[other] for call in right if other in call]
            if len(theirs) == len(got) and _scaled(theirs, got):
                known.add(name)
    return _first_unknown(cut, tensor, known, "before the step")


def _values(
    golden: Golden, cut: Cut, tensor: str, calls: Sequence[Tensors]
) -> list[dict[str, Array]]:
    """Return what the nodes on the way to a tensor make of golden tensors, call by call."""
    model = cut.model.clone()
    by_name = {v.name: v for n in model.graph for v in n.outputs}
    cone = [n for n in cut.cone(tensor) if not _stored(n)]
    names = [v.name or "" for n in cone for v in n.outputs if v.name]
    model.graph.outputs.extend(by_name[name] for name in names)
    common.RemoveUnusedNodesPass()(model)
    for value in [v for v in model.graph.inputs if not v.uses()]:
        model.graph.inputs.remove(value)
    part = Program.from_model(model)
    runner = OnnxRunner(part, "cone")
    inputs = [p.name for p in part.inputs]
    return [{name: runner(golden(call, inputs))[name] for name in names} for call in calls]


def _region(good: Program, tensor: str, ends: set[str]) -> list[str]:
    """Return the tensors from which the good program makes a tensor, back to `ends`."""
    makers = {v.name: n for n in good.model.graph for v in n.outputs}
    pending, found = [tensor], list[str]()
    while pending:
        node = makers.get(pending.pop())
        if node is None:
            continue
        for value in node.inputs:
            name = "" if value is None else value.name or ""
            if name and name not in ends and name not in found and constant(value) is None:
                found.append(name)
                pending.append(name)
    return found


def _scaled(theirs: Sequence[Array], got: Sequence[Array]) -> bool:
    """Whether integers stand for reals, up to a scale and an offset per channel."""
    if any(a.shape != b.shape for a, b in zip(theirs, got, strict=True)):
        return False
    mine = [array.astype(np.float32) for array in got]
    return fitted([array.astype(np.float32) for array in theirs], mine).ratio < CODES


def _first_unknown(cut: Cut, tensor: str, known: set[str], where: str) -> Suspect | None:
    """Walk back from a wrong tensor to the node that reads known values and makes an unknown."""
    inside = {id(n) for n in cut.cone(tensor) if not _stored(n)}
    node = cut.made[tensor].producer()
    while node is not None:
        wrong = [
            v
            for v in read_by(node)
            if v is not None and v.producer() is not None and id(v.producer()) in inside
            and v.name not in known
        ]  # fmt: skip
        if not wrong:
            name = node.outputs[0].name or ""
            text = f"what {name!r} holds occurs nowhere {where}; what it reads does"
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
            held = int(array.sum())
            return held in (0, array.size) or (array.size, held) in self._masks
        if (
            array.dtype.kind != "f"
            or array.size < 2
            or bool((array == array.flat[0]).all() and array.flat[0] in (0, 1))
        ):
            return True  # nothing that could be told from others
        mine = np.sort(array, axis=None)
        near = NEAR * float(np.abs(mine[np.isfinite(mine)]).max(initial=0.0))
        return any(
            bool(np.allclose(mine, other, rtol=0, atol=near, equal_nan=True))
            for other in self._sorted.get(array.size, ())
        )


def _stored(node: ir.Node) -> bool:
    """Whether a node computes from constants alone."""
    return all(v is None or constant(v) is not None for v in node.inputs)
