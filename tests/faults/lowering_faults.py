"""Defects of the compiler that makes code of a program."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from edits import after, again, attribute, before, both, op, short, stored, tf32, value_of
from seams import Array, Fault, Seam, lowering, nth, where

from npuc.passes.graphs import Names, initializer


def _fault(
    name: str, model: str, what: str, like: str, seam: Seam, target: str = "cpu",
    precision: str = "float",
) -> Fault:  # fmt: skip
    return Fault(name, model, target, precision, "lowering", "artifact", what, like, seam)


def _last(array: Array) -> Array:
    """Repeat what is before the last entry along the first axis in its place."""
    return np.concatenate([array[:-1], array[-2:-1]])


def _late(model: ir.Model, value: ir.Value) -> Sequence[ir.Node]:
    """Move a tensor (1, heads, tokens, width) by one token: the newest is not there yet."""
    names, shape = Names(model), value.shape
    assert shape is not None
    tokens = next(axis for axis, size in enumerate(shape) if size == 64)
    order = initializer(model.graph, names.new("order"), np.array([0, *range(63)]))
    return (op(model, "Gather", [value, order], value, axis=tokens),)


def _half_step_down(model: ir.Model, node: ir.Node) -> None:
    scale = value_of(node.inputs[1])

    def build(model: ir.Model, value: ir.Value) -> Sequence[ir.Node]:
        held = initializer(model.graph, Names(model).new("half"), np.asarray(scale / 2, np.float32))
        return (op(model, "Sub", [value, held], value),)

    before(0, build)(model, node)


def _half_up(model: ir.Model, node: ir.Node) -> None:
    """Move values by a little less than what float32 tells from a tie: ties alone go up."""
    scale = value_of(node.inputs[1])

    def build(model: ir.Model, value: ir.Value) -> Sequence[ir.Node]:
        held = initializer(
            model.graph, Names(model).new("tie"), np.asarray(scale * 2e-3, np.float32)
        )
        return (op(model, "Add", [value, held], value),)

    before(0, build)(model, node)


def _wrapped(model: ir.Model, node: ir.Node) -> None:
    """Let what lies in the upper half of the codes come out at the other end."""
    scale, zero = value_of(node.inputs[1]), value_of(node.inputs[2])
    info = np.iinfo(zero.dtype)
    high = np.float32(scale * (0.5 * (info.max - info.min)))

    def build(model: ir.Model, value: ir.Value) -> Sequence[ir.Node]:
        names = Names(model)
        top = initializer(model.graph, names.new("top"), np.asarray(high))
        span = initializer(model.graph, names.new("span"), np.asarray(scale * 256, np.float32))
        over = op(model, "Greater", [value, top], value)
        over.outputs[0].type = ir.TensorType(ir.DataType.BOOL)
        less = op(model, "Sub", [value, span], value)
        return over, less, op(model, "Where", [over.outputs[0], less.outputs[0], value], value)

    before(0, build)(model, node)


FAULTS: tuple[Fault, ...] = (
    _fault(
        "tf32-operands", "text-bert", "a product's operands are rounded to TF32",
        "tier4/Diffusion-Planner#295, microsoft/onnxruntime#21859",
        lowering(nth("Gemm", 5), both(before(0, short), stored(1, tf32))),
    ),
    _fault(
        "half-accumulator", "digits-vit", "sums of products are kept in half precision",
        "NVIDIA/TensorRT#3700", lowering(nth("MatMul", 3), after(short)),
    ),
    _fault(
        "kv-cache-late", "text-gpt", "keys are those of the token before",
        "pytorch/executorch#20168: KV cache",
        lowering(nth("MatMul", 2), before(1, _late)),
    ),
    _fault(
        "padding-one-edge", "digits-unet", "the last column is not padded",
        "openvinotoolkit/openvino#37264",
        lowering(nth("Conv", 3), attribute(pads=[1, 0, 1, 2])), "cpu", "int8",
    ),
    _fault(
        "fused-twice", "digits-mobilenet", "an activation is fused and computed again",
        "OODTE: activation fused twice", lowering(nth("HardSwish", 2), after(again)), "cpu", "int8",
    ),
    _fault(
        "leaky-slope", "chirp-keyword", "a leaky ReLU takes the default slope",
        "pytorch/executorch#16426", lowering(nth("LeakyRelu"), attribute(alpha=0.01)),
    ),
    _fault(
        "channel-not-written", "digits-resnet", "a vectorized loop leaves the last channel out",
        "iree-org/iree#23171", lowering(nth("Conv", 2), stored(1, _last)),
    ),
    _fault(
        "int8-bias-ignored", "digits-embed", "an integer kernel starts its sum at zero",
        "microsoft/onnxruntime#23394", lowering(where(lambda n: n.op_type == "Conv", 3),
        lambda m, n: n.replace_input_with(2, None)), "cpu", "int8",
    ),
    _fault(
        "requantize-truncates", "digits-resnet", "codes are cut where they should be rounded",
        "apache/tvm: FLOOR and UPWARD rounding of requantize",
        lowering(where(lambda n: n.op_type == "QuantizeLinear", 3), _half_step_down),
        "cpu", "int8",
    ),
    _fault(
        "codes-wrap", "chirp-keyword", "codes wrap around where they should saturate",
        "tinygrad/tinygrad: missing saturation", lowering(where(
        lambda n: n.op_type == "QuantizeLinear", 3), _wrapped), "cpu", "int8",
    ),
    _fault(
        "rounds-half-up", "digits-vit", "halves are rounded up where the device rounds to even",
        "airockchip/rknn-toolkit2: simulator and board differ", lowering(where(
        lambda n: n.op_type == "QuantizeLinear", 1), _half_up), "cpu", "int8",
    ),
)  # fmt: skip
