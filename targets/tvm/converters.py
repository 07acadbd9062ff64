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


CONVERTERS: Mapping[str, Converter] = {
    "Clip": _clip,
    "Max": _pairwise("maximum"),
    "Mean": _mean,
    "Min": _pairwise("minimum"),
    "PRelu": _prelu,
    "Pad": _pad,
    "Sum": _pairwise("add"),
}
