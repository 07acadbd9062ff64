"""fold-constants: what does not depend on the inputs is computed once."""

from collections.abc import Callable
from typing import Any

import pytest

from npuc.passes.base import run
from npuc.passes.fold_constants import FoldConstants
from npuc.profile import Profile
from npuc.program import Program

FIRES = {
    "arithmetic of constants": (
        """(float[N,2] x) => (float[N,2] y)
        <float[2] a = {1, 2}, float[2] b = {3, 4}> { c = Mul(a, b) y = Add(x, c) }""",
        ["Add"],
    ),
    "a Constant node becomes an initializer": (
        "(float[N,2] x) => (float[N,2] y) { c = Constant<value_float = 2.5>() y = Mul(x, c) }",
        ["Mul"],
    ),
    "the shape of a static tensor": (
        """(float[4,6] x) => (float[24] y) <int64[1] one = {-1}> {
        s = Shape(x) n = ReduceProd<keepdims=1>(s) y = Reshape(x, n) }""",
        ["Reshape"],
    ),
    "a chain": (
        """(float[N,2] x) => (float[N,2] y) <float[2] a = {1, 2}> {
        b = Neg(a) c = Exp(b) d = Sqrt(c) y = Div(x, d) }""",
        ["Div"],
    ),
}


@pytest.mark.parametrize("case", FIRES)
def test_fires(
    case: str, parse: Callable[..., Program], keeps: Callable[..., Program], ops: Any
) -> None:
    text, expected = FIRES[case]
    # One rounding of the reference's and one of ONNX Runtime's exp, of values below 3.
    assert ops(keeps(parse(text), [FoldConstants()], atol=1e-6)) == expected


def test_a_constant_output_keeps_its_name(
    parse: Callable[..., Program], keeps: Callable[..., Program]
) -> None:
    after = keeps(
        parse("(float[N] x) => (float[N] y, float[2] z) <float[2] a={1,2}> {y=Abs(x) z=Neg(a)}"),
        [FoldConstants()],
    )
    assert [port.name for port in after.outputs] == ["y", "z"]


def test_quantized_weights_stay_quantized(
    parse: Callable[..., Program], keeps: Callable[..., Program], ops: Any
) -> None:
    before = parse(
        """(float[N,2] x) => (float[N,2] y) <int8[2] q = {1, 2}, float s = {0.5}, int8 z = {0}>
        { w = DequantizeLinear(q, s, z) y = Mul(x, w) }"""
    )
    assert ops(keeps(before, [FoldConstants()])) == ["DequantizeLinear", "Mul"]


def test_a_large_result_is_not_stored(
    parse: Callable[..., Program], keeps: Callable[..., Program], ops: Any
) -> None:
    before = parse(
        """(float[N,64,64] x) => (float[N,64,64] y) <float one = {1}, int64[2] s = {64, 64}>
        { big = Expand(one, s) y = Mul(x, big) }"""
    )
    assert ops(keeps(before, [FoldConstants(limit=64 * 64 * 4)])) == ["Expand", "Mul"]
    assert ops(keeps(before, [FoldConstants(limit=64 * 64 * 8)])) == ["Mul"]


def test_random_operators_stay(parse: Callable[..., Program], profile: Profile, ops: Any) -> None:
    before = parse("(float[2] x) => (float[2] y) { r = RandomNormal<shape=[2]>() y = Add(x, r) }")
    after = run(before, [FoldConstants()], profile)
    assert ops(after) == ["RandomNormal", "Add"]


REFUSES = {
    "cannot be evaluated": (
        """(float[2] x) => (float[2] y) <float[2] a = {1, 2}, int64[2] five = {5, 5}>
        { c = Gather(a, five) y = Add(x, c) }"""
    ),
    "exceed 4194304 bytes": (
        """(float[1024,1024] x) => (float[1024,1024] y)
        <float one = {1}, int64[2] s = {1024, 1024}> { c = Expand(one, s) y = Add(x, c) }"""
    ),
    "several outputs": (
        """(float[N,2] x) => (float[N,2] y) <float[4] a = {1, 2, 3, 4}>
        { b, c = Split<num_outputs=2>(a) d = Add(x, b) y = Add(d, c) }"""
    ),
}


@pytest.mark.parametrize("reason", REFUSES)
def test_refuses(reason: str, parse: Callable[..., Program], profile: Profile) -> None:
    step = run(parse(REFUSES[reason]), [FoldConstants()], profile).steps[-1]
    assert step.changes == 0
    assert len(step.refusals) == 1
    assert step.refusals[0].node.endswith("_0")
    assert reason in step.refusals[0].reason
