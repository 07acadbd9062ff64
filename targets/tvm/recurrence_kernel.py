"""Write a recurrence: one kernel that runs all of its steps.

A unit of work is some vectors of the result's columns: it multiplies the last state by all of
their gates' weights, which lie in memory in the order they are read, and computes the rest of the
step on what is in registers then. Many rows take the gates in several passes: rather than few rows
at a time, for which all weights would come from memory again. All units of a step are done before
the next step begins, by however many threads. Every other step takes the units in reverse: what
the last one left in the cache is read first.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from npuc.targets.tvm import weights as w
from npuc.targets.tvm.cpu_level import Level
from npuc.targets.tvm.direct import UNROLL
from npuc.targets.tvm.dots import FLOAT, Dot, choose
from npuc.targets.tvm.emit import Kernel, pieces, widen
from npuc.targets.tvm.graph import Array, dtype_of, key, number, operator, shape_of
from npuc.targets.tvm.pointwise import known_step
from npuc.targets.tvm.recurrence_cell import Place, Values
from npuc.targets.tvm.recurrence_find import Finder
from npuc.targets.tvm.recurrence_form import Loop, Ref
from npuc.targets.tvm.rows import each

SUMS = 8
"""Accumulators that hide a multiply-add's latency."""


@dataclass(frozen=True)
class _Codes:
    """An integer product: what is dequantized, step by step."""

    activations: list[w.Activation]
    weights: w.Codes
    dot: Dot


