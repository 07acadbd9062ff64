"""Scales, zero points and integer codes: the arithmetic of an `IntScheme`, in numpy alone."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from npuc.errors import PassError
from npuc.profile import IntScheme

Array = np.ndarray[Any, Any]
TINY = float(np.finfo(np.float32).tiny)
"""Smallest normal float32: a subnormal scale is flushed to zero by many devices."""
_NON_NEGATIVE = frozenset({"Softmax", "Sigmoid", "HardSigmoid", "Softplus", "Relu"})


@dataclass(frozen=True, slots=True)
class Affine:
    """real = scale · (code - zero), with the codes that may be used, per tensor."""

    scale: np.float32
    zero: int
    low: int
    high: int
    dtype: str

    @property
    def narrow(self) -> bool:
        """Whether the codes are fewer than the dtype holds, so that clipping must be explicit."""
        info = np.iinfo(self.dtype)
        return (self.low, self.high) != (info.min, info.max)


def activation(low: float, high: float, scheme: IntScheme) -> Affine:
    """Map the real range [low, high], widened to hold zero, onto the scheme's activation codes.

    Symmetric: s = max(|low|, |high|) / (q_high - z), z the middle code.
    Asymmetric: s = (high - low) / (q_high - q_low), z = q_low + round(-low / s): zero is exact.
    """
    qlow, qhigh = scheme.activation_range
    low, high = min(low, 0.0), max(high, 0.0)
    if scheme.activation_symmetric:
        zero = _middle(qlow, qhigh)
        scale = _scale(max(-low, high) / (qhigh - zero))
    else:
        scale = _scale((high - low) / (qhigh - qlow))
        zero = qlow + int(np.clip(np.rint(-low / float(scale)), 0, qhigh - qlow))
    return Affine(scale, zero, qlow, qhigh, scheme.activation_dtype)


def fixed(scale: float, op_type: str, scheme: IntScheme) -> Affine:
    """Return the coding of an output whose scale the device prescribes for `op_type`.

    The zero point is the middle code; in an asymmetric scheme it is the lowest code for operators
    that cannot be negative, as for Softmax (1/256, -128) in the TFLite 8-bit specification.
    """
    qlow, qhigh = scheme.activation_range
    lowest = not scheme.activation_symmetric and op_type in _NON_NEGATIVE
    zero = qlow if lowest else _middle(qlow, qhigh)
    return Affine(np.float32(scale), zero, qlow, qhigh, scheme.activation_dtype)


def weight_zero(scheme: IntScheme) -> int:
    """Return the zero point of weights: 0 for signed codes, the middle for unsigned ones."""
    return _middle(*scheme.weight_range)


def weight_scales(array: Array, axis: int | None, scheme: IntScheme, floor: Array) -> Array:
    """Return float32 scales for constant weights: max|w| / (q_high - z), per slice of `axis`.

    `axis` None gives one scale of shape (). `floor` is a lower bound, broadcast to the result:
    the scale at which a bias still fits its 32-bit codes. A channel that is all zeros takes the
    largest scale of the others, or 1.0 where all are zero: any positive scale codes it exactly.
    Raises `PassError` for NaN or Inf.
    """
    axes = tuple(i for i in range(array.ndim) if i != axis)
    peak = np.max(np.abs(array), axis=axes, initial=0.0).astype(np.float64)
    if not np.isfinite(peak).all():
        raise PassError("a weight holds NaN or Inf")
    scales = peak / (scheme.weight_range[1] - weight_zero(scheme))
    largest = float(scales.max(initial=0.0)) or 1.0
    scales = np.maximum(np.where(peak == 0, largest, scales), floor)
    return np.asarray(np.maximum(scales, TINY), np.float32)


def weight_codes(array: Array, scales: Array, axis: int | None, scheme: IntScheme) -> Array:
    """Return clip(round(w / s) + z), ties to even, dividing in float32 as QuantizeLinear does."""
    zero = weight_zero(scheme)
    shaped = scales if axis is None else _along(scales, axis, array.ndim)
    codes = np.rint(array.astype(np.float32) / shaped) + np.float32(zero)
    low, high = scheme.weight_range
    return np.clip(codes, low, high).astype(scheme.weight_dtype)


def bias_limit(scheme: IntScheme) -> int:
    """Return the largest bias code: half of the accumulator, which leaves room for products."""
    return int(2 ** (min(scheme.accumulator_bits, 32) - 2))


def bias_codes(bias: Array, scales: Array, limit: int) -> Array:
    """Return round(b / s) as int32, ties to even; saturates at ±`limit`."""
    codes = np.rint(bias.astype(np.float64) / scales.astype(np.float64))
    return np.clip(codes, -limit, limit).astype(np.int32)


def _along(scales: Array, axis: int, rank: int) -> Array:
    return scales.reshape([-1 if i == axis else 1 for i in range(rank)])


def _middle(low: int, high: int) -> int:
    return math.ceil((low + high) / 2)


def _scale(value: float) -> np.float32:
    return np.float32(max(value, TINY))
