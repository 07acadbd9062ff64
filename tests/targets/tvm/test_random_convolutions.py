"""Convolutions of every shape, bit by bit where they are of integers.

Three programs say what is right: the numpy model below, written from ONNX's text in int64 and
float64; and ONNX Runtime with its optimizations off. Half of all integer cases have powers of two
as scales: with sums below 2²⁴, ONNX Runtime's float32 arithmetic is exact there, too.

Every example holds several convolutions, so that compiling one costs little.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Array = np.ndarray[Any, Any]
LEVELS = (
    "native",
    "x86-64-v3",
    "x86-64-v3+avxvnni",
    "aarch64:cortex-a76",
    # Further ones, whose random products are tested with every run.
    pytest.param("x86-64-v4", marks=pytest.mark.slow),
    pytest.param("x86-64-v4+avx512vnni", marks=pytest.mark.slow),
    pytest.param("aarch64", marks=pytest.mark.slow),
    pytest.param("aarch64+i8mm", marks=pytest.mark.slow),
)
ONCE = settings(
    deadline=None, max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@dataclass(frozen=True)
class Case:
    """One convolution; `own` and `out` are channels of one group."""

    batch: int
    size: tuple[int, int]
    groups: int
    own: int
    out: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int, int, int]
    seed: int
    transposed: bool = False
    more: tuple[int, int] = (0, 0)

    @property
    def channels(self) -> tuple[int, int]:
        """Input and output channels."""
        return self.groups * self.own, self.groups * self.out

    @property
    def attributes(self) -> dict[str, Any]:
        """ONNX's."""
        extra = {"output_padding": self.more} if self.transposed else {}
        return {
            "group": self.groups, "strides": self.stride, "dilations": self.dilation,
            "pads": self.pads, **extra,
        }  # fmt: skip

    def numbers(self) -> np.random.Generator:
        """Return the source of this case's numbers."""
        return np.random.default_rng(self.seed)

    def filters(self) -> tuple[int, ...]:
        """Shape of the weights."""
        first = (self.channels[0], self.out) if self.transposed else (self.channels[1], self.own)
        return (*first, *self.kernel)


FEW = st.sampled_from((1, 2, 3))
CHANNELS = st.sampled_from((1, 2, 3, 4, 5, 8, 12, 15, 16, 17, 24, 33, 40, 64, 67))


@st.composite
def cases(draw: Callable[..., Any], transposed: bool = False) -> Case:
    """A convolution with an output of at least one pixel."""
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    dilation = draw(st.tuples(FEW, FEW))
    stride = draw(st.tuples(FEW, FEW))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    top, left, bottom, right = (draw(st.integers(0, reach[axis % 2])) for axis in range(4))
    pads = (top, left, bottom, right)
    if transposed:
        more = tuple(draw(st.integers(0, s - 1)) for s in stride)
        pads = (top, left, min(bottom, reach[0]), min(right, reach[1]))
        least = [2, 2]
    else:
        more = (0, 0)
        least = [max(1, reach[a] + 1 - pads[a] - pads[a + 2]) for a in range(2)]
    size = tuple(draw(st.integers(low, low + 13)) for low in least)
    groups = draw(st.sampled_from((1, 1, 1, 2, 3, 19)))
    own, out = draw(CHANNELS), draw(CHANNELS)
    if groups == 19:
        own, out = 1, draw(st.sampled_from((1, 1, 2)))
    if transposed:
        # The model below cuts its border off afterwards: something must be left.
        full = [(size[a] - 1) * stride[a] + reach[a] + 1 + more[a] for a in range(2)]
        if full[0] <= top + pads[2] or full[1] <= left + pads[3]:
            pads = (0, 0, 0, 0)
    return Case(draw(FEW), size, groups, own, out, kernel, stride, dilation, pads,
                draw(st.integers(0, 2**32)), transposed, more)  # fmt: skip


