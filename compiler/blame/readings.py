"""Say through which of its inputs an operator of a rounded program loses most."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from npuc.blame.gaps import Cut, Gap, Golden
from npuc.passes.graphs import constant
from npuc.program import Program, Tensors
from npuc.runners import OnnxRunner

WORST = 8
"""Tensors that are looked into: those where most is born."""

MOST = 0.25
"""An input explains an operator's loss where its own is at least a quarter of it (-6 dB): what a
sum over many products averages out is more than that."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A tensor in which loss is born: `gap` is that of the operator `reader` which shows it.

    Where the loss comes in with a coded tensor or weight, `tensor` is that one, and `operator`
    what makes it (the reader, for a weight or an input of the model).
    """

    tensor: str
    operator: str
    op_type: str
    gap: Gap
    reader: str

    @property
    def title(self) -> str:
        """What people see."""
        return f"{self.op_type} {self.operator!r}, tensor {self.tensor!r}"


def read(
    golden: Golden, good: Program | None, cut: Cut, gap: Gap, calls: Sequence[Tensors]
) -> Reading:
    """Look into one operator; without a good program to compare inputs with it is blamed whole."""
    node = cut.made[gap.tensor].producer()
    assert node is not None
    whole = Reading(gap.tensor, node.name or "", node.op_type, gap, node.name or "")
    twin = None if good is None else _twin(good, gap.tensor)
    core = None if twin is None else _core(cut, gap.tensor, twin)
    if twin is None or core is None:
        return whole
    found = _inputs(golden, cut, core, twin, calls)
    if not found:
        return whole
    index = max(found, key=lambda at: found[at].ratio)
    if found[index].ratio < MOST * gap.ratio:
        return whole
    value, mine = twin.inputs[index], core.inputs[index]
    assert value is not None and mine is not None
    reader = Reading(mine.name or "", node.name or "", node.op_type, gap, node.name or "")
    if constant(value) is not None:
        return reader
    if (decoder := miscoded(mine)) is not None:
        return Reading(mine.name or "", decoder.name or "", decoder.op_type, gap, node.name or "")
    maker = value.producer() or twin
    return Reading(value.name or "", maker.name or "", maker.op_type, gap, node.name or "")


def miscoded(value: ir.Value) -> ir.Node | None:
    """Return the DequantizeLinear that reads codes by other parameters than wrote them."""
    decoder = value.producer()
    if decoder is None or decoder.op_type != "DequantizeLinear" or decoder.inputs[0] is None:
        return None
    coder = decoder.inputs[0].producer()
    if coder is None or coder.op_type != "QuantizeLinear":
        return None
    for wrote, reads in zip(coder.inputs[1:], decoder.inputs[1:], strict=False):
        a, b = constant(wrote), constant(reads)
        if a is None or b is None or a.shape != b.shape or not np.array_equal(a, b):
            return decoder
    return None


def _twin(good: Program, tensor: str) -> ir.Node | None:
    return next((n for n in good.model.graph if any(v.name == tensor for v in n.outputs)), None)


def _core(cut: Cut, tensor: str, twin: ir.Node) -> ir.Node | None:
    """Return the node behind a tensor that is the good program's operator."""
    for node in reversed(cut.cone(tensor)):
        same = (node.domain, node.op_type) == (twin.domain, twin.op_type)
        if same and len(node.inputs) == len(twin.inputs):
            return node
    return None


def _inputs(
    golden: Golden, cut: Cut, core: ir.Node, twin: ir.Node, calls: Sequence[Tensors]
) -> dict[int, Gap]:
    """Measure what an operator reads against what its twin reads; only what differs by name."""
    pairs = [
        (at, mine, other)
        for at, (mine, other) in enumerate(zip(core.inputs, twin.inputs, strict=True))
        if mine is not None and other is not None and mine.producer() is not None
    ]
    names = [mine.name or "" for _, mine, _ in pairs]
    if not pairs:
        return {}
    model = cut.model.clone()
    by_name = {v.name: v for n in model.graph for v in n.outputs}
    model.graph.outputs.extend(by_name[name] for name in dict.fromkeys(names))
    common.RemoveUnusedNodesPass()(model)
    for value in [v for v in model.graph.inputs if not v.uses()]:
        model.graph.inputs.remove(value)
    part = Program.from_model(model)
    runner = OnnxRunner(part, "inputs")
    wanted = [p.name for p in part.inputs]
    stored = {at: constant(other) for at, _, other in pairs}
    tensors = [other.name or "" for at, _, other in pairs if stored[at] is None]
    gaps = {at: Gap(other.name or "") for at, _, other in pairs}
    for call in calls:
        good = golden(call, [*wanted, *tensors])
        got = runner(good)
        for (at, _, other), name in zip(pairs, names, strict=True):
            array = stored[at]
            right = good[other.name or ""] if array is None else array
            gaps[at] = gaps[at].plus(right, got[name])
    return {at: gap for at, gap in gaps.items() if not gap.fault or "shape" not in gap.fault}
