"""Products with a coded weight, as the matrices they are: y = W·x for every patch x of the data."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from npuc.passes.graphs import constant, label
from npuc.passes.qdq.sites import PRODUCTS, dequantized
from npuc.program import Refusal

Array = np.ndarray[Any, Any]
BLOCK = 2**23
"""Values of patches that are made at a time: 32 MiB of float32, however large a call is."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a product reads its data and its weight; equal layouts of one tensor give equal patches.

    A matrix is stored as [outputs, depth], or as [depth, outputs] where `weight_flipped`; its data
    as [..., n, depth], or as [..., depth, n] where `data_flipped`. The rest is a convolution's;
    `pads` lists all beginnings, then all ends.
    """

    convolution: bool
    weight_flipped: bool = False
    data_flipped: bool = False
    group: int = 1
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] | str = ()

    def patches(self, data: Array) -> Iterator[Array]:
        """Yield the columns x of the data as [group, n, depth], a part of them at a time."""
        if not self.convolution:
            rows = np.swapaxes(data, -1, -2) if self.data_flipped else data
            yield rows.reshape(1, -1, rows.shape[-1])
            return
        for image in data:
            yield from self._unfolded(image)

    def _unfolded(self, image: Array) -> Iterator[Array]:
        """[C, *spatial] → [group, n, C/group · kernel], some rows of the result at a time."""
        ends = list(zip(*_ends(self, image.shape[1:]), strict=True))
        padded = np.pad(image, [(0, 0), *ends]) if any(map(any, ends)) else image
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        axes = tuple(range(1, padded.ndim))
        view = np.lib.stride_tricks.sliding_window_view(padded, spans, axes)
        steps = [slice(None, None, step) for step in (*self.strides, *self.dilations)]
        view = view[(slice(None), *steps)]  # [C, *out, *kernel]
        rank, out = len(axes), view.shape[1 : 1 + len(axes)]
        per_row = max(1, view.size // max(1, out[0]))
        count = max(1, BLOCK // per_row)
        for start in range(0, out[0], count):
            part = view[:, start : start + count]
            split = part.reshape(self.group, -1, *part.shape[1:])
            moved = np.moveaxis(split, 1, 1 + rank)  # [group, *out, C/group, *kernel]
            depth = math.prod(moved.shape[1 + rank :])
            yield moved.reshape(self.group, -1, depth)

    def rows(self, weight: Array) -> Array:
        """Return a weight, or its codes, as [group, outputs, depth]."""
        if self.convolution:
            return weight.reshape(self.group, len(weight) // self.group, -1)
        return (weight.T if self.weight_flipped else weight)[None]

    def restored(self, rows: Array, like: Array) -> Array:
        """Undo `rows`: the shape and dtype of `like`."""
        if not self.convolution:
            rows = rows[0].T if self.weight_flipped else rows[0]
        return np.ascontiguousarray(rows.reshape(like.shape), like.dtype)


def _ends(layout: Layout, size: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Return the padding before and after each spatial axis."""
    if not isinstance(layout.pads, str):
        half = len(layout.pads) // 2
        return list(layout.pads[:half]), list(layout.pads[half:])
    if layout.pads == "VALID":
        return [0] * len(size), [0] * len(size)
    before, after = [], []
    every = zip(size, layout.kernel, layout.strides, layout.dilations, strict=True)
    for length, kernel, stride, dilation in every:
        span = (math.ceil(length / stride) - 1) * stride + (kernel - 1) * dilation + 1
        total = max(0, span - length)
        small, large = total // 2, total - total // 2
        before.append(small if layout.pads == "SAME_UPPER" else large)
        after.append(large if layout.pads == "SAME_UPPER" else small)
    return before, after


@dataclass(frozen=True, slots=True)
class Read:
    """What a product reads: a tensor, the one that it was in the float model, and how."""

    data: str
    original: str
    layout: Layout


@dataclass(frozen=True, slots=True)
class Coded:
    """A weight's DequantizeLinear, and what each product that reads it multiplies it with.

    `weight` is the float32 weight that the codes stand for; `level` how many coded weights lie
    one behind the other before it.
    """

    node: ir.Node
    name: str
    reads: tuple[Read, ...]
    weight: Array
    level: int

    @property
    def layout(self) -> Layout:
        """How the weight is a matrix; the same for all that read it."""
        return self.reads[0].layout

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups, outputs of each, depth."""
        groups, outputs, depth = self.layout.rows(self.weight).shape
        return groups, outputs, depth

    @property
    def codes_name(self) -> str:
        """The name of the initializer that holds the codes."""
        value = self.node.inputs[0]
        return "" if value is None else value.name or ""

    @property
    def codes(self) -> Array:
        """The codes as they are now."""
        return _array(self.node.inputs[0])

    @property
    def own_scales(self) -> Array:
        """The scales as they are stored: one, or one per channel."""
        return _array(self.node.inputs[1])

    @property
    def scales(self) -> Array:
        """The scale of every code, in the weight's shape."""
        return self._spread(self.own_scales)

    @property
    def zeros(self) -> Array:
        """The zero point of every code, in the weight's shape."""
        given = self.node.inputs[2] if len(self.node.inputs) > 2 else None
        if given is None:
            return np.zeros(self.weight.shape, np.int64)
        return self._spread(_array(given).astype(np.int64))

    def _spread(self, array: Array) -> Array:
        axis = self.node.attributes.get_int("axis", 1)
        if array.size > 1:
            array = array.reshape([-1 if i == axis else 1 for i in range(self.weight.ndim)])
        return np.broadcast_to(array, self.weight.shape)


