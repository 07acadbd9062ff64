"""Make a program compute like a device that keeps every float tensor in a short float."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from npuc.errors import PassError
from npuc.partition import on_host
from npuc.passes.arithmetic.held import BOUNDED, PARAMETERS, Held, moves
from npuc.passes.arithmetic.round_to import DOMAIN, check, function, function_name, round_to
from npuc.passes.base import Pass, Result
from npuc.passes.graphs import Names, label
from npuc.profile import FloatFormat, Profile
from npuc.program import Refusal

RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""What a matrix unit computes; the first two inputs are its factors."""
HIDDEN_PRODUCTS = RECURRENT | {"Attention", "Einsum"}
"""Operators that multiply matrices within: decompose them first."""


@dataclass(frozen=True)
class RoundFloats(Pass):
    """Insert a call to ``ai.npuc::RoundTo_e{E}m{M}`` wherever the device would store a float.

    No vendor states where its chip rounds. This is what npuc assumes (`Profile` grade A):

    - float32 inputs of the graph are rounded as they are copied to the device; float constants
      are rounded offline;
    - an operator computes in float32 and its result is rounded once; operators that only move or
      choose values (`held.MOVES`) give rounded values already. Control flow is rounded inside;
    - the output of DequantizeLinear stands for integer codes. It is exact for an operator of the
      device's integer scheme that takes codes on both sides, and through operators that move
      values; any other operator, and the graph's output, get it rounded;
    - an integer operator's result is its accumulator. It is exact for QuantizeLinear (the fused
      requantize), through operators that move values and through adding a constant per channel
      (the bias); whatever else reads it, reads it rounded;
    - scales and zero points are never touched, nor is the bias of an integer operator;
    - what is marked for the host computes in float32; its results are rounded as they come back.

    Where a device rounds operands only (``float.rounds``), all of that is float32, and only what
    enters Conv, ConvTranspose, Gemm and MatMul as a factor is rounded, unless it stands for codes.
    Where its subnormals are "flushed" (``float.subnormals``), those become zeros of their sign.

    A recurrent operator is rounded at its outputs only, and values that are not float32 are left
    alone; both are listed as refusals. Raises `PassError` where a tensor's type is unknown.
    """

    name: ClassVar[str] = "round-floats"
    exact: ClassVar[bool] = False

    format: FloatFormat

    @property
    def options(self) -> Mapping[str, object]:
        """Return the format by its name."""
        return {"format": self.format.name}

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Round in place; `changes` counts inserted calls and rounded constants."""
        check(self.format)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        _require_types(model)
        scheme = profile.int_scheme
        flush = profile.get("float.subnormals", "kept") == "flushed"
        work = _Rounding(self.format, flush, frozenset() if scheme is None else scheme.ops, model)
        if profile.rounds_operands_only:
            work.operands(model.graph)
        else:
            work.inputs()
            work.graph(model.graph)
        constants = work.round_constants()
        if work.calls:
            fn = function(self.format, model.opset_imports[""], flush=flush)
            model.functions[fn.identifier()] = fn
            model.opset_imports[DOMAIN] = 1
        return Result(work.calls + constants, tuple(work.refusals))


@dataclass
class _Rounding:
    format: FloatFormat
    flush: bool
    integer_ops: frozenset[str]
    model: ir.Model
    calls: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    held: dict[ir.Value, Held] = field(default_factory=dict)
    twins: dict[ir.Value, ir.Value] = field(default_factory=dict)
    constants: dict[ir.Value, list[tuple[ir.Node, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def __post_init__(self) -> None:
        self.names = Names(self.model)

    def inputs(self) -> None:
        """Round what is copied to the device."""
        for value in self.model.graph.inputs:
            if not _is_float(value) or _is_constant(value):
                continue
            if value.is_graph_output():
                self.refusals.append(Refusal(value.name or "", "an input that is also an output"))
            self._copied(value)

    def _copied(self, value: ir.Value) -> None:
        """Round what the host has, for those that read it on the device."""
        uses = [(node, index) for node, index in value.uses() if not on_host(node)]
        if uses:
            self._use(uses, self._call(value, None))

    def _host(self, node: ir.Node, data: list[tuple[int, ir.Value]]) -> None:
        """Let a node on the host compute in float32 on what the device gives it."""
        for index, value in data:
            if self._holds(value) is Held.ACCUMULATOR:
                node.replace_input_with(index, self._twin(value))
        for value in node.outputs:
            if _is_float(value):
                self._copied(value)

    def graph(self, graph: ir.Graph) -> None:
        """Round one graph, whose outer values are done already."""
        for node in tuple(graph):
            for body in () if on_host(node) else _bodies(node):
                self.graph(body)
            self._node(node)
        for value in tuple(graph.outputs):
            if _is_float(value) and _is_constant(value):
                self.refusals.append(Refusal(value.name or "", "a constant that is an output"))
            elif self._holds(value) is not Held.FLOAT:
                self._round_output(graph, value)

    def operands(self, graph: ir.Graph) -> None:
        """Round nothing in one graph but the factors of its products."""
        for node in tuple(graph):
            if on_host(node):
                continue
            for body in _bodies(node):
                self.operands(body)
            data = _data(node)
            held = self._held_after(node, [v for _, v in data])
            if held is not Held.FLOAT:
                self.held.update((v, held) for v in node.outputs if _is_float(v))
            elif node.domain == "" and node.op_type in PRODUCTS:
                for index, value in data:
                    if index < 2 and _is_constant(value):
                        self.constants[value].append((node, index))
                    elif index < 2:
                        node.replace_input_with(index, self._twin(value))
            elif node.domain == "" and node.op_type in HIDDEN_PRODUCTS:
                self.refusals.append(Refusal(label(node), "its inner products are not rounded"))

    def round_constants(self) -> int:
        """Round the constants that float operators read; return how many changed."""
        count = 0
        for value, uses in self.constants.items():
            assert value.const_value is not None
            old = value.const_value.numpy()
            new = round_to(old, self.format, flush=self.flush)
            if np.array_equal(old.view(np.uint32), new.view(np.uint32)):
                continue
            count += 1
            if len(uses) == len(value.uses()) and not value.is_graph_output():
                value.const_value = ir.tensor(new, name=value.name)
                continue
            twin = ir.Value(
                name=self._name(value, self.format.name), type=value.type, shape=value.shape
            )
            twin.const_value = ir.tensor(new, name=twin.name)
            assert value.graph is not None
            value.graph.register_initializer(twin)
            self._use(uses, twin)
        return count

    def _node(self, node: ir.Node) -> None:
        if node.op_type == "QuantizeLinear" or node.domain == DOMAIN:
            return
        data = _data(node)
        if on_host(node):
            self._host(node, data)
            return
        held = self._held_after(node, [v for _, v in data])
        if held is not Held.FLOAT:
            self.held.update((v, held) for v in node.outputs if _is_float(v))
            return
        for index, value in data:
            if _is_constant(value):
                self.constants[value].append((node, index))
            elif self._holds(value) is not Held.FLOAT:
                node.replace_input_with(index, self._twin(value))
        self._refuse(node)
        if not moves(node):
            for value in node.outputs:
                if _is_float(value) and (value.uses() or value.is_graph_output()):
                    self._round_result(value)

    def _held_after(self, node: ir.Node, data: list[ir.Value]) -> Held:
        """Return what a node's float outputs stand for; `data` are its float inputs."""
        if node.op_type == "DequantizeLinear":
            return Held.CODES
        if node.op_type in self.integer_ops and node.domain == "":
            operands = [v for v in node.inputs[:2] if v is not None]
            if all(self._holds(v) is Held.CODES for v in operands):
                return Held.ACCUMULATOR
        held = [self._holds(v) for v in data if not _is_constant(v)]
        if node.op_type == "Add" and held == [Held.ACCUMULATOR] and any(map(_is_bias, data)):
            return Held.ACCUMULATOR
        whole = len(held) == len(data) or node.op_type in BOUNDED
        if moves(node) and whole and held and Held.FLOAT not in held and not _has_body(node):
            return Held.ACCUMULATOR if Held.ACCUMULATOR in held else Held.CODES
        return Held.FLOAT

    def _holds(self, value: ir.Value) -> Held:
        return self.held.get(value, Held.FLOAT)

    def _round_result(self, value: ir.Value) -> None:
        """Let every reader of `value` read it rounded, under its own name."""
        uses, name = tuple(value.uses()), value.name
        producer = value.producer()
        assert producer is not None and producer.graph is not None
        outputs = producer.graph.outputs
        value.name = self._name(value, "float32")
        rounded = self._call(value, name)
        self._use(uses, rounded)
        for index, output in enumerate(outputs):
            if output is value:
                outputs[index] = rounded

    def _round_output(self, graph: ir.Graph, value: ir.Value) -> None:
        """Give the caller a held value rounded, under the port's name."""
        rounded = self._twin(value)
        rounded.name, value.name = value.name, self._name(value, "exact")
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = rounded

    def _twin(self, value: ir.Value) -> ir.Value:
        """Return a held value rounded, for readers outside the integer path."""
        if value not in self.twins:
            self.twins[value] = self._call(value, None)
        return self.twins[value]

    def _call(self, value: ir.Value, name: str | None) -> ir.Value:
        node = ir.Node(DOMAIN, function_name(self.format, flush=self.flush), [value])
        output = node.outputs[0]
        output.name = name or self._name(value, self.format.name)
        output.type, output.shape = value.type, value.shape
        node.name = f"round_{output.name}"
        producer = value.producer()
        if producer is not None and producer.graph is not None:
            producer.graph.insert_after(producer, node)
        else:
            assert value.graph is not None
            value.graph.insert_before(value.graph[0], node)
        self.calls += 1
        return output

    def _name(self, value: ir.Value, suffix: str) -> str:
        return self.names.new(f"{value.name}_{suffix}")

    def _use(self, uses: Iterable[tuple[ir.Node, int]], new: ir.Value) -> None:
        for node, index in uses:
            node.replace_input_with(index, new)

    def _refuse(self, node: ir.Node) -> None:
        name = label(node)
        if node.op_type in RECURRENT:
            self.refusals.append(Refusal(name, "rounded at its outputs only, not at every step"))
        if node.op_identifier() in self.model.functions:
            self.refusals.append(Refusal(name, "a function, rounded at its outputs only"))
        for value in node.outputs:
            if value.dtype is not None and value.dtype.is_floating_point() and not _is_float(value):
                self.refusals.append(Refusal(name, f"gives {value.dtype.name}, not float32"))


