"""Reductions and pools: each in terms of the others, where a device has only some of them."""

from collections.abc import Sequence
from functools import partial
from math import prod

import numpy as np
import onnx_ir as ir

from npuc.passes.forms.expand import Forms
from npuc.passes.writer import Unfit, Writer, axes_of, floats, shape_of


def _reduced(node: ir.Node) -> tuple[ir.Value, list[int], bool]:
    """Return what is reduced, along which axes, and whether they stay as 1."""
    x = floats(node)
    rank = len(shape_of(x))
    return x, axes_of(node, rank), bool(node.attributes.get_int("keepdims", 1))


def root_of_squares(node: ir.Node, w: Writer) -> ir.Value:
    """ReduceL2(x) = √ReduceSumSquare(x)"""
    x, axes, keep = _reduced(node)
    return w.op("Sqrt", w.reduce("ReduceSumSquare", x, axes, keep))


def sum_of_squares(node: ir.Node, w: Writer) -> ir.Value:
    """ReduceSumSquare(x) = ReduceSum(x·x)"""
    x, axes, keep = _reduced(node)
    return w.reduce("ReduceSum", w.op("Mul", x, x), axes, keep)


def sum_of_magnitudes(node: ir.Node, w: Writer) -> ir.Value:
    """ReduceL1(x) = ReduceSum(|x|)"""
    x, axes, keep = _reduced(node)
    return w.reduce("ReduceSum", w.op("Abs", x), axes, keep)


def log_of_sum(node: ir.Node, w: Writer) -> ir.Value:
    """ReduceLogSum(x) = log ReduceSum(x)"""
    x, axes, keep = _reduced(node)
    return w.op("Log", w.reduce("ReduceSum", x, axes, keep))


def max_and_log(node: ir.Node, w: Writer) -> ir.Value:
    """ReduceLogSumExp(x) = m + log Σ e^(x - m), m = max x"""
    x, axes, keep = _reduced(node)
    top = w.reduce("ReduceMax", x, axes)
    total = w.reduce("ReduceSum", w.op("Exp", w.op("Sub", x, top)), axes)
    result = w.op("Add", w.op("Log", total), top)
    return result if keep else w.reshape(result, _kept(shape_of(x), axes, False))


def _kept(dims: Sequence[int], axes: Sequence[int], keep: bool) -> list[int]:
    return [1 if a in axes else d for a, d in enumerate(dims) if keep or a not in axes]


def of_sum(node: ir.Node, w: Writer) -> ir.Value:
    """ReduceMean(x) = ReduceSum(x)/n"""
    x, axes, keep = _reduced(node)
    count = prod(shape_of(x)[a] for a in axes)
    return w.op("Mul", w.reduce("ReduceSum", x, axes, keep), w.number("nth", 1 / count, x))


def of_mean(node: ir.Node, w: Writer) -> ir.Value:
    """ReduceSum(x) = n·ReduceMean(x)"""
    x, axes, keep = _reduced(node)
    count = prod(shape_of(x)[a] for a in axes)
    return w.op("Mul", w.reduce("ReduceMean", x, axes, keep), w.number("count", count, x))


def global_pool(node: ir.Node, w: Writer) -> ir.Value:
    """ReduceMean, ReduceMax over H and W = GlobalAveragePool, GlobalMaxPool"""
    x, axes, keep = _reduced(node)
    dims = shape_of(x)
    if len(dims) < 3 or axes != list(range(2, len(dims))):
        raise Unfit("it does not reduce the whole image")
    kind = "GlobalAveragePool" if node.op_type == "ReduceMean" else "GlobalMaxPool"
    result = w.op(kind, x)
    return result if keep else w.reshape(result, dims[:2])


def _rows(x: ir.Value, axes: Sequence[int], w: Writer) -> tuple[ir.Value, int, int]:
    """Bring the reduced axes to the back and flatten: [kept, reduced]."""
    dims = shape_of(x)
    kept = [a for a in range(len(dims)) if a not in axes]
    back = w.transpose(x, [*kept, *axes])
    return back, prod(dims[a] for a in kept), prod(dims[a] for a in axes)


