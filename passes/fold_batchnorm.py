"""Fold an inference batch normalization into the convolution or Gemm before it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from npuc.passes.base import Pass, Result
from npuc.passes.graphs import Names, constant, drop_if_unused, initializer, label
from npuc.profile import Profile
from npuc.program import Refusal

Array = np.ndarray[Any, Any]
HOSTS = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """x → Conv(w, b) → BatchNormalization(g, o, m, v) → y  ⇒  x → Conv(w', b') → y

    w' = w·k, b' = (b - m)·k + o, with k = g / √(v + ε) per output channel, computed in float64
    and rounded once. Works for Conv, ConvTranspose (any groups) and Gemm (any alpha, beta, trans).

    Refuses: training mode; a parameter that is not a constant; a weight another node reads too;
    a convolution whose output is read elsewhere or is a model output.
    """

    name: ClassVar[str] = "fold-batchnorm"

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Fold in place; `changes` counts the normalizations that went."""
        names, changes, refusals = Names(model), 0, []
        for node in list(model.graph):
            if node.domain != "" or node.op_type != "BatchNormalization":
                continue
            host = node.inputs[0].producer() if node.inputs[0] is not None else None
            if host is None or host.domain != "" or host.op_type not in HOSTS:
                continue
            reason = _refusal(host, node)
            if reason:
                refusals.append(Refusal(label(node), reason))
            else:
                _fold(host, node, names)
                changes += 1
        return Result(changes, tuple(refusals))


def _refusal(host: ir.Node, norm: ir.Node) -> str:
    if norm.attributes.get_int("training_mode", 0):
        return "it is in training mode"
    if any(output.uses() or output.is_graph_output() for output in norm.outputs[1:]):
        return "its statistics are read"
    for value in (*host.inputs[1:], *norm.inputs[1:]):
        if value is not None and constant(value) is None:
            return f"{value.name!r} is not a constant"
    weight, output = host.inputs[1], host.outputs[0]
    if weight is not None and len(weight.uses()) > 1:
        return f"weight {weight.name!r} is shared with another node"
    if output.is_graph_output():
        return f"{host.op_type} output {output.name!r} is an output of the model"
    if len(output.uses()) > 1:
        return f"{host.op_type} output {output.name!r} is read elsewhere too"
    bias = constant(host.inputs[2]) if len(host.inputs) > 2 else None
    channels = constant(norm.inputs[1])
    if host.op_type == "Gemm" and bias is not None and channels is not None:
        rows = bias.size // max(bias.shape[-1], 1) if bias.ndim else 1
        if rows > 1:
            return f"bias {bias.shape} differs between the rows"
    return ""


def _fold(host: ir.Node, norm: ir.Node, names: Names) -> None:
    gamma, beta, mean, variance = (_float64(value) for value in norm.inputs[1:5])
    scale = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    weight = host.inputs[1]
    array = constant(weight)
    assert weight is not None and array is not None  # _refusal asked
    share = host.attributes.get_float("beta", 1.0) if host.op_type == "Gemm" else 1.0
    old = host.inputs[2] if len(host.inputs) > 2 else None
    bias = np.zeros_like(mean) if old is None else share * _float64(old)
    shift = (bias.reshape(-1) - mean) * scale + beta
    if share != 1.0:
        host.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
    kind = array.dtype
    _replace(host, 1, (_float64(weight) * _along(host, array, scale)).astype(kind), names)
    _replace(host, 2, shift.astype(kind), names)
    output, result = host.outputs[0], norm.outputs[0]
    output.name, output.shape = result.name, result.shape or output.shape
    parameters = norm.inputs[1:]
    result.replace_all_uses_with(output, replace_graph_outputs=True)
    assert norm.graph is not None
    norm.graph.remove(norm, safe=True)
    for value in dict.fromkeys(v for v in parameters if v is not None):
        drop_if_unused(value)


def _along(host: ir.Node, weight: Array, scale: Array) -> Array:
    """Shape the per-channel scale so that it multiplies the weight's output channels."""
    if host.op_type == "Gemm":
        return scale.reshape(-1, 1) if host.attributes.get_int("transB", 0) else scale
    tail = (1,) * (weight.ndim - 2)
    if host.op_type == "Conv":
        return scale.reshape(-1, 1, *tail)
    # ConvTranspose: rows (input channels) come group by group, columns are a group's outputs.
    groups = host.attributes.get_int("group", 1)
    rows = np.repeat(scale.reshape(groups, -1), weight.shape[0] // groups, axis=0)
    return rows.reshape(*rows.shape, *tail)


def _replace(host: ir.Node, index: int, array: Array, names: Names) -> None:
    old = host.inputs[index] if index < len(host.inputs) else None
    source = host.inputs[1].name if old is None and host.inputs[1] is not None else None
    wanted = f"{source}_bias" if old is None else f"{old.name}_folded"
    assert host.graph is not None and isinstance(host.graph, ir.Graph)
    value = initializer(host.graph, names.new(wanted), array)
    if index >= len(host.inputs):
        host.resize_inputs(index + 1)
    host.replace_input_with(index, value)
    if old is not None:
        drop_if_unused(old)


def _float64(value: ir.Value | None) -> Array:
    array = constant(value)
    assert array is not None
    return array.astype(np.float64)
