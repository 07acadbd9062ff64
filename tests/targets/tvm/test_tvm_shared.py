"""Layers that differ in nothing but their numbers share one kernel."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from npuc.targets.tvm import origins, runtime

LAYERS = 3


def coded(made: Any, name: str, scale: float, zero: int) -> str:
    """Quantize and dequantize a tensor as uint8."""
    step = made.constant(np.float32(scale)), made.constant(np.uint8(zero))
    return str(made.node("DequantizeLinear", made.node("QuantizeLinear", name, *step), *step))


def weight(made: Any, floats: Callable[..., Any], seed: int) -> str:
    """Dequantize a constant int8 matrix with one scale, a power of two: nothing is rounded."""
    codes = (floats((48, 48), seed) * 40).clip(-127, 127).astype(np.int8)
    step = made.constant(np.float32(2.0 ** -(6 + seed))), made.constant(np.int8(0))
    return str(made.node("DequantizeLinear", made.constant(codes), *step))


def kernels(lowered: Any) -> list[str]:
    """Return the kernels that a library calls, in order."""
    return [name for name, _ in origins.calls(runtime.opened(lowered.files[runtime.SHARED_OBJECT]))]


@pytest.mark.parametrize("cpu", ["native", "x86-64-v3"])
def test_products_share_a_kernel_whatever_their_scales_and_zero_points(
    graph: Callable[..., Any], answer: Callable[..., Any], floats: Callable[..., Any], cpu: str
) -> None:
    made = graph()
    x = coded(made, made.input(floats((7, 48))), 2**-5, 121)
    for layer in range(LAYERS):
        x = made.node("MatMul", x, weight(made, floats, layer))
        made.output(x)
        x = coded(made, x, 2.0 ** (layer - 5), 117 + 3 * layer)
    made.output(x)
    found = answer(made, cpu=cpu)
    assert found.faults(0) == []
    products = [name for name in kernels(found.lowered) if name.startswith("matmul")]
    assert len(products) == LAYERS and len(set(products)) == 1


def test_attention_shares_a_kernel_whatever_its_scales_and_zero_points(
    graph: Callable[..., Any], answer: Callable[..., Any], floats: Callable[..., Any]
) -> None:
    made = graph()
    for layer in range(LAYERS):
        q, k, v = (
            coded(
                made, made.input(floats((2, 10, 16), 3 * layer + i)), 0.02 + 0.001 * layer, 99 + i
            )
            for i in range(3)
        )
        scores = made.node("MatMul", q, made.node("Transpose", k, perm=[0, 2, 1]))
        shares = made.node("Softmax", scores, axis=-1)
        made.output(made.node("MatMul", coded(made, shares, 1 / 250 - 1e-5 * layer, 1 + layer), v))
    found = answer(made)
    # A code of the softmax more or less is a 250th of its row.
    assert found.faults(1 / 250) == []
    attention = [name for name in kernels(found.lowered) if name.startswith("attention")]
    assert len(attention) == LAYERS and len(set(attention)) == 1


def test_more_numbers_than_the_table_holds_are_written_into_the_code(
    graph: Callable[..., Any], answer: Callable[..., Any], floats: Callable[..., Any]
) -> None:
    made = graph()
    x = made.input(floats((3, 64)))
    for step in range(20):
        x = made.node("Relu", coded(made, x, 0.03 - 0.001 * step, 100 + step))
    made.output(x)
    assert answer(made).faults(0) == []
