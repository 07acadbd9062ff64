"""Summands that are codes are dequantized where they are added, bit by bit as ONNX says.

The numpy model is written from ONNX's text: DequantizeLinear is float32(q - z) · s, QuantizeLinear
is round(x / s) + z, clamped; every step in between is rounded to float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from npuc.targets.tvm import cpu_level, importer, legalize, rewrites
from npuc.targets.tvm.graph import bindings

Array = np.ndarray[Any, Any]
LEVELS = ("native", "x86-64-v3")


@dataclass(frozen=True)
class Coding:
    """Codes of one tensor: real = (code - zero) · scale."""

    dtype: str
    scale: np.float32
    zero: int

    @property
    def span(self) -> tuple[int, int]:
        """The lowest and the highest code."""
        info = np.iinfo(self.dtype)
        return info.min, info.max

    def codes(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        low, high = self.span
        return rng.integers(low, high + 1, shape).astype(self.dtype)

    def real(self, codes: Array) -> Array:
        found: Array = (codes.astype(np.int32) - self.zero).astype(np.float32)
        return found * self.scale

    def code(self, real: Array) -> Array:
        found: Array = np.clip(np.rint(real / self.scale) + self.zero, *self.span)
        return found.astype(self.dtype)

    def read(self, made: Any, codes: str) -> str:
        """Add a DequantizeLinear."""
        return str(made.node("DequantizeLinear", codes, *self._constants(made)))

    def write(self, made: Any, real: str) -> str:
        """Add a QuantizeLinear."""
        return str(made.node("QuantizeLinear", real, *self._constants(made)))

    def _constants(self, made: Any) -> tuple[str, str]:
        zero = np.array(self.zero, self.dtype)
        return made.constant(np.float32(self.scale)), made.constant(zero)


@st.composite
def codings(draw: st.DrawFn) -> Coding:
    dtype = draw(st.sampled_from(["uint8", "int8"]))
    info = np.iinfo(dtype)
    scale = np.float32(draw(st.floats(2.0**-9, 1.0, width=32)))
    return Coding(dtype, scale, draw(st.integers(info.min, info.max)))


def convolution(made: Any, x: str, weights: Array, scale: np.float32) -> str:
    """Add a 1x1 convolution of dequantized weights."""
    zero = made.constant(np.array(0, np.int8))
    w = made.node("DequantizeLinear", made.constant(weights), made.constant(scale), zero)
    return str(made.node("Conv", x, w))


def convolved(codes: Array, coding: Coding, weights: Array, scale: np.float32) -> Array:
    """Σ (x - z)·w in integers, times the product of both scales."""
    total = np.einsum(
        "bchw,oc->bohw", codes.astype(np.int64) - coding.zero, weights[:, :, 0, 0].astype(np.int64)
    )
    result: Array = total.astype(np.float32) * (coding.scale * scale)
    return result


@pytest.mark.parametrize("cpu", LEVELS)
@given(
    given=st.tuples(codings(), codings(), codings(), codings()),
    size=st.tuples(st.integers(1, 2), st.integers(1, 40), st.integers(1, 5), st.integers(1, 7)),
    seed=st.integers(0, 99),
)
@settings(
    deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_residual_block_is_exact(
    graph: Callable[..., Any],
    answer: Callable[..., Any],
    cpu: str,
    given: tuple[Coding, Coding, Coding, Coding],
    size: tuple[int, int, int, int],
    seed: int,
) -> None:
    """y = Q(relu(conv(x) + x)), then z = Q'(Q''(conv(y)) + y): what is added has two readers."""
    first, second, third, middle = given
    rng = np.random.default_rng(seed)
    channels = size[1]
    x = first.codes(size, rng)
    w = [rng.integers(-127, 128, (channels, channels, 1, 1)).astype(np.int8) for _ in range(2)]
    step = np.float32(0.01)
    made = graph()
    real = first.read(made, made.input(x))
    total = made.node("Add", real, convolution(made, real, w[0], step))
    y = second.write(made, made.node("Relu", total))
    real = second.read(made, y)
    product = middle.read(made, middle.write(made, convolution(made, real, w[1], step)))
    z = third.write(made, made.node("Add", product, real))
    made.output(y, z)

    sums = first.real(x) + convolved(x, first, w[0], step)
    codes = second.code(np.maximum(sums, np.float32(0)))
    product_codes = middle.code(convolved(codes, second, w[1], step))
    last = third.code(middle.real(product_codes) + second.real(codes))
    got = answer(made, cpu=cpu).got
    np.testing.assert_array_equal(got[y], codes)
    np.testing.assert_array_equal(got[z], last)


