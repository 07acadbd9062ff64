"""What a device answers, from the quantized program and the facts of its profile alone.

Evaluates a float program or one with QuantizeLinear and DequantizeLinear, before npuc made it
compute like the device, node by node: products of codes as exact sums of integers, requantized by
the device's rule (`scalar_rules`), everything else by ONNX's own reference implementation, rounded
to the device's float. It shares no arithmetic with npuc, ONNX Runtime or TVM.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.reference

from npuc.profile import FloatFormat, Profile

if TYPE_CHECKING:
    from tests.targets.independent import model_tflite as tflite
    from tests.targets.independent import scalar_rules as rules
    from tests.targets.independent.model_values import Array, Value, coded, products, recoded
else:
    import model_tflite as tflite
    import scalar_rules as rules
    from model_values import Array, Value, coded, products, recoded

CLAMPS = tflite.CLAMPS
PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
CHOOSES = CLAMPS | {
    "Concat", "Expand", "Flatten", "Gather", "Identity", "Max", "MaxPool", "Min", "Pad", "Reshape",
    "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators whose results are values of their inputs."""
ONE_ROUNDING = frozenset({"Add", "Sub", "Mul", "Div"})
"""Operators that IEEE 754 defines to the last bit, whoever computes them."""


@dataclass
class Model:
    """Evaluates one program for one device. `form` is what the device stores floats in."""

    proto: onnx.ModelProto
    profile: Profile
    form: FloatFormat | None
    values: dict[str, Value] = field(default_factory=dict)
    within: set[str] = field(default_factory=set)
    """Tensors that no device has: between an operator and what it is coded by."""

    def __post_init__(self) -> None:
        get, graph = self.profile.get, self.proto.graph
        self.ops = set(get("int8.ops", ()))
        self.fused = set(get("int8.fused", ()))
        self.rule = get("int8.requantize", "float32-even")
        self.accumulator = (get("int8.accumulator_bits", 32), get("int8.overflow", "wrap"))
        self.as_written = self.rule == "float32-even" and self.accumulator == (32, "wrap")
        self.tflite = get("int8.elementwise", "float") == "tflite"
        self.operands_only = get("float.rounds", "results") == "operands"
        self.flush = get("float.subnormals", "kept") == "flushed"
        self.asked = {v.name for v in graph.output}
        self.opset = next(o.version for o in self.proto.opset_import if not o.domain)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Value]:
        """Return the outputs of one call by name."""
        constants, self.within = self.proto.graph.initializer, set()
        self.values = {t.name: _constant(onnx.numpy_helper.to_array(t)) for t in constants}
        for name, array in inputs.items():
            self.values[name] = Value(array, "float", host=True)
        for node in self.proto.graph.node:
            if node.output[0] not in self.values and node.output[0] not in self.within:
                self._node(node)
        return {name: self._output(name) for name in self.asked}

    def _output(self, name: str) -> Value:
        value = self.values[name]
        held = value.kind in ("codes", "sum") and not value.host
        return replace(value, real=self._short(value.real)) if held else value

    def _node(self, node: onnx.NodeProto) -> None:
        reads = [self.values[name] for name in node.input if name]
        host, kind = _hosted(node), node.op_type
        if kind == "QuantizeLinear":
            self._quantize(node, *reads)
        elif kind == "DequantizeLinear":
            self._dequantize(node, *reads)
        elif kind in PRODUCTS & self.ops and not host and all(coded(v) for v in reads[:2]):
            self._product(node, reads)
        elif not (self.tflite and reads and not host and self._kernel(node, reads)):
            self._float(node, reads, host)

    # --- floats -----------------------------------------------------------------------------------

    def _short(self, real: Array) -> Array:
        """Round to the device's float, where results are stored in one."""
        return real if self.operands_only else self._rounded(real)

    def _rounded(self, real: Array) -> Array:
        form = self.form
        if form is None or real.dtype != np.float32:
            return real
        rounded = [
            rules.short(x, form.exponent, form.mantissa, flush=self.flush)
            for x in real.reshape(-1).tolist()
        ]
        return np.array(rounded, np.float32).reshape(real.shape)

    def _float(self, node: onnx.NodeProto, reads: list[Value], host: bool) -> None:
        kind, floats = node.op_type, [v for v in reads if v.real.dtype == np.float32]
        varying = [v for v in floats if v.kind != "constant"]
        chooses = kind in CHOOSES
        stands = {v.kind for v in varying} - {"float"}
        bias = kind == "Add" and [v.kind for v in varying] == ["sum"] and len(floats) == 2
        whole = kind in CLAMPS | {"Pad"} or len(varying) == len(floats)
        exact = not host and varying and (bias or (chooses and whole))
        exact = exact and all(v.kind != "float" and not v.host for v in varying)
        inexact = frozenset[str]().union(*(v.inexact for v in reads))
        if exact:
            result = self._reference(node, [v.real for v in reads])
            new = Value(result, "sum" if "sum" in stands else "codes", inexact=inexact)
            if chooses and kind not in CLAMPS and len(floats) == 1:
                new = recoded(new, floats[0])
            self.values[node.output[0]] = new
            return
        coded = kind in self.ops and not host and all(v.kind == "codes" for v in reads[:2])
        if coded and not chooses:  # from codes to codes, if there is no rule for it: one rounding
            result = self._reference(node, [v.real for v in reads])
            inexact |= {kind} - ONE_ROUNDING
            self.values[node.output[0]] = Value(result, "sum", inexact=inexact)
            return
        arrays = [self._read(v, host, node.op_type, i) for i, v in enumerate(reads)]
        result = self._reference(node, arrays)
        if result.dtype != np.float32:
            self.values[node.output[0]] = Value(result, "other")
            return
        if not chooses:
            inexact |= {kind} - ONE_ROUNDING
        if not host and not chooses:
            result = self._short(result)
        constant = not varying and bool(floats)
        self.values[node.output[0]] = Value(
            result, "constant" if constant else "float", inexact=inexact, host=host
        )

    def _read(self, value: Value, host: bool, kind: str, index: int) -> Array:
        """Return what an operator that computes in floats gets of a value."""
        if host:
            return self._short(value.real) if value.kind == "sum" else value.real
        if self.operands_only:
            factor = kind in PRODUCTS and index < 2 and value.kind != "codes"
            return self._rounded(value.real) if factor else value.real
        rounded = value.kind == "float" and not value.host
        return value.real if rounded else self._short(value.real)

    def _reference(self, node: onnx.NodeProto, arrays: list[Array]) -> Array:
        """Run one node by ONNX's reference implementation."""
        given = iter(arrays)
        named = {name: next(given) for name in node.input if name}
        infos = [
            onnx.helper.make_tensor_value_info(
                n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape
            )
            for n, a in named.items()
        ]
        out = onnx.ValueInfoProto(name=node.output[0])
        graph = onnx.helper.make_graph([node], "node", infos, [out])
        opset = [onnx.helper.make_opsetid("", self.opset)]
        one = onnx.helper.make_model(graph, opset_imports=opset)
        answer = onnx.reference.ReferenceEvaluator(one).run(None, named)
        assert isinstance(answer, list)
        return np.asarray(answer[0])

    def _quantize(self, node: onnx.NodeProto, x: Value, scale: Value, zero: Value) -> None:
        step, z, kind = np.float32(scale.real), int(zero.real), zero.real.dtype
        low, high = np.iinfo(kind).min, np.iinfo(kind).max
        if self.tflite and coded(x):
            codes = tflite.recode(x, float(step), z, (int(low), int(high)))
        else:
            real = self._short(x.real) if x.host else x.real
            codes = np.clip(np.rint(real / step) + np.float32(z), low, high).astype(np.int64)
        self._store(node, codes, kind, x.inexact)

    def _store(
        self, quantize: onnx.NodeProto, codes: Array, kind: Any, inexact: frozenset[str]
    ) -> None:
        self.values[quantize.output[0]] = Value(codes.astype(kind), "other", inexact=inexact)

    def _dequantize(self, node: onnx.NodeProto, x: Value, scale: Value, zero: Value) -> None:
        codes, steps, z = x.real.astype(np.int64), scale.real, int(zero.real.reshape(-1)[0])
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        shape = [-1 if i == axis % codes.ndim else 1 for i in range(codes.ndim)]
        spread = steps.reshape(shape) if steps.size > 1 else steps.reshape(())
        real = (codes - z).astype(np.float32) * spread
        kept = steps.reshape(-1 if steps.size > 1 else ()).astype(np.float64)
        value = Value(np.asarray(real, np.float32), "codes", codes, kept, z, x.inexact)
        self.values[node.output[0]] = value

    # --- sums of products of codes ----------------------------------------------------------------

    def _product(self, node: onnx.NodeProto, reads: list[Value]) -> None:
        left, right = reads[:2]
        assert left.codes is not None and right.codes is not None
        assert left.scale is not None and right.scale is not None and not left.scale.ndim
        a, b = left.codes - left.zero, right.codes - right.zero
        total = products(node, a, b)
        unit = left.scale * right.scale
        across = unit.reshape(-1, *(1,) * (total.ndim - 2)) if node.op_type == "Conv" else unit
        across = across if unit.ndim else unit
        bias, inexact = np.zeros((), np.int64), left.inexact | right.inexact
        if len(reads) > 2:
            added = reads[2]
            assert added.codes is not None
            bias = added.codes.reshape(across.shape) if node.op_type == "Conv" else added.codes
        chain = self._chain(node)
        if chain is None:
            real = ((total + bias) * across).astype(np.float32)
            inexact |= {node.op_type}
            self.values[node.output[0]] = Value(real, "sum", inexact=inexact)
            return
        first, clamps, quantize = chain
        if first is not None:
            bias = np.rint(first.real.astype(np.float64) / across).astype(np.int64)
        inexact |= {node.op_type} if self.as_written else frozenset()
        step, z, low, high, kind = self._coding(quantize)
        for clamp in clamps:
            low, high = self._bounds(clamp, step, z, low, high)
        if self.rule.startswith("tflite") and not unit.ndim and node.op_type != "Conv":
            across = np.asarray(rules.f32(float(unit)))
        factor = np.broadcast_to(across / step, total.shape).reshape(-1).tolist()
        rule = rules.REQUANTIZE[self.rule]
        codes = [
            rules.clip(rule(rules.held(n, *self.accumulator), m) + z, low, high)
            for n, m in zip((total + bias).reshape(-1).tolist(), factor, strict=True)
        ]
        self._store(quantize, np.array(codes).reshape(total.shape), kind, inexact)

    def _chain(
        self, node: onnx.NodeProto
    ) -> tuple[Value | None, list[onnx.NodeProto], onnx.NodeProto] | None:
        """Return the bias and clamps between a product and its QuantizeLinear, if it has one."""
        name, bias, added, clamps = node.output[0], None, node, []
        reader = self._only(name)
        if node.op_type == "MatMul" and reader is not None and reader.op_type == "Add":
            added, (other,) = reader, (n for n in reader.input if n != name)
            bias = self.values.get(other)
            if bias is None or bias.kind != "constant" or bias.real.size != bias.real.shape[-1]:
                return None
            reader = self._only(reader.output[0])
        while reader is not None and reader.op_type in self.fused & CLAMPS:
            clamps.append(reader)
            reader = self._only(reader.output[0])
        if reader is None or reader.op_type != "QuantizeLinear":
            return None
        self.within |= {n.output[0] for n in (node, added, *clamps)}
        return bias, clamps, reader

    def _only(self, name: str) -> onnx.NodeProto | None:
        uses = [n for n in self.proto.graph.node for read in n.input if read == name]
        alone = len(uses) == 1 and name not in self.asked and not _hosted(uses[0])
        return uses[0] if alone else None

    def _coding(self, quantize: onnx.NodeProto) -> tuple[float, int, int, int, Any]:
        scale, zero = (self.values[n].real for n in quantize.input[1:3])
        kind = np.iinfo(zero.dtype)
        return float(scale), int(zero), int(kind.min), int(kind.max), zero.dtype

    def _bounds(
        self, clamp: onnx.NodeProto, step: float, z: int, low: int, high: int
    ) -> tuple[int, int]:
        """Narrow the codes by a fused activation: q(f) = z + half-away(f32(f / s))."""
        if clamp.op_type == "Relu":
            return max(low, z), high
        ends = [self.values[n] if n else None for n in [*clamp.input, "", ""][1:3]]
        first, last = (
            edge if v is None else z + rules.away(rules.f32(float(v.real) / step))
            for v, edge in zip(ends, (low, high), strict=True)
        )  # fmt: skip
        return max(low, first), min(high, last)

    def _kernel(self, node: onnx.NodeProto, reads: list[Value]) -> bool:
        """Compute on codes where TFLite has a kernel; say whether it has."""
        kind, name, clamps = node.op_type, node.output[0], []
        if kind in CHOOSES - CLAMPS - {"Concat"} or not coded(reads[0]):
            return False
        reader = self._only(name)
        while reader is not None and reader.op_type in CLAMPS:
            clamps.append(reader)
            reader = self._only(reader.output[0])
        if reader is None or reader.op_type != "QuantizeLinear":
            return False
        step, z, low, high, dtype = self._coding(reader)
        if kind == "Concat":
            arrays = [tflite.recode(v, step, z, (low, high)) for v in reads]
            codes: Array | None = self._reference(node, arrays)
        else:
            codes = tflite.computed(node, reads, step, z)
        if codes is None:
            return False
        for clamp in [node] * (kind in CLAMPS) + clamps:
            low, high = self._bounds(clamp, step, z, low, high)
        inexact = frozenset[str]().union(*(v.inexact for v in reads))
        self._store(reader, np.clip(codes, low, high), dtype, inexact)
        self.within |= {n.output[0] for n in (node, *clamps)}
        return True


def _constant(array: Array) -> Value:
    return Value(array, "constant" if array.dtype == np.float32 else "other")


def _hosted(node: onnx.NodeProto) -> bool:
    return any(p.key == "npuc.place" for p in node.metadata_props)
