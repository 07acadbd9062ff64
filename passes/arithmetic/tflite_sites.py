"""Where a graph computes from codes to codes: DequantizeLinear → operator → QuantizeLinear."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from npuc.passes.arithmetic.tflite_kernels import HIGH, LOW, Coding
from npuc.passes.graphs import constant, drop_if_unused
from npuc.passes.qdq.results import carries
from npuc.passes.writer import Unfit, given

CLAMPS = frozenset({"Clip", "Relu"})
"""Operators between another one and its QuantizeLinear that only narrow the codes it may give."""


@dataclass(frozen=True, slots=True)
class Operand:
    """An int8 tensor that a node reads dequantized."""

    codes: ir.Value
    coding: Coding
    dequantize: ir.Node


@dataclass(frozen=True, slots=True)
class Outcome:
    """The int8 tensor that a node's result becomes, and the codes that fused clamps allow."""

    quantize: ir.Node
    coding: Coding
    low: int
    high: int


def is_dequantized(value: ir.Value | None) -> bool:
    """Whether a value is what DequantizeLinear makes of codes."""
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def holds_codes(value: ir.Value | None) -> bool:
    """Whether a value is dequantized codes, at once or behind operators that move them."""
    while value is not None and not is_dequantized(value):
        producer = value.producer()
        if producer is None or not carries(producer):
            return False
        value = producer.inputs[0]
    return value is not None


def operand(value: ir.Value) -> Operand:
    """Return the codes behind a node's input; raises `Unfit` where it has none, or none of int8."""
    producer = value.producer()
    codes = None if producer is None else producer.inputs[0]
    if producer is None or codes is None or not is_dequantized(value):
        raise Unfit(f"its input {value.name!r} is not coded")
    return Operand(codes, coding(producer), producer)


def coding(node: ir.Node) -> Coding:
    """Return the scale and zero point of a (De)QuantizeLinear; raises `Unfit` for another kind."""
    name = node.outputs[0].name
    scale, zero = constant(node.inputs[1]), constant(given(node, 2))
    if scale is None or zero is None or scale.size != 1 or scale.dtype != np.float32:
        raise Unfit(f"{name!r} has no constant float32 scale and zero point, one of each")
    if zero.dtype != np.int8:
        raise Unfit(f"{name!r} is coded in {zero.dtype}: the kernels are known for int8")
    return Coding(float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]))


def outcome(node: ir.Node) -> Outcome:
    """Return what a node's only result is coded as; raises `Unfit` where it is read as a float."""
    value, clamps = node.outputs[0], []
    while True:
        readers = list(value.consumers())
        if len(readers) != 1 or value.is_graph_output():
            raise Unfit("its result is read as a float")
        reader = readers[0]
        if reader.op_type == "QuantizeLinear" and reader.inputs[0] is value:
            break
        if reader.op_type not in CLAMPS or reader.inputs[0] is not value:
            raise Unfit(f"its result is read as a float, by {reader.op_type}")
        clamps.append(reader)
        value = reader.outputs[0]
    out = coding(reader)
    low, high = LOW, HIGH
    for clamp in clamps:
        first, last = limits(clamp, out)
        low, high = max(low, first), min(high, last)
    return Outcome(reader, out, low, high)


def limits(node: ir.Node, out: Coding) -> tuple[int, int]:
    """Return the lowest and highest code that a Relu or Clip lets through."""
    if node.op_type == "Relu":
        return max(LOW, out.zero), HIGH
    ends = [LOW, HIGH]
    for index in (1, 2):
        bound = given(node, index)
        if bound is None:
            continue
        array = constant(bound)
        if array is None:
            raise Unfit(f"bound {bound.name!r} of Clip is not a constant")
        ends[index - 1] = out.code(float(array.reshape(-1)[0]))
    return max(LOW, ends[0]), min(HIGH, ends[1])


def quantizers(value: ir.Value) -> Iterator[ir.Node]:
    """Yield the QuantizeLinear nodes that read a value, through what moves and clamps it."""
    for reader in value.consumers():
        if reader.op_type == "QuantizeLinear" and reader.inputs[0] is value:
            yield reader
        elif reader.inputs[0] is value and (reader.op_type in CLAMPS or carries(reader)):
            for moved in reader.outputs:
                yield from quantizers(moved)


def sweep(value: ir.Value | None) -> None:
    """Remove what computes a value that nothing reads any more."""
    if value is None or value.uses() or value.is_graph_output():
        return
    node = value.producer()
    if node is None or node.op_type == "Constant":
        drop_if_unused(value)
    elif node.graph is not None and not any(v.uses() or v.is_graph_output() for v in node.outputs):
        inputs = dict.fromkeys(node.inputs)
        node.graph.remove(node, safe=True)
        for each in inputs:
            sweep(each)