@pytest.mark.parametrize("cpu", LEVELS)
@given(
    given=st.tuples(codings(), codings(), codings()),
    shape=st.lists(st.integers(1, 19), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
@settings(
    deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_sum_of_codes_is_exact(
    graph: Callable[..., Any],
    answer: Callable[..., Any],
    cpu: str,
    given: tuple[Coding, Coding, Coding],
    shape: list[int],
    seed: int,
) -> None:
    """No kernel comes before the sum; of three codings, one is both added and multiplied."""
    one, two, three = given
    rng = np.random.default_rng(seed)
    a, b = one.codes(tuple(shape), rng), two.codes(tuple(shape), rng)
    made = graph()
    left, right = one.read(made, made.input(a)), two.read(made, made.input(b))
    product = made.node("Mul", made.node("Add", left, right), left)
    y = three.write(made, product)
    made.output(y)
    expected = three.code((one.real(a) + two.real(b)) * one.real(a))
    np.testing.assert_array_equal(answer(made, cpu=cpu).got[y], expected)


@pytest.mark.parametrize("cpu", LEVELS)
def test_scale_per_channel_is_exact(
    graph: Callable[..., Any], answer: Callable[..., Any], cpu: str
) -> None:
    """Images added with a scale for every channel, channels first outside and last inside."""
    rng = np.random.default_rng(0)
    scales = rng.uniform(0.01, 1, 21).astype(np.float32)
    x = Coding("uint8", np.float32(0.1), 3)
    codes = x.codes((2, 21, 5, 3), rng)
    other = rng.integers(-128, 128, codes.shape).astype(np.int8)
    w = rng.integers(-127, 128, (21, 21, 1, 1)).astype(np.int8)
    made = graph()
    left = convolution(made, x.read(made, made.input(codes)), w, np.float32(0.5))
    zero = made.constant(np.full(21, -9, np.int8))
    right = made.node("DequantizeLinear", made.input(other), made.constant(scales), zero, axis=1)
    y = made.node("Add", left, right)
    made.output(y)
    real = (other.astype(np.int32) + 9).astype(np.float32) * scales[:, None, None]
    expected = convolved(codes, x, w, np.float32(0.5)) + real
    np.testing.assert_array_equal(answer(made, cpu=cpu).got[y], expected)


def test_no_float_is_stored_between_blocks(graph: Callable[..., Any]) -> None:
    """Two residual blocks of codes: what is stored before the last convolution is codes."""
    rng = np.random.default_rng(0)
    coding = Coding("uint8", np.float32(0.05), 4)
    made = graph()
    real = coding.read(made, made.input(coding.codes((1, 16, 6, 6), rng)))
    for _ in range(2):
        w = rng.integers(-127, 128, (16, 16, 1, 1)).astype(np.int8)
        total = made.node("Add", convolution(made, real, w, np.float32(0.01)), real)
        real = coding.read(made, coding.write(made, made.node("Relu", total)))
    w = rng.integers(-127, 128, (16, 16, 1, 1)).astype(np.int8)
    made.output(convolution(made, real, w, np.float32(0.01)))
    level = cpu_level.resolve("native")
    module = importer.to_relax(rewrites.prepare(made.program().model))
    with level.target():
        done = legalize.run(module, level)
    kinds = [str(var.ty.dtype.dtype) for var, _ in bindings(done) if hasattr(var.ty, "dtype")]
    # The image channels last, both blocks; the last convolution, channels first.
    assert kinds == ["uint8"] * 3 + ["float32"] * 2
