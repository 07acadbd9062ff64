"""Compute on 32-bit integers where 64 bits are not there and not needed."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir

from npuc.passes.base import Pass, Result
from npuc.passes.graphs import Names, constant, infer_shapes, initializer, label
from npuc.passes.integer_ranges import MOVES, Range, Ranges
from npuc.profile import Profile
from npuc.program import Refusal

WIDE, NARROW = ir.DataType.INT64, ir.DataType.INT32
LIMIT = 2**31
_KINDS = (
    "Abs Add ArgMax ArgMin Cast CumSum Div Equal Gather Greater GreaterOrEqual Less LessOrEqual "
    "Max Min Mod Mul Neg OneHot Pad ReduceSum Sign Sub TopK Where"
)
KINDS = MOVES | frozenset(_KINDS.split())
"""Operators that are changed; a value read by another one is cast back for it."""
INDEXED = frozenset(("Gather", "GatherElements", "OneHot"))


@dataclass(frozen=True)
class NarrowInt64(Pass):
    """i:int64 → Add 1 → Gather(x)  ⇒  i → Cast(int32) → Add 1 → Gather(x)

    Fires where ``ops.dtypes`` is public and has no int64. A tensor is narrowed where its range is
    proved to fit for every input: constants, indices (an index of Gather lies within the axis, or
    the model fails anyway), the axis of ArgMax and TopK, casts from narrower types, and sums,
    products, choices and copies of such. Inputs and outputs of the model keep their dtype: there
    stands a Cast. So it does where an operator's definition asks for int64. An input of the model
    that is an index as it comes stays one: it is the vendor's tool that feeds it to the device.

    Refuses, by name, each tensor whose range is not proved. Constants that only say how (shapes,
    axes, sizes) stay int64: ONNX wants them so.
    """

    name: ClassVar[str] = "narrow-int64"

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Narrow in place; `changes` counts the nodes that compute on other types now."""
        dtypes = profile.get("ops.dtypes")
        if dtypes is None or "int64" in dtypes or "int32" not in dtypes:
            return Result()
        infer_shapes(model)
        work = _Narrowing(model)
        changes = sum(work.node(node) for node in list(model.graph))
        work.sweep()
        if changes:
            infer_shapes(model)
        return Result(changes, tuple(work.refusals))


class _Narrowing:
    """Wide value → the narrow one that holds the same numbers."""

    def __init__(self, model: ir.Model) -> None:
        self.graph, self.names, self.ranges = model.graph, Names(model), Ranges(model.graph)
        self.version = model.opset_imports.get("", 0)
        self.narrow: dict[ir.Value, ir.Value] = {}
        self.refusals: list[Refusal] = []

    def node(self, node: ir.Node) -> int:
        """Let one node compute on narrow values where it may; returns 1 where it does now."""
        if node.domain or _is_edge(node):
            return 0
        changed = 0
        for slots in self._variables(node).values():
            changed |= self._variable(node, slots)
        return changed

    def _variables(self, node: ir.Node) -> dict[str, list[tuple[bool, int]]]:
        """Return type variable → (is output, index) of its int64 values, as the schema says.

        Only variables that may be int32 are there, and that hold something computed.
        """
        if node.op_type not in KINDS:
            self._named([v for v in node.outputs if v.dtype == WIDE], node)
            return {}
        schema = onnx.defs.get_schema(node.op_type, self.version, "")
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        found: dict[str, list[tuple[bool, int]]] = {}
        for out, values, formals in (
            (False, node.inputs, schema.inputs),
            (True, node.outputs, schema.outputs),
        ):
            for index, value in enumerate(values):
                variable = formals[min(index, len(formals) - 1)].type_str
                either = "tensor(int32)" in allowed.get(variable, ())
                if value is not None and value.dtype == WIDE and either:
                    found.setdefault(variable, []).append((out, index))
        return {
            k: s for k, s in found.items()
            if any(out or constant(node.inputs[i]) is None for out, i in s)
        }  # fmt: skip

    def _variable(self, node: ir.Node, slots: list[tuple[bool, int]]) -> int:
        values = [node.outputs[i] if out else node.inputs[i] for out, i in slots]
        if node.op_type in INDEXED and all(v is not None and v.is_graph_input() for v in values):
            return 0
        unproved = [v for v in values if v is not None and not _fits(self.ranges.of(v))]
        if unproved:
            self._named([v for v in unproved if v in node.outputs], node)
            return 0
        for out, index in slots:
            if out:
                self._output(node, index)
            else:
                node.replace_input_with(index, self._narrowed(node, index))
        if node.op_type == "Cast" and any(out for out, _ in slots):
            node.attributes["to"] = ir.AttrInt64("to", int(NARROW))
        return 1

    def _narrowed(self, node: ir.Node, index: int) -> ir.Value:
        value = node.inputs[index]
        assert value is not None
        if value in self.narrow:
            return self.narrow[value]
        producer, array = value.producer(), constant(value)
        if producer is not None and _is_edge(producer) and producer.inputs[0] is not None:
            return producer.inputs[0]
        name = self.names.new(f"{value.name}_int32")
        if array is not None:
            made = initializer(self.graph, name, array.astype(np.int32))
        else:
            made = self._cast(value, NARROW, name)
        self.narrow[value] = made
        return made

    def _cast(self, value: ir.Value, to: ir.DataType, name: str) -> ir.Value:
        made = ir.Value(name=name, shape=value.shape, type=ir.TensorType(to))
        attribute = ir.AttrInt64("to", int(to))
        node = ir.Node("", "Cast", [value], [attribute], outputs=[made], name=name)
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, node)
        elif len(self.graph):
            self.graph.insert_before(self.graph[0], node)
        return made

    def _output(self, node: ir.Node, index: int) -> None:
        """Make an output narrow; whoever reads the wide value reads a Cast of it until its turn."""
        old = node.outputs[index]
        name, shape = old.name or "", old.shape
        old.type = ir.TensorType(NARROW)  # a clone shares the type: it is not ours to change
        found = self.ranges.of(old)
        if not old.uses() and not old.is_graph_output():
            return
        old.name = self.names.new(f"{name}_int32")
        back = self._cast(old, WIDE, name)
        back.shape = shape
        cast = back.producer()
        for user, place in list(old.uses()):
            if user is not cast:
                user.replace_input_with(place, back)
        if old.is_graph_output():
            outputs = self.graph.outputs
            outputs[outputs.index(old)] = back
        self.narrow[back] = old
        self.ranges.add(back, found)

    def sweep(self) -> None:
        """Remove the Casts that nobody reads after all."""
        for node in reversed(list(self.graph)):
            out = node.outputs[0]
            if _is_edge(node) and not out.uses() and not out.is_graph_output():
                self.graph.remove(node, safe=True)

    def _named(self, values: list[ir.Value], node: ir.Node) -> None:
        for value in values:
            if value.is_graph_output() or not value.uses():
                continue
            found = self.ranges.of(value)
            if node.op_type in ("Shape", "Size") or _fits(found):
                continue
            why = "its range is not proved" if found is None else f"its range is {found}"
            reason = f"{value.name!r} stays int64: {why}"
            self.refusals.append(Refusal(label(node), reason))


def _fits(found: Range | None) -> bool:
    return found is not None and found[0] >= -LIMIT and found[1] < LIMIT


def _is_edge(node: ir.Node) -> bool:
    """Whether a Cast is one of those this pass leaves where int64 has to be."""
    if node.op_type != "Cast" or node.inputs[0] is None:
        return False
    kinds = {node.inputs[0].dtype, node.outputs[0].dtype}
    return kinds == {WIDE, NARROW}
