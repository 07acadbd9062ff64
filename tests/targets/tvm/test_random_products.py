"""Matrix products of every shape, bit by bit where they are of integers.

The numpy models are written from ONNX's text, in int64 and float64; ONNX Runtime, optimizations
off, gives a second opinion. Every example holds several products, so that compiling one costs
little.
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
    "x86-64-v4",
    "x86-64-v4+avx512vnni",
    "aarch64",
    "aarch64:cortex-a76",
    "aarch64+i8mm",
)
ONCE = settings(
    deadline=None, max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SIZES = st.sampled_from((1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 31, 33, 48, 63, 66, 130, 257))
CODES = st.sampled_from(("uint8", "int8"))


def codes(numbers: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    """Return codes of a whole type's range."""
    info = np.iinfo(dtype)
    return numbers.integers(info.min, info.max + 1, size=shape).astype(dtype)


def scale(numbers: np.random.Generator) -> np.float32:
    """Return a scale."""
    return np.float32(numbers.uniform(0.001, 1))


def centred(array: Array, zero: Array) -> Array:
    """Return codes less their zero points, in int64."""
    wide: Array = array.astype(np.int64) - zero.astype(np.int64)
    return wide


@dataclass(frozen=True)
class Shape:
    """[*left, rows, depth] times [*right, depth, columns]."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    rows: int
    depth: int
    columns: int
    seed: int

    @property
    def sides(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of both sides."""
        return (*self.left, self.rows, self.depth), (*self.right, self.depth, self.columns)

    def numbers(self) -> np.random.Generator:
        """Return the source of this case's numbers."""
        return np.random.default_rng(self.seed)


BATCHES = st.sampled_from(
    (((), ()), ((2,), ()), ((3,), (3,)), ((2, 3), (2, 3)), ((2, 1), (1, 3)), ((), (2,)))
)
"""Batch dimensions of both sides, some of which are broadcast."""

SHAPES = st.builds(
    lambda batch, *rest: Shape(*batch, *rest),
    BATCHES, SIZES, SIZES, SIZES, st.integers(0, 2**32),
)  # fmt: skip
FLAT = st.builds(
    lambda left, *rest: Shape(left, (), *rest),
    st.sampled_from(((), (2,), (2, 3))), SIZES, SIZES, SIZES, st.integers(0, 2**32),
)  # fmt: skip
"""Shapes whose right side is one matrix."""

Check = Callable[[Array, Array], None]


@dataclass(frozen=True)
class Weighted:
    """Codes times constant weights with a scale per column, then a bias."""

    shape: Shape
    dtype: str
    gemm: bool
    ends: bool

    def add(self, made: Any) -> Check:
        """Write it into a graph; returns what checks the two answers."""
        shape, numbers = self.shape, self.shape.numbers()
        columns = shape.columns
        x, w = codes(numbers, self.dtype, shape.sides[0]), codes(numbers, "int8", shape.sides[1])
        if self.gemm:
            x = x.reshape(-1, shape.depth)
        b = numbers.integers(-4000, 4000, size=columns).astype(np.int32)
        zero = codes(numbers, self.dtype, ())
        sx, *rest = (scale(numbers) for _ in range(1 + columns))
        sw = np.array(rest)
        unit = sx * sw
        data = made.node("DequantizeLinear", *[made.input(x), *map(made.constant, (sx, zero))])
        none = np.zeros(columns, np.int8)
        weights = made.node(
            "DequantizeLinear",
            *map(made.constant, (w.T.copy() if self.gemm else w, sw, none)),
            axis=0 if self.gemm else 1,
        )
        bias = made.node(
            "DequantizeLinear", *map(made.constant, (b, unit, none.astype(np.int32))), axis=0
        )
        if self.gemm:
            y = made.node("Gemm", data, weights, bias, transB=1)
        else:
            y = made.node("Add", made.node("MatMul", data, weights), bias)
        expected = (centred(x, zero) @ w.astype(np.int64) + b).astype(np.int32)
        result: Array = expected.astype(np.float32) * unit
        if self.ends:
            step = np.float32(np.abs(result).max() / 100 or 1.0)
            middle = codes(numbers, self.dtype, ())
            y = made.node("QuantizeLinear", y, made.constant(step), made.constant(middle))
            info = np.iinfo(self.dtype)
            rounded = np.rint(result / step) + middle.astype(np.float32)
            result = np.clip(rounded, info.min, info.max).astype(self.dtype)
        made.output(y)

        def check(got: Array, _: Array) -> None:
            np.testing.assert_array_equal(got, result, err_msg=str(self))

        return check