def _data(node: ir.Node) -> list[tuple[int, ir.Value]]:
    """Return the float32 inputs a node works on, without its parameters, by index."""
    skip = PARAMETERS.get(node.op_type, set())
    return [
        (index, value)
        for index, value in enumerate(node.inputs)
        if value is not None and index not in skip and _is_float(value)
    ]


def _bodies(node: ir.Node) -> Iterable[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _has_body(node: ir.Node) -> bool:
    return node.op_type in ("If", "Loop", "Scan")


def _is_float(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and value.dtype == ir.DataType.FLOAT


def _is_constant(value: ir.Value) -> bool:
    return value.is_initializer()


def _is_bias(value: ir.Value) -> bool:
    """Whether a value is a constant with one number, or one per channel of the last axis."""
    tensor = value.const_value if _is_constant(value) else None
    return tensor is not None and all(d == 1 for d in tensor.shape.numpy()[:-1])


def _require_types(model: ir.Model) -> None:
    if _untyped(model):
        common.ShapeInferencePass()(model)
    unknown = _untyped(model)
    if unknown:
        raise PassError(
            f"the type of {len(unknown)} tensors is unknown: {', '.join(unknown[:20])}",
            hint="a model-local function or a custom operator hides it; inline or remove it",
        )


def _untyped(model: ir.Model) -> list[str]:
    return [
        f"{value.name} ({node.op_type})"
        for node in model.graph.all_nodes()
        for value in node.outputs
        if value.name and value.type is None
    ]
