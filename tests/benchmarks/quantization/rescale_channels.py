"""Rescale a CNN's channels without changing its function, as real networks' ranges are.

Every channel of every tensor belongs to a class of channels that must take the same factor. An
operator that is homogeneous of degree one ties its output's channels to its input's; a convolution
or a linear layer ties nothing, for its weights can absorb any factors on either side; everything
else (sigmoids, hard-swish, ReLU6, what is not known here) pins its channels to 1. Each free class
then draws one log-normal factor. Written without npuc's passes, which it is to test.
"""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from quantization import graph

SIGMA, SEED = 1.3, 20

_SAME = frozenset(
    {
        "Relu",
        "LeakyRelu",
        "PRelu",
        "Identity",
        "Dropout",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
    }
    | {"GlobalMaxPool", "Resize"}
)
_SHAPED = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_GATES = frozenset({"Sigmoid", "HardSigmoid"})
_ABSORBING = frozenset({"Conv", "ConvTranspose", "Gemm"})

Array = graph.Array


class _Classes:
    """Union-find over (tensor, channel). Channels are along axis 1."""

    def __init__(self) -> None:
        self._start: dict[ir.Value, int] = {}
        self._parent: list[int] = []
        self._pinned: set[int] = set()

    def of(self, value: ir.Value) -> range:
        size = graph.shape(value)
        channels = 1 if size is None or len(size) < 2 else size[1]
        if value not in self._start:
            self._start[value] = len(self._parent)
            self._parent.extend(range(len(self._parent), len(self._parent) + channels))
            if size is None or len(size) < 2:
                self._pinned.add(self._start[value])
        start = self._start[value]
        return range(start, start + channels)

    def root(self, item: int) -> int:
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def tie(self, these: Iterable[int], those: Iterable[int]) -> None:
        for a, b in zip(these, those, strict=True):
            self._parent[self.root(a)] = self.root(b)

    def pin(self, value: ir.Value) -> None:
        self._pinned.update(self.of(value))

    def factors(self, generator: np.random.Generator) -> dict[ir.Value, Array]:
        """Draw a factor for each class; 1 for those with a pinned member."""
        roots = [self.root(item) for item in range(len(self._parent))]
        pinned = {roots[item] for item in self._pinned}
        drawn: dict[int, float] = {}
        for root in roots:
            if root not in drawn:
                drawn[root] = 1.0 if root in pinned else float(generator.lognormal(0.0, SIGMA))
        return {
            value: np.array([drawn[roots[i]] for i in self.of(value)], np.float32)
            for value in self._start
        }


def rescale(model: ir.Model, seed: int = SEED) -> tuple[int, int]:
    """Rescale in place; return how many of the tensors with channels took factors, and of how many.

    Counted are the outputs of convolutions. Where no tensor is free the model stays as it was.
    """
    classes = _Classes()
    for value in (*model.graph.inputs, *model.graph.outputs):
        classes.pin(value)
    for node in model.graph:
        _constrain(node, classes)
    factors = classes.factors(np.random.default_rng(seed))
    convolutions = [n.outputs[0] for n in model.graph if n.op_type in ("Conv", "ConvTranspose")]
    for node in list(model.graph):
        _apply(model, node, factors)
    return sum(bool(np.any(factors[v] != 1)) for v in convolutions), len(convolutions)


def _data(node: ir.Node) -> list[ir.Value]:
    return [v for v in node.inputs if v is not None and graph.constant(v) is None]


def _constrain(node: ir.Node, classes: _Classes) -> None:
    data, out = _data(node), node.outputs[0]
    for value in (*data, *node.outputs):
        classes.of(value)
    if _layer(node):
        return
    first = bool(data) and data[0] is node.inputs[0]
    if node.op_type in _SAME and len(data) == 1 and first and len(node.outputs) == 1:
        classes.tie(classes.of(out), classes.of(data[0]))
    elif node.op_type in _SHAPED and len(data) == 1:
        _tie_shaped(data[0], out, classes)
    elif node.op_type == "ReduceMean" and _spatial(data[0], out):
        classes.tie(classes.of(out), classes.of(data[0]))
    elif node.op_type == "Add" and len(data) == 2 and len({graph.shape(v) for v in data}) == 1:
        for value in data:
            classes.tie(classes.of(out), classes.of(value))
    elif node.op_type == "Concat" and (parts := _joined(node, classes)):
        classes.tie(classes.of(out), parts)
    elif node.op_type == "Mul" and (pair := _gated(node)) is not None:
        classes.tie(classes.of(out), classes.of(pair[0]))
        classes.pin(pair[1])
    else:
        for value in (*data, *node.outputs):
            classes.pin(value)


