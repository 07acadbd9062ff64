"""Resize under another name, as a convolution, or as matrices along each axis."""

from functools import partial
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from npuc.passes.forms.expand import Form, Forms
from npuc.passes.forms.interpolation import COORDINATES, NEAREST, Rule, matrix
from npuc.passes.writer import Unfit, Writer, fixed, floats, given, shape_of

Array = np.ndarray[Any, Any]


class Geometry:
    """A Resize by numbers: per resized axis its weights, and its scale."""

    def __init__(self, node: ir.Node) -> None:
        self.x = floats(node)
        self.dims, self.wanted = shape_of(self.x), shape_of(node.outputs[0])
        get = node.attributes.get_string
        self.rule = Rule(
            get("mode", "nearest"),
            get("coordinate_transformation_mode", "half_pixel"),
            get("nearest_mode", "round_prefer_floor"),
            node.attributes.get_float("cubic_coeff_a", -0.75),
            bool(node.attributes.get_int("exclude_outside", 0)),
        )
        if node.attributes.get_int("antialias", 0):
            raise Unfit("it is antialiased")
        if self.rule.coordinates not in COORDINATES:
            raise Unfit(f"its coordinates are {self.rule.coordinates}")
        if get("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise Unfit("it keeps the aspect ratio")
        self.scales = self._scales(node)
        self.axes = [a for a, s in enumerate(self.scales) if s != 1 or self._size(a)]

    def _size(self, axis: int) -> bool:
        return self.dims[axis] != self.wanted[axis]

    def _scales(self, node: ir.Node) -> list[float]:
        rank = len(self.dims)
        axes = [a % rank for a in node.attributes.get_ints("axes", range(rank))]
        scales = [1.0] * rank
        if given(node, 2) is not None and (array := fixed(node, 2, "list of scales")).size:
            for axis, scale in zip(axes, array.reshape(-1), strict=True):
                scales[axis] = float(scale)
        else:
            for axis in axes:
                scales[axis] = self.wanted[axis] / self.dims[axis]
        return scales

    def weights(self, axis: int, rule: Rule | None = None) -> Array:
        """Return the matrix along an axis."""
        size, wanted = self.dims[axis], self.wanted[axis]
        return matrix(size, wanted, self.scales[axis], rule or self.rule)


def other_coordinates(
    node: ir.Node, w: Writer, coordinates: str, nearest: str, sizes: bool
) -> ir.Value:
    """Resize = Resize in other coordinates, where they read the same values at this size"""
    g = Geometry(node)
    other = Rule(g.rule.mode, coordinates, nearest, g.rule.cubic, g.rule.outside)
    again = g.rule.mode != "nearest" and nearest != NEAREST[0]
    # Weights are float32 in every runtime: what rounds alike is alike.
    if again or any(
        (np.float32(g.weights(a)) != np.float32(g.weights(a, other))).any() for a in g.axes
    ):
        raise Unfit("no other coordinates read the same values")
    empty = w.constant("roi", np.zeros(0, np.float32)) if w.opset < 13 else None
    if sizes:
        blank = w.constant("scales", np.zeros(0, np.float32)) if w.opset < 13 else None
        inputs = [g.x, empty, blank, w.integers("sizes", g.wanted)]
    else:
        inputs = [g.x, empty, w.constant("scales", np.asarray(g.scales, np.float32))]
    result = w.optional("Resize", inputs)
    made = w.nodes[-1].attributes
    for name in ("mode", "cubic_coeff_a", "exclude_outside"):
        if name in node.attributes:
            made[name] = node.attributes[name]
    made["coordinate_transformation_mode"] = ir.AttrString(
        "coordinate_transformation_mode", coordinates
    )
    if g.rule.mode == "nearest":
        made["nearest_mode"] = ir.AttrString("nearest_mode", nearest)
    return result


def repeated(node: ir.Node, w: Writer) -> ir.Value:
    """Resize, nearest by a whole number = a depthwise ConvTranspose of ones"""
    g = Geometry(node)
    factors = _factors(g)
    channels, kind = g.dims[1], g.x.dtype.numpy() if g.x.dtype else np.float32
    ones = w.constant("ones", np.ones((channels, 1, *factors), kind))
    return w.op("ConvTranspose", g.x, ones, kernel_shape=factors, strides=factors, group=channels)


def expanded(node: ir.Node, w: Writer) -> ir.Value:
    """Resize, nearest by a whole number = per axis Reshape[a, n, 1, b] → Expand → Reshape"""
    g = Geometry(node)
    _factors(g)
    x, dims = g.x, list(g.dims)
    for axis in g.axes:
        before, after = prod(dims[:axis]), prod(dims[axis + 1 :])
        factor = g.wanted[axis] // dims[axis]
        tall = w.reshape(x, [before * dims[axis], 1, after])
        tall.shape, tall.type = ir.Shape([before * dims[axis], 1, after]), g.x.type
        wide = w.op("Expand", tall, w.integers("wide", [before * dims[axis], factor, after]))
        dims[axis] *= factor
        x = w.reshape(wide, dims)
    return x


def _factors(g: Geometry) -> list[int]:
    """Return whole scales over H and W; raises unless output i is input i // scale."""
    if g.rule.mode != "nearest" or len(g.dims) < 3 or any(a < 2 for a in g.axes):
        raise Unfit("it is not nearest over the image")
    factors = [t // d for t, d in zip(g.wanted[2:], g.dims[2:], strict=True)]
    for axis, factor in enumerate(factors, 2):
        alike = np.repeat(np.eye(g.dims[axis]), factor, axis=0)
        if not np.array_equal(g.weights(axis), alike):
            raise Unfit(f"axis {axis} from {g.dims[axis]} to {g.wanted[axis]} repeats no values")
    return factors


def matrices(node: ir.Node, w: Writer) -> ir.Value:
    """Resize = MatMul with interpolation weights along each axis, last axis first"""
    g = Geometry(node)
    kind = g.x.dtype.numpy() if g.x.dtype else np.float32
    x, dims = g.x, list(g.dims)
    rank = len(dims)
    for axis in reversed(g.axes):
        weights = g.weights(axis).astype(kind)
        if weights.size > 1 << 22:
            raise Unfit(f"its weights would have {weights.size:,} elements")
        if axis == rank - 1:
            right = w.constant("weights", np.asarray(weights.T, order="C"))
            x = w.op("MatMul", x, right)
        elif axis == rank - 2:
            x = w.op("MatMul", w.constant("weights", weights), x)
        else:
            rows = w.reshape(x, [prod(dims[:axis]), dims[axis], prod(dims[axis + 1 :])])
            dims[axis] = g.wanted[axis]
            x = w.reshape(w.op("MatMul", w.constant("weights", weights), rows), dims)
        dims[axis] = g.wanted[axis]
    return x


_RENAMED: tuple[Form, ...] = tuple(
    partial(other_coordinates, coordinates=coordinates, nearest=nearest, sizes=sizes)
    for coordinates in COORDINATES
    for nearest in NEAREST
    for sizes in (False, True)
)
FORMS: Forms = {"Resize": (*_RENAMED, repeated, expanded, matrices)}
