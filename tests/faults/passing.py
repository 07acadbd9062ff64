"""Defects of passes that should keep the answer: optimizers, rewrites, equalization."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from edits import (
    after,
    attribute,
    dropped,
    op,
    put,
    read,
    stored,
    swapped_outputs,
    through,
    value_of,
)
from seams import Edit, Fault, Site, a_pass, before_pass, nth, where

from npuc.passes.base import Pass
from npuc.passes.decompose import Decompose
from npuc.passes.decompose_rnn import DecomposeRnn
from npuc.passes.drop_unused import DropUnused
from npuc.passes.equalize import Equalize
from npuc.passes.fix_shapes import FixShapes
from npuc.passes.fold_batchnorm import FoldBatchNorm
from npuc.passes.fold_constants import FoldConstants
from npuc.passes.graphs import Names, initializer
from npuc.passes.lower_opset import LowerOpset
from npuc.passes.narrow_int64 import NarrowInt64
from npuc.passes.simplify import Simplify


def _fault(
    kind: type[Pass], name: str, model: str, what: str, like: str, site: Site, edit: Edit,
    target: str = "cpu", precision: str = "float",
) -> Fault:  # fmt: skip
    seam = a_pass(kind, site, edit)
    return Fault(name, model, target, precision, "pass", kind.name, what, like, seam)


def _initializer(index: int) -> Site:
    """Choose the reader of a constant that is a matrix."""

    def found(node: ir.Node) -> bool:
        held = node.inputs[1] if len(node.inputs) > 1 else None
        return held is not None and held.const_value is not None and held.const_value.size > 1000

    return where(found, index)


def _reshaped(model: ir.Model, node: ir.Node) -> None:
    """Write a transposition as a Reshape: the shape is right, the order is not."""
    given, result = node.inputs[0], node.outputs[0]
    assert given is not None and result.shape is not None
    shape = np.array([d if isinstance(d, int) else -1 for d in result.shape])
    other = op(model, "Reshape", [given, given], result)
    model.graph.insert_after(node, other)
    put(model, other, 1, shape)
    result.replace_all_uses_with(other.outputs[0])


def _next_row(model: ir.Model, node: ir.Node) -> None:
    """Move the window of a Slice by one."""
    for index in (1, 2):
        put(model, node, index, value_of(node.inputs[index]) + 1)


def _batchnorm(folder: Path, *, tied: bool) -> Path:
    """Write digits-resnet as ONNX with its normalizations; `tied` shares one weight of two."""
    import torch

    from npuc import models
    from npuc.quiet import quiet

    zoo = models.get("digits-resnet")
    module: Any = zoo.module()
    body = module.blocks[0].body
    if tied:
        body[2][0].weight = body[0][0].weight
    with torch.no_grad(), quiet():
        made = torch.onnx.export(
            module, zoo.example(), dynamo=True, optimize=False, opset_version=20,
            dynamic_shapes=zoo.dynamic_shapes, verbose=False,
        )  # fmt: skip
    assert made is not None
    model = made.model
    if tied:  # torch writes a copy of the weight for each name
        convs = [node for node in model.graph if node.op_type == "Conv"]
        convs[2].replace_input_with(1, convs[1].inputs[1])
    path = folder / "resnet.onnx"
    ir.save(model, path)
    return path


def _samples() -> Mapping[str, Any]:
    from npuc import models

    (port,) = models.get("digits-resnet").input_names
    return {"samples": [{port: s[0].numpy()} for s in models.get("digits-resnet").samples(8)]}


def _fold_in_place(model: ir.Model, node: ir.Node) -> None:
    """Fold a normalization into a convolution's weight, whoever else reads it."""
    conv = node.inputs[0].producer() if node.inputs[0] is not None else None
    assert conv is not None and conv.inputs[1] is not None
    scale, bias, mean, variance = (value_of(v) for v in node.inputs[1:5])
    factor = scale / np.sqrt(variance + node.attributes["epsilon"].as_float())
    weight = value_of(conv.inputs[1]) * factor.reshape(-1, 1, 1, 1)
    conv.inputs[1].const_value = ir.tensor(weight, name=conv.inputs[1].name)
    offset = initializer(model.graph, Names(model).new("folded_bias"), bias - mean * factor)
    other = op(model, "Conv", [*conv.inputs[:2], offset], conv.outputs[0])
    for item in conv.attributes.values():
        other.attributes.add(item)
    model.graph.insert_after(conv, other)
    node.outputs[0].replace_all_uses_with(other.outputs[0])


def _state_before(model: ir.Model, node: ir.Node) -> None:
    """Let a step of an unrolled LSTM read the state that the step before it read."""
    made = node.inputs[0].producer() if node.inputs[0] is not None else None
    earlier = [n for n in model.graph if _recurrent(n) and n.inputs[1] is node.inputs[1]]
    assert made is not None
    node.replace_input_with(0, earlier[earlier.index(node) - 1].inputs[0])