def as_image(node: ir.Node, w: Writer) -> ir.Value:
    """ReduceMean, ReduceMax = Transpose → Reshape[1, kept, a, b] → the pool over H, W → Reshape"""
    x, axes, keep = _reduced(node)
    dims = shape_of(x)
    if len(dims) == 4 and axes == [2, 3]:
        raise Unfit("it is a pool over H and W already")
    back, rows, count = _rows(x, axes, w)
    side = next(a for a in range(int(count**0.5), 0, -1) if count % a == 0)
    image = w.reshape(back, [1, rows, side, count // side])
    kind = "GlobalAveragePool" if node.op_type == "ReduceMean" else "GlobalMaxPool"
    return w.reshape(w.op(kind, image), _kept(dims, axes, keep))


def product(node: ir.Node, w: Writer) -> ir.Value:
    """ReduceMean, ReduceSum = Transpose → MatMul(1/n, or 1) → Reshape"""
    x, axes, keep = _reduced(node)
    dims = shape_of(x)
    back, _, count = _rows(x, axes, w)
    kept = [d for a, d in enumerate(dims) if a not in axes]
    shape = [*kept, count] if kept else [1, count]
    last = list(axes) == [len(dims) - 1] and len(dims) > 1
    each = 1 / count if node.op_type == "ReduceMean" else 1.0
    kind = np.float32 if x.dtype is None else x.dtype.numpy()
    weights = w.constant("weights", np.full((count, 1), each, kind))
    total = w.op("MatMul", back if last else w.reshape(back, shape), weights)
    return total if last and keep else w.reshape(total, _kept(dims, axes, keep))


def reduced(node: ir.Node, w: Writer) -> ir.Value:
    """GlobalAveragePool, GlobalMaxPool = ReduceMean, ReduceMax over H and W"""
    x = floats(node)
    kind = "ReduceMean" if node.op_type == "GlobalAveragePool" else "ReduceMax"
    return w.reduce(kind, x, range(2, len(shape_of(x))))


def whole_kernel(node: ir.Node, w: Writer) -> ir.Value:
    """GlobalAveragePool, GlobalMaxPool = AveragePool, MaxPool with the image as kernel"""
    x = floats(node)
    size = shape_of(x)[2:]
    return w.op(node.op_type.removeprefix("Global"), x, kernel_shape=list(size))


class Window:
    """The geometry of a pool whose attributes are all explicit."""

    def __init__(self, node: ir.Node) -> None:
        self.x = floats(node)
        self.dims = shape_of(self.x)
        rank = len(self.dims) - 2
        get = node.attributes.get_ints
        self.kernel = list(get("kernel_shape", ()))
        self.strides = list(get("strides", [1] * rank))
        self.pads = list(get("pads", [0] * 2 * rank))
        self.counts_pad = bool(node.attributes.get_int("count_include_pad", 0))
        if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            raise Unfit("its padding is automatic")
        if node.attributes.get_int("ceil_mode", 0):
            raise Unfit("it has ceil_mode")
        if set(get("dilations", ())) - {1}:
            raise Unfit("it is dilated")
        if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
            raise Unfit("its indices are read")


def floor_mode(node: ir.Node, w: Writer) -> ir.Value:
    """AveragePool, MaxPool with ceil_mode = without it, padded behind as far as it reaches"""
    x, out = floats(node), shape_of(node.outputs[0])[2:]
    if not node.attributes.get_int("ceil_mode", 0):
        raise Unfit("it has no ceil_mode")
    if node.attributes.get_int("count_include_pad", 0):
        raise Unfit("it divides by padding that is there, and not by what ceil_mode adds")
    kernel = list(node.attributes.get_ints("kernel_shape", ()))
    rank = len(kernel)
    strides = list(node.attributes.get_ints("strides", [1] * rank))
    pads = list(node.attributes.get_ints("pads", [0] * 2 * rank))
    spread = list(node.attributes.get_ints("dilations", [1] * rank))
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        raise Unfit("its padding is automatic")
    for axis, size in enumerate(shape_of(x)[2:]):
        reach = (out[axis] - 1) * strides[axis] + (kernel[axis] - 1) * spread[axis] + 1
        pads[axis + rank] = max(pads[axis + rank], reach - size - pads[axis])
        if pads[axis + rank] >= kernel[axis]:
            raise Unfit("its last window would hold padding only")
    known = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    if set(spread) != {1}:
        known["dilations"] = spread
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        raise Unfit("its indices are read")
    return w.op(node.op_type, x, **known)


def global_kind(node: ir.Node, w: Writer) -> ir.Value:
    """AveragePool, MaxPool over the whole image = GlobalAveragePool, GlobalMaxPool"""
    window = Window(node)
    if window.kernel != list(window.dims[2:]) or any(window.pads):
        raise Unfit("its kernel is not the whole image")
    return w.op(f"Global{node.op_type}", window.x)


def constant_conv(node: ir.Node, w: Writer) -> ir.Value:
    """AveragePool = a depthwise Conv whose weights are all 1/(k·k)"""
    window = Window(node)
    if any(window.pads) and not window.counts_pad:
        raise Unfit("its border windows divide by fewer values")
    kind = np.float32 if window.x.dtype is None else window.x.dtype.numpy()
    channels, size = window.dims[1], window.kernel
    each = w.constant("weights", np.full((channels, 1, *size), 1 / prod(size), kind))
    return w.op(
        "Conv", window.x, each,
        kernel_shape=size, strides=window.strides, pads=window.pads, group=channels,
    )  # fmt: skip


def two_averages(node: ir.Node, w: Writer, first: int) -> ir.Value:
    """AveragePool(a·b, stride a·s) = AveragePool(b, stride s) of AveragePool(a, stride a)"""
    window = Window(node)
    if any(window.pads):
        raise Unfit("it is padded")
    both = list(zip(window.kernel, window.strides, strict=True))
    inner = [first if k % first == 0 and s % first == 0 else 1 for k, s in both]
    alike = [k == d for k, d in zip(window.kernel, window.dims[2:], strict=True)]
    # A window as large as the image has one position: its stride does not matter.
    inner = [
        first if a and k % first == 0 else i
        for a, k, i in zip(alike, window.kernel, inner, strict=True)
    ]
    if set(inner) == {1}:
        raise Unfit(f"kernel {window.kernel} at stride {window.strides} has no factor {first}")
    outer = [k // i for k, i in zip(window.kernel, inner, strict=True)]
    steps = [1 if a else s // i for a, s, i in zip(alike, window.strides, inner, strict=True)]
    small = w.op("AveragePool", window.x, kernel_shape=inner, strides=inner)
    return w.op("AveragePool", small, kernel_shape=outer, strides=steps)


def two_maxima(node: ir.Node, w: Writer, first: int) -> ir.Value:
    """MaxPool(a + b - 1) = MaxPool(b) of MaxPool(a, stride 1), the padding shared out"""
    window = Window(node)
    rank = len(window.kernel)
    inner = [min(first, k) for k in window.kernel]
    outer = [k - i + 1 for k, i in zip(window.kernel, inner, strict=True)]
    if set(outer) == {1}:
        raise Unfit(f"kernel {window.kernel} is not larger than {first}")
    room = inner * 2
    here = [min(p, (k - 1) // 2) for p, k in zip(window.pads, room, strict=True)]
    there = [p - h for p, h in zip(window.pads, here, strict=True)]
    if any(p >= k for p, k in zip(there, outer * 2, strict=True)):
        raise Unfit(f"its padding {window.pads} does not split")
    small = w.op("MaxPool", window.x, kernel_shape=inner, strides=[1] * rank, pads=here)
    return w.op("MaxPool", small, kernel_shape=outer, strides=window.strides, pads=there)


FORMS: Forms = {
    "ReduceL1": (sum_of_magnitudes,),
    "ReduceL2": (root_of_squares,),
    "ReduceSumSquare": (sum_of_squares,),
    "ReduceLogSum": (log_of_sum,),
    "ReduceLogSumExp": (max_and_log,),
    "ReduceMean": (global_pool, of_sum, as_image, product),
    "ReduceMax": (global_pool, as_image),
    "ReduceSum": (of_mean, product),
    "GlobalAveragePool": (reduced, whole_kernel),
    "GlobalMaxPool": (reduced, whole_kernel),
    "AveragePool": (
        floor_mode,
        global_kind,
        *(partial(two_averages, first=n) for n in (2, 3, 4, 5, 7, 8, 13, 16)),
        constant_conv,
    ),
    "MaxPool": (floor_mode, global_kind, *(partial(two_maxima, first=n) for n in (3, 5, 7, 15))),
}
