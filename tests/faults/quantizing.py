"""Defects of quantization: scales, zero points, axes, codes, biases, ranges."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import numpy as np
import onnx_ir as ir
from edits import put, stored, value_of
from seams import Array, Edit, Fault, Seam, Site, Touched, a_pass, ranges, where

from npuc.passes.base import Result
from npuc.passes.correct_bias import CorrectBias
from npuc.passes.quantize import Quantize
from npuc.profile import Profile

Range = tuple[float, float]


def _fault(
    name: str, model: str, what: str, like: str, seam: Seam, target: str = "cpu",
    step: str = "quantize",
) -> Fault:  # fmt: skip
    return Fault(name, model, target, "int8", "quantization", step, what, like, seam)


def _calibrated(index: int, change: Callable[[Range], Range]) -> Seam:
    """Change the nth range that the calibrator finds."""
    counted: dict[str, int] = {}

    def one(name: str, found: Range) -> Range | None:
        at = counted.setdefault(name, len(counted))
        return change(found) if at == index else None

    return ranges(one)


def _weight(op_type: str, index: int, part: int = 1) -> Site:
    """Choose the DequantizeLinear of a product's weight, or of its bias (part 2)."""

    def found(model: ir.Model) -> ir.Node:
        made = [
            value.producer()
            for node in model.graph
            if node.op_type == op_type and len(node.inputs) > part
            for value in [node.inputs[part]]
            if value is not None
        ]
        coded = [n for n in made if n is not None and n.op_type == "DequantizeLinear"]
        held = [n for n in coded if n.inputs[0] is not None and n.inputs[0].const_value is not None]
        return held[index]

    return found


def _square(model: ir.Model) -> ir.Node:
    """Choose the coded weight with as many rows as columns, one scale each."""

    def test(node: ir.Node) -> bool:
        held = node.inputs[0].const_value if node.inputs and node.inputs[0] is not None else None
        shape = () if held is None else tuple(held.shape.numpy())
        return node.op_type == "DequantizeLinear" and len(shape) == 2 and shape[0] == shape[1]

    return where(test, 2)(model)


def _activation(index: int, op_type: str = "DequantizeLinear") -> Site:
    """Choose the nth DequantizeLinear of an activation."""

    def test(node: ir.Node) -> bool:
        made = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        return node.op_type == op_type and made is not None and made.op_type == "QuantizeLinear"

    return where(test, index)


def _other_axis(model: ir.Model, node: ir.Node) -> None:
    axis = node.attributes.pop("axis").as_int()
    node.attributes.add(ir.convenience.convert_attributes({"axis": 1 - axis % 2})[0])


def _as_unsigned(model: ir.Model, node: ir.Node) -> None:
    codes, zero = value_of(node.inputs[0]), value_of(node.inputs[2])
    put(model, node, 0, codes.view(np.uint8))
    put(model, node, 2, zero.view(np.uint8))


def _stale_channel(array: Array) -> Array:
    """Give channel 3 a scale of half its size."""
    return np.asarray(array * np.where(np.arange(array.size) == 3, 0.5, 1).reshape(array.shape))


@contextmanager
def _wrong_sign(touched: Touched) -> Iterator[None]:
    """Move every bias the wrong way."""
    plain = CorrectBias.apply

    def wrong(self: CorrectBias, model: ir.Model, profile: Profile) -> Result:
        touched.update(self.shifts)
        return plain(replace(self, shifts={k: -v for k, v in self.shifts.items()}), model, profile)

    with mock.patch.object(CorrectBias, "apply", wrong):
        yield


def _edit(site: Site, edit: Edit) -> Seam:
    return a_pass(Quantize, site, edit)


FAULTS: tuple[Fault, ...] = (
    _fault(
        "stale-scale", "digits-resnet", "a tensor's scale is that of an earlier calibration",
        "quic/aimet#3989: encodings not applied",
        _calibrated(3, lambda r: (6 * r[0], 6 * r[1])),
    ),
    _fault(
        "range-too-small", "text-bert", "a tensor's range is calibrated on too few samples",
        "openvinotoolkit/openvino#16157", _calibrated(5, lambda r: (0.4 * r[0], 0.4 * r[1])),
    ),
    _fault(
        "stale-scale-whole", "digits-mobilenet", "one scale of an integer device is stale",
        "quic/aimet#4054", _calibrated(7, lambda r: (5 * r[0], 5 * r[1])), "rk3588",
    ),
    _fault(
        "zero-point-off", "digits-vit", "codes are read with a zero point one too high",
        "NVIDIA/TensorRT#2103: QDQ and engine differ",
        _edit(_activation(4), stored(2, lambda a: a + 1)),
    ),
    _fault(
        "channel-axis", "text-bert", "a square weight's scales run along the wrong axis",
        "pytorch/ao: per-channel axis", _edit(_square, _other_axis),
    ),
    _fault(
        "scales-shifted", "digits-unet", "every channel has its neighbour's scale",
        "microsoft/Olive#2223", _edit(_weight("Conv", 4), stored(1, lambda a: np.roll(a, 1))),
    ),
    _fault(
        "stale-channel", "digits-embed", "one channel's scale is of another checkpoint",
        "microsoft/Olive#573: settings not applied", _edit(_weight("Conv", 2),
        stored(1, _stale_channel)),
    ),
    _fault(
        "signed-as-unsigned", "chirp-keyword", "int8 codes are read as uint8",
        "ONNX Runtime: U8S8 and S8S8", _edit(_weight("Conv", 3), _as_unsigned),
    ),
    _fault(
        "bias-scale", "digits-resnet", "a bias has the scale of the layer before",
        "ONNX Runtime quantization: bias scale after equalization",
        _edit(_weight("Conv", 5, 2), stored(1, lambda a: a * 0.5)),
    ),
    _fault(
        "coded-bias-dropped", "digits-mobilenet", "an integer convolution loses its bias",
        "OODTE: inputs dropped", _edit(_weight("Conv", 8, 2), stored(0, np.zeros_like)), "atom",
    ),
    _fault(
        "weight-saturated", "digits-lstm", "a weight's codes stop at 63",
        "intel/neural-compressor#819: reduced range",
        _edit(_weight("MatMul", 1), stored(0, lambda a: np.clip(a, -63, 63))),
    ),
    _fault(
        "correction-sign", "digits-resnet", "the correction of a bias is added, not subtracted",
        "quic/aimet: bias correction", _wrong_sign,
        step="correct-bias",
    ),
)  # fmt: skip
