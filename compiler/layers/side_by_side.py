"""Put programs beside the float program they were made of, in one graph that sums differences.

Tensors are matched by name. Sums are made inside the graph, in float64, so that what leaves ONNX
Runtime is a few numbers per tensor, whatever its size and however many calls there are.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from npuc.errors import ParityError
from npuc.metrics import sqnr
from npuc.passes.graphs import Names, infer_types, initializer
from npuc.passes.qdq.results import carries
from npuc.passes.quantize import MASK
from npuc.program import Program, Tensors
from npuc.runners import OnnxRunner, each

Array = np.ndarray[Any, Any]
FLOAT = ir.DataType.FLOAT
_SMALL = 64
"""Bytes of a constant that is compared with others."""
_TYPES = {"sums": ir.DataType.DOUBLE, "lows": FLOAT, "highs": FLOAT}
_JOINED = {"sums": np.add, "lows": np.minimum, "highs": np.maximum}
_STARTS = {"sums": 0.0, "lows": math.inf, "highs": -math.inf}


@dataclass(frozen=True)
class Attached:
    """Another program inside the bench: its nodes in order, and its values by their old names."""

    order: Mapping[ir.Node, int]
    values: Mapping[str, ir.Value]
    names: Mapping[ir.Value, str]


@dataclass(frozen=True)
class Totals:
    """What all calls gave: `sums` are added up; `lows` and `highs` are the least and greatest."""

    sums: Array
    lows: Array
    highs: Array

    def decibels(self, place: tuple[int, int]) -> float:
        """SQNR in dB of what `SideBySide.noise` summed; NaN or -Inf where that is NaN or Inf."""
        signal, noise = (float(self.sums[at]) for at in place)
        if math.isnan(noise):
            return math.nan
        return -math.inf if noise == math.inf else sqnr(signal, noise)


class SideBySide:
    """One graph: the float program, others on the same inputs, and sums of their differences.

    `reference` holds the float32 tensors of the float program by name, its inputs among them, in
    graph order; constants are no tensors. `moved` names those that only hold another's values:
    what is born before they are read belongs to the reader. `scores` names those that Softmax
    alone reads: what is below `MASK` in them hides an entry, and no error in it matters.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.model = _plain(program)
        self.graph = self.model.graph
        weights = set(self.graph.initializers)
        given = [value for value in self.graph.inputs if value.name not in weights]
        made = [value for node in self.graph for value in node.outputs]
        self._tensors = {v.name: v for v in (*given, *made) if v.name}
        self.reference = {n: v for n, v in self._tensors.items() if v.dtype == FLOAT}
        self.scores = {n for n, v in self.reference.items() if _scores(v)}
        self.moved = {n for n, v in self.reference.items() if _moved(v)}
        self.outputs = tuple(v.name for v in self.graph.outputs if v.name in self.reference)
        self._names = Names(self.model)
        self._made: dict[Any, ir.Value] = {}
        self._copies: dict[ir.Value, ir.Value] = {}
        self._seen: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._zero = self.constant(np.float32(0))
        self._one = self.constant(np.array([1], np.int64))
        self._results: dict[str, list[ir.Value]] = {name: [] for name in _TYPES}

    def attach(self, program: Program) -> Attached:
        """Put another program into the graph; it reads the same inputs and shares equal weights."""
        model = _plain(program)
        values: dict[str, ir.Value] = {}
        for value in (*model.graph.inputs, *model.graph.initializers.values()):
            values[value.name or ""] = here = self._own(value)
            value.replace_all_uses_with(here)
        nodes = tuple(model.graph)
        model.graph.outputs.clear()
        model.graph.remove(nodes)
        for node in nodes:
            node.name = None  # two nodes of one name are no model
            for value in node.outputs:
                if value.name:
                    values[value.name] = value
                    value.name = self._names.new(value.name)
        self.graph.extend(nodes)
        self.model.functions.update(model.functions)
        for domain, version in model.opset_imports.items():
            if self.model.opset_imports.setdefault(domain, version) != version:
                raise ParityError(f"programs of different versions of {domain or 'ONNX'} operators")
        names = {value: name for name, value in values.items()}
        return Attached({node: at for at, node in enumerate(nodes)}, values, names)

    def cone(self, attached: Attached, name: str) -> tuple[ir.Node, ...]:
        """Return the attached nodes between a tensor and those that the float program has too.

        In the order they run. Tensors that were only moved are passed through.
        """
        pending, found = [attached.values[name]], set[ir.Node]()
        while pending:
            producer = pending.pop().producer()
            if producer is None or producer in found or producer not in attached.order:
                continue
            found.add(producer)
            pending += [v for v in producer.inputs if v is not None and not self._ends(attached, v)]
        return tuple(sorted(found, key=attached.order.__getitem__))

    def born(self, attached: Attached, name: str) -> ir.Value | None:
        """Compute a tensor as the attached program does, but from the float program's tensors.

        None where that is just what the float program does, and where control flow is on the way.
        """
        cone = self.cone(attached, name)
        if name in self.moved or not cone or any(has_body(node) for node in cone):
            return None
        if all(self._same(attached, node) for node in cone):
            return None
        return self.copied(attached, attached.values[name])

    def copied(self, attached: Attached, value: ir.Value) -> ir.Value:
        """Return a value of the attached program, computed from the float program's tensors."""
        name = attached.names.get(value, "")
        wanted = self.cone(attached, name) if name else ()
        for node in wanted:
            if node.outputs[0] not in self._copies:
                inputs = [self._float(attached, v) for v in node.inputs]
                self._copies.update(zip(node.outputs, self.clone(node, inputs), strict=True))
        return self._copies.get(value, value)

    def moves(self, name: str) -> Iterator[str]:
        """Yield a tensor's name, and those of the tensors whose values it only holds."""
        value: ir.Value | None = self.reference[name]
        while value is not None:
            yield value.name or ""
            producer = value.producer() if value.name in self.moved else None
            value = None if producer is None else producer.inputs[0]

    def noise(self, name: str, other: ir.Value, whole: bool = False) -> tuple[int, int]:
        """Sum the squares of a tensor and of what another differs from it; returns their places.

        Only where the tensor is finite and not hidden; `whole` says that it is everywhere.
        """
        gap = self.op("Sub", other, self.reference[name])
        if whole:
            return self.squares(self.reference[name]), self.squares(gap)
        shown, signal = self._shown(name)
        return self.squares(signal), self.squares(self.op("Where", shown, gap, self._zero))

    def edges(self, name: str) -> int:
        """Watch the least and greatest of a tensor, of what is not hidden; returns their place."""
        value = self._shown(name)[1]
        for kind, op_type in (("lows", "ReduceMin"), ("highs", "ReduceMax")):
            self._results[kind].append(self._flat(self.op(op_type, value, keepdims=0)))
        return len(self._results["lows"]) - 1

    def outside(self, name: str, low: float, high: float) -> tuple[int, int]:
        """Count the values below `low` or above `high`, and all; returns the places of both."""
        value = self._shown(name)[1]
        below = self.op("Less", value, self.constant(np.float32(low)))
        above = self.op("Greater", value, self.constant(np.float32(high)))
        odd = self.op("Cast", self.op("Or", below, above), to=int(ir.DataType.DOUBLE))
        count = self.op("Cast", self.op("Size", value), to=int(ir.DataType.DOUBLE))
        return self._sum(self.op("ReduceSum", odd, keepdims=0)), self._sum(count)

    def run(
        self,
        calls: Sequence[Tensors],
        extra: Sequence[str] = (),
        see: Callable[[Tensors], None] | None = None,
    ) -> Totals:
        """Run call by call; `see` is given the tensors of the float program named in `extra`.

        Raises `ParityError` without calls, or where ONNX Runtime fails.
        """
        if not calls:
            raise ParityError("there are no calls to measure layers on")
        kept = self._joined()
        given = {port.name for port in self.program.inputs}
        self.graph.outputs[:] = list(kept.values())
        self.graph.outputs.extend(self.reference[name] for name in extra if name not in given)
        runner = OnnxRunner(Program.from_model(self._needed()), apart=see is None)
        answers = map(runner, calls) if see else each(runner, calls, apart=True)
        totals = {name: np.full(1, start) for name, start in _STARTS.items()}
        for call, found in zip(calls, answers, strict=True):
            for name, out in kept.items():
                totals[name] = _JOINED[name](totals[name], found[out.name or ""])
            if see is not None:
                see({name: (call if name in given else found)[name] for name in extra})
        return Totals(**totals)

    def clone(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> Sequence[ir.Value]:
        """Append a copy of a node with other inputs; returns its outputs."""
        outputs = [ir.Value(name=self._names.new(f"{v.name}_alone")) for v in node.outputs]
        copy = ir.Node(
            node.domain, node.op_type, inputs, node.attributes.values(), overload=node.overload,
            outputs=outputs,
        )  # fmt: skip
        self.graph.append(copy)
        return outputs

    def op(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """Append a node of one output, or return that of an equal one."""
        key = op_type, inputs, tuple(sorted(attributes.items()))
        if key not in self._made:
            self._made[key] = out = ir.Value(name=self._names.new(f"npuc_{op_type.lower()}"))
            attrs = ir.convenience.convert_attributes(attributes)
            self.graph.append(ir.Node("", op_type, inputs, attrs, outputs=[out]))
        return self._made[key]

    def _needed(self) -> ir.Model:
        """Return a copy without what no output needs: ONNX Runtime would compute it as well."""
        model = self.model.clone()
        common.RemoveUnusedNodesPass()(model)
        return model

    def _joined(self) -> dict[str, ir.Value]:
        """Join the numbers of each kind in one vector."""
        found = {}
        for name, values in self._results.items():
            if values:
                out = self.op("Concat", *values, axis=0)
                out.dtype, out.shape = _TYPES[name], ir.Shape([len(values)])
                found[name] = out
        return found

    def _shown(self, name: str) -> tuple[ir.Value, ir.Value]:
        """Return where a tensor is finite and not hidden, and its values there (0 elsewhere)."""
        value = self.reference[name]
        if value not in self._seen:
            # x - x is 0 for every number, and NaN for Inf and NaN.
            shown = self.op("Equal", self.op("Sub", value, value), self._zero)
            if name in self.scores:
                heard = self.op("Greater", value, self.constant(np.float32(MASK)))
                shown = self.op("And", shown, heard)
            self._seen[value] = shown, self.op("Where", shown, value, self._zero)
        return self._seen[value]

    def squares(self, value: ir.Value) -> int:
        """Sum the squares of a tensor; returns their place."""
        wide = self.op("Cast", value, to=int(ir.DataType.DOUBLE))
        return self._sum(self.op("ReduceSumSquare", wide, keepdims=0))

    def _sum(self, value: ir.Value) -> int:
        sums, flat = self._results["sums"], self._flat(value)
        if flat not in sums:
            sums.append(flat)
        return sums.index(flat)

    def _flat(self, value: ir.Value) -> ir.Value:
        return self.op("Reshape", value, self._one)

    def constant(self, array: Any) -> ir.Value:
        """Add an array to the graph; a small one that is there already is shared."""
        array = np.asarray(array)
        key = None if array.nbytes > _SMALL else (array.dtype.str, array.shape, array.tobytes())
        if key is None or key not in self._made:
            made = initializer(self.graph, self._names.new("npuc_constant"), array)
            if key is None:
                return made
            self._made[key] = made
        return self._made[key]

    def _own(self, value: ir.Value) -> ir.Value:
        """Return this graph's value for an input or weight of another program."""
        name = value.name or ""
        found = {v.name: v for v in self.graph.inputs}.get(name)
        found = found or self.graph.initializers.get(name)
        if found is not None and found.const_value is value.const_value:
            return found
        if value.const_value is None:
            raise ParityError(f"programs of different inputs: the float program has no {name!r}")
        twin = ir.Value(
            name=self._names.new(name), type=value.type, shape=value.shape,
            const_value=value.const_value,
        )  # fmt: skip
        self.graph.register_initializer(twin)
        return twin

    def _same(self, attached: Attached, node: ir.Node) -> bool:
        """Whether the float program has a node with this one's result and the same inputs."""
        found = self.reference.get(attached.names.get(node.outputs[0], ""))
        twin = None if found is None else found.producer()
        if twin is None or not fits(node, twin):
            return False
        read = [v and self._tensors.get(attached.names.get(v, ""), v) for v in node.inputs]
        return all(a is b for a, b in zip(read, twin.inputs, strict=True))

    def _float(self, attached: Attached, value: ir.Value | None) -> ir.Value | None:
        """Return the float program's tensor where a cone ends, or what was copied already."""
        if value is None:
            return None
        if self._ends(attached, value):
            return self._tensors[attached.names[value]]
        return self._copies.get(value, value)

    def _ends(self, attached: Attached, value: ir.Value) -> bool:
        name = attached.names.get(value, "")
        return name in self._tensors and name not in self.moved


def least(values: Iterable[float]) -> float:
    """Return the worst of some SQNRs: NaN before all numbers; infinite where there are none."""
    return min(values, key=ranked, default=math.inf)


def ranked(value: float) -> float:
    """Order SQNRs from the worst on: NaN, which stands for a fault, comes before any number."""
    return -math.inf if math.isnan(value) else value


def has_body(node: ir.Node) -> bool:
    """Whether a node is a control-flow operator."""
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def fits(node: ir.Node, other: ir.Node) -> bool:
    """Whether two nodes are one operator with as many inputs."""
    same = (node.domain, node.op_type) == (other.domain, other.op_type)
    return same and len(node.inputs) == len(other.inputs)


def _scores(value: ir.Value) -> bool:
    readers = [node for node, _ in value.uses()]
    return bool(readers) and all(node.op_type == "Softmax" for node in readers)


def _moved(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and not value.is_graph_output() and carries(producer)


def _plain(program: Program) -> ir.Model:
    """Return a copy whose constants are all initializers, and whose values have types."""
    model = program.clone().model
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    infer_types(model)
    return model