@dataclass(frozen=True)
class Activations:
    """Two activations of codes, with a scale each."""

    shape: Shape
    dtypes: tuple[str, str]

    def add(self, made: Any) -> Check:
        """Write it into a graph; returns what checks the two answers."""
        numbers = self.shape.numbers()
        pairs = zip(self.dtypes, self.shape.sides, strict=True)
        sides = [(codes(numbers, t, s), codes(numbers, t, ()), scale(numbers)) for t, s in pairs]
        data = [
            made.node("DequantizeLinear", *[made.input(x), *map(made.constant, (unit, zero))])
            for x, zero, unit in sides
        ]
        made.output(made.node("MatMul", *data))
        left, right = (centred(x, zero) for x, zero, _ in sides)
        result = (left @ right).astype(np.int32).astype(np.float32) * (sides[0][2] * sides[1][2])

        def check(got: Array, _: Array) -> None:
            np.testing.assert_array_equal(got, result, err_msg=str(self))

        return check


@dataclass(frozen=True)
class Integers:
    """`MatMulInteger` of two activations, or of constant weights that may need nine bits."""

    shape: Shape
    dtypes: tuple[str, str]
    constant: bool

    def add(self, made: Any) -> Check:
        """Write it into a graph; returns what checks the two answers."""
        numbers = self.shape.numbers()
        pairs = zip(self.dtypes, self.shape.sides, strict=True)
        sides = [(codes(numbers, t, s), codes(numbers, t, ())) for t, s in pairs]
        right = made.constant(sides[1][0]) if self.constant else made.input(sides[1][0])
        zeros = [made.constant(zero) for _, zero in sides]
        made.output(made.node("MatMulInteger", made.input(sides[0][0]), right, *zeros))
        expected = centred(*sides[0]) @ centred(*sides[1])

        def check(got: Array, ort: Array) -> None:
            np.testing.assert_array_equal(got, expected, err_msg=str(self))
            np.testing.assert_array_equal(got, ort, err_msg=f"ONNX Runtime: {self}")

        return check


@dataclass(frozen=True)
class Floats:
    """A product of float32, of two activations or of constant weights."""

    shape: Shape
    constant: bool

    def add(self, made: Any) -> Check:
        """Write it into a graph; returns what checks the two answers."""
        numbers = self.shape.numbers()
        x, w = (numbers.normal(size=side).astype(np.float32) for side in self.shape.sides)
        made.output(
            made.node("MatMul", made.input(x), made.constant(w) if self.constant else made.input(w))
        )
        wide = [a.astype(np.float64) for a in (x, w)]
        expected = wide[0] @ wide[1]
        # n products added in any order are off by at most n·u·Σ|x·w| (Higham 2002, 3.1), u = 2⁻²⁴.
        room = self.shape.depth * 2.0**-24 * (np.abs(wide[0]) @ np.abs(wide[1])) * (1 + 1e-3)

        def check(got: Array, ort: Array) -> None:
            assert got.dtype == np.float32 and got.shape == expected.shape
            for name, answer in (("TVM", got), ("ONNX Runtime", ort)):
                assert (np.abs(answer - expected) <= room).all(), f"{name}: {self}"

        return check


def verify(items: list[Any], made: Any, anywhere: Callable[..., Any], cpu: str) -> None:
    """Compile all items as one program and check every answer."""
    checks = [item.add(made) for item in items]
    got, expected = anywhere(made, cpu)
    for check, name in zip(checks, made.outputs, strict=True):
        check(got[name], expected[name])


PAIRS = st.tuples(CODES, CODES)
EXACT = st.one_of(
    st.builds(Weighted, FLAT, CODES, st.booleans(), st.booleans()),
    st.builds(Activations, SHAPES, PAIRS),
    st.builds(Integers, SHAPES, PAIRS, st.just(False)),
    st.builds(Integers, FLAT, PAIRS, st.just(True)),
)


@pytest.mark.parametrize("cpu", LEVELS)
@ONCE
@given(items=st.lists(EXACT, min_size=5, max_size=7))
def test_products_of_codes_are_exact(
    graph: Callable[..., Any], anywhere: Callable[..., Any], cpu: str, items: list[Any]
) -> None:
    verify(items, graph(), anywhere, cpu)


@pytest.mark.parametrize("cpu", ("native", "x86-64-v3", "aarch64"))
@ONCE
@given(items=st.lists(st.builds(Floats, SHAPES, st.booleans()), min_size=5, max_size=7))
def test_products_of_floats(
    graph: Callable[..., Any], anywhere: Callable[..., Any], cpu: str, items: list[Floats]
) -> None:
    verify(items, graph(), anywhere, cpu)