def _layer(node: ir.Node) -> bool:
    """Return whether a node's weights are constants laid out as `_apply` takes them."""
    constants = [graph.is_weight(v) for v in node.inputs[1:] if v is not None]
    absorbs = node.op_type in _ABSORBING and bool(constants) and all(constants)
    return absorbs and not graph.integer(node, "transA")


def _joined(node: ir.Node, classes: _Classes) -> list[int]:
    """Return the channels that a Concat joins; none where it joins along another axis."""
    size, data = graph.shape(node.outputs[0]), _data(node)
    if size is None or len(data) < len(node.inputs):
        return []
    along = graph.integer(node, "axis") % len(size) == 1
    return [item for value in data for item in classes.of(value)] if along else []


def _gated(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """Return the two factors of a product, what is gated first: the gate cannot be scaled."""
    one, two = node.inputs
    for value, gate in ((one, two), (two, one)):
        producer = None if gate is None else gate.producer()
        if value is not None and gate is not None and producer is not None:
            same = graph.shape(node.outputs[0]) == graph.shape(value)
            if producer.op_type in _GATES and same:
                return value, gate
    return None


def _spatial(data: ir.Value, out: ir.Value) -> bool:
    """Return whether a mean leaves batch and channels alone, going by the shapes."""
    before, after = graph.shape(data), graph.shape(out)
    return before is not None and after is not None and before[:2] == after[:2]


def _tie_shaped(data: ir.Value, out: ir.Value, classes: _Classes) -> None:
    """Tie (1, C, …) to (1, C, …), and to (1, C·k) where each channel becomes k features."""
    before, after = graph.shape(data), graph.shape(out)
    if before is None or after is None or min(len(before), len(after)) < 2 or before[0] != after[0]:
        classes.pin(data)
        classes.pin(out)
        return
    many, few = (classes.of(out), classes.of(data))
    if len(many) == len(few):
        classes.tie(many, few)
    elif len(after) == 2 and len(many) % len(few) == 0:
        each = len(many) // len(few)
        classes.tie(many, [item for item in few for _ in range(each)])
    else:
        classes.pin(data)
        classes.pin(out)


def _apply(model: ir.Model, node: ir.Node, factors: dict[ir.Value, Array]) -> None:
    """Let a layer's constants absorb the factors on its two sides."""
    if not _layer(node):
        return
    source, weight = node.inputs[0], node.inputs[1]
    assert source is not None and weight is not None
    if source not in factors:
        return
    ins, outs = factors[source].astype(np.float64), factors[node.outputs[0]].astype(np.float64)
    if np.all(ins == 1) and np.all(outs == 1):
        return
    graph.multiply(model, node, 1, _on_weight(node, weight, ins, outs))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        graph.multiply(model, node, 2, outs)


def _on_weight(node: ir.Node, weight: ir.Value, ins: Array, outs: Array) -> Array:
    tensor = graph.constant(weight)
    assert tensor is not None
    size = tuple(int(n) for n in tensor.numpy().shape)
    if node.op_type == "Gemm":
        table = outs[:, None] / ins[None, :]  # as transB=1 has it: (out, in)
        return table if graph.integer(node, "transB") else table.T
    groups = graph.integer(node, "group", 1)
    spatial = (1,) * (len(size) - 2)
    table = np.empty(size[:2])
    if node.op_type == "Conv":  # (out, in / groups)
        per_out, per_in = len(outs) // groups, size[1]
        for o in range(len(outs)):
            first = o // per_out * per_in
            table[o] = outs[o] / ins[first : first + per_in]
    else:  # (in, out / groups)
        per_in, per_out = len(ins) // groups, size[1]
        for i in range(len(ins)):
            first = i // per_in * per_out
            table[i] = outs[first : first + per_out] / ins[i]
    return table.reshape(*size[:2], *spatial)
