"""GPTQ and AdaRound on matrices: what they promise for every weight and every second moment."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from npuc.quantization.adaround import adaround
from npuc.quantization.gptq import Grid, damped, descended, error, gptq

Array = np.ndarray[Any, Any]
METHODS: dict[str, Callable[..., Array]] = {
    "gptq": gptq,
    "adaround": lambda *given: adaround(*given, steps=300),
}


def case(
    seed: int, group: int, outputs: int, depth: int, bits: int, zero: int = 0
) -> tuple[Array, Array, Grid]:
    """Return a weight, correlated moments of fewer columns than it has inputs, and a grid."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(group, outputs, depth))
    few = rng.normal(size=(group, max(2, depth // 2), depth)) + rng.normal(size=(group, 1, depth))
    high = 2 ** (bits - 1) - 1
    scales = np.abs(weight).max(axis=2, keepdims=True) / high * np.ones_like(weight)
    zeros = np.full(weight.shape, zero)
    return weight, np.swapaxes(few, 1, 2) @ few / few.shape[1], Grid(
        scales, zeros, zero - high, zero + high
    )  # fmt: skip


SHAPES = [(1, 16, 40), (24, 1, 9), (2, 4, 150), (1, 3, 1)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_no_output_loses_more_than_with_nearest_codes(
    method: str, shape: tuple[int, int, int], bits: int
) -> None:
    """On H + λI, which is what both minimise; the whole is much better where columns correlate."""
    weight, moments, grid = case(3, *shape, bits)
    codes = METHODS[method](weight, moments, grid)
    assert codes.min() >= grid.low and codes.max() <= grid.high
    assert np.array_equal(codes, np.rint(codes))
    held = damped(moments)
    learned = error(weight, grid.real(codes), held)
    plain = error(weight, grid.real(grid.nearest(weight)), held)
    assert (learned <= plain).all()
    if shape[2] >= 40:
        # Half as many columns as inputs: half of the directions cost next to nothing.
        assert learned.sum() < (0.5 if method == "gptq" else 0.7) * plain.sum()


@pytest.mark.parametrize("method", METHODS)
def test_the_same_arguments_give_the_same_codes(method: str) -> None:
    first, second = (METHODS[method](*case(5, 1, 8, 30, 4)) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("method", METHODS)
def test_uncorrelated_inputs_leave_nothing_to_gain(method: str) -> None:
    """With H = I each weight errs for itself: nearest is best."""
    weight, _, grid = case(7, 1, 6, 20, 4)
    codes = METHODS[method](weight, np.eye(20)[None], grid)
    assert np.array_equal(codes, grid.nearest(weight))


def test_gptq_finds_what_a_search_through_all_codes_finds() -> None:
    """Two inputs that always agree: only the sum of two weights counts."""
    weight = np.array([[[0.4, 0.4]]])
    grid = Grid(np.ones((1, 1, 2)), np.zeros((1, 1, 2)), -1, 1)
    codes = gptq(weight, np.ones((1, 2, 2)), grid)
    assert codes.sum() == 1  # nearest: 0 + 0, for 0.8


def test_descent_never_goes_up() -> None:
    """From any codes, and with blocks: 300 columns are three of them."""
    weight, moments, grid = case(11, 1, 5, 300, 4)
    held, rng = damped(moments), np.random.default_rng(0)
    start = rng.integers(grid.low, grid.high + 1, weight.shape).astype(float)
    end = descended(weight, held, grid, start)
    assert error(weight, grid.real(end), held).sum() < error(weight, grid.real(start), held).sum()
    assert end.min() >= grid.low and end.max() <= grid.high


def test_a_zero_point_moves_the_codes_along() -> None:
    weight, moments, grid = case(13, 1, 6, 30, 4)
    _, _, moved = case(13, 1, 6, 30, 4, zero=8)
    assert np.array_equal(gptq(weight, moments, grid) + 8, gptq(weight, moments, moved))


@pytest.mark.parametrize("method", METHODS)
def test_inputs_that_were_always_zero(method: str) -> None:
    """Nothing is known: nothing moves, and nothing divides by zero."""
    weight, moments, grid = case(17, 3, 2, 9, 4)
    codes = METHODS[method](weight, np.zeros_like(moments), grid)
    assert np.array_equal(codes, grid.nearest(weight))
    moments[:, 0], moments[:, :, 0] = 0, 0
    assert np.isfinite(METHODS[method](weight, moments, grid)).all()
