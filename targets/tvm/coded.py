"""Read 8-bit codes where an operator reads floats: dequantized in registers, never stored."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from npuc.targets.tvm.emit import cast, rounded
from npuc.targets.tvm.graph import Array, dtype_of, is_tensor, is_var, number, operator, shape_of

CODES = frozenset({"int8", "uint8"})


@dataclass(frozen=True, slots=True)
class Coded:
    """A tensor of codes: value = (codes - zero) · scale, the scale one or one per channel."""

    codes: Any
    scale: Array
    zero: int


def coded(expr: Any) -> Coded | None:
    """Return what a `relax.dequantize` reads; None where a kernel cannot do the same.

    Channels are the last axis. Constants are none of it: they are folded, or weights.
    """
    if operator(expr) != "relax.dequantize" or not is_var(expr.args[0]):
        return None
    codes, scale, zero = expr.args[0], number(expr.args[1]), number(expr.args[2])
    if not is_tensor(codes) or dtype_of(codes) not in CODES or dtype_of(expr) != "float32":
        return None
    if scale is None or zero is None or scale.dtype != np.float32 or not zero.size:
        return None
    offset = int(zero.reshape(-1)[0])
    if (zero != offset).any():
        return None
    shape = shape_of(codes)
    if scale.size > 1 and (not shape or int(expr.attrs.axis) % len(shape) != len(shape) - 1):
        return None
    return Coded(codes, scale.reshape(-1), offset)


def dequantize(codes: Any, scale: Any, zero: Any) -> Any:
    """Return (codes - zero) · scale, as ONNX DequantizeLinear; the product is rounded.

    `zero` is an int32 in every lane, or None for 0.
    """
    value = cast(codes, "int32")
    if zero is not None:
        value = value - zero
    return rounded(cast(value, "float32") * scale)
