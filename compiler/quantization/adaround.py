"""AdaRound: whether each weight is rounded up or down, learned by gradient descent on its product.

After Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020. There the
layer's error is estimated on stored activations, batch by batch; here it is exact and nothing is
stored: with second moments H = E[x xᵀ], the mean squared error of a product without its activation
function is E‖(W - Ŵ)x‖² = tr((W - Ŵ) H (W - Ŵ)ᵀ), and its gradient by Ŵ is -2 (W - Ŵ) H. A step
costs one product with H, whatever the number of samples, and has no noise.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from npuc.quantization.gptq import DAMPING, Grid, damped, error

Array = np.ndarray[Any, Any]
STEPS = 1000
"""The paper takes 10,000 and more on mini-batches; without their noise fewer are enough."""
LOW, HIGH = -0.1, 1.1
"""The ends of the stretched sigmoid: it reaches 0 and 1 at finite arguments."""
WARM = 0.2
"""Part of the steps without the regulariser, which the paper calls warm-up."""
BETA = (20.0, 2.0)
"""Exponent of the regulariser 1 - |2h - 1|^β at its begin and end."""
STRENGTH = 10.0
"""Weight of the regulariser against the error, where nearest rounding errs by 1 per weight."""
RATE = 0.02
"""Adam's step, in arguments of the sigmoid: some 4 from never up to always up."""


def adaround(
    weight: Array,
    moments: Array,
    grid: Grid,
    *,
    steps: int = STEPS,
    damping: float = DAMPING,
    progress: Callable[[int, int], None] | None = None,
) -> Array:
    """Return codes floor(w / s) + z or one more; shapes are those of `npuc.quantization.gptq`.

    Minimises tr(E H Eᵀ) + λ Σ 1 - |2h - 1|^β over h = clip(1.2 / (1 + e⁻ᵛ) - 0.1, 0, 1) by Adam,
    from the v at which h is the weight's own fraction; β falls, so that each h ends at 0 or 1.
    There is no chance in it: the same arguments give the same codes. An output whose codes are not
    better than the nearest, on H + λI, keeps the nearest ones.
    """
    held = damped(moments, damping).astype(np.float32)
    plain = grid.nearest(weight)
    scale = _unit(weight, grid.real(plain), held)
    ratio = (weight / grid.scales).astype(np.float32)
    floor = np.clip(np.floor(ratio) + grid.zeros, grid.low, grid.high - 1)
    part = np.clip(ratio - (floor - grid.zeros), 0.01, 0.99)  # beyond a range's end there is no up
    logits = _logit((part - LOW) / (HIGH - LOW)).astype(np.float32)
    adam = _Adam(logits)
    for step in range(steps):
        soft = 1 / (1 + np.exp(-logits))
        up = np.clip(soft * (HIGH - LOW) + LOW, 0, 1)
        gap = (grid.scales * (ratio - (floor + up - grid.zeros))).astype(np.float32)
        slope = -2 * (gap @ held) * grid.scales / scale + _pull(up, step / steps)
        inside = (up > 0) & (up < 1)
        logits -= adam.step(slope * inside * soft * (1 - soft) * (HIGH - LOW))
        if progress is not None:
            progress(step + 1, steps)
    codes = floor + (logits > 0)
    better = error(weight, grid.real(codes), held) < error(weight, grid.real(plain), held)
    return np.where(better[:, :, None], codes, plain)


def _unit(weight: Array, real: Array, moments: Array) -> Array:
    """Return the error that nearest rounding makes, per weight of each output."""
    each = error(weight, real, moments) / weight.shape[2]
    return np.where(each > 0, each, 1.0).astype(np.float32)[:, :, None]


def _pull(up: Array, time: float) -> Array | float:
    """Return the regulariser's gradient: nothing at first, then towards 0 or 1."""
    if time < WARM:
        return 0.0
    beta = BETA[1] + (BETA[0] - BETA[1]) * (1 - (time - WARM) / (1 - WARM))
    side = 2 * up - 1
    return np.asarray(-STRENGTH * 2 * beta * np.sign(side) * np.abs(side) ** (beta - 1))


def _logit(part: Array) -> Array:
    return np.asarray(np.log(part / (1 - part)))


class _Adam:
    """Adam with its usual decay rates, 0.9 and 0.999."""

    def __init__(self, like: Array) -> None:
        self.first, self.second, self.count = np.zeros_like(like), np.zeros_like(like), 0

    def step(self, slope: Array) -> Array:
        self.count += 1
        self.first = 0.9 * self.first + 0.1 * slope
        self.second = 0.999 * self.second + 0.001 * slope**2
        first, second = self.first / (1 - 0.9**self.count), self.second / (1 - 0.999**self.count)
        return np.asarray(RATE * first / (np.sqrt(second) + 1e-8))