def _recurrent(node: ir.Node) -> bool:
    made = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    return node.op_type == "MatMul" and made is not None and made.op_type == "Mul"


def _least_variance(model: ir.Model) -> ir.Node:
    found = [node for node in model.graph if node.op_type == "BatchNormalization"]
    return min(found, key=lambda node: float(value_of(node.inputs[4]).min()))


FAULTS: tuple[Fault, ...] = (
    _fault(
        FoldConstants, "folded-in-half", "digits-lstm", "a constant is folded in half precision",
        "microsoft/onnxruntime#21859: precision of a folded constant",
        nth("MatMul"), stored(1, lambda a: a.astype(np.float16)),
    ),
    _fault(
        DropUnused, "residual-dropped", "digits-mobilenet", "an Add that is used is dropped",
        "OODTE: output dropped", nth("Add", 1), dropped,
    ),
    _fault(
        Simplify, "slice-eliminated", "digits-vit", "a Slice is merged with its neighbour's window",
        "inisis/OnnxSlim#277: EliminationSlice", nth("Gather", -1),
        stored(1, lambda a: a + 1),
    ),
    _fault(
        Simplify, "output-duplicated", "digits-resnet", "both branches of an Add become one",
        "OODTE: output duplicated", nth("Add", 1), read(1, 0),
    ),
    _fault(
        Simplify, "scale-fused-wrong", "text-gpt", "a LayerNorm's weight is fused a row too far",
        "OODTE: layer normalization fusion",
        nth("LayerNormalization", 3), stored(1, lambda a: np.roll(a, 1)),
    ),
    _fault(
        Simplify, "heads-merged-wrong", "text-bert", "Transpose and Reshape change places",
        "iree-org/iree#23623: order of equal elements", nth("Transpose", 4), _reshaped,
    ),
    Fault(
        "batchnorm-epsilon", "digits-resnet", "cpu", "float", "pass", "fold-batchnorm",
        "a normalization is folded without its epsilon", "OODTE: fuse_bn_into_conv",
        before_pass(FoldBatchNorm, _least_variance, attribute(epsilon=0.0)),
        _samples(), lambda folder: _batchnorm(folder, tied=False),
    ),
    Fault(
        "batchnorm-shared-weight", "digits-resnet", "cpu", "float", "pass", "fold-batchnorm",
        "a normalization is folded into a weight that another convolution reads",
        "OODTE: fuse_bn_into_conv with a shared weight",
        before_pass(FoldBatchNorm, nth("BatchNormalization", 1), _fold_in_place),
        _samples(), lambda folder: _batchnorm(folder, tied=True),
    ),
    _fault(
        FixShapes, "split-order", "text-gpt", "queries and keys change places once sizes are bound",
        "sgl-project/sglang#18481", nth("Split", 2), swapped_outputs(0, 1),
    ),
    _fault(
        DecomposeRnn, "lstm-states-crossed", "digits-lstm", "a step's gates are crossed",
        "onnx/onnx: LSTM unrolled with gates crossed", nth("Split", 9), swapped_outputs(0, 1),
    ),
    _fault(
        DecomposeRnn, "lstm-state-late", "digits-lstm", "a step reads the state before the last",
        "pytorch/executorch#20168: KV cache off by one", where(_recurrent, 4), _state_before,
    ),
    _fault(
        Decompose, "erf-rounded", "text-bert", "erf is computed in half precision",
        "pytorch/executorch#16426", nth("Erf", 1), after(through(10)), "rk3588", "int8",
    ),
    _fault(
        LowerOpset, "old-softmax", "digits-vit", "an older Softmax takes all later axes",
        "onnx/onnx: Softmax before opset 13", nth("Softmax", 1), attribute(axis=1),
        "warboy", "int8",
    ),
    _fault(
        NarrowInt64, "narrowed-too-far", "text-gpt", "ids are narrowed to 6 bits and wrap",
        "NVIDIA/TensorRT#3101: int64 weights cast down", nth("Gather"), stored(0,
        lambda a: np.concatenate([a[:64], a[:len(a) - 64]])), "ethos-u85", "int8",
    ),
    _fault(
        Equalize, "equalized-one-side", "digits-mobilenet",
        "a channel is divided before an activation and not multiplied after",
        "quic/aimet#670: cross-layer equalization", nth("Conv", 6),
        stored(1, lambda a: a * np.where(np.arange(len(a)) == 3, 0.5, 1).reshape(-1, 1, 1, 1)),
        "cpu", "int8",
    ),
    _fault(
        Equalize, "bias-not-equalized", "digits-resnet", "weights are equalized, the bias is not",
        "quic/aimet#4071", nth("Conv", 4), stored(2, lambda a: a * 0.5), "cpu", "int8",
    ),
)  # fmt: skip
