"""Compute one step of a recurrence at some columns of a row, on values in registers."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from npuc.targets.tvm.cpu_level import Level
from npuc.targets.tvm.emit import Kernel, cast, constant, rounded, widen
from npuc.targets.tvm.graph import dtype_of, operator
from npuc.targets.tvm.plan import evaluate
from npuc.targets.tvm.pointwise import quantize_by
from npuc.targets.tvm.recurrence_form import Loop, Ref


@dataclass(frozen=True, slots=True)
class Place:
    """Some columns of a row at a step; by gate, the memory and the index of their sums."""

    step: Any
    row: Any
    column: Any
    lanes: int
    sums: tuple[tuple[Any, Any], ...]


class Memory(Protocol):
    """What a step reads: a kernel's arguments and scratch, by what of the loop they hold."""

    level: Level
    loop: Loop
    k: Kernel
    columns: int
    gates: list[int]
    kept: dict[int, Any]
    inputs: list[Any]
    constants: list[Any]
    steps: dict[int, Any]
    scales: Any
    """An integer product's scale by column, or None."""
    factors: Any
    """The scale of what an integer product reads, by step."""


class Values:
    """Computes each node at each gate's columns once."""

    def __init__(self, writer: Memory, place: Place):
        self.w, self.at = writer, place
        self._known: dict[tuple[int, int], Any] = {}

    def node(self, at: int, gate: int) -> Any:
        """Return a node's value at columns of a gate."""
        if (at, gate) not in self._known:
            self._known[at, gate] = self._compute(at, gate)
        return self._known[at, gate]

    def _compute(self, at: int, gate: int) -> Any:
        node, k, lanes = self.w.loop.nodes[at], self.w.k, self.at.lanes
        if node.part is not None:
            return self._read(node.args[0], gate + node.offset)
        name = operator(node.expr)
        if name == "relax.quantize":
            numbers, zeros = self.w.steps[at]
            start = k.let(self.at.step * 4)
            wide = [widen(k.load(numbers, start + i), lanes) for i in range(4)]
            code = quantize_by(self._read(node.args[0], gate), wide, None, "int32")
            shifted = code + widen(k.load(zeros, self.at.step), lanes)
            return k.hold(cast(shifted, dtype_of(node.var)))
        args = [self._read(ref, gate) for ref in node.args]
        if name == "relax.dequantize":
            return k.hold(cast(cast(args[0], "int32") - args[2], "float32") * args[1])
        return k.hold(evaluate(node.expr, args, k))

    def _read(self, ref: Ref, gate: int) -> Any:
        k, lanes, place = self.w.k, self.at.lanes, self.at
        if ref.kind == "node":
            return self.node(ref.at, gate)
        if ref.kind == "anchor":
            return self._sum(gate)
        if ref.kind == "prev":
            index = place.row * self.w.columns + place.column
            return k.load(self.w.kept[ref.at], index, lanes)
        if ref.kind == "input":
            cut = self.w.loop.inputs[ref.at]
            start = place.step * cut.step + place.row * cut.row + place.column
            return k.load(self.w.inputs[ref.at], k.let(start + (cut.first + gate)), lanes)
        held = self.w.constants[ref.at]
        if isinstance(held, np.ndarray):
            kind = "float32" if held.dtype.kind == "f" else "int32"
            return constant(held.reshape(()).item(), kind, lanes)
        if len(self.w.loop.constants[ref.at]) > 1:
            return widen(k.load(held, place.step), lanes)
        return k.load(held, place.column + gate, lanes)

    def _sum(self, gate: int) -> Any:
        writer, k, lanes = self.w, self.w.k, self.at.lanes
        copy, start = self.at.sums[writer.gates.index(gate)]
        total = k.load(copy, start, lanes)
        if writer.scales is None:
            return total
        channel = k.load(writer.scales, self.at.column + gate, lanes)
        factor = k.let(channel * widen(k.load(writer.factors, self.at.step), lanes))
        return rounded(cast(total, "float32") * factor)
