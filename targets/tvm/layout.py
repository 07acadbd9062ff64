"""Keep images channels-last (NHWC) from convolution to convolution.

Every value of main has one home layout, and is transposed where an operator wants the other, once.
Operators that do not care stay in the layout their input is in, so transposes end up at the edges
of convolutional chains.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from npuc.targets.tvm import markers
from npuc.targets.tvm.graph import (
    Walk,
    dtype_of,
    is_tensor,
    is_var,
    key,
    number,
    operator,
    shape_of,
)

TO_NHWC = (0, 2, 3, 1)
TO_NCHW = (0, 3, 1, 2)
AXIS = (0, 3, 1, 2)
"""Where each NCHW axis is in NHWC."""

ELEMENTWISE = frozenset(
    [
        "add",
        "subtract",
        "multiply",
        "divide",
        "maximum",
        "minimum",
        "power",
        "negative",
        "abs",
        "sqrt",
        "rsqrt",
        "exp",
        "log",
        "tanh",
        "erf",
        "sigmoid",
        "floor",
        "ceil",
        "round",
        "clip",
        "where",
        "astype",
        "equal",
        "less",
        "greater",
        "less_equal",
        "greater_equal",
        "floor_mod",
        "sign",
        "not_equal",
        "logical_and",
        "logical_or",
        "logical_xor",
        "logical_not",
        "bitwise_and",
        "bitwise_or",
        "bitwise_xor",
        "isfinite",
        "nn.relu",
        "nn.leakyrelu",
        "nn.gelu",
        "nn.gelu_tanh",
        "nn.silu",
    ]
)


@dataclass
class _Value:
    """An old variable in the layouts it exists in by now."""

    nchw: Any = None
    nhwc: Any = None
    home: bool = False
    """Whether it was computed channels-last."""


def _image_at(nhwc: Any) -> _Value:
    return _Value(nhwc=nhwc, home=True)


class Layout(Walk):
    """Move convolutions, pools and what is between them to NHWC."""

    def __init__(self, module: Any):
        super().__init__(module)
        self._images: dict[int, _Value] = {}
        self._sources: dict[int, Any] = {}

    def bind(self, var: Any, value: Any) -> None:
        self._images[key(var)] = _Value(nchw=value)

    def lookup(self, var: Any) -> Any:
        """Return a variable in its original layout."""
        image = self._images[key(var)]
        if image.nchw is None:
            image.nchw = self._permute(image.nhwc, TO_NCHW)
        return image.nchw

    def visit(self, var: Any, expr: Any) -> None:
        self._sources[key(var)] = expr
        rule = RULES.get(operator(expr))
        if rule is None and (_elementwise(expr) or markers.rounding(expr) is not None):
            rule = _pointwise
        result = rule(self, var, expr) if rule is not None else None
        if result is None:
            super().visit(var, expr)
        elif isinstance(result, _Value):
            self._images[key(var)] = result
        else:
            self.bind(var, result)

    def is_nhwc(self, expr: Any) -> bool:
        """Whether a value exists channels-last only."""
        image = self._images.get(key(expr)) if is_var(expr) else None
        return image is not None and image.home

    def nhwc(self, expr: Any) -> Any:
        """Return an old expression (an image, or what broadcasts to one) channels-last."""
        array = number(expr)
        if array is not None:
            return self._constant(array)
        image = self._images[key(expr)]
        if image.nhwc is None:
            image.nhwc = self._move(expr)
        return image.nhwc

    def _constant(self, array: Any) -> Any:
        from tvm import relax

        if array.ndim:
            array = array.reshape((1,) * (4 - array.ndim) + array.shape).transpose(TO_NHWC)
        return relax.const(np.ascontiguousarray(array), str(array.dtype))

    def _move(self, var: Any) -> Any:
        """Transpose a value, or what it was computed from where that is one value of its size."""
        expr = self._sources.get(key(var))
        name = operator(expr)
        if expr is not None and (name in ("relax.quantize", "relax.dequantize")):
            scales = [number(a) for a in expr.args[1:3]]
            if all(s is not None and s.size == 1 for s in scales) and number(expr.args[0]) is None:
                return self.emit(self.call(expr, [self.nhwc(expr.args[0]), *expr.args[1:]]))
        if expr is not None and markers.rounding(expr) is not None and len(shape_of(var)) == 4:
            return self.emit(markers.mark(markers.name_of(expr), self.nhwc(markers.data_of(expr))))
        if expr is not None and _centres(expr):
            # The codes move, not the int32 values that the kernel never reads.
            return self.emit(self.call(expr, [self.nhwc(expr.args[0]), *expr.args[1:]]))
        shape = shape_of(var)
        value = self.lookup(var)
        if not shape:
            return value
        if len(shape) < 4:
            value = self.reshape(value, (1,) * (4 - len(shape)) + shape)
        return self._permute(value, TO_NHWC)

    def reshape(self, value: Any, shape: Any) -> Any:
        """Emit a reshape."""
        from tvm import relax

        return self.emit(relax.op.reshape(value, shape))

    def _permute(self, value: Any, axes: tuple[int, ...]) -> Any:
        from tvm import relax

        shape = shape_of(value)
        moved = [axis for axis in axes if shape[axis] > 1]
        if moved == sorted(moved):
            # Only axes of one element move: the same values in the same order.
            return self.reshape(value, tuple(shape[axis] for axis in axes))
        return self.emit(relax.op.permute_dims(value, list(axes)))


def _centres(expr: Any) -> bool:
    """Whether an expression widens 8-bit codes of an image, or takes one zero point off."""
    name = operator(expr)
    if name not in ("relax.astype", "relax.subtract") or dtype_of(expr) != "int32":
        return False
    if number(expr.args[0]) is not None or len(shape_of(expr.args[0])) != 4:
        return False
    rest = [number(a) for a in expr.args[1:]]
    return all(a is not None and a.size == 1 for a in rest)


Rule = Callable[[Layout, Any, Any], Any]
"""(walk, variable, expression) → its `_Value`, what to bind, or None to leave it as it is."""


def _elementwise(expr: Any) -> bool:
    return operator(expr).removeprefix("relax.") in ELEMENTWISE


def _convolution(walk: Layout, var: Any, expr: Any) -> Any:
    from tvm import relax

    a = expr.attrs
    options: dict[str, Any] = {
        "strides": a.strides,
        "padding": a.padding,
        "dilation": a.dilation,
        "groups": a.groups,
        "data_layout": "NHWC",
        "kernel_layout": a.kernel_layout,
    }
    build = relax.op.nn.conv2d
    if operator(expr) == "relax.nn.conv2d_transpose":
        build, options["output_padding"] = relax.op.nn.conv2d_transpose, a.output_padding
    else:
        options["out_dtype"] = dtype_of(expr)
    weights = walk.substitute(expr.args[1])
    return _image_at(walk.emit(build(walk.nhwc(expr.args[0]), weights, **options)))


def _pool(walk: Layout, var: Any, expr: Any) -> Any:
    from tvm import relax

    if not walk.is_nhwc(expr.args[0]):
        return None
    a = expr.attrs
    build = getattr(relax.op.nn, operator(expr).removeprefix("relax.nn."))
    data = walk.nhwc(expr.args[0])
    pooled = build(
        data, a.pool_size, a.strides, a.padding, a.dilation, a.ceil_mode, a.count_include_pad,
        layout="NHWC",
    )  # fmt: skip
    return _image_at(walk.emit(pooled))


def _pointwise(walk: Layout, var: Any, expr: Any) -> Any:
    if not is_tensor(var) or len(shape_of(var)) != 4:
        return None
    if markers.rounding(expr) is not None:
        data = markers.data_of(expr)
        if not walk.is_nhwc(data):
            return None
        return _image_at(walk.emit(markers.mark(markers.name_of(expr), walk.nhwc(data))))
    if not any(_image(a) and walk.is_nhwc(a) for a in expr.args):
        return None
    moved = [walk.nhwc(a) if _image(a) else a for a in expr.args]
    return _image_at(walk.emit(walk.call(expr, moved)))


def _quantization(walk: Layout, var: Any, expr: Any) -> Any:
    from tvm import relax

    data = expr.args[0]
    if len(shape_of(var)) != 4 or number(data) is not None or not walk.is_nhwc(data):
        return None
    a = expr.attrs
    build = getattr(relax.op, operator(expr).removeprefix("relax."))
    axis = AXIS[int(a.axis) % 4]
    scale, zero = expr.args[1:3]
    return _image_at(walk.emit(build(walk.nhwc(data), scale, zero, axis, str(a.out_dtype))))


def _concat(walk: Layout, var: Any, expr: Any) -> Any:
    from tvm import ir, relax

    (items,) = expr.args
    if len(shape_of(var)) != 4 or not isinstance(items, ir.Tuple):
        return None
    if not any(_image(f) and walk.is_nhwc(f) for f in items.fields):
        return None
    axis = AXIS[int(expr.attrs.axis) % 4]
    return _image_at(walk.emit(relax.op.concat([walk.nhwc(f) for f in items.fields], axis)))


def _reduction(walk: Layout, var: Any, expr: Any) -> Any:
    from tvm import relax

    data = expr.args[0]
    if not _image(data) or not walk.is_nhwc(data) or expr.attrs.axis is None:
        return None
    axes = sorted(int(a) % 4 for a in expr.attrs.axis)
    keep = bool(expr.attrs.keepdims)
    build = getattr(relax.op, operator(expr).removeprefix("relax."))
    if keep:
        return _image_at(walk.emit(build(walk.nhwc(data), [AXIS[a] for a in axes], True)))
    if 1 in axes or {2, 3} <= set(axes):
        # What is left comes in the same order in both layouts.
        return walk.emit(build(walk.nhwc(data), [AXIS[a] for a in axes], False))
    return None


def _resize(walk: Layout, var: Any, expr: Any) -> Any:
    from tvm import relax

    if not walk.is_nhwc(expr.args[0]):
        return None
    a = expr.attrs
    roi: Any = [float(v) for v in a.roi]
    resized = relax.op.image.resize2d(
        walk.nhwc(expr.args[0]),
        size=expr.args[1],
        roi=roi,
        layout="NHWC",
        method=a.method,
        coordinate_transformation_mode=a.coordinate_transformation_mode,
        rounding_method=a.rounding_method,
        cubic_alpha=a.cubic_alpha,
        cubic_exclude=a.cubic_exclude,
        extrapolation_value=a.extrapolation_value,
    )
    return _image_at(walk.emit(resized))


def _pad(walk: Layout, var: Any, expr: Any) -> Any:
    from tvm import relax

    data = expr.args[0]
    if len(shape_of(var)) != 4 or not _image(data) or not walk.is_nhwc(data):
        return None
    a = expr.attrs
    pairs = [(int(a.pad_width[2 * i]), int(a.pad_width[2 * i + 1])) for i in TO_NHWC]
    widths = [width for pair in pairs for width in pair]
    return _image_at(walk.emit(relax.op.nn.pad(walk.nhwc(data), widths, a.pad_mode, a.pad_value)))


def _reshape(walk: Layout, var: Any, expr: Any) -> Any:
    data = expr.args[0]
    if not _image(data) or number(data) is not None or not walk.is_nhwc(data):
        return None
    _, channels, height, width = shape_of(data)
    if channels > 1 and height * width > 1:
        return None
    return walk.reshape(walk.nhwc(data), shape_of(var))


def _transpose(walk: Layout, var: Any, expr: Any) -> Any:
    from tvm import relax

    data = expr.args[0]
    if not _image(data) or not walk.is_nhwc(data) or expr.attrs.axes is None:
        return None
    axes = [AXIS[int(a) % 4] for a in expr.attrs.axes]
    value = walk.nhwc(data)
    return value if axes == [0, 1, 2, 3] else walk.emit(relax.op.permute_dims(value, axes))


def _take(walk: Layout, var: Any, expr: Any) -> Any:
    """A table of one axis, looked up by an image."""
    from tvm import relax

    table, indices = expr.args
    if number(table) is None or len(shape_of(table)) != 1 or len(shape_of(indices)) != 4:
        return None
    if number(indices) is not None or not walk.is_nhwc(indices):
        return None
    return _image_at(walk.emit(relax.op.take(table, walk.nhwc(indices), 0)))


def _image(expr: Any) -> bool:
    return number(expr) is not None or (is_var(expr) and is_tensor(expr))


RULES: dict[str, Rule] = {
    "relax.nn.conv2d": _convolution,
    "relax.nn.conv2d_transpose": _convolution,
    "relax.nn.max_pool2d": _pool,
    "relax.nn.avg_pool2d": _pool,
    "relax.quantize": _quantization,
    "relax.dequantize": _quantization,
    "relax.concat": _concat,
    "relax.mean": _reduction,
    "relax.max": _reduction,
    "relax.min": _reduction,
    "relax.sum": _reduction,
    "relax.take": _take,
    "relax.image.resize2d": _resize,
    "relax.nn.pad": _pad,
    "relax.reshape": _reshape,
    "relax.squeeze": _reshape,
    "relax.nn.batch_flatten": _reshape,
    "relax.permute_dims": _transpose,
}