class Writer:
    """Writes one loop's kernel; `params` are the arguments of its call."""

    def __init__(self, level: Level, loop: Loop, finder: Finder):
        self.level, self.loop = level, loop
        self.params: list[Any] = []
        self.right = finder.sources[key(loop.anchors[0])].args[1]
        self.sources = finder.sources
        self.codes = None if number(self.right) is not None else self._integer(finder)
        self.rows, self.columns = loop.shape
        depth, self.wide = shape_of(self.right)
        sums: set[int] = set()
        good = self._needs(Ref("node", loop.target), 0, sums)
        good = good and all(self._needs(Ref("node", at), 0, sums) for at in self._roots)
        self.gates = sorted(sums)
        self.depth = depth
        self.possible = (
            good
            and bool(loop.outputs)
            and depth == self.columns
            and len(sums) <= SUMS
            and (self.codes is None) == (number(self.right) is not None)
            and all(gate + self.columns <= self.wide for gate in sums)
            and self._feeds() is not None
        )

    @property
    def _roots(self) -> list[int]:
        return sorted({*self.loop.initial, *self.loop.outputs})

    def _integer(self, finder: Finder) -> _Codes | None:
        lefts = [finder.sources[key(anchor)].args[0] for anchor in self.loop.anchors]
        found = [w.activation(left, finder.sources) for left in lefts]
        known = [a for a in found if a is not None]
        codes = w.codes(self.right, finder.sources)
        if len(known) < len(found) or codes is None:
            return None
        signed = dtype_of(known[0].tensor) == "int8"
        return _Codes(known, codes, choose(self.level, signed=signed, narrow=True))

    def _feeds(self) -> int | None:
        """Return the node whose values the next product reads: the state, or its codes."""
        target = self.loop.target
        if self.codes is None:
            return target
        node = self.loop.nodes[target]
        inner = node.args[0].at if operator(node.expr) == "relax.dequantize" else -1
        good = inner >= 0 and node.args[0].kind == "node"
        good = good and operator(self.loop.nodes[inner].expr) == "relax.quantize"
        return inner if good else None

    def _needs(self, ref: Ref, column: int, sums: set[int]) -> bool:
        """Collect which columns of the product a value at a column needs; False: not written."""
        if ref.kind == "anchor":
            sums.add(column)
            return True
        if ref.kind == "prev":
            return column == 0
        if ref.kind != "node":
            return True
        node = self.loop.nodes[ref.at]
        column += node.offset if node.part is not None else 0
        return all(self._needs(arg, column, sums) for arg in node.args)

    def _input(self, expr: Any) -> Any:
        self.params.append(expr)
        return self.k.tensor(shape_of(expr), dtype_of(expr))

    def _weights(self, array: Array) -> Any:
        from tvm import relax

        return self._input(relax.const(np.ascontiguousarray(array), array.dtype.name))

    def write(self) -> Any:
        """Return the function."""
        loop, lanes = self.loop, self.level.lanes
        self.k = k = Kernel(self.level)
        self.dot = FLOAT if self.codes is None else self.codes.dot
        many = min(self.rows, 4)
        vectors = -(-self.columns // lanes)
        self.vectors = max(1, min(-(-SUMS // (len(self.gates) * many)), vectors))
        self.units = -(-vectors // self.vectors)
        self.tile, self.passes = self._tiles()
        self.padded = -(-self.depth // self.dot.adds) * self.dot.adds
        self._declare()
        outputs = {at: k.tensor((loop.steps, *loop.shape), "float32") for at in loop.outputs}
        kind = "float32" if self.codes is None else dtype_of(self._left)
        self.state = k.scratch(2 * self.rows * self.padded, kind)
        self.kept = {at: k.scratch(self.rows * self.columns, "float32") for at in loop.initial}
        self._begin()
        with k.loop(loop.steps) as step:
            odd = k.let(step % 2)
            self.source = k.let(odd * (self.rows * self.padded))
            self.target = k.let((1 - odd) * (self.rows * self.padded))
            work = self.rows * self.depth * self.columns * len(self.gates)
            with k.units(self.units, work) as unit:
                back = k.let(unit + odd * (self.units - 1 - 2 * unit))
                self._unit(step, back, outputs)
        return k.finish()

    def _tiles(self) -> tuple[int, list[range]]:
        """Choose how many rows go together, and which gates one pass over the state computes.

        A pass has at least two vectors of sums per row where there are two: every value of the
        state that it broadcasts is used for all of them.
        """
        budget = 12 if self.level.lanes == 8 else 16
        most = max(1, budget // max(2, self.vectors))
        tile = -(-self.rows // -(-self.rows // most))
        count = len(self.gates)
        passes = -(-count // max(1, budget // (tile * self.vectors)))
        share = -(-count // passes)
        return tile, [range(at, min(at + share, count)) for at in range(0, count, share)]

    @property
    def _left(self) -> Any:
        return self.loop.left if self.codes is None else self.codes.activations[0].tensor

    def _declare(self) -> None:
        """Declare what the kernel reads."""
        loop, codes = self.loop, self.codes
        bases = {key(s.base): s.base for s in loop.inputs}
        memory = {name: self._input(base) for name, base in bases.items()}
        self.inputs = [memory[key(s.base)] for s in loop.inputs]
        self.first = self._input(self._left)
        self.initial = {at: self._input(var) for at, var in loop.initial.items()}
        right = number(self.right) if codes is None else codes.weights.codes
        assert right is not None  # `possible` asked
        self.weights = self._weights(self._packed(right))
        self.constants = [self._constant(c) for c in loop.constants]
        self.steps = {at: self._numbers(at) for at in range(len(loop.nodes))}
        self.scales = self.factors = None
        if codes is None:
            return
        scale = np.broadcast_to(codes.weights.scale, self.wide).astype(np.float32)
        self.scales = self._weights(scale)
        totals = codes.weights.codes.sum(axis=0, dtype=np.int32)
        room = np.zeros((len(self.gates), self.units * self.vectors * self.level.lanes), np.int32)
        for at, gate in enumerate(self.gates):
            room[at, : self.columns] = totals[gate : gate + self.columns]
        self.totals = self._weights(room.reshape(-1))
        self.zeros = self._weights(
            np.asarray([-(a.zero + codes.dot.shift) for a in codes.activations], np.int32)
        )
        self.factors = self._weights(np.asarray([a.scale for a in codes.activations], np.float32))

    def _constant(self, held: list[Any]) -> Any:
        """Declare a constant: a number, one per column, or one per step."""
        arrays = [np.asarray(number(c)) for c in held]
        if len(arrays) > 1:
            kind = np.int32 if arrays[0].dtype.kind in "iu" else np.float32
            return self._weights(np.asarray([a.reshape(()) for a in arrays], kind))
        return arrays[0] if arrays[0].size == 1 else self._weights(arrays[0].reshape(-1))

    def _numbers(self, at: int) -> Any:
        """Declare the numbers that a quantization takes of every step: four floats and a zero."""
        node = self.loop.nodes[at]
        if operator(node.expr) != "relax.quantize":
            return None
        calls = [
            self.sources[key(variables[at])] if at in variables else node.expr
            for variables in self.loop.variables
        ]
        found = [step for step in map(known_step, calls) if step is not None]
        zeros = np.asarray([zero for _, zero in found], np.int32)
        return self._weights(np.stack([numbers for numbers, _ in found])), self._weights(zeros)

    def _packed(self, right: Array) -> Array:
        """Order weights as they are read, flat.

        By units; passes; depth / adds; the pass's gates; vectors; lanes; adds.
        """
        adds, lanes = self.dot.adds, self.level.lanes
        wide = self.units * self.vectors * lanes
        room = np.zeros((self.padded, len(self.gates), wide), right.dtype)
        for at, gate in enumerate(self.gates):
            room[: self.depth, at, : self.columns] = right[:, gate : gate + self.columns]
        cut = room.reshape(-1, adds, len(self.gates), self.units, self.vectors, lanes)
        cut = cut.transpose(3, 0, 2, 4, 5, 1)
        parts = [cut[:, :, p.start : p.stop].reshape(self.units, -1) for p in self.passes]
        return np.concatenate(parts, axis=1).reshape(-1)

    def _begin(self) -> None:
        """Copy the initial states."""
        k = self.k
        with k.loop(self.rows) as row:
            for at, lanes in each(k, self.columns):
                index = k.let(row * self.columns + at)
                start = k.let(row * self.padded + at)
                k.store(self.state, k.load(self.first, index, lanes), start)
                for node, memory in self.kept.items():
                    k.store(memory, k.load(self.initial[node], index, lanes), index)

    def _unit(self, step: Any, unit: Any, outputs: dict[int, Any]) -> None:
        """Compute some vectors of columns, some rows at a time."""
        k = self.k
        whole, left = divmod(self.rows, self.tile)
        with k.loop(whole) as turn:
            self._tile(step, unit, k.let(turn * self.tile), self.tile, outputs)
        if left:
            self._tile(step, unit, whole * self.tile, left, outputs)

    def _tile(self, step: Any, unit: Any, first: Any, rows: int, outputs: dict[int, Any]) -> None:
        k, lanes = self.k, self.level.lanes
        column = k.let(unit * (self.vectors * lanes))
        copies = [self._sums(step, unit, first, rows, gates) for gates in self.passes]
        # One copy of the step's code for all vectors and rows.
        with k.loop(rows) as m, k.loop(self.vectors) as v:
            sums = tuple(
                (copy, k.let(((m * len(gates) + gate) * self.vectors + v) * lanes))
                for gates, copy in zip(self.passes, copies, strict=True)
                for gate in range(len(gates))
            )
            place = Place(step, k.let(first + m), k.let(column + v * lanes), lanes, sums)
            rest = self.columns % lanes
            if not self.columns % (lanes * self.vectors):
                self._end(place, outputs)
                return
            with k.when(place.column + lanes <= self.columns):
                self._end(place, outputs)
            for start, some in pieces(rest, lanes):
                from_ = k.let(place.column + start)
                moved = tuple((copy, k.let(at + start)) for copy, at in sums)
                cut = replace(place, column=from_, lanes=some, sums=moved)
                with k.when(place.column == self.columns - rest):
                    self._end(cut, outputs)

    def _sums(self, step: Any, unit: Any, first: Any, rows: int, gates: range) -> Any:
        """Compute some gates of the product; return them in memory: [rows, gates, vectors, lanes].

        Registers must only be indexed by numbers to be registers, so what follows reads a copy.
        """
        k, lanes = self.k, self.level.lanes
        column = k.let(unit * (self.vectors * lanes))
        count = len(gates) * self.vectors
        sums = [k.registers(count, self.dot.sums) for _ in range(rows)]
        for v in range(count):
            gate, vector = divmod(v, self.vectors)
            begin = self._start(step, gates[gate], column + vector * lanes)
            for row in sums:
                k.store(row[v], begin, 0)
        self._multiply(sums, unit, first, gates)
        copy = k.scratch(rows * count * lanes, self.dot.sums)
        for m, row in enumerate(sums):
            for v, register in enumerate(row):
                k.store(copy, k.load(register, 0, lanes), (m * count + v) * lanes)
        return copy

    def _start(self, step: Any, gate: int, column: Any) -> Any:
        """Return what an accumulator begins with: less the zero point's share."""
        k, lanes = self.k, self.level.lanes
        if self.codes is None:
            return self.dot.begin(lanes)
        at = k.let(column + gate * (self.units * self.vectors * lanes))
        return k.let(k.load(self.totals, at, lanes) * widen(k.load(self.zeros, step), lanes))

    def _multiply(self, sums: list[list[Any]], unit: Any, first: Any, gates: range) -> None:
        k, lanes, adds = self.k, self.level.lanes, self.dot.adds
        steps, count = self.padded // adds, len(gates) * self.vectors
        stride, gate = count * lanes * adds, steps * self.vectors * lanes * adds
        base = k.let(unit * (len(self.gates) * gate) + gates.start * gate)
        lines = [k.let(self.source + (first + m) * self.padded) for m in range(len(sums))]

        def once(at: Any) -> None:
            loaded = [
                k.let(self.dot.weights(k, self.weights, base + at * stride + v * (lanes * adds)))
                for v in range(count)
            ]
            for row, line in zip(sums, lines, strict=True):
                value = k.let(self.dot.value(k, self.state, line + at * adds))
                for register, weight in zip(row, loaded, strict=True):
                    old = k.load(register, 0, lanes)
                    k.store(register, self.dot.multiply_add(value, weight, old), 0)

        if steps >= UNROLL:
            with k.loop(steps // UNROLL) as outer:
                for inner in range(UNROLL):
                    once(k.let(outer * UNROLL + inner))
        for at in range(steps - steps % UNROLL, steps):
            once(at)

    def _end(self, place: Place, outputs: dict[int, Any]) -> None:
        """Compute the step at some columns of a row, and store what is read later."""
        k, loop = self.k, self.loop
        values = Values(self, place)
        feeds = self._feeds()
        assert feeds is not None  # `possible` asked
        state = values.node(feeds, 0)
        index = k.let(place.row * self.columns + place.column)
        roots = {at: values.node(at, 0) for at in self._roots}
        k.store(self.state, state, k.let(self.target + place.row * self.padded + place.column))
        for at, memory in self.kept.items():
            k.store(memory, roots[at], index)
        for at, memory in outputs.items():
            turn = loop.steps - 1 - place.step if loop.outputs[at] else place.step
            k.store(memory, roots[at], k.let(turn * (self.rows * self.columns) + index))
