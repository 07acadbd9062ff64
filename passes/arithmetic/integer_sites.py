"""Where a graph multiplies codes and codes the sum: DequantizeLinear → product → QuantizeLinear."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from npuc.passes.graphs import constant
from npuc.passes.qdq.codes import bias_limit
from npuc.passes.qdq.results import bias_of, only_reader, tail
from npuc.passes.qdq.sites import dequantized
from npuc.passes.writer import Unfit, given
from npuc.profile import IntScheme

Array = np.ndarray[Any, Any]
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_BYTES: dict[ir.DataType, type[np.integer[Any]]] = {
    ir.DataType.INT8: np.int8,
    ir.DataType.UINT8: np.uint8,
}


@dataclass(frozen=True, slots=True)
class Operand:
    """One side of a product: 8-bit codes with one zero point, and a scale or one per channel."""

    codes: ir.Value
    dtype: type[np.integer[Any]]
    zero: int
    scale: Array
    """float64, of shape () or [channels]."""

    @property
    def array(self) -> Array | None:
        """The codes, where they are constant."""
        return constant(self.codes)


@dataclass(frozen=True, slots=True)
class Product:
    """A node to compute in integers. `channels` is the shape channels take in its result."""

    node: ir.Node
    left: Operand
    right: Operand
    channels: tuple[int, ...]
    bias: Array | None
    """int32, in units of both scales, in a shape that broadcasts against the sum."""
    last: ir.Value
    """The float that `quantize` reads."""
    quantize: ir.Node
    scale: float
    zero: int
    low: int
    high: int

    @property
    def unit(self) -> Array:
        """What one step of the sum is worth, in the shape of `channels` or of one number."""
        return _unit(self.node, self.left, self.right).reshape(
            self.channels if self.left.scale.ndim or self.right.scale.ndim else ()
        )


def product(node: ir.Node, scheme: IntScheme) -> Product:
    """Return what a node computes in integers; raises `Unfit` with the reason why it cannot."""
    if node.op_type == "ConvTranspose":
        raise Unfit("ConvTranspose has no integer operator in ONNX")
    left, right = (_operand(node, index) for index in (0, 1))
    if left.dtype != right.dtype and left.array is None and right.array is None:
        raise Unfit("its inputs are coded in two types, and neither is a constant")
    channels = _channels(node, left, right)
    chain = tail(node, scheme)
    quantize, ends = _quantize((node, *chain)[-1].outputs[0])
    scale, zero, low, high = _coding(quantize)
    for clamp in (*chain, *ends):
        if clamp.op_type == "Add":
            continue
        first, final = _bounds(clamp, scale, zero)
        low, high = max(low, first), min(high, final)
    added = chain[0] if chain and chain[0].op_type == "Add" else None
    value = given(node, 2) if added is None else bias_of(added, node.outputs[0])
    bias = None if value is None else _bias(value, node, left, right, scheme)
    if bias is not None and node.op_type == "Conv":
        bias = bias.reshape(-1, *(1 for _ in channels[1:]))
    last = quantize.inputs[0]
    assert last is not None
    return Product(node, left, right, channels, bias, last, quantize, scale, zero, low, high)


def _operand(node: ir.Node, index: int) -> Operand:
    value = node.inputs[index]
    producer = None if value is None else value.producer()
    if value is None or producer is None or not dequantized(value):
        raise Unfit(f"its input {value.name if value else ''!r} is not coded")
    codes, scale, zero = producer.inputs[0], constant(producer.inputs[1]), given(producer, 2)
    assert codes is not None
    points = np.zeros(1) if zero is None else constant(zero)
    if codes.dtype is None or codes.dtype not in _BYTES:
        raise Unfit(f"its input {codes.name!r} does not hold 8-bit codes")
    blocks = producer.attributes.get_int("block_size", 0)
    if scale is None or points is None or blocks:
        raise Unfit(f"the scale of its input {value.name!r} is no constant per tensor or channel")
    if (points != points.reshape(-1)[0]).any():
        raise Unfit(f"its input {value.name!r} has more than one zero point")
    if scale.size > 1:
        axis, rank = producer.attributes.get_int("axis", 1), len(codes.shape or ())
        wanted = _axis(node, index, rank)
        if axis % max(rank, 1) != wanted:
            raise Unfit(f"the scales of its input {value.name!r} run along axis {axis}")
    scale = scale.astype(np.float64)
    return Operand(
        codes, _BYTES[codes.dtype], int(points.reshape(-1)[0]),
        scale if scale.size > 1 else scale.reshape(()),
    )  # fmt: skip


def _axis(node: ir.Node, index: int, rank: int) -> int | None:
    """Return the axis of an input along which the channels of the result run."""
    if node.op_type == "Conv":
        return 0 if index else None
    if node.op_type == "Gemm":
        turned = node.attributes.get_int("transB" if index else "transA", 0)
        return int(not turned) if index else int(turned != 0)
    return rank - 1 if index else rank - 2


def _channels(node: ir.Node, left: Operand, right: Operand) -> tuple[int, ...]:
    if left.scale.ndim and right.scale.ndim:
        raise Unfit("both its inputs have scales per channel")
    if node.op_type == "Conv":
        rank = len(right.codes.shape or ())
        return (-1, *(1 for _ in range(rank - 2)))
    return (-1, 1) if left.scale.ndim else (-1,)


def _quantize(value: ir.Value) -> tuple[ir.Node, tuple[ir.Node, ...]]:
    """Return the QuantizeLinear that alone reads a value, and what keeps it in the codes' range."""
    reader = only_reader(value)
    ends: tuple[ir.Node, ...] = ()
    if reader is not None and reader.op_type == "Clip":
        after = only_reader(reader.outputs[0])
        if after is not None and after.op_type == "QuantizeLinear" and _is_range(reader, after):
            reader, ends = after, (reader,)
    if reader is None or reader.op_type != "QuantizeLinear":
        readers = sorted({node.op_type for node in value.consumers()})
        if value.is_graph_output():
            readers.append("the caller")
        raise Unfit(f"its accumulator is read as a float, by {', '.join(readers)}")
    return reader, ends


