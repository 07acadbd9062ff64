"""decompose: elementwise operators by one another."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from npuc.passes.base import run
from npuc.passes.decompose import Decompose
from npuc.profile import Limit
from npuc.program import Program
from npuc.runners import OnnxRunner

XY = "(float[2,4,6] x, float[4,6] z) => (float[A,B,C] y) "
# (body, what the device has, what it becomes, tolerance)
CASES: dict[str, tuple[str, str, str, float]] = {
    "Neg": ("{ y = Neg(x) }", "Mul", "Mul", 0),
    "Neg by Sub": ("{ y = Neg(x) }", "Sub", "Sub", 0),
    "Sub": ("{ y = Sub(x, z) }", "Add Neg", "Neg Add", 0),
    "Sub constant": ("<float c = {0.3}> { y = Sub(x, c) }", "Add", "Add", 0),
    "Div by two": ("<float c = {2}> { y = Div(x, c) }", "Mul", "Mul", 0),
    # One rounding more, on values below 4 / 0.3.
    "Div by 0.3": ("<float c = {0.3}> { y = Div(x, c) }", "Mul", "Mul", 2e-6),
    "Reciprocal": (
        "<float c = {9}> { h = Add(x, c) y = Reciprocal(h) }",
        "Add Div",
        "Add Div",
        0,
    ),
    "Sqrt": ("{ h = Mul(x, x) y = Sqrt(h) }", "Mul Pow", "Mul Pow", 1e-6),
    "Pow 2": ("<float c = {2}> { y = Pow(x, c) }", "Mul", "Mul", 0),
    # x·x·x rounds twice, on values below 40.
    "Pow 3": ("<float c = {3}> { y = Pow(x, c) }", "Mul", "Mul Mul", 8e-6),
    "Pow -1/2": (
        "<float c = {-0.5}, float d = {9}> { h = Add(x, d) y = Pow(h, c) }",
        "Add Sqrt Reciprocal",
        "Add Sqrt Reciprocal",
        1e-6,
    ),
    "Sum": ("{ y = Sum(x, z, x) }", "Add", "Add Add", 0),
    "Mean": ("{ y = Mean(x, z, x) }", "Add Mul", "Add Add Mul", 1e-6),
    "Min of three": ("{ y = Min(x, z, x) }", "Neg Max", "Neg Neg Neg Max Neg", 0),
    "Max with a number": ("<float c = {0.3}> { y = Max(x, c) }", "Clip", "Clip", 0),
    "Min with a number": ("<float c = {0.3}> { y = Min(c, x) }", "Clip", "Clip", 0),
    "Max with zero": ("<float c = {0}> { y = Max(x, c) }", "Relu", "Relu", 0),
    "Clip to Relu": ("<float c = {0}> { y = Clip(x, c) }", "Relu", "Relu", 0),
    "Clip": ("<float a = {-1}, float b = {1}> { y = Clip(x, a, b) }", "Min Max", "Max Min", 0),
    # 1 - (1 - x) rounds x to a multiple of 2^-24.
    "Clip by Relus": (
        "<float a = {0}, float b = {1}> { y = Clip(x, a, b) }",
        "Sub Relu",
        "Relu Sub Relu Sub",
        1e-7,
    ),
    "Abs": ("{ y = Abs(x) }", "Max Neg", "Neg Max", 0),
    "Where, two tensors": (
        "<bool[4,1] m = {1, 0, 1, 0}> { y = Where(m, x, z) }",
        "Mul Add",
        "Mul Mul Add",
        0,
    ),
    "Where, a number": (
        "<bool[6] m = {1, 0, 1, 0, 1, 1}, float c = {-9}> { y = Where(m, x, c) }",
        "Mul Add",
        "Mul Add",
        0,
    ),
    "Where, a shape from the other branch": (
        "<bool[1,1,1] m = {1}> { h = ReduceSum(x) y = Where(m, h, x) }",
        "Add ReduceSum",
        "ReduceSum Add",
        0,
    ),
    "Where, computed": (
        "<float c = {-9}> { m = Greater(x, z) y = Where(m, x, c) }",
        "Greater Cast Sub Mul Add",
        "Greater Cast Sub Mul Mul Add",
        0,
    ),
    "Trilu": ("{ y = Trilu<upper=0>(x) }", "Mul", "Mul", 0),
    # Sums of at most 6 values below 4, in another order.
    "CumSum": ("<int64 a = {-1}> { y = CumSum(x, a) }", "MatMul", "MatMul", 2e-6),
    "CumSum, reversed": (
        "<int64 a = {1}> { y = CumSum<reverse=1, exclusive=1>(x, a) }",
        "MatMul Transpose",
        "Transpose MatMul Transpose",
        2e-6,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_answers_alike(case: str, decomposed: Callable[..., list[str]]) -> None:
    text, supported, becomes, atol = CASES[case]
    assert decomposed(XY + text, supported, atol=atol) == becomes.split()


def test_masks_of_minus_infinity(parse: Callable[..., Program], device: Any) -> None:
    body = "<bool[6] m = {1, 0, 1, 0, 1, 1}> { y = Where(m, x, c) }"
    low = {"c": np.full(1, -np.inf, np.float32)}
    before = parse("(float[2,6] x, float[1] c) => (float[2,6] y)" + body, low)
    after = run(before, [Decompose()], device("Mul Add"))
    assert after.steps[0].changes == 1
    values = {"x": np.arange(12, dtype=np.float32).reshape(2, 6)}
    np.testing.assert_array_equal(OnnxRunner(after)(values)["y"], OnnxRunner(before)(values)["y"])


REFUSED = {
    "an exponent of 1.7": ("<float c = {1.7}> { y = Pow(x, c) }", "Mul", "its exponent is 1.7"),
    "division by zero": ("<float c = {0}> { y = Div(x, c) }", "Mul", "it divides by zero"),
    "no reciprocal": ("{ y = Div(x, z) }", "Mul", "the device has no Reciprocal"),
    "integers": (
        "{ h = Cast<to=7>(x) i = Div(h, h) y = Cast<to=1>(i) }",
        "Mul Reciprocal Cast",
        "its input is INT64, not a float",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_the_reason(case: str, parse: Callable[..., Program], device: Any) -> None:
    text, supported, reason = REFUSED[case]
    step = run(parse(XY + text), [Decompose()], device(supported)).steps[0]
    assert reason in " ".join(r.reason for r in step.refusals)


def test_a_limit_alone_is_reason_enough(
    parse: Callable[..., Program], keeps: Callable[..., Program], device: Any, ops: Any
) -> None:
    limit = Limit(("Softmax",), "axis", "A", "test", among=(1, 3))
    text = "(float[2,4,6] x) => (float[2,4,6] y) { y = Softmax(x) }"
    # The rows are summed in the same order: one rounding of values below 1.
    after = keeps(parse(text), [Decompose()], 1e-7, on=device(None, limit))
    assert ops(after) == ["Transpose", "Softmax", "Transpose"]
