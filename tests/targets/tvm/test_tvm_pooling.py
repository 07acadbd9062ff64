"""Pools of random windows between convolutions, of floats and of codes, against ONNX Runtime."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TOLERANCE = 4e-6
"""Of the peak: sums of up to some dozens of terms in another order."""

PROFILE = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def windows(draw: Any) -> dict[str, Any]:
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    pads = [draw(st.integers(0, k - 1)) for k in (*kernel, *kernel)]
    strides = [draw(st.integers(1, 3)) for _ in range(2)]
    return {"kernel_shape": kernel, "pads": pads, "strides": strides}


@pytest.mark.parametrize("cpu", ["native", "x86-64-v3"])
@PROFILE
@given(
    window=windows(),
    channels=st.sampled_from([1, 3, 16, 21, 64, 70]),
    operator=st.sampled_from(["MaxPool", "AveragePool"]),
    quantized=st.booleans(),
    shared=st.booleans(),
    size=st.tuples(st.integers(8, 15), st.integers(8, 15)),
)
def test_between_convolutions(
    graph: Callable[..., Any],
    answer: Callable[..., Any],
    floats: Callable[..., Any],
    cpu: str,
    window: dict[str, Any],
    channels: int,
    operator: str,
    quantized: bool,
    shared: bool,
    size: tuple[int, int],
) -> None:
    """`shared` gives the pool a reader of floats beside the quantization."""
    made = graph()
    x = made.input(floats((2, 2, *size)))
    x = made.node("Conv", x, made.constant(floats((channels, 2, 1, 1), 1)))
    extra = {"count_include_pad": 0} if operator == "AveragePool" else {}
    y = made.node(operator, x, **window, **extra)
    if quantized:
        scale, zero = made.constant(np.float32(0.03125)), made.constant(np.uint8(128))
        codes = made.node("QuantizeLinear", y, scale, zero)
        if shared:
            made.output(made.node("Relu", y))
        # A maximum is exact, a mean is rounded in another order: its codes may differ by one.
        made.output(codes if operator == "MaxPool" else made.node("Identity", y))
        y = made.node("DequantizeLinear", codes, scale, zero)
    if operator == "MaxPool" or not quantized:
        made.output(made.node("Conv", y, made.constant(floats((3, channels, 1, 1), 2))))
    assert answer(made, cpu=cpu).faults(TOLERANCE) == []


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("width", [8, 33])
@pytest.mark.parametrize("signed", [None, True, False])
def test_images_of_few_channels(
    graph: Callable[..., Any],
    answer: Callable[..., Any],
    floats: Callable[..., Any],
    channels: int,
    width: int,
    signed: bool | None,
) -> None:
    """A first layer reads the image as it comes, quantized or not, with a border of zero points."""
    made = graph()
    x = made.input(floats((2, channels, 9, width)))
    weights = floats((5, channels, 3, 3), 1)
    if signed is None:
        w = made.constant(weights)
    else:
        zero = made.constant(np.int8(-7) if signed else np.uint8(200))
        scale = made.constant(np.float32(0.03125))
        x = made.node("DequantizeLinear", made.node("QuantizeLinear", x, scale, zero), scale, zero)
        codes = made.constant(np.round(weights * 4).astype(np.int8))
        step, none = made.constant(np.float32(0.25)), made.constant(np.int8(0))
        w = made.node("DequantizeLinear", codes, step, none)
    made.output(made.node("Conv", x, w, pads=[1, 2, 1, 0], strides=[2, 1]))
    assert answer(made).faults(TOLERANCE if signed is None else 0.0) == []