def convolved(case: Case, x: Array, w: Array) -> Array:
    """Convolve NCHW by OIHW in the type given, tap by tap."""
    if case.transposed:
        return _transposed(case, x, w)
    top, left, bottom, right = case.pads
    x = np.pad(x, [(0, 0), (0, 0), (top, bottom), (left, right)])
    reach = [d * (k - 1) for d, k in zip(case.dilation, case.kernel, strict=True)]
    rows, columns = ((x.shape[2 + a] - reach[a] - 1) // case.stride[a] + 1 for a in range(2))
    y = np.zeros((case.batch, case.channels[1], rows, columns), x.dtype)
    for r, s in np.ndindex(case.kernel):
        down, right = r * case.dilation[0], s * case.dilation[1]
        part = x[:, :, down : down + (rows - 1) * case.stride[0] + 1 : case.stride[0]]
        part = part[..., right : right + (columns - 1) * case.stride[1] + 1 : case.stride[1]]
        y += _mixed(case, part, w[:, :, r, s])
    return y


def _mixed(case: Case, x: Array, w: Array) -> Array:
    """Multiply every pixel's channels, group by group, by w [out, in / groups]."""
    cut = x.reshape(case.batch, case.groups, case.own, *x.shape[2:])
    weights = w.reshape(case.groups, case.out, case.own)
    mixed: Array = np.einsum("bgchw,goc->bgohw", cut, weights)
    return mixed.reshape(case.batch, case.channels[1], *x.shape[2:])


def _transposed(case: Case, x: Array, w: Array) -> Array:
    """Add every input value, times the filter, to the pixels it reaches; then cut the border."""
    reach = [d * (k - 1) for d, k in zip(case.dilation, case.kernel, strict=True)]
    full = [(case.size[a] - 1) * case.stride[a] + reach[a] + 1 + case.more[a] for a in range(2)]
    y = np.zeros((case.batch, case.channels[1], *full), x.dtype)
    # [in, out / groups] of each group → [out, in / groups]
    turned = w.reshape(case.groups, case.own, case.out, *case.kernel).swapaxes(1, 2)
    turned = turned.reshape(case.channels[1], case.own, *case.kernel)
    for r, s in np.ndindex(case.kernel):
        down, right = r * case.dilation[0], s * case.dilation[1]
        rows = slice(down, down + (case.size[0] - 1) * case.stride[0] + 1, case.stride[0])
        columns = slice(right, right + (case.size[1] - 1) * case.stride[1] + 1, case.stride[1])
        y[:, :, rows, columns] += _mixed(case, x, turned[:, :, r, s])
    top, left, bottom, right = case.pads
    return y[:, :, top : full[0] - bottom, left : full[1] - right]


def codes(numbers: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    """Return codes of a whole type's range."""
    info = np.iinfo(dtype)
    return numbers.integers(info.min, info.max + 1, size=shape).astype(dtype)


def scale(numbers: np.random.Generator, exact: bool) -> np.float32:
    """Return a scale, or with `exact` a power of two."""
    drawn = 2.0 ** numbers.integers(-6, 2) if exact else numbers.uniform(0.01, 1)
    return np.float32(drawn)


@dataclass(frozen=True)
class Quantized:
    """A convolution of codes with what follows it, and the answers the model gives."""

    case: Case
    dtype: str
    exact: bool
    ends: bool

    def add(self, made: Any) -> Callable[[Any, Any], None]:
        """Write it into a graph; returns what checks the two answers."""
        case, numbers = self.case, self.case.numbers()
        x = codes(numbers, self.dtype, (case.batch, case.channels[0], *case.size))
        w = codes(numbers, "int8", case.filters())
        out = case.channels[1]
        b = numbers.integers(-4000, 4000, size=out).astype(np.int32)
        zero = codes(numbers, self.dtype, ())
        sx, *rest = (scale(numbers, self.exact) for _ in range(1 + out))
        sw = np.array(rest)
        unit = sx * sw
        axis = 1 if case.transposed else 0
        repeat = case.groups if case.transposed else 1
        if repeat > 1:
            # ONNX has one scale per channel of a group, which the groups share.
            sw, unit = sw[: case.out], np.tile(unit[: case.out], repeat)
        data = made.node("DequantizeLinear", made.input(x), made.constant(sx), made.constant(zero))
        weights = made.node(
            "DequantizeLinear", made.constant(w), made.constant(sw),
            made.constant(np.zeros(sw.size, np.int8)), axis=axis,
        )  # fmt: skip
        bias = made.node(
            "DequantizeLinear", made.constant(b), made.constant(unit),
            made.constant(np.zeros(out, np.int32)), axis=0,
        )  # fmt: skip
        op = "ConvTranspose" if case.transposed else "Conv"
        y = made.node(op, data, weights, bias, **case.attributes)
        centred = x.astype(np.int64) - int(zero)
        total = convolved(case, centred, w.astype(np.int64)) + b[:, None, None]
        # The largest sum on the way to any output, in any order.
        bound = convolved(case, np.abs(centred), np.abs(w.astype(np.int64))).max() + 4000
        expected = total.astype(np.int32).astype(np.float32) * unit[:, None, None]
        if self.ends:
            step = np.float32(np.abs(expected).max() / 100 or 1.0)
            middle = np.uint8(numbers.integers(0, 256))
            y = made.node("Relu", y)
            y = made.node("QuantizeLinear", y, made.constant(step), made.constant(middle))
            rounded = np.rint(np.maximum(expected, 0) / step) + float(middle)
            expected = np.clip(rounded, 0, 255).astype(np.uint8)
        made.output(y)

        def check(got: Array, ort: Array) -> None:
            np.testing.assert_array_equal(got, expected, err_msg=str(self))
            if self.exact and bound < 2**24:
                np.testing.assert_array_equal(got, ort, err_msg=f"ONNX Runtime: {self}")

        return check


def quantized(transposed: bool = False) -> Any:
    """Return a strategy of a few convolutions of codes."""
    one = st.builds(
        Quantized, cases(transposed), st.sampled_from(("uint8", "int8")), st.booleans(),
        st.booleans(),
    )  # fmt: skip
    return st.lists(one, min_size=4, max_size=6)


def verify(items: list[Any], made: Any, anywhere: Callable[..., Any], cpu: str) -> None:
    """Compile all items as one program and check every answer."""
    checks = [item.add(made) for item in items]
    got, expected = anywhere(made, cpu)
    for check, name in zip(checks, made.outputs, strict=True):
        check(got[name], expected[name])


@pytest.mark.parametrize("cpu", LEVELS)
@ONCE
@given(items=quantized())
def test_convolutions_of_codes_are_exact(
    graph: Callable[..., Any], anywhere: Callable[..., Any], cpu: str, items: list[Quantized]
) -> None:
    verify(items, graph(), anywhere, cpu)


@pytest.mark.parametrize("cpu", ("native", "x86-64-v3", "aarch64"))
@ONCE
@given(items=quantized(transposed=True))
def test_transposed_convolutions_of_codes_are_exact(
    graph: Callable[..., Any], anywhere: Callable[..., Any], cpu: str, items: list[Quantized]
) -> None:
    verify(items, graph(), anywhere, cpu)


@dataclass(frozen=True)
class Integers:
    """`ConvInteger`, whose weights less their zero points may need nine bits."""

    case: Case
    dtype: str
    weights: str

    def add(self, made: Any) -> Callable[[Any, Any], None]:
        """Write it into a graph; returns what checks the two answers."""
        case, numbers = self.case, self.case.numbers()
        x = codes(numbers, self.dtype, (case.batch, case.channels[0], *case.size))
        w = codes(numbers, self.weights, case.filters())
        zeros = codes(numbers, self.dtype, ()), codes(numbers, self.weights, ())
        constants = [made.constant(a) for a in (w, *zeros)]
        made.output(made.node("ConvInteger", made.input(x), *constants, **case.attributes))
        expected = convolved(
            case, x.astype(np.int64) - int(zeros[0]), w.astype(np.int64) - int(zeros[1])
        )

        def check(got: Array, ort: Array) -> None:
            np.testing.assert_array_equal(got, expected, err_msg=str(self))
            np.testing.assert_array_equal(got, ort, err_msg=f"ONNX Runtime: {self}")

        return check


@pytest.mark.parametrize("cpu", LEVELS)
@ONCE
@given(
    items=st.lists(
        st.builds(Integers, cases(), *[st.sampled_from(("uint8", "int8"))] * 2),
        min_size=4, max_size=6,
    )
)  # fmt: skip
def test_integer_convolutions_are_exact(
    graph: Callable[..., Any], anywhere: Callable[..., Any], cpu: str, items: list[Integers]
) -> None:
    verify(items, graph(), anywhere, cpu)


@dataclass(frozen=True)
class Floats:
    """A convolution of float32."""

    case: Case

    def add(self, made: Any) -> Callable[[Any, Any], None]:
        """Write it into a graph; returns what checks the two answers."""
        case, numbers = self.case, self.case.numbers()
        x = numbers.normal(size=(case.batch, case.channels[0], *case.size)).astype(np.float32)
        w = numbers.normal(size=case.filters()).astype(np.float32)
        op = "ConvTranspose" if case.transposed else "Conv"
        made.output(made.node(op, made.input(x), made.constant(w), **case.attributes))
        wide = x.astype(np.float64), w.astype(np.float64)
        expected = convolved(case, *wide)
        # n products added in any order are off by at most n·u·Σ|x·w| (Higham 2002, 3.1), u = 2⁻²⁴.
        terms = case.own * case.kernel[0] * case.kernel[1]
        room = terms * 2.0**-24 * convolved(case, *(np.abs(a) for a in wide)) * (1 + 1e-3)

        def check(got: Array, ort: Array) -> None:
            assert got.dtype == np.float32 and got.shape == expected.shape
            for name, answer in (("TVM", got), ("ONNX Runtime", ort)):
                assert (np.abs(answer - expected) <= room).all(), f"{name}: {self}"

        return check


@pytest.mark.parametrize("cpu", ("native", "x86-64-v3", "aarch64"))
@ONCE
@given(items=st.lists(st.builds(Floats, st.booleans().flatmap(cases)), min_size=4, max_size=6))
def test_convolutions_of_floats(
    graph: Callable[..., Any], anywhere: Callable[..., Any], cpu: str, items: list[Floats]
) -> None:
    verify(items, graph(), anywhere, cpu)
