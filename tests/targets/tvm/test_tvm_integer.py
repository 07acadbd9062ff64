"""The integer path is exact: int32 sums, one float32 multiplication, checked bit by bit in numpy.

The numpy model is written from ONNX's text (DequantizeLinear, Conv, MatMul), not from the kernels:
y = float32(Σ (x - zx)·w + b) · (sx·sw), with the sum in 64 bits.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Array = np.ndarray[Any, Any]
LEVELS = ("native", "x86-64-v3")


def codes(dtype: str, shape: tuple[int, ...], seed: int) -> Array:
    info = np.iinfo(dtype)
    made = np.random.default_rng(seed).integers(info.min, info.max + 1, size=shape)
    return made.astype(dtype)


def scales(count: int) -> Array:
    return np.random.default_rng(3).uniform(0.001, 0.1, size=count).astype(np.float32)


def real(total: Array, unit: Any) -> Array:
    assert np.abs(total).max() < 2**31
    result: Array = total.astype(np.int32).astype(np.float32) * unit
    return result


def convolved(x: Array, w: Array, pads: int, stride: int, group: int) -> Array:
    """Convolve integers of NCHW with OIHW in int64, tap by tap."""
    x = np.pad(x.astype(np.int64), [(0, 0), (0, 0), (pads, pads), (pads, pads)])
    out, own, high, wide = w.shape
    rows = (x.shape[2] - high) // stride + 1
    columns = (x.shape[3] - wide) // stride + 1
    y = np.zeros((x.shape[0], out, rows, columns), np.int64)
    for o in range(out):
        first = o // (out // group) * own
        for r in range(high):
            for s in range(wide):
                part = x[:, first : first + own, r : r + rows * stride : stride]
                part = part[:, :, :rows, s : s + columns * stride : stride][:, :, :, :columns]
                y[:, o] += np.einsum("bchw,c->bhw", part, w[o, :, r, s].astype(np.int64))
    return y


@pytest.mark.parametrize("cpu", LEVELS)
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize(
    ("channels", "out", "group", "kernel", "stride"),
    [(3, 20, 1, 3, 1), (16, 17, 1, 1, 1), (24, 24, 24, 3, 2), (8, 12, 4, 3, 1), (6, 12, 6, 3, 1)],
)
def test_convolution_is_exact(
    graph: Callable[..., Any],
    answer: Callable[..., Any],
    cpu: str,
    dtype: str,
    channels: int,
    out: int,
    group: int,
    kernel: int,
    stride: int,
) -> None:
    x = codes(dtype, (2, channels, 9, 8), 0)
    w = codes("int8", (out, channels // group, kernel, kernel), 1)
    b = np.random.default_rng(2).integers(-(2**20), 2**20, size=out).astype(np.int32)
    zero = np.array(7 if dtype == "uint8" else -5, dtype)
    sx, sw = np.float32(0.043), scales(out)
    made = graph()
    data = made.node("DequantizeLinear", made.input(x), made.constant(sx), made.constant(zero))
    weights = made.node(
        "DequantizeLinear", made.constant(w), made.constant(sw),
        made.constant(np.zeros(out, np.int8)), axis=0,
    )  # fmt: skip
    bias = made.node(
        "DequantizeLinear", made.constant(b), made.constant(sx * sw),
        made.constant(np.zeros(out, np.int32)), axis=0,
    )  # fmt: skip
    pads = kernel // 2
    made.output(
        made.node("Conv", data, weights, bias, group=group, pads=[pads] * 4, strides=[stride] * 2)
    )
    total = convolved(x.astype(np.int64) - int(zero), w, pads, stride, group)
    expected = real(total + b[:, None, None], (sx * sw)[:, None, None])
    (got,) = answer(made, cpu=cpu).got.values()
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("cpu", LEVELS)
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("depth", [5, 64, 2050])
def test_product_with_weights_is_exact(
    graph: Callable[..., Any], answer: Callable[..., Any], cpu: str, dtype: str, depth: int
) -> None:
    """At depth 2050 sums pass 2²⁴, where float32 stops holding every integer."""
    x, w = codes(dtype, (3, depth), 0), codes("int8", (depth, 19), 1)
    x[0], w[:, 0] = np.iinfo(dtype).max, 127
    zero = np.array(3, dtype)
    sx, sw = np.float32(0.043), scales(19)
    made = graph()
    data = made.node("DequantizeLinear", made.input(x), made.constant(sx), made.constant(zero))
    weights = made.node(
        "DequantizeLinear", made.constant(w), made.constant(sw),
        made.constant(np.zeros(19, np.int8)), axis=1,
    )  # fmt: skip
    made.output(made.node("MatMul", data, weights))
    total = (x.astype(np.int64) - int(zero)) @ w.astype(np.int64)
    if depth == 2050:
        assert np.abs(total).max() > 2**24
    (got,) = answer(made, cpu=cpu).got.values()
    np.testing.assert_array_equal(got, real(total, sx * sw))


def test_gemm_with_transposed_weights_and_bias_is_exact(
    graph: Callable[..., Any], answer: Callable[..., Any]
) -> None:
    x, w = codes("uint8", (4, 33), 0), codes("int8", (10, 33), 1)
    b = np.arange(-5, 5).astype(np.int32) * 1000
    sx, sw = np.float32(0.02), scales(10)
    made = graph()
    data = made.node(
        "DequantizeLinear", made.input(x), made.constant(sx), made.constant(np.uint8(128))
    )
    weights = made.node(
        "DequantizeLinear", made.constant(w), made.constant(sw),
        made.constant(np.zeros(10, np.int8)), axis=0,
    )  # fmt: skip
    bias = made.node(
        "DequantizeLinear", made.constant(b), made.constant(sx * sw),
        made.constant(np.zeros(10, np.int32)), axis=0,
    )  # fmt: skip
    made.output(made.node("Gemm", data, weights, bias, transB=1))
    total = (x.astype(np.int64) - 128) @ w.T.astype(np.int64) + b
    (got,) = answer(made).got.values()
    np.testing.assert_array_equal(got, real(total, sx * sw))


def test_product_of_two_activations_is_exact(
    graph: Callable[..., Any], answer: Callable[..., Any]
) -> None:
    a, b = codes("uint8", (2, 3, 5, 300), 0), codes("int8", (2, 3, 300, 21), 1)
    sa, sb = np.float32(0.02), np.float32(0.07)
    made = graph()
    left = made.node(
        "DequantizeLinear", made.input(a), made.constant(sa), made.constant(np.uint8(9))
    )
    right = made.node(
        "DequantizeLinear", made.input(b), made.constant(sb), made.constant(np.int8(-4))
    )
    made.output(made.node("MatMul", left, right))
    total = (a.astype(np.int64) - 9) @ (b.astype(np.int64) + 4)
    (got,) = answer(made).got.values()
    np.testing.assert_array_equal(got, real(total, sa * sb))


def test_transposed_convolution_is_exact(
    graph: Callable[..., Any], answer: Callable[..., Any]
) -> None:
    x, w = codes("uint8", (1, 6, 5, 4), 0), codes("int8", (6, 5, 2, 2), 1)
    sx, sw = np.float32(0.02), scales(5)
    made = graph()
    data = made.node(
        "DequantizeLinear", made.input(x), made.constant(sx), made.constant(np.uint8(20))
    )
    weights = made.node(
        "DequantizeLinear", made.constant(w), made.constant(sw),
        made.constant(np.zeros(5, np.int8)), axis=1,
    )  # fmt: skip
    made.output(made.node("ConvTranspose", data, weights, strides=[2, 2]))
    total = np.zeros((1, 5, 10, 8), np.int64)
    for r in range(2):
        for s in range(2):
            part = np.einsum(
                "bchw,co->bohw", x.astype(np.int64) - 20, w[:, :, r, s].astype(np.int64)
            )
            total[:, :, r::2, s::2] = part
    (got,) = answer(made).got.values()
    np.testing.assert_array_equal(got, real(total, (sx * sw)[:, None, None]))


def test_requantization_is_onnx_quantize_linear(
    graph: Callable[..., Any], answer: Callable[..., Any]
) -> None:
    """Conv → Relu → QuantizeLinear in one kernel: ties to even, saturation, both exactly."""
    x, w = codes("uint8", (1, 8, 12, 12), 0), codes("int8", (16, 8, 3, 3), 1)
    sx, sw, sy = np.float32(0.25), np.full(16, 0.5, np.float32), np.float32(8.0)
    made = graph()
    data = made.node(
        "DequantizeLinear", made.input(x), made.constant(sx), made.constant(np.uint8(100))
    )
    weights = made.node(
        "DequantizeLinear", made.constant(w), made.constant(sw),
        made.constant(np.zeros(16, np.int8)), axis=0,
    )  # fmt: skip
    relu = made.node("Relu", made.node("Conv", data, weights))
    made.output(made.node("QuantizeLinear", relu, made.constant(sy), made.constant(np.uint8(3))))
    y = np.maximum(real(convolved(x.astype(np.int64) - 100, w, 0, 1, 1), sx * sw[:, None, None]), 0)
    halves = np.mod(y / sy, 1) == 0.5
    assert halves.sum() > 5, "the test should meet ties"
    expected = np.clip(np.rint(y / sy) + 3, 0, 255).astype(np.uint8)
    assert (expected == 255).any()
    (got,) = answer(made).got.values()
    np.testing.assert_array_equal(got, expected)