def _is_range(clip: ir.Node, quantize: ir.Node) -> bool:
    """Whether a Clip has codes as its bounds: where a device uses fewer than its type holds."""
    scale = _coding(quantize)[0]
    for index in (1, 2):
        bound = constant(given(clip, index))
        if bound is None:
            return False
        real, step = np.float32(bound.item()), np.float32(scale)
        if np.float32(np.rint(real / step) * step) != real:
            return False
    return True


def _coding(quantize: ir.Node) -> tuple[float, int, int, int]:
    """Return scale, zero point, first and last code of a QuantizeLinear."""
    scale, point = constant(quantize.inputs[1]), constant(given(quantize, 2))
    if scale is None or point is None or scale.size != 1 or point.dtype not in (np.int8, np.uint8):
        raise Unfit(f"{quantize.name!r} does not give 8-bit codes of one constant scale")
    low, high = (-128, 127) if point.dtype == np.int8 else (0, 255)
    return float(scale.reshape(-1)[0]), int(point.reshape(-1)[0]), low, high


def _bounds(clamp: ir.Node, scale: float, zero: int) -> tuple[int, int]:
    """Return the codes a clamp lets through: z + half-away(f32(f / s)), as numerics.md 1.4."""
    ends = [-(2**31), 2**31 - 1]
    if clamp.op_type == "Relu":
        return zero, ends[1]
    if clamp.op_type != "Clip":
        raise Unfit(f"{clamp.op_type} is no clamp that can be folded into codes")
    for index in (1, 2):
        bound = given(clamp, index)
        array = constant(bound)
        if bound is None or array is None or np.isinf(array).any():
            continue
        steps = float(np.float32(array.reshape(-1)[0]) / np.float32(scale))
        code = zero + int(np.copysign(np.floor(abs(steps) + 0.5), steps))
        ends[index - 1] = max(-(2**31), min(2**31 - 1, code))
    return ends[0], ends[1]


def _bias(
    value: ir.Value, node: ir.Node, left: Operand, right: Operand, scheme: IntScheme
) -> Array:
    """Return a constant bias in units of the sum, as int32."""
    unit = _unit(node, left, right)
    if node.op_type == "Gemm":
        if left.scale.ndim:
            unit = unit.reshape(-1, 1)
        unit = unit / node.attributes.get_float("beta", 1.0)
    producer = value.producer()
    if producer is not None and dequantized(value):
        stored, scale = constant(producer.inputs[0]), constant(producer.inputs[1])
        zero = constant(given(producer, 2))
        # The scale was multiplied out in float32: three roundings, each of 2⁻²⁴.
        wrong = stored is None or scale is None or (zero is not None and zero.any())
        if wrong or not np.allclose(np.asarray(scale, np.float64), unit, rtol=1e-6, atol=0):
            raise Unfit(f"its bias {value.name!r} is not in the unit of its accumulator")
        return np.asarray(stored, np.int32)
    array = constant(value)
    if array is None:
        raise Unfit(f"its bias {value.name!r} is not a constant")
    codes = np.rint(array.astype(np.float64) / unit)
    if not (np.abs(codes) <= bias_limit(scheme)).all():
        raise Unfit(f"its bias {value.name!r} does not fit its accumulator")
    return codes.astype(np.int32)


def _unit(node: ir.Node, left: Operand, right: Operand) -> Array:
    alpha = node.attributes.get_float("alpha", 1.0) if node.op_type == "Gemm" else 1.0
    return np.asarray(left.scale * right.scale * alpha)
