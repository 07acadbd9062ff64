"""Take back what quantization adds to the products on average."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from npuc.errors import PassError
from npuc.passes.base import Pass, Result
from npuc.passes.graphs import Names, constant, drop_if_unused, initializer, label
from npuc.passes.qdq.codes import bias_limit
from npuc.passes.qdq.results import bias_of, only_reader
from npuc.passes.qdq.sites import dequantized
from npuc.profile import IntScheme, Profile
from npuc.program import Refusal

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Conv(x, w, b)  ⇒  Conv(x, w, b - shift), with what the codes shift each output by on average.

    `shifts` are by product, per output channel, as `npuc.bias_shifts` measures them (Nagel et al.
    2019, "Data-free quantization through weight equalization and bias correction"). A bias that
    is coded keeps its scale. Products that are not quantized here are left alone.

    Refuses a product without a bias, or with one that is not a vector along the outputs.
    """

    name: ClassVar[str] = "correct-bias"
    exact: ClassVar[bool] = False

    shifts: Mapping[str, Array] = field(repr=False)

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Rewrite biases in place; `changes` counts them."""
        scheme = profile.int_scheme
        if scheme is None:
            raise PassError(f"target {profile.name!r} has no integer scheme")
        changes, refusals, names = 0, list[Refusal](), Names(model)
        for node in tuple(model.graph):
            shift = self.shifts.get(node.name or "")
            if shift is None or not any(dequantized(value) for value in node.inputs[:2]):
                continue
            reason = _correct(node, np.asarray(shift, np.float64), scheme, names)
            if reason:
                refusals.append(Refusal(label(node), reason))
            else:
                changes += 1
        return Result(changes, tuple(refusals))


def _correct(node: ir.Node, shift: Array, scheme: IntScheme, names: Names) -> str:
    holder, index = node, 2
    if node.op_type == "MatMul":
        reader = only_reader(node.outputs[0])
        if reader is None or reader.op_type != "Add":
            return "it has no bias to correct"
        holder = reader
        index = reader.inputs.index(bias_of(reader, node.outputs[0]))
    value = holder.inputs[index] if index < len(holder.inputs) else None
    if value is None:
        return "it has no bias to correct"
    if node.op_type == "Gemm":  # Y = alpha·A·B + beta·C
        alpha, beta = (node.attributes.get_float(key, 1.0) for key in ("alpha", "beta"))
        if beta == 0:
            return "its bias is multiplied by zero"
        shift = shift * alpha / beta
    source = value.producer() if dequantized(value) else None
    if source is not None:
        return _correct_codes(source, shift, scheme, names)
    bias = constant(value)
    if bias is None:
        return "its bias is not a constant"
    if bias.size != shift.size:
        return "its bias is not per output channel"
    new = (bias.astype(np.float64) - shift.reshape(bias.shape)).astype(np.float32)
    _replace(holder, index, new, names)
    return ""


def _correct_codes(source: ir.Node, shift: Array, scheme: IntScheme, names: Names) -> str:
    codes, scales = (constant(value) for value in source.inputs[:2])
    if codes is None or scales is None or codes.size != shift.size:
        return "its bias is not per output channel"
    limit = bias_limit(scheme)
    steps = np.rint(shift.reshape(codes.shape) / scales.astype(np.float64).reshape(-1))
    new = np.clip(codes.astype(np.float64) - steps, -limit, limit).astype(codes.dtype)
    _replace(source, 0, new, names)
    return ""


def _replace(node: ir.Node, index: int, array: Array, names: Names) -> None:
    value, graph = node.inputs[index], node.graph
    assert value is not None and isinstance(graph, ir.Graph)
    new = initializer(graph, names.new(f"{value.name}_corrected"), array)
    node.replace_input_with(index, new)
    drop_if_unused(value)
