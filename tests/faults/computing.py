"""Defects of the model of a device's arithmetic: rounding, zero points, borders, short floats."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import numpy as np
import onnx_ir as ir
from edits import before, op, stored, value_of
from seams import Fault, Seam, Site, Touched, a_pass, nth, where

from npuc.passes.base import Pass, Result
from npuc.passes.graphs import Names, initializer
from npuc.passes.integer_arithmetic import IntegerArithmetic
from npuc.passes.round_floats import RoundFloats
from npuc.profile import FloatFormat, Profile


def _fault(
    kind: type[Pass], name: str, model: str, target: str, what: str, like: str, seam: Seam
) -> Fault:
    return Fault(name, model, target, "int8", "numerics", kind.name, what, like, seam)


def _requantize(index: int) -> Site:
    return where(lambda node: node.op_type.startswith("Requantize_"), index)


def _zero_point(model: ir.Model, node: ir.Node) -> None:
    """Lower the zero point, the third input from the end: the codes' bounds follow."""
    stored(len(node.inputs) - 3, lambda array: array - 1)(model, node)


def _cut(model: ir.Model, node: ir.Node) -> None:
    """Cut the sum to whole codes before it is scaled: the shift does not round."""
    multiplier, divisor = value_of(node.inputs[1]), value_of(node.inputs[2])
    unit = np.asarray(np.maximum(divisor // multiplier, 1), np.int32)

    def build(model: ir.Model, value: ir.Value) -> list[ir.Node]:
        held = initializer(model.graph, Names(model).new("unit"), unit)
        less = op(model, "Div", [value, held], value)
        return [less, op(model, "Mul", [less.outputs[0], held], value)]

    before(0, build)(model, node)


@contextmanager
def _cuts_everywhere(touched: Touched) -> Iterator[None]:
    """Every product is requantized by the same rule: all are cut."""
    plain = IntegerArithmetic.apply

    def wrong(self: IntegerArithmetic, model: ir.Model, profile: Profile) -> Result:
        outcome = plain(self, model, profile)
        for node in [n for n in model.graph if n.op_type.startswith("Requantize_")]:
            touched.update({node.name or "", node.outputs[0].name or ""})
            _cut(model, node)
        return outcome

    with mock.patch.object(IntegerArithmetic, "apply", wrong):
        yield


@contextmanager
def _another_format(touched: Touched) -> Iterator[None]:
    """Store results with 2 bits of mantissa."""
    plain = RoundFloats.apply

    def wrong(self: RoundFloats, model: ir.Model, profile: Profile) -> Result:
        return plain(replace(self, format=FloatFormat(5, 2)), model, profile)

    with mock.patch.object(RoundFloats, "apply", wrong):
        yield


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
        IntegerArithmetic, "sum-cut", "digits-resnet", "rk3588",
        "a sum is shifted without rounding before it is scaled",
        "apache/tvm: TRUNCATE in fixed-point multiply", _cuts_everywhere,
    ),
    _fault(
        IntegerArithmetic, "padded-with-zero", "digits-unet", "rk3588",
        "borders are padded with code 0 and not with the zero point",
        "airockchip/rknn-toolkit2: asymmetric padding",
        a_pass(IntegerArithmetic, nth("ConvInteger", 3), stored(2, lambda a: a + 3)),
    ),
    replace(
        _fault(
            RoundFloats, "another-float-format", "digits-mobilenet", "atom",
            "results are stored as 8-bit floats in place of 16",
            "openvinotoolkit/openvino#30666: precision of a device's floats", _another_format,
        ),
        sited=False,
    ),
)  # fmt: skip
