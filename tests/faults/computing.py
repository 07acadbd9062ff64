"""Defects of the model of a device's arithmetic: rounding, saturation, short floats, tables."""

import numpy as np
import onnx_ir as ir
from edits import after, before, op, stored
from seams import Fault, Seam, Site, a_pass, nth, where

from npuc.passes.base import Pass
from npuc.passes.graphs import Names, initializer
from npuc.passes.integer_arithmetic import IntegerArithmetic
from npuc.passes.round_floats import RoundFloats


def _fault(
    kind: type[Pass], name: str, model: str, target: str, what: str, like: str, seam: Seam
) -> Fault:
    return Fault(name, model, target, "int8", "numerics", kind.name, what, like, seam)


def _requantize(index: int) -> Site:
    return where(lambda node: node.op_type.startswith("Requantize_"), index)


def _zero_point(model: ir.Model, node: ir.Node) -> None:
    """Lower the zero point, the third input from the end: the codes' bounds follow."""
    stored(len(node.inputs) - 3, lambda array: array - 1)(model, node)


def _steps_cut(model: ir.Model, node: ir.Node) -> None:
    """Cut the sum to a multiple of four before it is scaled, as a shift that does not round."""

    def build(model: ir.Model, value: ir.Value) -> list[ir.Node]:
        four = initializer(model.graph, Names(model).new("shift"), np.array(512, np.int32))
        less = op(model, "Div", [value, four], value)
        return [less, op(model, "Mul", [less.outputs[0], four], value)]

    before(0, build)(model, node)


def _four_bits(model: ir.Model, value: ir.Value) -> list[ir.Node]:
    names = Names(model)
    held = initializer(model.graph, names.new("splitter"), np.float32(2**20 + 1))
    wide = op(model, "Mul", [value, held], value)
    rest = op(model, "Sub", [wide.outputs[0], value], value)
    rest.outputs[0].name += "_rest"
    return [wide, rest, op(model, "Sub", [wide.outputs[0], rest.outputs[0]], value)]


FAULTS: tuple[Fault, ...] = (
    _fault(
        IntegerArithmetic, "multiplier-off", "digits-resnet", "warboy",
        "a channel's fixed-point multiplier is one shift too small",
        "google-ai-edge/LiteRT: quantized multiplier",
        a_pass(IntegerArithmetic, _requantize(3), stored(1, lambda a: a // np.where(
        np.arange(a.size) == 2, 2, 1).reshape(a.shape))),
    ),
    _fault(
        IntegerArithmetic, "output-zero-point", "digits-embed", "warboy",
        "codes are written around a zero point one too low",
        "NVIDIA/TensorRT#2103", a_pass(IntegerArithmetic, _requantize(2), _zero_point),
    ),
    _fault(
        IntegerArithmetic, "sum-cut", "digits-vit", "rk3588",
        "a sum is shifted without rounding before it is scaled",
        "apache/tvm: TRUNCATE in fixed-point multiply", a_pass(IntegerArithmetic, _requantize(1),
        _steps_cut),
    ),
    _fault(
        IntegerArithmetic, "padded-with-zero", "digits-unet", "rk3588",
        "borders are padded with code 0 and not with the zero point",
        "airockchip/rknn-toolkit2: asymmetric padding",
        a_pass(IntegerArithmetic, nth("ConvInteger", 3), stored(2, lambda a: a + 3)),
    ),
    _fault(
        RoundFloats, "mantissa-short", "digits-mobilenet", "atom",
        "a result is stored with 4 bits of mantissa",
        "openvinotoolkit/openvino#30666: precision of a device's floats",
        a_pass(RoundFloats, nth("HardSwish", 3), after(_four_bits)),
    ),
)  # fmt: skip
