"""Whole networks compiled for aarch64, run under qemu: threads, chains of kernels, functions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

CPUS = ("aarch64", "aarch64:cortex-a76")


def quantized(graph: Callable[..., Any], floats: Callable[..., Any]) -> Any:
    """Return a residual network of codes, its last result float."""
    made = graph()
    step, zero = made.constant(np.float32(0.03)), made.constant(np.uint8(120))

    def codes(x: Any) -> Any:
        return made.node("DequantizeLinear", made.node("QuantizeLinear", x, step, zero), step, zero)

    def layer(x: Any, *shape: int, **attributes: Any) -> Any:
        weights = np.clip(np.rint(floats(shape, shape[0]) * 40), -127, 127).astype(np.int8)
        scales = np.linspace(0.001, 0.003, shape[0]).astype(np.float32)
        none = made.constant(np.zeros(shape[0], np.int8))
        w = made.node(
            "DequantizeLinear", made.constant(weights), made.constant(scales), none, axis=0
        )
        return codes(made.node("Relu", made.node("Conv", x, w, **attributes)))

    first = layer(codes(made.input(floats((2, 3, 21, 19)))), 40, 3, 3, 3, pads=[1] * 4)
    deep = layer(first, 40, 1, 3, 3, group=40, pads=[1] * 4)
    deep = layer(deep, 40, 40, 1, 1)
    joined = codes(made.node("Add", first, deep))
    last = layer(joined, 21, 40, 3, 3, strides=[2, 2], dilations=[2, 2])
    made.output(last, made.node("GlobalAveragePool", last))
    return made


def block(graph: Callable[..., Any], floats: Callable[..., Any]) -> Any:
    """Return attention, normalization and a gate, in float32."""
    made = graph()
    x = made.input(floats((2, 9, 48)))
    ones = made.constant(np.ones(48, np.float32)), made.constant(np.zeros(48, np.float32))
    normed = made.node("LayerNormalization", x, *ones)
    heads = made.node("MatMul", normed, made.constant(floats((48, 144), 1) * np.float32(0.1)))
    q, k, v = made.node("Split", heads, outputs=3, axis=2, num_outputs=3)
    scores = made.node("MatMul", q, made.node("Transpose", k, perm=[0, 2, 1]))
    mixed = made.node("MatMul", made.node("Softmax", scores), v)
    made.output(made.node("Gelu", made.node("Add", mixed, x)), made.node("Exp", mixed))
    return made


@pytest.mark.parametrize("cpu", CPUS)
def test_codes_are_the_same_bits_as_here(
    graph: Callable[..., Any], floats: Callable[..., Any], anywhere: Callable[..., Any], cpu: str
) -> None:
    here, _ = anywhere(quantized(graph, floats), "native")
    there, _ = anywhere(quantized(graph, floats), cpu)
    for name, expected in here.items():
        assert np.unique(expected).size > 20, "the network should compute something"
        np.testing.assert_array_equal(there[name], expected)


@pytest.mark.parametrize("cpu", CPUS)
def test_floats_are_right(
    graph: Callable[..., Any], floats: Callable[..., Any], anywhere: Callable[..., Any], cpu: str
) -> None:
    got, expected = anywhere(block(graph, floats), cpu)
    for name, right in expected.items():
        # Sums of up to 48 terms, twice, and exp: some 20 roundings of 2⁻²⁴, of the peak.
        np.testing.assert_allclose(got[name], right, rtol=0, atol=2e-6 * np.abs(right).max())
