"""Compute on int8 codes as the TFLite reference kernels do, where a graph says so in floats."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from npuc.errors import PassError
from npuc.partition import on_host
from npuc.passes.arithmetic import tflite_kernels as kernels
from npuc.passes.arithmetic import tflite_softmax as softmax
from npuc.passes.arithmetic.held import PARAMETERS, moves
from npuc.passes.arithmetic.lookup import CODES, FUNCTIONS, Array, function_of, table
from npuc.passes.arithmetic.round_to import DOMAIN
from npuc.passes.arithmetic.tflite_graph import Kernels, functions
from npuc.passes.arithmetic.tflite_sites import (
    CLAMPS,
    Operand,
    Outcome,
    coding,
    holds_codes,
    is_dequantized,
    limits,
    operand,
    outcome,
    quantizers,
    sweep,
)
from npuc.passes.arithmetic.tflite_windows import Window, fits
from npuc.passes.base import Pass, Result
from npuc.passes.graphs import Names, infer_shapes, label
from npuc.passes.qdq.results import carries
from npuc.passes.qdq.sites import DATA_INPUTS
from npuc.passes.writer import Unfit, axes_of, axis_of, needed, shape_of
from npuc.profile import Profile
from npuc.program import Refusal

ACCUMULATED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that sum products: another pass's."""


