"""Plan a 2-D convolution, transposed or not, float32 or int8, on NHWC tensors."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from npuc.targets.tvm import halves, markers, transposed
from npuc.targets.tvm import weights as w
from npuc.targets.tvm.depthwise import Depthwise
from npuc.targets.tvm.direct import Direct, Finish
from npuc.targets.tvm.dots import FLOAT, Dot, choose, of_halves
from npuc.targets.tvm.graph import Array, dtype_of, number, operator, shape_of
from npuc.targets.tvm.integer import Integer
from npuc.targets.tvm.layout import TO_NHWC
from npuc.targets.tvm.plan import Plan
from npuc.targets.tvm.pointwise import known_step, quantize_known
from npuc.targets.tvm.staging import Code, Geometry, stage_planes
from npuc.targets.tvm.transposed import Phase

PLANES = 4
"""Most channels of an image that a convolution rearranges itself."""

SUMS = ("float32", "int32")
"""Types that convolutions add up in."""


def plan(p: Plan) -> bool:
    """Write the kernel of a convolution; False where its weights are computed at run time."""
    call = p.anchor
    if str(call.attrs.data_layout) != "NHWC" or dtype_of(call) not in SUMS:
        return False
    found = _weights(call, p)
    if found is None:
        return False
    g = _geometry(call, found.array)
    if g.groups == g.channels == g.channels_out:
        return _depthwise(p, g, found)
    return _direct(p, g, found)


@dataclass(frozen=True, slots=True)
class _Weights:
    """Filters [out, in / groups, height, width], and what makes them and the input integers."""

    array: Array
    integer: Integer | None


def _weights(call: Any, p: Plan) -> _Weights | None:
    if dtype_of(call) == "int32":
        return _integers(call, p)
    transposed = operator(call) == "relax.nn.conv2d_transpose"
    activation = w.activation(call.args[0], p.sources)
    codes = w.codes(call.args[1], p.sources)
    out_axis = 1 if transposed else 0
    if activation is not None and codes is not None and codes.axis in (None, out_axis):
        array = _oriented(codes.codes, call) if transposed else codes.codes
        repeat = int(call.attrs.groups) if transposed and codes.axis is not None else 1
        scale = np.tile(codes.scale, repeat) * np.float32(activation.scale)
        return _Weights(array, Integer(activation, scale.astype(np.float32)))
    values = w.values(call.args[1], p.sources)
    if values is None or values.dtype != np.float32:
        return None
    return _Weights(_oriented(values, call) if transposed else values, None)


def _integers(call: Any, p: Plan) -> _Weights | None:
    """Codes on both sides, their zero points taken off: `ConvInteger`."""
    activation = w.centred_activation(call.args[0], p.sources)
    codes = w.centred_codes(call.args[1], p.sources)
    if activation is None or codes is None or operator(call) != "relax.nn.conv2d":
        return None
    return _Weights(codes, Integer(activation, None))


def _oriented(array: Array, call: Any) -> Array:
    """Turn a transposed convolution's filters [in, out / groups, ...] into the plain one's.

    A transposed convolution is a plain one over the input with zeros between its values, with
    the filter turned by 180°.
    """
    groups = int(call.attrs.groups)
    channels, out, high, wide = array.shape
    cut = array.reshape(groups, channels // groups, out, high, wide).transpose(0, 2, 1, 3, 4)
    return cut.reshape(groups * out, channels // groups, high, wide)[:, :, ::-1, ::-1]


def _geometry(call: Any, array: Array) -> Geometry:
    a = call.attrs
    batch, height, width, channels = shape_of(call.args[0])
    high, wide = array.shape[2:]
    top, left, bottom, right = (int(v) for v in a.padding)
    stride, dilation = (_pair(a.strides), _pair(a.dilation))
    g = Geometry(
        batch, height, width, channels, array.shape[0], (high, wide), stride, dilation,
        (top, left, bottom, right), groups=int(a.groups),
    )  # fmt: skip
    if operator(call) != "relax.nn.conv2d_transpose":
        return g
    more = _pair(a.output_padding)
    rise, reach = dilation[0] * (high - 1), dilation[1] * (wide - 1)
    pads = (rise - top, reach - left, rise - bottom + more[0], reach - right + more[1])
    return replace(g, stride=(1, 1), spread=stride, pads=pads)


def _pair(values: Any) -> tuple[int, int]:
    first, second = (int(v) for v in values)
    return first, second


def _direct(p: Plan, g: Geometry, found: _Weights) -> bool:
    dot, call = FLOAT, p.anchor
    if found.integer is not None:
        dot = choose(
            p.level,
            signed=found.integer.signed,
            narrow=found.array.dtype == np.int8,
            multiple=0 if g.groups == 1 else g.channels // g.groups,
        )
        g = replace(g, round_channels=dot.adds, fill=found.integer.activation.zero)
    half = halves.codes(call.args[0], p.sources) if found.integer is None else None
    if half is not None:
        dot = of_halves(p.level)
        g = replace(g, round_channels=dot.adds)
    tensor = _input(p, found) if half is None else half
    planes = _planes(p, tensor, g)
    g = replace(g, planes=planes is not None)
    x = p.input(tensor if planes is None else planes[0])
    cut = transposed.phases(g, found.array)
    parts = [_part(p, c.geometry, c.filters, found, dot) for c in cut or [Phase(g, found.array)]]
    y = p.output()
    if planes is not None:
        x = stage_planes(p.kernel, x, g, dtype_of(tensor), planes[1])
    for kernel, packed, start in parts:
        kernel.write(x, packed, start, y)
    kind = "_int8" if found.integer is not None else "" if half is None else "_bf16"
    return p.done(f"{'de' if cut else ''}conv{g.kernel[0]}x{g.kernel[1]}{kind}")


def _part(
    p: Plan, g: Geometry, filters: Array, found: _Weights, dot: Dot
) -> tuple[Direct, Any, Any]:
    """Declare the constants of one convolution; return its kernel, weights and start values."""
    array = _by_input(filters, g)
    packed = p.weights(dot.pack(array, p.level.lanes))
    finish: Finish = p.finish
    start, taps = None, None
    if found.integer is not None:
        taps = _classes(g, found.integer.offset(dot.shift))
        start, finish = found.integer.prepare(p, array, p.level.lanes, shift=dot.shift, taps=taps)
    classed, codes = taps is not None, p.pack()
    kernel = Direct(p.kernel, g, finish, dot, heavy=p.heavy, classed=classed, codes=codes)
    return kernel, packed, start


def _planes(p: Plan, tensor: Any, g: Geometry) -> tuple[Any, Code] | None:
    """Return the NCHW image of a few channels that a tensor is made from, and how, or None."""
    if g.spread != (1, 1) or not 1 < g.channels <= PLANES or min(g.pads) < 0:
        return None
    source = p.source(tensor)
    code: Code = _as_it_is
    if operator(source) == "relax.quantize":
        if known_step(source) is None:
            return None
        code, source = partial(quantize_known, source), p.source(source.args[0])
    elif markers.name_of(source) == halves.NARROW:
        code, source = halves.narrowed, p.source(markers.data_of(source))
    if operator(source) != "relax.permute_dims" or number(source.args[0]) is not None:
        return None
    if source.attrs.axes is None or tuple(int(a) for a in source.attrs.axes) != TO_NHWC:
        return None
    return source.args[0], code


def _as_it_is(value: Any) -> Any:
    return value


def _classes(g: Geometry, offset: int) -> Array | None:
    """Which taps outputs add up, by class of row and column; None where that changes nothing."""
    if g.staged or not offset or not any(g.pads):
        return None
    high, wide = np.arange(g.kernel[0])[:, None], np.arange(g.kernel[1])
    return np.array(
        [
            ((a <= high) & (high < b) & (c <= wide) & (wide < d)).reshape(-1)
            for a, b in g.row_classes
            for c, d in g.column_classes
        ]
    )


def _by_input(array: Array, g: Geometry) -> Array:
    """Order filters as [groups, taps · input channels, output channels], channels padded."""
    out, own, high, wide = array.shape
    cut = array.reshape(g.groups, out // g.groups, own, high, wide).transpose(0, 3, 4, 2, 1)
    room = np.zeros((*cut.shape[:3], g.pixel // g.groups, cut.shape[4]), array.dtype)
    room[:, :, :, :own] = cut
    return room.reshape(g.groups, -1, cut.shape[4])


def _depthwise(p: Plan, g: Geometry, found: _Weights) -> bool:
    taps = found.array.reshape(g.channels, -1).T
    if found.integer is not None:
        g = replace(g, fill=found.integer.activation.zero)
    x = p.input(_input(p, found))
    packed = p.weights(taps)
    finish: Finish = p.finish
    start, classes = None, None
    if found.integer is not None:
        classes = _classes(g, found.integer.offset(0))
        start, finish = found.integer.prepare(p, taps[None], 1, taps=classes)
    y = p.output()
    integer, classed = found.integer is not None, classes is not None
    Depthwise(p.kernel, g, finish, integer, p.heavy, classed).write(x, packed, start, y)
    return p.done(f"depthwise{g.kernel[0]}x{g.kernel[1]}" + ("_int8" if found.integer else ""))


def _input(p: Plan, found: _Weights) -> Any:
    return p.anchor.args[0] if found.integer is None else found.integer.activation.tensor
