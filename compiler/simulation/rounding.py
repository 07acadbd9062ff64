"""Rounding that gradients pass through, in torch: codes, and floats shorter than float32.

The values are those of `npuc.passes.qdq.codes` and `npuc.passes.arithmetic.round_to`. The
gradient is the straight-through estimator of Bengio et al. (arXiv:1308.3432): that of a function
without rounding. What clips stays a clamp and has a clamp's gradient, zero outside.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from npuc.passes.qdq import codes
from npuc.profile import FloatFormat, IntScheme


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


class _RoundFloat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, fmt: FloatFormat, flush: bool) -> Tensor:
        return _rounded(x, fmt, flush)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None, None


def round_half_even(x: Tensor) -> Tensor:
    """Return the nearest whole numbers, ties to even; the gradient is that of x."""
    return cast(Tensor, _Round.apply(x))  # type: ignore[no-untyped-call]


def round_float(x: Tensor, fmt: FloatFormat, flush: bool = False) -> Tensor:
    """Return float32 rounded to a shorter float as `round_to` does; the gradient is that of x."""
    return cast(Tensor, _RoundFloat.apply(x, fmt, flush))  # type: ignore[no-untyped-call]


def _rounded(x: Tensor, fmt: FloatFormat, flush: bool) -> Tensor:
    bias = 2 ** (fmt.exponent - 1) - 1
    wide = x.double()
    exponent = torch.frexp(wide)[1].long() - 1
    step = torch.clamp(exponent, min=1 - bias) - fmt.mantissa
    # Both powers are normal doubles: the products are exact.
    rounded = torch.round(wide * _power(-step)) * _power(step)
    if flush:
        zero = torch.copysign(torch.zeros_like(wide), wide)
        rounded = torch.where(wide.abs() < 2.0 ** (1 - bias), zero, rounded)
    limit = (2 - 2.0**-fmt.mantissa) * 2.0**bias
    infinite = torch.copysign(torch.full_like(wide, math.inf), wide)
    rounded = torch.where(rounded.abs() > limit, infinite, rounded)
    return torch.where(torch.isfinite(wide), rounded, wide).to(x.dtype)


def _power(exponent: Tensor) -> Tensor:
    """Return 2 to integers from -1022 to 1023, by writing the bits of the doubles."""
    return ((exponent + 1023) << 52).view(torch.float64)


def quantize(x: Tensor, scale: Tensor, zero: Tensor, low: float, high: float) -> Tensor:
    """Return clip(round(x / s) + z, low, high) as floats; zero gradient where it clips."""
    return torch.clamp(round_half_even(x / scale) + zero, low, high)


@dataclass(frozen=True, eq=False)
class Coding:
    """How one constant is coded as a weight: along `axis`, or with one scale where that is None.

    `scheme` is the device's, with the codes that this constant may have. `biases` are what its
    scales must leave room for: name of the bias, scale of the data times
    alpha / beta, number of groups that share the scales.
    """

    weight: str
    axis: int | None
    scheme: IntScheme
    biases: tuple[tuple[str, float, int], ...] = ()

    def scales(self, weight: Tensor, biases: "dict[str, Tensor]") -> Tensor:
        """Return float32 scales for the weights as they are now, as `codes.weight_scales` does."""
        axes = [i for i in range(weight.dim()) if i != self.axis]
        peak = weight.detach().abs().double()
        peak = torch.amax(peak, axes) if axes else peak
        scales = peak / (self.scheme.weight_range[1] - codes.weight_zero(self.scheme))
        largest = scales.max()
        largest = torch.where(largest > 0, largest, torch.ones_like(largest))
        scales = torch.where(peak == 0, largest, scales)
        for name, step, groups in self.biases:
            floor = biases[name].detach().reshape(-1).abs().double()
            floor = floor / (step * codes.bias_limit(self.scheme))
            if self.axis is None:
                floor = floor.max()
            elif groups > 1:
                floor = torch.amax(floor.reshape(groups, -1), 0)
            scales = torch.maximum(scales, floor)
        return torch.clamp(scales, min=codes.TINY).float()

    def coded(self, weight: Tensor, scales: Tensor) -> Tensor:
        """Return the weight as its codes stand for it; the gradient is that of the weight."""
        zero = float(codes.weight_zero(self.scheme))
        shape = [-1 if i == self.axis else 1 for i in range(weight.dim())]
        shaped = scales if self.axis is None else scales.reshape(shape)
        low, high = self.scheme.weight_range
        numbers = torch.clamp(round_half_even(weight / shaped) + zero, low, high)
        return (numbers - zero) * shaped


def coded_bias(
    bias: Tensor, scales: Tensor, step: float, ratio: float, groups: int, scheme: IntScheme
) -> Tensor:
    """Return a bias as int32 codes of scale max(s_w·s_x, tiny)·alpha / beta stand for it."""
    limit = codes.bias_limit(scheme)
    if scales.dim() and groups > 1:
        scales = scales.tile(groups)
    unit = torch.clamp(scales * _float32(step), min=codes.TINY) * _float32(ratio)
    numbers = torch.clamp(round_half_even(bias.double() / unit.double()), -limit, limit)
    return numbers.float() * unit


def _float32(number: float) -> float:
    return float(torch.tensor(number, dtype=torch.float32))
