"""Convolutions of random geometry: float32 against ONNX Runtime, codes bit by bit.

With scales that are powers of two and few products, ONNX Runtime's float arithmetic on dequantized
codes is exact, too: no rounding hides a wrong zero point on a border.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TOLERANCE = 4e-6
"""Of the peak: sums of up to some hundred terms in another order."""

PROFILE = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@dataclass(frozen=True)
class Case:
    batch: int
    size: tuple[int, int]
    per_group: int
    out_per_group: int
    groups: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int, int, int]

    @property
    def channels(self) -> int:
        return self.per_group * self.groups

    @property
    def out(self) -> int:
        return self.out_per_group * self.groups

    @property
    def attributes(self) -> dict[str, Any]:
        return {
            "strides": list(self.stride),
            "dilations": list(self.dilation),
            "pads": list(self.pads),
            "group": self.groups,
        }


@st.composite
def cases(draw: Any) -> Case:
    small, odd = st.integers(1, 3), st.sampled_from([1, 2, 3, 4, 5, 8, 12, 16, 17, 20, 33])
    kind = draw(st.sampled_from(["plain", "plain", "depthwise", "grouped"]))
    groups = {"plain": 1, "depthwise": draw(odd), "grouped": draw(st.integers(2, 4))}[kind]
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (5, 5), (2, 4), (1, 7), (7, 7)]))
    dilation = (draw(small), draw(small)) if draw(st.booleans()) else (1, 1)
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    pads = tuple(draw(st.integers(0, min(r, 4))) for r in (*reach, *reach))
    low = [max(1, r + 1 - pads[i] - pads[i + 2]) for i, r in enumerate(reach)]
    size = tuple(draw(st.integers(v, v + 19)) for v in low)
    return Case(
        draw(st.integers(1, 2)),
        (size[0], size[1]),
        1 if kind == "depthwise" else draw(odd),
        1 if kind == "depthwise" else draw(odd),
        groups,
        kernel,
        (draw(small), draw(small)),
        dilation,
        (pads[0], pads[1], pads[2], pads[3]),
    )


@pytest.mark.parametrize("cpu", ["native", "x86-64-v3"])
@PROFILE
@given(case=cases())
def test_floats(
    graph: Callable[..., Any],
    answer: Callable[..., Any],
    floats: Callable[..., Any],
    cpu: str,
    case: Case,
) -> None:
    made = graph()
    x = made.input(floats((case.batch, case.channels, *case.size)))
    w = made.constant(floats((case.out, case.per_group, *case.kernel), 1))
    y = made.node("Conv", x, w, made.constant(floats((case.out,), 2)), **case.attributes)
    made.output(made.node("Relu", y))
    assert answer(made, cpu=cpu).faults(TOLERANCE) == []


@pytest.mark.parametrize("cpu", ["native", "x86-64-v3"])
@PROFILE
@given(case=cases(), signed=st.booleans(), zero=st.sampled_from([0, 3, 127]))
def test_codes(
    graph: Callable[..., Any],
    answer: Callable[..., Any],
    cpu: str,
    case: Case,
    signed: bool,
    zero: int,
) -> None:
    rng = np.random.default_rng(0)
    dtype = np.int8 if signed else np.uint8
    made = graph()

    def dequantized(array: Any, scale: float, offset: int) -> Any:
        scale_, offset_ = np.float32(scale), np.array(offset, array.dtype)
        name = made.constant(array) if array.ndim < 5 else made.input(array[0])
        return made.node("DequantizeLinear", name, made.constant(scale_), made.constant(offset_))

    info = np.iinfo(dtype)
    codes = rng.integers(info.min, info.max + 1, (1, case.batch, case.channels, *case.size))
    x = dequantized(codes.astype(dtype), 2.0**-4, zero)
    shape = (case.out, case.per_group, *case.kernel)
    w = dequantized(rng.integers(-12, 13, shape).astype(np.int8), 2.0**-5, 0)
    y = made.node("Conv", x, w, **case.attributes)
    made.output(y)
    scale, middle = made.constant(np.float32(0.37)), made.constant(np.uint8(100))
    made.output(made.node("QuantizeLinear", made.node("Relu", y), scale, middle))
    assert answer(made, cpu=cpu).faults(0.0) == []


@pytest.mark.parametrize("cpu", ["native", "x86-64-v3"])
def test_lines_of_any_length_are_exact(
    graph: Callable[..., Any], answer: Callable[..., Any], cpu: str
) -> None:
    rng, made = np.random.default_rng(0), graph()
    one, none = made.constant(np.float32(0.5)), made.constant(np.uint8(3))
    zero = made.constant(np.int8(0))
    scale, middle = made.constant(np.float32(7.3)), made.constant(np.uint8(100))
    filters = made.constant(rng.integers(-12, 13, (64, 5, 3, 3)).astype(np.int8))
    weights = made.node("DequantizeLinear", filters, one, zero)
    for width in (3, 6, 7, 9, 10, 13, 14, 18, 22):
        codes = made.input(rng.integers(0, 256, (1, 5, 4, width)).astype(np.uint8))
        data = made.node("DequantizeLinear", codes, one, none)
        sums = made.node("Conv", data, weights, pads=[1, 1, 1, 1])
        made.output(made.node("QuantizeLinear", sums, scale, middle))
    assert answer(made, cpu=cpu).faults(0.0) == []


@pytest.mark.parametrize("cpu", ["native", "x86-64-v3"])
@pytest.mark.parametrize("added", [False, True])
def test_what_no_integer_holds_is_saturated(
    graph: Callable[..., Any], answer: Callable[..., Any], cpu: str, added: bool
) -> None:
    rng, made = np.random.default_rng(0), graph()
    one, zero, none = (made.constant(np.array(v)) for v in (np.float32(1), np.int8(0), np.uint8(0)))
    large = made.constant(np.float32(2.0**20))
    codes = rng.integers(-127, 128, (64, 8, 1, 1)).astype(np.int8)
    weights = made.node("DequantizeLinear", made.constant(codes), one, zero)
    data = rng.integers(0, 256, (1, 8, 4, 4)).astype(np.uint8)
    # Sums are multiplied by less than one, which fits whatever they are, and by millions.
    for step, dtype, middle in ((2e4, np.uint8, 9), (3.0, np.int8, -7), (2e-7, np.int8, -90)):
        x = made.node("DequantizeLinear", made.input(data), one, none)
        sums = made.node("Conv", x, weights)
        if added:
            more = made.input(rng.integers(0, 256, (1, 64, 4, 4)).astype(np.uint8))
            sums = made.node("Add", sums, made.node("DequantizeLinear", more, large, none))
        scale, offset = made.constant(np.float32(step)), made.constant(np.array(middle, dtype))
        made.output(made.node("QuantizeLinear", sums, scale, offset))
    assert answer(made, cpu=cpu).faults(0.0) == []


@st.composite
def transposed(draw: Any) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """Shapes of an input and of filters, and attributes."""
    odd = st.sampled_from([1, 3, 4, 8, 17, 20])
    groups = draw(st.sampled_from([1, 1, 2]))
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    strides = [draw(st.integers(1, 3)) for _ in range(2)]
    pads = [draw(st.integers(0, k - 1)) for k in (*kernel, *kernel)]
    more = [draw(st.integers(0, s - 1)) for s in strides]
    channels, out = draw(odd) * groups, draw(odd)
    size = [draw(st.integers(3, 12)) for _ in range(2)]
    attributes = {"strides": strides, "pads": pads, "output_padding": more, "group": groups}
    return (2, channels, *size), (channels, out, *kernel), attributes


@pytest.mark.parametrize("codes", [False, True])
@PROFILE
@given(case=transposed())
def test_transposed(
    graph: Callable[..., Any],
    answer: Callable[..., Any],
    floats: Callable[..., Any],
    codes: bool,
    case: Any,
) -> None:
    size, filters, attributes = case
    made = graph()
    x, w = floats(size), floats(filters, 1)
    if codes:
        step, zero = made.constant(np.float32(2.0**-4)), made.constant(np.uint8(7))
        data = made.input((np.abs(x) * 90).astype(np.uint8))
        data = made.node("DequantizeLinear", data, step, zero)
        none = made.constant(np.int8(0))
        weights = made.constant(np.round(np.clip(w, -3, 3) * 4).astype(np.int8))
        weights = made.node("DequantizeLinear", weights, step, none)
    else:
        data, weights = made.input(x), made.constant(w)
    y = made.node("ConvTranspose", data, weights, **attributes)
    made.output(y)
    made.output(
        made.node("Conv", y, made.constant(floats((2, filters[1] * attributes["group"], 1, 1))))
    )
    assert answer(made).faults(TOLERANCE) == []
