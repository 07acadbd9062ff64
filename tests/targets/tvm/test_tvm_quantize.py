"""Kernels quantize without dividing, to the codes that a division gives, at and beside ties."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

SCALES = [2.0**-7, 1.0, 0.1, 0.3333333, 1.1e-6, 3.7e5, 0.99999994, 1.0000001]


@pytest.mark.parametrize("cpu", ["native", "x86-64-v3"])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_ties_are_as_a_division_rounds_them(
    graph: Callable[..., Any], answer: Callable[..., Any], cpu: str, dtype: str
) -> None:
    rng = np.random.default_rng(0)
    made = graph()
    one = made.constant(np.ones((1, 1, 1, 1), np.float32))
    info = np.iinfo(dtype)
    for scale in SCALES:
        steps = rng.integers(-300, 300, 4096) + rng.choice([0, 0.5, 0.5, 0.25], 4096)
        x = (steps * np.float32(scale)).astype(np.float32)
        x = np.nextafter(x, x + rng.integers(-1, 2, x.size).astype(np.float32), dtype=np.float32)
        x[:6] = [3e38, -3e38, 0.0, -0.0, 1e-40, -1e-40]
        zero = int(rng.integers(info.min, info.max + 1))
        y = made.node("Conv", made.input(x.reshape(1, 1, 64, 64)), one)
        step = made.constant(np.float32(scale))
        made.output(made.node("QuantizeLinear", y, step, made.constant(np.array(zero, dtype))))
    assert answer(made, cpu=cpu).faults(0.0) == []
