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


@pytest.mark.parametrize("cpu", ["native", "x86-64-v3"])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("channels", [16, 48, 64, 77])
def test_packed_codes_are_those_of_a_division(
    graph: Callable[..., Any], answer: Callable[..., Any], cpu: str, dtype: str, channels: int
) -> None:
    """Vectors of channels become codes together: each value is its channel's weight, or beyond."""
    rng = np.random.default_rng(channels)
    info = np.iinfo(dtype)
    made = graph()
    for scale in SCALES:
        for zero, clamped in ((info.min, True), (info.min, False), (int(info.max) - 9, False)):
            steps = rng.integers(-300, 300, channels) + rng.choice([0, 0.5, 0.5, 0.25], channels)
            w = (steps * np.float32(scale)).astype(np.float32)
            w[:8] = [3e38, -3e38, 0.0, -0.0, 1e-40, -1e-40, 5e9 * scale, -5e9 * scale]
            x = made.input(np.array([1, -1, 1, 0.5, 2, -1], np.float32).reshape(1, 1, 2, 3))
            y = made.node("Conv", x, made.constant(rng.permutation(w).reshape(-1, 1, 1, 1)))
            y = made.node("Relu", y) if clamped else y
            step, offset = made.constant(np.float32(scale)), made.constant(np.array(zero, dtype))
            made.output(made.node("QuantizeLinear", y, step, offset))
    assert answer(made, cpu=cpu).faults(0.0) == []


def test_what_is_no_number_has_one_code(
    graph: Callable[..., Any], answer: Callable[..., Any]
) -> None:
    """NaN gets the code that kernels without packing give it, infinities the outermost ones."""
    codes = []
    for channels in (5, 64):
        made = graph()
        x = made.input(np.array([np.nan, np.inf, -np.inf], np.float32).reshape(1, 1, 1, 3))
        y = made.node("Conv", x, made.constant(np.ones((channels, 1, 1, 1), np.float32)))
        step, zero = made.constant(np.float32(0.1)), made.constant(np.uint8(0))
        made.output(made.node("QuantizeLinear", made.node("Relu", y), step, zero))
        (got,) = answer(made).got.values()
        assert (got == got[:, :1]).all()
        codes.append(got[0, 0, 0].tolist())
    assert codes[0] == codes[1] and codes[0][1:] == [255, 0]
