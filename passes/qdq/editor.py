"""Rewrite a graph's float inputs as dequantized integers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from npuc.errors import PassError
from npuc.passes.graphs import Names, constant, drop_if_unused, initializer, label
from npuc.passes.qdq import codes
from npuc.passes.qdq.sites import PRODUCTS, Site, dequantized
from npuc.profile import IntScheme
from npuc.program import Refusal

Array = np.ndarray[Any, Any]


class Editor:
    """The model being quantized, and what was inserted so far, so that it is inserted once."""

    def __init__(self, model: ir.Model, scheme: IntScheme) -> None:
        self.graph = model.graph
        self.scheme = scheme
        self.affine: dict[str, codes.Affine] = {}
        self._names = Names(model)
        self._floors: dict[tuple[ir.Value, int | None], Array] = {}
        self._activations: dict[str, ir.Value] = {}
        self._pairs: dict[str, list[ir.Node]] = {}
        self._weights: dict[tuple[ir.Value, int | None], tuple[ir.Value, Array]] = {}

    def plan_weights(self, planned: list[Site]) -> None:
        """Find how large each weight's scales must be for all biases that depend on them."""
        for site in planned:
            bias, data = self._bias(site), self._data_scale(site)
            if bias is None or data is None:
                continue
            weight = site.node.inputs[site.weights[0]]
            channels = _per_channel(bias, site)
            if channels is None or weight is None:
                continue
            step = float(data) * float(_ratio(site.node))
            floor = np.abs(channels.astype(np.float64)) / (step * codes.bias_limit(self.scheme))
            if site.axis is None:
                floor = floor.max()
            elif site.groups > 1:
                floor = floor.reshape(site.groups, -1).max(axis=0)
            key = (weight, site.axis)
            self._floors[key] = np.maximum(self._floors.get(key, np.zeros(())), floor)

    def edit(self, site: Site) -> list[Refusal]:
        """Give a node quantized inputs; returns what about it stays in float."""
        node = site.node
        data, refusals = self._data_scale(site), []
        for index in site.activations:
            value = node.inputs[index]
            assert value is not None  # sites() lists only inputs that are there
            node.replace_input_with(index, self._activation(value))
        if site.bias is not None:
            reason = self._edit_bias(site, data)
            if reason:
                refusals.append(Refusal(label(node), reason))
        for index in site.weights:
            value = node.inputs[index]
            assert value is not None
            node.replace_input_with(index, self._weight(value, site)[0])
            drop_if_unused(value)
        return refusals

    def code(self, value: ir.Value) -> None:
        """Let every reader of a value read its codes, the caller under the port's name."""
        readers = tuple(value.uses())
        real = self._activation(value)
        pair = self._pairs[value.name or ""]
        for node, index in readers:
            if node not in pair:
                node.replace_input_with(index, real)
        if value.is_graph_output():
            name = value.name
            value.name = self._names.new(f"{name}_real")
            real.name = name
            outputs = self.graph.outputs
            for index, output in enumerate(outputs):
                if output is value:
                    outputs[index] = real

    def _activation(self, value: ir.Value) -> ir.Value:
        name = value.name or ""
        if name in self._activations:
            return self._activations[name]
        affine = self.affine[name]
        scale = self._constant(f"{name}_scale", np.asarray(affine.scale))
        zero = self._constant(f"{name}_zero_point", np.asarray(affine.zero, affine.dtype))
        nodes: list[ir.Node] = []
        source = value
        if affine.narrow:
            ends = (affine.low, affine.high)
            low, high = (np.float32((q - affine.zero) * affine.scale) for q in ends)
            bounds = (
                self._constant(f"{name}_low", np.asarray(low)),
                self._constant(f"{name}_high", np.asarray(high)),
            )
            source = self._op(nodes, "Clip", [value, *bounds], f"{name}_clipped", value)
        coded = self._op(nodes, "QuantizeLinear", [source, scale, zero], f"{name}_quantized", value)
        coded.type = zero.type
        real = self._op(
            nodes, "DequantizeLinear", [coded, scale, zero], f"{name}_dequantized", value
        )
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], nodes)
        else:
            self.graph.insert_after(producer, nodes)
        self._activations[name] = real
        self._pairs[name] = nodes
        return real

    def _weight(self, value: ir.Value, site: Site) -> tuple[ir.Value, Array]:
        key = (value, site.axis)
        if key in self._weights:
            return self._weights[key]
        array, name = constant(value), value.name or "weight"
        assert array is not None  # sites() lists constants only
        floor = self._floors.get(key, np.zeros(()))
        try:
            scheme = self._of(site)
            scales = codes.weight_scales(array, site.axis, scheme, floor)
        except PassError as error:
            error.add_note(f"weight {name!r} of {label(site.node)!r}")
            raise
        coded = codes.weight_codes(array, scales, site.axis, scheme)
        zero = np.full(scales.shape, codes.weight_zero(scheme), coded.dtype)
        real = self._dequantize(name, coded, scales, zero, site.axis, site.node)
        self._weights[key] = real, scales
        return real, scales

    def _of(self, site: Site) -> IntScheme:
        """Return the scheme of a site's constants: weights of a product, or another's operand."""
        span = self.scheme.constant_range
        if span is None or site.node.op_type in PRODUCTS:
            return self.scheme
        return replace(self.scheme, weight_range=span)

    def _edit_bias(self, site: Site, data: np.float32 | None) -> str:
        index = site.bias
        assert index is not None
        value = site.node.inputs[index]
        if dequantized(value):
            return ""
        bias, weight = constant(value), site.node.inputs[site.weights[0]]
        if value is None or bias is None or weight is None or data is None:
            return "its bias is not a constant and stays in float"
        if _per_channel(bias, site) is None:
            return f"its bias of shape {list(bias.shape)} is not per channel and stays in float"
        if not np.isfinite(bias).all():
            raise PassError(f"bias {value.name!r} of {label(site.node)!r} holds NaN or Inf")
        scales = self._weight(weight, site)[1]
        if site.axis is not None and site.groups > 1:
            scales = np.tile(scales, site.groups)
        scales = np.maximum(scales * data, np.float32(codes.TINY)) * _ratio(site.node)
        axis = None if scales.ndim == 0 else bias.ndim - 1
        coded = codes.bias_codes(bias, scales, codes.bias_limit(self.scheme))
        zero = np.zeros(scales.shape, np.int32)
        real = self._dequantize(value.name or "bias", coded, scales, zero, axis, site.node)
        site.node.replace_input_with(index, real)
        drop_if_unused(value)
        return ""

    def _bias(self, site: Site) -> Array | None:
        return None if site.bias is None else constant(site.node.inputs[site.bias])

    def _data_scale(self, site: Site) -> np.float32 | None:
        """Return the scale of the node's data input: planned, or of its existing pair."""
        if site.bias is None:
            return None
        value = site.node.inputs[0]
        if value is not None and value.name in self.affine:
            return self.affine[value.name].scale
        producer = None if value is None else value.producer()
        scale = (
            constant(producer.inputs[1]) if producer is not None and dequantized(value) else None
        )
        return np.float32(scale) if scale is not None and scale.size == 1 else None

    def _dequantize(
        self, name: str, coded: Array, scales: Array, zero: Array, axis: int | None, before: ir.Node
    ) -> ir.Value:
        inputs = [
            self._constant(f"{name}_quantized", coded),
            self._constant(f"{name}_scale", scales),
            self._constant(f"{name}_zero_point", zero),
        ]
        nodes: list[ir.Node] = []
        attributes = {} if axis is None else {"axis": axis}
        real = self._op(
            nodes, "DequantizeLinear", inputs, f"{name}_dequantized", inputs[0], attributes
        )
        self.graph.insert_before(before, nodes)
        return real

    def _constant(self, name: str, array: Array) -> ir.Value:
        return initializer(self.graph, self._names.new(name), array)

    def _op(
        self,
        nodes: list[ir.Node],
        op_type: str,
        inputs: list[ir.Value],
        name: str,
        like: ir.Value,
        attributes: Mapping[str, int] | None = None,
    ) -> ir.Value:
        free = self._names.new(name)
        output = ir.Value(name=free, shape=like.shape, type=ir.TensorType(ir.DataType.FLOAT))
        attrs = [ir.AttrInt64(key, value) for key, value in (attributes or {}).items()]
        nodes.append(ir.Node("", op_type, inputs, attrs, outputs=[output], name=free))
        return output


def _ratio(node: ir.Node) -> np.float32:
    """Return Gemm's alpha / beta: the bias is scaled by beta, the products by alpha."""
    alpha, beta = (node.attributes.get_float(key, 1.0) for key in ("alpha", "beta"))
    return np.float32(alpha / beta)


def _per_channel(bias: Array, site: Site) -> Array | None:
    """Return the bias along the output channels, or None where it is no such vector."""
    node = site.node
    if node.op_type == "Gemm":
        alpha, beta = (node.attributes.get_float(key, 1.0) for key in ("alpha", "beta"))
        if alpha <= 0 or beta <= 0 or bias.ndim == 0 or bias.size != bias.shape[-1]:
            return None
    weight = constant(node.inputs[site.weights[0]])
    if weight is None or site.axis is None:
        return bias.reshape(-1)
    channels = weight.shape[site.axis] * site.groups
    return bias.reshape(-1) if bias.size == channels else None
