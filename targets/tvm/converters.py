"""Converters in place of the importer's own, where those hide an operator from later passes.

The importer writes some operators as tensor expressions, or stacks inputs to reduce them: right,
but no kernel ends with them and the layout pass cannot see through them.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np

from npuc.targets.tvm.graph import number, shape_of

Converter = Callable[[Any, Any, Mapping[str, Any]], Any]
"""(block builder, inputs by position with None for absent ones, attributes) → expression, or None
to leave it to the importer."""


def _op(name: str) -> Any:
    from tvm import relax

    return getattr(relax.op, name)


def _clip(bb: Any, inputs: Any, attributes: Mapping[str, Any]) -> Any:
    """min(max(x, low), high), where a NaN bound is none."""
    result = inputs[0]
    for bound, name in ((inputs[1], "maximum"), (inputs[2], "minimum")):
        array = None if bound is None else number(bound)
        if bound is not None and array is None:
            return None
        if array is not None and not np.isnan(array.astype(np.float64)).any():
            result = bb.normalize(_op(name)(result, bound))
    return result


def _pairwise(name: str) -> Converter:
    def convert(bb: Any, inputs: Any, attributes: Mapping[str, Any]) -> Any:
        return reduce(lambda a, b: bb.normalize(_op(name)(a, b)), inputs)

    return convert


def _mean(bb: Any, inputs: Any, attributes: Mapping[str, Any]) -> Any:
    from tvm import relax

    total = _pairwise("add")(bb, inputs, attributes)
    return _op("divide")(total, relax.const(float(len(inputs)), "float32"))


def _prelu(bb: Any, inputs: Any, attributes: Mapping[str, Any]) -> Any:
    """max(x, 0) + slope · min(x, 0)."""
    from tvm import relax

    data, slope = inputs
    zero = relax.const(0.0, "float32")
    above, below = (bb.normalize(_op(name)(data, zero)) for name in ("maximum", "minimum"))
    return _op("add")(above, bb.normalize(_op("multiply")(below, slope)))


def _pad(bb: Any, inputs: Any, attributes: Mapping[str, Any]) -> Any:
    """Pad with a constant, all axes; other modes are the importer's."""
    from tvm import relax

    if attributes.get("mode", b"constant") != b"constant" or inputs[3] is not None:
        return None
    pads, fill = number(inputs[1]), inputs[2]
    value = np.zeros(()) if fill is None else number(fill)
    if pads is None or value is None or min(pads) < 0:
        return None
    rank = len(shape_of(inputs[0]))
    widths = [int(pads[axis + side * rank]) for axis in range(rank) for side in range(2)]
    return relax.op.nn.pad(inputs[0], widths, "constant", float(value.reshape(-1)[0]))


def _centred(bb: Any, codes: Any, zero: Any, along: tuple[int, ...] = ()) -> Any:
    """Codes less their zero points, in int32; `along` is the shape of several zero points."""
    from tvm import relax

    wide = bb.normalize(_op("astype")(codes, "int32"))
    known = None if zero is None else number(zero)
    if zero is None or (known is not None and not known.any()):
        return wide
    assert known is not None, "the allow-list takes constant zero points"
    shape = along if known.size > 1 else ()
    return bb.normalize(
        _op("subtract")(wide, relax.const(known.astype(np.int32).reshape(shape), "int32"))
    )


def _conv_integer(bb: Any, inputs: Any, attributes: Mapping[str, Any]) -> Any:
    """Σ (x - zx)·(w - zw), in int32; padding is what stands for zero."""
    from tvm import relax

    x, w, x_zero, w_zero = (*inputs, None, None)[:4]
    filters = _centred(bb, w, w_zero, (-1, 1, 1, 1))
    return relax.op.nn.conv2d(
        _centred(bb, x, x_zero),
        filters,
        strides=attributes.get("strides", [1, 1]),
        padding=attributes.get("pads", [0, 0, 0, 0]),
        dilation=attributes.get("dilations", [1, 1]),
        groups=attributes.get("group", 1),
        data_layout="NCHW",
        kernel_layout="OIHW",
        out_dtype="int32",
    )


def _matmul_integer(bb: Any, inputs: Any, attributes: Mapping[str, Any]) -> Any:
    """Σ (a - za)·(b - zb), in int32; one zero point each, or zb per column."""
    from tvm import relax

    a, b, a_zero, b_zero = (*inputs, None, None)[:4]
    left, right = _centred(bb, a, a_zero), _centred(bb, b, b_zero, (1, -1))
    return relax.op.matmul(left, right, out_dtype="int32")


CONVERTERS: Mapping[str, Converter] = {
    "Clip": _clip,
    "ConvInteger": _conv_integer,
    "MatMulInteger": _matmul_integer,
    "Max": _pairwise("maximum"),
    "Mean": _mean,
    "Min": _pairwise("minimum"),
    "PRelu": _prelu,
    "Pad": _pad,
    "Sum": _pairwise("add"),
}
