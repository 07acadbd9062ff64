"""Make a quantized program multiply, accumulate and requantize in integers as a device does."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from npuc.errors import PassError
from npuc.passes.arithmetic import requantize
from npuc.passes.arithmetic.integer_sites import PRODUCTS, Operand, Product, product
from npuc.passes.arithmetic.requantize_onnx import limit_function, limit_operator
from npuc.passes.arithmetic.round_to import DOMAIN
from npuc.passes.arithmetic.tflite_sites import sweep
from npuc.passes.base import Pass, Result
from npuc.passes.builder import Builder
from npuc.passes.graphs import Names, infer_types, label
from npuc.passes.qdq.sites import dequantized
from npuc.passes.writer import Unfit
from npuc.profile import IntScheme, Profile
from npuc.program import Refusal

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class IntegerArithmetic(Pass):
    """DQ → Conv, Gemm or MatMul → Q  ⇒  ConvInteger or MatMulInteger → + bias → requantize → Cast

    The sum of products is exact in int32. The bias is an int32 constant in the sum's unit, and the
    sum is then held as the profile's accumulator holds it (`requantize.limit`). M = s_x·s_w / s_y
    in float64 becomes what the device stores, and the rule of ``int8.requantize`` gives the codes,
    between the bounds of clamps that the device fuses.

    Both operands of an integer product get the same signedness: mixed ones saturate in pairs in
    ONNX Runtime on x86 hosts without VNNI. Weights take that of the activations, by ±128 in code
    and zero point.

    Refuses what is not multiplied and coded in one go, which then stays as it is: computed in
    float32 on dequantized codes. Ports keep their names and types.
    """

    name: ClassVar[str] = "integer-arithmetic"
    exact: ClassVar[bool] = False

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Rewrite in place; `changes` counts the products computed in integers."""
        scheme = profile.int_scheme
        if scheme is None:
            raise PassError(
                f"target {profile.name!r} has no integer scheme", hint="use --precision float"
            )
        infer_types(model)
        work = _Work(model, scheme)
        for node in tuple(model.graph):
            if node.domain == "" and node.op_type in PRODUCTS & scheme.ops:
                work.node(node)
        work.register()
        return Result(work.changes, tuple(work.refusals))


@dataclass
class _Work:
    model: ir.Model
    scheme: IntScheme
    changes: int = 0
    refusals: list[Refusal] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rule = requantize.rule(self.scheme.requantize)
        self.held = (self.scheme.accumulator_bits, self.scheme.overflow)
        self.names = Names(self.model)

    def node(self, node: ir.Node) -> None:
        """Rewrite one product of codes; one of floats is left alone, and was reported before."""
        if not any(dequantized(value) for value in node.inputs[:2]):
            return
        try:
            site = product(node, self.scheme)
            stored = self.rule.parameters(self._multiplier(site))
        except Unfit as reason:
            self.refusals.append(Refusal(label(node), str(reason)))
            return
        except PassError as error:
            self.refusals.append(Refusal(label(node), error.message))
            return
        self._write(site, stored)
        self.changes += 1

    def register(self) -> None:
        """Add the functions that the written nodes call."""
        if not self.changes:
            return
        opset = self.model.opset_imports[""]
        functions = [self.rule.function(opset)]
        if self.held != (32, "wrap"):
            functions.append(limit_function(*self.held, opset))
        for fn in functions:
            self.model.functions[fn.identifier()] = fn
        self.model.opset_imports[DOMAIN] = 1

    def _multiplier(self, site: Product) -> Array:
        """Return M, formed as numerics.md 1.2 says: TFLite's per-tensor products in float32."""
        unit = site.unit
        if self.rule.name.startswith("tflite") and site.node.op_type != "Conv" and not unit.ndim:
            unit = np.asarray(np.float32(unit), np.float64)
        return np.asarray(unit / site.scale)

    def _write(self, site: Product, stored: requantize.Parameters) -> None:
        write = _Nodes(self.model.graph, self.names, label(site.node), site.node.outputs[0])
        left, right = _alike(site.left, site.right, write)
        acc = write.sum(site, left, right)
        if self.held != (32, "wrap"):
            bias = np.zeros((), np.int32) if site.bias is None else site.bias
            acc = write.call(limit_operator(*self.held), acc, write.constant("bias", bias))
        elif site.bias is not None:
            acc = write.typed(write.op("Add", acc, write.constant("bias", site.bias)))
        parameters = [write.constant(name, array) for name, array in stored.items()]
        edge = {"zero": site.zero, "low": site.low, "high": site.high}
        ends = [write.constant(name, np.array(value, np.int32)) for name, value in edge.items()]
        codes = write.call(self.rule.operator, acc, *parameters, *ends)
        coded = site.quantize.outputs[0]
        assert coded.dtype is not None
        cast = write.op("Cast", codes, to=int(coded.dtype))
        write.replace(site.quantize, [cast])
        sweep(site.last)


class _Nodes(Builder):
    """Writes nodes whose results are int32 in the shape of the product."""

    def __init__(self, graph: ir.Graph, names: Names, prefix: str, like: ir.Value) -> None:
        super().__init__(graph, names, prefix)
        self._like = like

    def sum(
        self, site: Product, left: tuple[ir.Value, ir.Value], right: tuple[ir.Value, ir.Value]
    ) -> ir.Value:
        """Append the sum of products; each side is codes and their zero point."""
        node = site.node
        if node.op_type == "Conv":
            acc = self.op("ConvInteger", left[0], right[0], left[1], right[1])
            for attribute in node.attributes.values():
                self.nodes[-1].attributes.add(attribute)
            return self.typed(acc)
        turned = [
            self._turned(side[0]) if node.attributes.get_int(key, 0) else side[0]
            for side, key in ((left, "transA"), (right, "transB"))
        ]
        return self.typed(self.op("MatMulInteger", *turned, left[1], right[1]))

    def call(self, operator: str, *inputs: ir.Value) -> ir.Value:
        """Append a call to a function of npuc's own."""
        value = self.op(operator, *inputs)
        self.nodes[-1].domain = DOMAIN
        return self.typed(value)

    def typed(self, value: ir.Value) -> ir.Value:
        """Say that a value is int32 in the product's shape."""
        value.type, value.shape = ir.TensorType(ir.DataType.INT32), self._like.shape
        return value

    def _turned(self, codes: ir.Value) -> ir.Value:
        array = codes.const_value
        if array is not None:
            return self.constant("turned", array.numpy().T)
        value = self.op("Transpose", codes, perm=[1, 0])
        value.type = codes.type
        value.shape = None if codes.shape is None else ir.Shape(tuple(codes.shape)[::-1])
        return value


def _alike(
    left: Operand, right: Operand, write: Builder
) -> tuple[tuple[ir.Value, ir.Value], tuple[ir.Value, ir.Value]]:
    """Return both sides in one signedness, a constant in that of the other side."""
    dtype = left.dtype if left.array is None else right.dtype
    return _in(left, dtype, "x", write), _in(right, dtype, "w", write)


def _in(
    side: Operand, dtype: type[np.integer[Any]], name: str, write: Builder
) -> tuple[ir.Value, ir.Value]:
    offset = int(np.iinfo(dtype).min) - int(np.iinfo(side.dtype).min)
    zero = write.constant(f"{name}_zero_point", np.array(side.zero + offset, dtype))
    if not offset:
        return side.codes, zero
    array = side.array
    assert array is not None  # two activations have the scheme's one type
    return write.constant(name, (array.astype(np.int16) + offset).astype(dtype)), zero
