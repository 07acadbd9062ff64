"""Find the wrong node inside what a torch operator was exported to, by the values that occur.

Exporters write one torch operator as many nodes, whose tensors have no names in torch. torch can
take the same operator apart too. A tensor of the export whose values also occur there, in whatever
layout, is right; the first that occurs nowhere is not.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from npuc.blame.gaps import BORN, Cut, Golden, read_by
from npuc.blame.rescaled import fitted
from npuc.blame.structure import Suspect
from npuc.blame.torch_values import Values, run
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


def within(golden: Values, cut: Cut, tensor: str, calls: Sequence[Tensors]) -> Suspect | None:
    """Return the first node on the way to a wrong tensor whose values do not occur in torch.

    None where no value inside occurs there, so that nothing can be told.
    """
    occurring, call = _occurring(golden.captured, calls)
    if occurring is None:
        return None
    found = _values(golden, cut, tensor, [call])[0]
    known = {name for name, array in found.items() if occurring.has(array)}
    if known:
        return _first_unknown(cut, tensor, known, "in torch's own run")
    return _behind_bias(golden, cut, tensor, calls)


def misread(values: Values, cut: Cut, tensor: str, call: Tensors) -> Suspect | None:
    """Return the node whose result reaches the maker of a tensor changed, or taken for another.

    torch says what the operator reads; where its node reads another result of the same producer,
    that producer's results were swapped, and where something stands between, it is that.
    """
    node = cut.made[tensor].producer()
    if node is None or tensor not in values.parents:
        return None
    wanted = run(values.program, values.captured, call, _behind(values, cut, tensor))
    found = _values(values, cut, tensor, [call])[0]
    for value in node.inputs:
        name = "" if value is None else value.name or ""
        producer = None if value is None else value.producer()
        if producer is None or name not in found or _among(found[name], wanted.values()):
            continue
        for other in producer.outputs:
            if other.name in found and _among(found[other.name], wanted.values()):
                text = f"{tensor!r} reads {name!r} where torch reads what is {other.name!r}"
                result = name.removesuffix(BORN)
                return Suspect(producer.name or "", producer.op_type, result, [text])
        read = next((v.name for v in producer.inputs if v is not None and v.name in wanted), None)
        target = values.parents[tensor].op_type.replace("_", "")
        if read is not None and node.op_type.lower() in target:
            text = f"between {read!r} and {tensor!r} there is a {producer.op_type} not in torch"
            return Suspect(node.name or "", node.op_type, read, [text])
    return None


def _behind(values: Values, cut: Cut, tensor: str) -> set[str]:
    """Return torch's tensors from which one is made, back to those that the export has too."""
    pending, found = list(values.parents[tensor].reads), set[str]()
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            if name not in cut.given and name in values.parents:
                pending += values.parents[name].reads
    return found


def _among(array: Array, others: Iterable[Array]) -> bool:
    return any(_equal(array, other) for other in others)


def _equal(array: Array, other: Array) -> bool:
    near = NEAR * float(np.abs(other).max(initial=0.0)) if other.dtype.kind == "f" else 0.0
    return array.shape == other.shape and bool(np.allclose(array, other, rtol=0, atol=near))


def _occurring(captured: Captured, calls: Sequence[Tensors]) -> "tuple[_Occurring | None, Tensors]":
    """Return what occurs in torch on the first call that the model runs when taken apart.

    Taking apart may write the example's sizes into the program, as it does for a recurrent one.
    """
    for call in calls:
        try:
            return _Occurring(captured, call), call
        except Exception:  # torch's own, of many types: this size it does not take
            continue
    return None, {}


def _behind_bias(golden: Golden, cut: Cut, tensor: str, calls: Sequence[Tensors]) -> Suspect | None:
    """Look behind the Add of a bias: torch computes a linear layer in one, ONNX in two nodes."""
    node = cut.made[tensor].producer()
    if node is None or node.op_type != "Add" or all(constant(v) is None for v in node.inputs):
        return None
    product = next((v.producer() for v in node.inputs if constant(v) is None and v), None)
    if product is None or product.op_type not in ("MatMul", "Gemm"):
        return None
    sized = {call[n].shape for call in calls[:1] for n in call}
    alike = [c for c in calls if {a.shape for a in c.values()} == sized]
    right = [golden(call, [tensor])[tensor] for call in alike]
    got = [found[tensor + BORN] for found in _values(golden, cut, tensor, alike)]
    if fitted(right, got).ratio < CODES:  # the same offset everywhere: it is the bias
        return None
    text = f"{tensor!r} is not off by the same everywhere: it is the product, not the bias"
    return Suspect(product.name or "", product.op_type, product.outputs[0].name or "", [text])


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
    # All results of a node, those too that nobody reads: one may be mistaken for another.
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
            name = (node.outputs[0].name or "").removesuffix(BORN)
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
