"""The TFLite reference kernels as ONNX nodes on integers: codes in, codes out."""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from npuc.passes.arithmetic import fixed_point as fixed
from npuc.passes.arithmetic import tflite_softmax as softmax
from npuc.passes.arithmetic.fixed_point import DOUBLE, Multiplier
from npuc.passes.arithmetic.round_to import DOMAIN
from npuc.passes.arithmetic.tflite_kernels import ADD_SHIFT, AddFactors, mean_factor, mul_factor
from npuc.passes.arithmetic.tflite_sites import Operand, Outcome
from npuc.passes.arithmetic.tflite_windows import Window
from npuc.passes.builder import Array, Attribute
from npuc.passes.graphs import Names
from npuc.passes.writer import Writer

_WORD = (-(1 << 31), (1 << 31) - 1)
_TYPES = {np.int8: ir.DataType.INT8, np.int32: ir.DataType.INT32, np.int64: ir.DataType.INT64}


def functions(names: Sequence[str], opset: int) -> list[ir.Function]:
    """Build the functions of npuc's domain that nodes written here call, by their names."""
    return [_function(name, opset) for name in dict.fromkeys(names)]


def _function(name: str, opset: int) -> ir.Function:
    if name == DOUBLE.operator:
        return DOUBLE.function(opset)
    return softmax.function(opset) if name == softmax.SCALE else fixed.function(name, opset)


class Kernels(Writer):
    """Writes one operator's integer form. `called` names the functions it uses."""

    def __init__(self, graph: ir.Graph, names: Names, prefix: str, opset: int) -> None:
        super().__init__(graph, names, prefix, opset)
        self.called: list[str] = []

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Attribute) -> ir.Value:
        """Append a node with one output; its type is left to shape inference."""
        return self.several(op_type, inputs, 1, **attributes)[0]

    def lookup(self, codes: ir.Value, table: Array) -> ir.Value:
        """Return table[code + 128]."""
        index = self.op("Add", self.cast(codes, np.int32), self.scalar("first", 128, np.int32))
        return self.op("Gather", self.constant("table", table), index, axis=0)

    def add(self, a: Operand, b: Operand, out: Outcome, sign: str) -> ir.Value:
        """Write Add, or Sub where `sign` is that."""
        by = AddFactors.of(a.coding, b.coding, out.coding)
        terms = []
        for item, factor in ((a, by.a), (b, by.b)):
            unit = self.scalar("unit", 1 << ADD_SHIFT, np.int32)
            shifted = self.op("Mul", self._centred(item), unit)
            terms.append(self._multiply(shifted, factor, 0, *_WORD))
        return self._coded(self.op(sign, *terms), by.out, out)

    def mul(self, a: Operand, b: Operand, out: Outcome) -> ir.Value:
        """Write Mul."""
        by = mul_factor(a.coding, b.coding, out.coding)
        return self._coded(self.op("Mul", self._centred(a), self._centred(b)), by, out)

    def mean(
        self, x: Operand, shape: Sequence[int], axes: Sequence[int], keep: bool, out: Outcome
    ) -> ir.Value:
        """Write the average over whole axes."""
        count = math.prod(shape[axis] for axis in axes)
        by = mean_factor(count, x.coding, out.coding)
        total = self.reduce("ReduceSum", self.cast(x.codes, np.int32), axes, keep)
        offset = self.scalar("offset", count * x.coding.zero, np.int32)
        return self._coded(self.op("Sub", total, offset), by, out)

    def average(self, x: Operand, window: Window, out: Outcome) -> ir.Value:
        """Write average pooling, the result in the operand's coding."""
        total = self.cast(x.codes, np.int64)
        if any(window.begin) or any(window.end):
            pads = [0, 0, *window.begin, 0, 0, *window.end]
            filling = self.scalar("filling", 0, np.int64)
            total = self.op("Pad", total, self.integers("pads", pads), filling)
        for axis in range(len(window.kernel)):
            taps = [
                self.slice(total, axis + 2, *window.tap(axis, index), window.stride[axis])
                for index in range(window.kernel[axis])
            ]
            total = taps[0]
            for tap in taps[1:]:
                total = self.op("Add", total, tap)
        if window.include:
            filled = self.constant("filled", window.padded() * x.coding.zero)
            total = self.op("Add", total, filled)
        count = self.constant("count", window.count())
        return self._narrowed(self._call(fixed.DIVIDE, total, count), out)

    def softmax(self, x: Operand, axis: int, out: Outcome) -> ir.Value:
        """Write Softmax along an axis; `out` has the coding that the kernel prescribes."""
        values, summands = softmax.tables(x.coding.scale)
        codes = self.cast(x.codes, np.int32)
        top = self.reduce("ReduceMax", codes, [axis])
        below = self.op("Sub", codes, top)
        index = self.op("Add", below, self.scalar("last", 255, np.int32))
        summed = self.op("Gather", self.constant("summands", summands), index, axis=0)
        total = self.reduce("ReduceSum", summed, [axis])
        self.called += [softmax.SCALE, fixed.HIGH_MUL]
        scale, divisor = self.several(softmax.SCALE, [total], 2)
        self.nodes[-1].domain = DOMAIN
        value = self.op("Gather", self.constant("exponentials", values), index, axis=0)
        share = self._call(fixed.DIVIDE, self._call(fixed.HIGH_MUL, scale, value), divisor)
        zero = self.scalar("zero", out.coding.zero, np.int64)
        return self._narrowed(self.op("Add", share, zero), out)

    def cast(self, value: ir.Value, dtype: type[np.integer]) -> ir.Value:
        """Convert to another integer type."""
        return self.op("Cast", value, to=int(_TYPES[dtype]))

    def scalar(self, name: str, value: int, dtype: type[np.integer]) -> ir.Value:
        """Add a constant of one number."""
        return self.constant(name, np.asarray(value, dtype))

    def _call(self, name: str, *inputs: ir.Value) -> ir.Value:
        self.called.append(name)
        result = self.op(name, *inputs)
        self.nodes[-1].domain = DOMAIN
        return result

    def _centred(self, item: Operand) -> ir.Value:
        wide = self.cast(item.codes, np.int32)
        zero = item.coding.zero
        return self.op("Sub", wide, self.scalar("zero", zero, np.int32)) if zero else wide

    def _multiply(self, x: ir.Value, by: Multiplier, zero: int, low: int, high: int) -> ir.Value:
        stored = [self.constant(name, array) for name, array in by.parameters.items()]
        ends = {"offset": zero, "low": low, "high": high}
        rest = [self.scalar(name, value, np.int32) for name, value in ends.items()]
        return self._call(DOUBLE.operator, x, *stored, *rest)

    def _coded(self, x: ir.Value, by: Multiplier, out: Outcome) -> ir.Value:
        coded = self._multiply(x, by, out.coding.zero, out.low, out.high)
        return self.cast(coded, np.int8)

    def _narrowed(self, x: ir.Value, out: Outcome) -> ir.Value:
        ends = [self.scalar(n, v, np.int64) for n, v in (("low", out.low), ("high", out.high))]
        return self.cast(self.op("Min", self.op("Max", x, ends[0]), ends[1]), np.int8)