def coded(model: ir.Model, reference: ir.Model) -> tuple[tuple[Coded, ...], tuple[Refusal, ...]]:
    """List the coded weights of a quantized model, and why others cannot be seen as matrices.

    `reference` is the float model it was made from: quantization adds no product and takes none
    away, so the weights are found by their place in the order.
    """
    reads: dict[ir.Node, list[Read]] = {}
    weights: dict[ir.Node, Array] = {}
    refused: dict[ir.Node, str] = {}
    for node, other in zip(_products(model), _products(reference), strict=True):
        for index in (0, 1):
            value, weight = node.inputs[index], constant(other.inputs[index])
            source = value.producer() if value is not None and dequantized(value) else None
            if source is None or weight is None or constant(source.inputs[0]) is None:
                continue
            layout = layout_of(node, index, weight)
            data, original = node.inputs[1 - index], other.inputs[1 - index]
            if isinstance(layout, str):
                refused[source] = layout
            elif data is not None and original is not None:
                reads.setdefault(source, []).append(
                    Read(data.name or "", original.name or "", layout)
                )
                weights[source] = weight
    for source, every in reads.items():
        if len(source.outputs[0].uses()) > len(every):
            refused[source] = "is read by another kind of operator too"
        elif len({(x.layout.weight_flipped, x.layout.group) for x in every}) > 1:
            refused[source] = "is a different matrix to each of its readers"
    levels = _levels(model, reads.keys() - refused.keys())
    kept = tuple(
        Coded(source, label(source), tuple(every), weights[source], levels[source])
        for source, every in reads.items()
        if source not in refused
    )
    return kept, tuple(Refusal(label(node), f"its weight {why}") for node, why in refused.items())


def _levels(model: ir.Model, sources: Collection[ir.Node]) -> dict[ir.Node, int]:
    """Return how many of the coded weights lie before each, on the longest way to its readers."""
    before: dict[ir.Value, int] = {}
    found = dict.fromkeys(sources, 0)
    for node in model.graph:
        level = max((before.get(v, 0) for v in node.inputs if v is not None), default=0)
        weights = {v.producer() for v in node.inputs if v is not None} & set(sources)
        for source in weights:
            assert source is not None  # it is a key of `found`
            found[source] = max(found[source], level)
        for output in node.outputs:
            before[output] = level + bool(weights)
    return found


def _products(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.domain == "" and node.op_type in PRODUCTS]


def layout_of(node: ir.Node, index: int, weight: Array) -> Layout | str:
    """Return how a product reads its data; a reason where it is no matrix times a vector."""
    if node.op_type == "ConvTranspose":
        return "is of ConvTranspose, which scatters: it keeps the nearest codes"
    if node.op_type == "Conv":
        if index != 1:
            return "is the data of a convolution"
        return _convolution(node, weight)
    if weight.ndim != 2:
        return f"of shape {list(weight.shape)} is a stack of matrices"
    flips = [
        node.op_type == "Gemm" and bool(node.attributes.get_int(key, 0))
        for key in ("transA", "transB")
    ]
    # Y = A·B: rows of A and columns of B are what is multiplied.
    if index == 1:
        return Layout(False, weight_flipped=not flips[1], data_flipped=flips[0])
    return Layout(False, weight_flipped=flips[0], data_flipped=not flips[1])


def _convolution(node: ir.Node, weight: Array) -> Layout:
    rank, attributes = weight.ndim - 2, node.attributes
    auto = attributes.get_string("auto_pad", "NOTSET")
    pads = tuple(attributes.get_ints("pads", [0] * 2 * rank))
    return Layout(
        True,
        group=attributes.get_int("group", 1),
        kernel=weight.shape[2:],
        strides=tuple(attributes.get_ints("strides", [1] * rank)),
        dilations=tuple(attributes.get_ints("dilations", [1] * rank)),
        pads=pads if auto == "NOTSET" else auto,
    )


def _array(value: ir.Value | None) -> Array:
    array = constant(value)
    assert array is not None  # coded() lists constants only
    return array