@dataclass(frozen=True)
class TfliteArithmetic(Pass):
    """codes → Dequantize → op → Quantize → codes  ⇒  codes → integer operators → codes

    For devices that follow the TFLite 8-bit specification: bit for bit what the reference kernels
    compute (double rounding), checked against LiteRT 2.3.0. Relu and Clip between an operator and
    its QuantizeLinear become its fused activation.

    - Add, Sum of two, Sub, Mul, AveragePool, ReduceMean, GlobalAveragePool (as Mean, which is what
      converters make of it) and Softmax become integer arithmetic;
    - operators of one tensor become tables of 256 codes: Relu, Clip, LeakyRelu, HardSwish,
      Abs and Sqrt as their kernels have it, others from the function itself, half away from zero
      (`npuc.passes.arithmetic.lookup` says which of them are assumed);
    - operators that move values need one coding on all sides; where the graph has several, codes
      are requantized, as a converter does.

    Refuses an operator without such a kernel, with an operand that is not coded in int8 per
    tensor, with a result that is read as a float, or with scales that the kernel cannot take.
    Convolutions and matrix products are left to another pass. Raises `PassError` where the model's
    shapes contradict each other.
    """

    name: ClassVar[str] = "tflite-arithmetic"
    exact: ClassVar[bool] = False

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Rewrite in place; `changes` counts the operators that now compute on codes."""
        work = _Work(model, Names(model))
        for node in tuple(model.graph):
            if node.graph is not None and node.domain == "" and not on_host(node):
                work.node(node)
        built = functions(work.called, model.opset_imports[""])
        for function in built:
            model.functions[function.identifier()] = function
        if built:
            model.opset_imports[DOMAIN] = 1
        if work.changes:
            infer_shapes(model)
        return Result(work.changes, tuple(work.refusals))


@dataclass
class _Work:
    model: ir.Model
    names: Names
    changes: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    called: list[str] = field(default_factory=list)

    def node(self, node: ir.Node) -> None:
        """Rewrite one operator where it computes on codes."""
        if node.op_type in ACCUMULATED or node.op_type == "DequantizeLinear":
            return
        data = _data(node)
        if not any(holds_codes(v) for v in data):
            return
        if carries(node) or node.op_type == "QuantizeLinear":
            data = [v for v in data if is_dequantized(v)]  # others: from where they are moved
        try:
            if node.op_type == "QuantizeLinear":
                for value in data:
                    self._recode(node, operand(value))
            elif node.op_type not in CLAMPS and moves(node):
                self._move(node, data)
            else:
                self._compute(node)
        except (Unfit, PassError) as error:
            self.refusals.append(Refusal(label(node), str(error)))

    def _compute(self, node: ir.Node) -> None:
        write = _KERNELS.get(node.op_type)
        if write is None:
            raise Unfit(f"{node.op_type} has no 8-bit kernel here and is computed in float")
        out = outcome(node)
        new = self._kernels(out.quantize)
        self._replace(out.quantize, new, write(node, new, out))

    def _recode(self, quantize: ir.Node, x: Operand) -> None:
        """Dequantize → Quantize: the same reals in another coding."""
        out = coding(quantize)
        if out == x.coding:
            return  # the codes themselves: nothing is computed
        new = self._kernels(quantize)
        self._replace(quantize, new, new.lookup(x.codes, _requantized(x.coding, out)))

    def _move(self, node: ir.Node, data: list[ir.Value]) -> None:
        found = [q for v in node.outputs for q in quantizers(v)]
        if not found or not data:
            return
        operands = [operand(v) for v in data]
        if len(operands) == 1:
            for quantize in found:
                self._recode_after(quantize, operands[0])
            return
        wanted = {coding(q) for q in found}
        if len(wanted) > 1:
            raise Unfit("its result is coded in several ways")
        for index, value in enumerate(node.inputs):
            if value in data and operand(value).coding not in wanted:
                self._recode_before(node, index, found[0])

    def _recode_after(self, quantize: ir.Node, x: Operand) -> None:
        """Quantize as the operand was, then look up the other coding."""
        out = coding(quantize)
        if out == x.coding:
            return
        new = self._kernels(quantize)
        same = new.op("QuantizeLinear", needed(quantize), *_parameters(x.dequantize))
        self._replace(quantize, new, new.lookup(same, _requantized(x.coding, out)))

    def _recode_before(self, node: ir.Node, index: int, quantize: ir.Node) -> None:
        """Let a node read an operand in the coding of its result."""
        value = needed(node, index)
        x, out = operand(value), coding(quantize)
        new = self._kernels(x.dequantize)
        codes = new.lookup(x.codes, _requantized(x.coding, out))
        real = new.op("DequantizeLinear", codes, *_parameters(quantize))
        real.type, real.shape = value.type, value.shape
        assert node.graph is not None
        node.graph.insert_before(node, new.nodes)
        node.replace_input_with(index, real)
        sweep(value)
        self.changes += 1

    def _kernels(self, at: ir.Node) -> Kernels:
        prefix = at.outputs[0].name or at.op_type
        opset = self.model.opset_imports[""]
        return Kernels(self.model.graph, self.names, prefix, opset)

    def _replace(self, quantize: ir.Node, new: Kernels, codes: ir.Value) -> None:
        old = quantize.inputs[0]
        new.replace(quantize, [codes])
        sweep(old)
        self.called += new.called
        self.changes += 1


def _data(node: ir.Node) -> list[ir.Value]:
    """Return the float tensors a node works on, without its parameters."""
    skipped = PARAMETERS.get(node.op_type, set())
    inputs = node.inputs[: DATA_INPUTS.get(node.op_type, len(node.inputs))]
    return [
        value
        for index, value in enumerate(inputs)
        if value is not None and index not in skipped and value.dtype == ir.DataType.FLOAT
    ]


def _parameters(node: ir.Node) -> list[ir.Value]:
    """Return the scale and zero point of a (De)QuantizeLinear."""
    return [needed(node, index) for index in (1, 2)]


def _requantized(source: kernels.Coding, out: kernels.Coding) -> Array:
    return kernels.requantize(CODES, source, out).astype(np.int8)


def _two(node: ir.Node) -> tuple[Operand, Operand]:
    if len(node.inputs) != 2:
        raise Unfit(f"it has {len(node.inputs)} operands; the kernel takes two")
    return operand(needed(node, 0)), operand(needed(node, 1))


def _add(node: ir.Node, new: Kernels, out: Outcome) -> ir.Value:
    return new.add(*_two(node), out, "Sub" if node.op_type == "Sub" else "Add")


def _mul(node: ir.Node, new: Kernels, out: Outcome) -> ir.Value:
    return new.mul(*_two(node), out)


def _mean(node: ir.Node, new: Kernels, out: Outcome) -> ir.Value:
    x = operand(needed(node))
    shape = shape_of(node.inputs[0])
    spatial = node.op_type == "GlobalAveragePool"
    axes = list(range(2, len(shape))) if spatial else axes_of(node, len(shape))
    keep = spatial or bool(node.attributes.get_int("keepdims", 1))
    return new.mean(x, shape, axes, keep, out)


def _average(node: ir.Node, new: Kernels, out: Outcome) -> ir.Value:
    x = operand(needed(node))
    window = Window.of(node, shape_of(node.inputs[0]), shape_of(node.outputs[0]))
    if not fits(window):
        raise Unfit("a window of it holds no value")
    if x.coding == out.coding:
        return new.average(x, window, out)
    recoded = np.clip(_requantized(x.coding, out.coding), out.low, out.high).astype(np.int8)
    whole = Outcome(out.quantize, x.coding, kernels.LOW, kernels.HIGH)
    return new.lookup(new.average(x, window, whole), recoded)


def _softmax(node: ir.Node, new: Kernels, out: Outcome) -> ir.Value:
    x, shape = operand(needed(node)), shape_of(node.inputs[0])
    axis = axis_of(node, len(shape))
    if out.coding != softmax.OUTPUT:
        raise Unfit(f"the kernel writes scale 1/256 and zero point -128, not {out.coding}")
    if not 0 < shape[axis] <= softmax.LONGEST:
        raise Unfit(f"the kernel sums up to {softmax.LONGEST} values, not {shape[axis]}")
    return new.softmax(x, axis, out)


def _unary(node: ir.Node, new: Kernels, out: Outcome) -> ir.Value:
    x = operand(needed(node))
    codes = np.clip(_table(node, x.coding, out), out.low, out.high)
    return new.lookup(x.codes, codes.astype(np.int8))


def _table(node: ir.Node, source: kernels.Coding, out: Outcome) -> Array:
    if node.op_type in CLAMPS:
        return kernels.relu(CODES, source, out.coding, limits(node, out.coding))
    if node.op_type == "LeakyRelu":
        alpha = node.attributes.get_float("alpha", 0.01)
        return kernels.leaky_relu(CODES, alpha, source, out.coding)
    if node.op_type in _OWN_KERNELS:
        return _OWN_KERNELS[node.op_type](CODES, source, out.coding)
    function = function_of(node)
    if isinstance(function, str):
        raise Unfit(function)
    return table(function, source, out.coding)


_OWN_KERNELS = {
    "Abs": kernels.absolute,
    "HardSwish": kernels.hard_swish,
    "Sqrt": kernels.square_root,
}
_KERNELS: Mapping[str, Callable[[ir.Node, Kernels, Outcome], ir.Value]] = {
    "Add": _add,
    "Sum": _add,
    "Sub": _add,
    "Mul": _mul,
    "AveragePool": _average,
    "GlobalAveragePool": _mean,
    "ReduceMean": _mean,
    "Softmax": _softmax,
    **dict.fromkeys(FUNCTIONS | CLAMPS | {"HardSwish", "LeakyRelu"}, _unary),
}
