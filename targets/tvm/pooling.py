"""Plan a pool on NHWC tensors: the maximum or the mean of a window, channel by channel."""

from dataclasses import replace
from typing import Any

import numpy as np

from npuc.targets.tvm.emit import Kernel, cast, constant, pieces, tirx, widen
from npuc.targets.tvm.graph import dtype_of, operator, shape_of
from npuc.targets.tvm.plan import Plan
from npuc.targets.tvm.staging import Geometry, Span

BYTES = frozenset({"int8", "uint8"})


def plan(p: Plan) -> bool:
    """Write the kernel of a pool; False for what TVM's own definitions are left to."""
    a, dtype = p.anchor.attrs, dtype_of(p.anchor)
    largest = operator(p.anchor) == "relax.nn.max_pool2d"
    if str(a.layout) != "NHWC" or dtype not in ({"float32"} | BYTES if largest else {"float32"}):
        return False
    g = _geometry(p)
    if g is None or g.staged:
        return False
    if not largest and any(g.pads) and bool(a.count_include_pad):
        return False
    x = p.input(p.anchor.args[0])
    y = p.output()
    k = p.kernel
    lanes = k.level.lanes * (1 if dtype == "float32" else 4)
    if len(p.region.members) > 1:
        lanes = k.level.lanes
    whole = g.channels // lanes
    work = g.batch * g.out_h * g.out_w * g.channels * g.kernel[0] * g.kernel[1]
    with k.units(g.batch * g.out_h, work) as line:
        for column, times, _ in g.tiles(1):
            with k.loop(times) as step:
                at = column + step
                pixel = k.let((line * g.out_w + at) * g.channels)
                (span,) = g.columns(at, 1)
                if whole:
                    with k.loop(whole) as block:
                        _window(p, g, x, y, line, at, pixel, k.let(block * lanes), lanes, span)
                for start, width in pieces(g.channels - whole * lanes, lanes):
                    _window(p, g, x, y, line, at, pixel, whole * lanes + start, width, span)
    name = operator(p.anchor).removeprefix("relax.nn.")
    return p.done(name if dtype == "float32" else f"{name}_int8")


def _geometry(p: Plan) -> Geometry | None:
    """Return the pool as a convolution's geometry; None where windows leave the padding."""
    a = p.anchor.attrs
    batch, height, width, channels = shape_of(p.anchor.args[0])
    high, wide = (int(v) for v in a.pool_size)
    down, across = (int(v) for v in a.strides)
    dilation = tuple(int(v) for v in a.dilation)
    top, left, bottom, right = (int(v) for v in a.padding)
    g = Geometry(
        batch, height, width, channels, channels, (high, wide), (down, across),
        (dilation[0], dilation[1]), (top, left, bottom, right),
    )  # fmt: skip
    _, rows, columns, _ = shape_of(p.anchor)
    # Rounded up, the last windows reach beyond the padding.
    lower = (rows - 1) * down + (high - 1) * dilation[0] + 1 - height - top
    further = (columns - 1) * across + (wide - 1) * dilation[1] + 1 - width - left
    if (lower > bottom or further > right) and operator(p.anchor) != "relax.nn.max_pool2d":
        return None
    g = replace(g, pads=(top, left, max(bottom, lower), max(right, further)))
    return g if (g.out_h, g.out_w) == (rows, columns) else None


def _window(
    p: Plan, g: Geometry, x: Any, y: Any, line: Any, column: Any, pixel: Any, channel: Any,
    width: int, span: Span,
) -> None:  # fmt: skip
    """Compute one window's result for `width` channels."""
    k, t = p.kernel, tirx()
    dtype = dtype_of(p.anchor)
    largest = operator(p.anchor) == "relax.nn.max_pool2d"
    total = k.scratch(width, dtype)
    k.store(total, constant(_start(dtype) if largest else 0.0, dtype, width), 0)
    source = k.let(g.source(line, column) + channel)
    first, count = g.inside(k, line)
    with k.loop(count) as turn:
        row = k.let(source + (first + turn) * (g.dilation[0] * g.pitch))
        for across in range(*span):
            value = k.load(x, row + across * (g.dilation[1] * g.pixel), width)
            old = k.load(total, 0, width)
            k.store(total, t.max(old, value) if largest else old + value, 0)
    result = k.load(total, 0, width)
    if not largest:
        result = k.let(result / _count(k, count, span, width))
    out = k.let(pixel + channel)
    k.store(y, p.finish(result, width, channel, out), out)


def _start(dtype: str) -> float:
    return -np.inf if dtype == "float32" else float(np.iinfo(dtype).min)


def _count(k: Kernel, rows: Any, span: Span, width: int) -> Any:
    """How many values a window adds up, in every lane."""
    columns = span[1] - span[0]
    if isinstance(rows, int):
        return constant(float(rows * columns), "float32", width)
    return widen(k.let(cast(rows * columns, "float32")), width)
