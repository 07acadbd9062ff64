"""Constants behind operators: float values, or int8 codes with the scale of each channel."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from npuc.targets.tvm.graph import Array, dtype_of, key, number, operator, shape_of

Sources = dict[int, Any]


@dataclass(frozen=True, slots=True)
class Codes:
    """Integer weights: value = codes · scale, the scale along `axis`, or one where it is None."""

    codes: Array
    scale: Array
    axis: int | None


@dataclass(frozen=True, slots=True)
class Activation:
    """An integer tensor of main: value = (tensor - zero) · scale, one of each for all of it."""

    tensor: Any
    scale: float
    zero: int


def values(expr: Any, sources: Sources) -> Array | None:
    """Return a constant as float values, dequantized where it is codes."""
    array = number(expr)
    if array is not None:
        return array
    source = _source(expr, sources)
    if operator(source) == "relax.permute_dims":
        inner = values(source.args[0], sources)
        return None if inner is None else inner.transpose(_axes(source, inner.ndim))
    if operator(source) == "relax.reshape":
        inner = values(source.args[0], sources)
        return None if inner is None else inner.reshape(shape_of(expr))
    return dequantized(source) if operator(source) == "relax.dequantize" else None


def dequantized(call: Any) -> Array | None:
    """Return the float values of dequantized constants; None where they are not constants."""
    arrays = [number(a) for a in call.args]
    known = [a for a in arrays if a is not None]
    if len(known) < 3:
        return None
    codes, scale, zero = known
    along = _along(codes.ndim, int(call.attrs.axis), scale.size)
    offset = zero.astype(np.int32).reshape(along if zero.size > 1 else ())
    shifted = (codes.astype(np.int32) - offset).astype(np.float32)
    with np.errstate(over="ignore"):  # a mask's codes may reach beyond float32
        return np.asarray(shifted * scale.reshape(along), np.float32)


def codes(expr: Any, sources: Sources) -> Codes | None:
    """Return a constant's int8 codes; None where it is not int8 with zero point 0."""
    source = _source(expr, sources)
    name = operator(source)
    if name == "relax.permute_dims":
        inner = codes(source.args[0], sources)
        if inner is None:
            return None
        axes = _axes(source, inner.codes.ndim)
        axis = None if inner.axis is None else axes.index(inner.axis)
        return Codes(inner.codes.transpose(axes), inner.scale, axis)
    if name != "relax.dequantize":
        return None
    arrays = [number(a) for a in source.args]
    known = [a for a in arrays if a is not None]
    if len(known) < 3 or known[0].dtype != np.int8 or known[2].any():
        return None
    scale = known[1].reshape(-1)
    return Codes(
        known[0], scale, None if scale.size == 1 else int(source.attrs.axis) % known[0].ndim
    )


def activation(expr: Any, sources: Sources) -> Activation | None:
    """Return the integer tensor that an activation was dequantized from, if it was."""
    source = _source(expr, sources)
    if operator(source) != "relax.dequantize" or number(source.args[0]) is not None:
        return None
    scale, zero = number(source.args[1]), number(source.args[2])
    if scale is None or zero is None or scale.size != 1 or zero.size != 1:
        return None
    if dtype_of(source.args[0]) not in ("int8", "uint8"):
        return None
    return Activation(source.args[0], float(scale.reshape(())), int(zero.reshape(())))


def centred(expr: Any, sources: Sources) -> tuple[Any, Array] | None:
    """Return (codes, zero points) of int32 values that are 8-bit codes less their zero points."""
    source, zero = _source(expr, sources), np.zeros((), np.int32)
    if operator(source) == "relax.subtract" and dtype_of(source.args[0]) == "int32":
        found = number(source.args[1])
        if found is None:
            return None
        source, zero = _source(source.args[0], sources), found
    if operator(source) != "relax.astype" or dtype_of(source) != "int32":
        return None
    data = source.args[0]
    return (data, zero) if dtype_of(data) in ("int8", "uint8") else None


def centred_activation(expr: Any, sources: Sources) -> Activation | None:
    """Return the codes behind int32 values, and their one zero point; the scale is 1."""
    found = centred(expr, sources)
    if found is None or found[1].size != 1 or number(found[0]) is not None:
        return None
    return Activation(found[0], 1.0, int(found[1].reshape(())))


def centred_codes(expr: Any, sources: Sources) -> Array | None:
    """Return constant weights less their zero points: int8 where that holds them, else int16."""
    found = centred(expr, sources)
    array = None if found is None else number(found[0])
    if found is None or array is None:
        return None
    values = array.astype(np.int32) - found[1]
    small = values.min() >= -128 and values.max() <= 127
    return values.astype(np.int8 if small else np.int16)


def bias(expr: Any, sources: Sources, channels: int) -> tuple[Array, Array] | None:
    """Return (int32 codes, scales) of a bias that was dequantized, per channel."""
    source = _source(expr, sources)
    while operator(source) in ("relax.reshape", "relax.permute_dims", "relax.expand_dims"):
        inner = source.args[0]
        source = _source(inner, sources)
    if operator(source) != "relax.dequantize":
        return None
    arrays = [number(a) for a in source.args]
    known = [a for a in arrays if a is not None]
    if len(known) < 3 or known[0].dtype != np.int32 or known[0].size != channels or known[2].any():
        return None
    return known[0].reshape(-1), np.broadcast_to(known[1].reshape(-1), channels)


def _source(expr: Any, sources: Sources) -> Any:
    """Return what a variable was computed by, or None."""
    return sources.get(key(expr)) if number(expr) is None else None


def _axes(call: Any, rank: int) -> list[int]:
    axes = call.attrs.axes
    return list(reversed(range(rank))) if axes is None else [int(a) % rank for a in axes]


def _along(rank: int, axis: int, size: int) -> tuple[int, ...]:
    if size == 1:
        return ()
    return tuple(size if a == axis % rank else 1 for a in range(rank))
