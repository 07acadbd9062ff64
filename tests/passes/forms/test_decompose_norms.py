"""decompose: normalizations, reductions and pools."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from npuc.passes.base import run
from npuc.passes.decompose import Decompose
from npuc.profile import Limit
from npuc.program import Program

X = "(float[2,6,4,8] x) => (float[A,B,C,D] y) "
AFFINE = "<float[6] s = {1,2,3,4,5,6}, float[6] b = {3,2,1,0,-1,-2}> "
LAST = "<float[8] s = {1,2,3,4,5,6,7,8}, float[8] b = {3,2,1,0,-1,-2,5,6}> "
BASIC = "ReduceMean Sub Mul Add Sqrt Div"
# (model, opset, what the device has, what it becomes or None)
NORMS: dict[str, tuple[str, int, str, str | None]] = {
    "LayerNormalization": (
        X + LAST + "{ y = LayerNormalization(x, s, b) }",
        20,
        BASIC,
        "ReduceMean Sub Mul ReduceMean Add Sqrt Div Mul Add",
    ),
    "LayerNormalization, two axes, no bias": (
        X + "<float one = {1.5}, int64[2] n = {4, 8}>"
        "{ w = Expand(one, n) y = LayerNormalization<axis=2, epsilon=0.01>(x, w) }",
        17,
        BASIC + " Expand",
        None,
    ),
    "LayerNormalization by Pow and Reciprocal": (
        X + LAST + "{ y = LayerNormalization(x, s, b) }",
        20,
        "ReduceMean Sub Mul Add Pow Reciprocal",
        "ReduceMean Sub Mul ReduceMean Add Pow Reciprocal Mul Mul Add",
    ),
    "LayerNormalization by MatMul": (
        X + LAST + "{ y = LayerNormalization(x, s, b) }",
        20,
        "MatMul Sub Mul Add Sqrt Div",
        "MatMul Sub Mul MatMul Add Sqrt Div Mul Add",
    ),
    "RMSNormalization": (
        X + LAST + "{ y = RMSNormalization(x, s) }",
        23,
        BASIC,
        "Mul ReduceMean Add Sqrt Div Mul",
    ),
    "InstanceNormalization": (
        X + AFFINE + "{ y = InstanceNormalization(x, s, b) }",
        20,
        BASIC,
        "ReduceMean Sub Mul ReduceMean Add Sqrt Div Mul Add",
    ),
    "InstanceNormalization by GlobalAveragePool": (
        X + AFFINE + "{ y = InstanceNormalization<epsilon=0.1>(x, s, b) }",
        20,
        "GlobalAveragePool Sub Mul Add Sqrt Div",
        None,
    ),
    "GroupNormalization": (
        X + AFFINE + "{ y = GroupNormalization<num_groups=3>(x, s, b) }",
        21,
        "Reshape InstanceNormalization Mul Add",
        "Reshape InstanceNormalization Reshape Mul Add",
    ),
    "GroupNormalization by means": (
        X + AFFINE + "{ y = GroupNormalization<num_groups=2>(x, s, b) }",
        21,
        BASIC + " Reshape",
        None,
    ),
    "BatchNormalization": (
        X + AFFINE + "{ y = BatchNormalization(x, s, b, b, s) }",
        20,
        "Mul Add",
        "Mul Add",
    ),
}


@pytest.mark.parametrize("case", NORMS)
def test_norms(case: str, decomposed: Callable[..., list[str]]) -> None:
    text, opset, supported, becomes = NORMS[case]
    # Sums of up to 64 values in another order, divided by a deviation, times at most 8.
    found = decomposed(text, supported, atol=2e-5, opset=opset)
    assert becomes is None or found == becomes.split()


IMAGE = "GlobalAveragePool Reshape Transpose"
POOLED = Limit(("AveragePool", "MaxPool"), "kernel", "A", "test", most=4)
WIDE = "(float[1,2,20,20] x) => (float[A,B,C,D] y) "
REDUCTIONS: dict[str, tuple[str, str, str | None]] = {
    "ReduceL2": ("<int64[1] a = {2}>{ y = ReduceL2(x, a) }", "Mul ReduceSum Sqrt", None),
    "ReduceL1": ("<int64[1] a = {1}>{ y = ReduceL1(x, a) }", "Abs ReduceSum", "Abs ReduceSum"),
    "ReduceSumSquare": ("<int64[1] a = {3}>{ y = ReduceSumSquare(x, a) }", "Mul ReduceSum", None),
    "ReduceLogSumExp": (
        "<int64[2] a = {1, 3}>{ y = ReduceLogSumExp(x, a) }",
        "ReduceMax ReduceSum Exp Sub Log Add",
        "ReduceMax Sub Exp ReduceSum Log Add",
    ),
    "ReduceMean by pool": (
        "<int64[2] a = {2, 3}>{ y = ReduceMean(x, a) }",
        "GlobalAveragePool",
        "GlobalAveragePool",
    ),
    "ReduceMean by sum": ("<int64[1] a = {1}>{ y = ReduceMean(x, a) }", "ReduceSum Mul", None),
    "ReduceMean of an axis by pool": (
        "<int64[1] a = {1}>{ y = ReduceMean(x, a) }",
        IMAGE,
        "Transpose Reshape GlobalAveragePool Reshape",
    ),
    "ReduceMean of the last axis by product": (
        "<int64[1] a = {-1}>{ y = ReduceMean(x, a) }",
        "MatMul",
        "MatMul",
    ),
    "ReduceMean of two axes by product": (
        "<int64[2] a = {0, 2}>{ y = ReduceMean(x, a) }",
        "MatMul Transpose Reshape",
        "Transpose Reshape MatMul Reshape",
    ),
    "ReduceSum by mean": ("<int64[1] a = {1}>{ y = ReduceSum(x, a) }", "ReduceMean Mul", None),
    "ReduceMax by pool": ("<int64[2] a = {2, 3}>{ y = ReduceMax(x, a) }", "MaxPool", "MaxPool"),
    "GlobalAveragePool": ("{ y = GlobalAveragePool(x) }", "ReduceMean", "ReduceMean"),
    "GlobalAveragePool by kernel": ("{ y = GlobalAveragePool(x) }", "AveragePool", "AveragePool"),
    "GlobalMaxPool": ("{ y = GlobalMaxPool(x) }", "ReduceMax", "ReduceMax"),
    "AveragePool by mean": (
        "{ y = AveragePool<kernel_shape=[4,8]>(x) }",
        "ReduceMean",
        "ReduceMean",
    ),
    "AveragePool by Conv": (
        "{ y = AveragePool<kernel_shape=[3,2], strides=[1,2], pads=[1,0,1,0],"
        " count_include_pad=1>(x) }",
        "Conv",
        "Conv",
    ),
}


@pytest.mark.parametrize("case", REDUCTIONS)
def test_reductions(case: str, decomposed: Callable[..., list[str]]) -> None:
    text, supported, becomes = REDUCTIONS[case]
    # Sums of up to 64 normal values in another order, the largest about 60.
    found = decomposed(X + text, supported, atol=2e-5)
    assert becomes is None or found == becomes.split()


def test_no_keepdims(decomposed: Callable[..., list[str]]) -> None:
    text = "(float[2,6,4] x) => (float[A,B] y) <int64[1] a = {1}>"
    body = "{ y = ReduceMean<keepdims=0>(x, a) }"
    assert "MatMul" in decomposed(text + body, "MatMul Transpose Reshape", atol=1e-6)
    assert "ReduceMean" not in decomposed(text + body, IMAGE, atol=1e-6)
    body = "{ y = ReduceLogSumExp<keepdims=0>(x, a) }"
    kinds = decomposed(text + body, "ReduceMax ReduceSum Exp Sub Log Add Reshape", atol=2e-6)
    assert {"ReduceMax", "ReduceSum", "Log"} <= set(kinds)


def test_old_opsets_have_axes_as_attribute(decomposed: Callable[..., list[str]]) -> None:
    body = "{ y = ReduceL2<axes=[2]>(x) }"
    assert decomposed(X + body, "Mul ReduceSum Sqrt", atol=1e-5, opset=11)
    assert decomposed(X + "{ y = GlobalAveragePool(x) }", "ReduceMean", atol=1e-6, opset=13)


LARGE = {
    "average": ("{ y = GlobalAveragePool(x) }", "AveragePool", "AveragePool AveragePool"),
    "average, strided": (
        "{ y = AveragePool<kernel_shape=[8,6], strides=[4,2]>(x) }",
        "AveragePool",
        "AveragePool AveragePool",
    ),
    "maximum": (
        "{ y = MaxPool<kernel_shape=[5,5], pads=[2,2,2,2]>(x) }",
        "MaxPool",
        "MaxPool MaxPool",
    ),
    "maximum, strided": (
        "{ y = MaxPool<kernel_shape=[6,5], strides=[2,3], pads=[3,1,2,2]>(x) }",
        "MaxPool",
        "MaxPool MaxPool",
    ),
}


@pytest.mark.parametrize("case", LARGE)
def test_large_kernels_in_two_stages(case: str, decomposed: Callable[..., list[str]]) -> None:
    text, supported, becomes = LARGE[case]
    limit = Limit(("AveragePool", "MaxPool"), "kernel", "A", "test", most=5)
    if "maximum" in case:
        limit = POOLED
    # A mean of 400 values in two steps; maxima are exact.
    atol = 0.0 if "maximum" in case else 1e-6
    assert decomposed(WIDE + text, supported, limit, atol=atol) == becomes.split()


FLOOR = Limit(("AveragePool", "MaxPool"), "ceil_mode", "A", "test", among=(False,))


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_ceil_mode_is_padding(kind: str, decomposed: Callable[..., list[str]]) -> None:
    body = f"{{ y = {kind}<kernel_shape=[3,4], strides=[2,3], pads=[1,0,0,1], ceil_mode=1>(x) }}"
    # The same windows; a mean of 12 values may sum in another order.
    assert decomposed(WIDE + body, kind, FLOOR, atol=1e-6) == [kind]


def test_a_prime_kernel_is_refused_with_advice(parse: Callable[..., Program], device: Any) -> None:
    before = parse(WIDE + "{ y = AveragePool<kernel_shape=[7,7]>(x) }")
    step = run(before, [Decompose()], device("AveragePool", POOLED)).steps[0]
    assert step.changes == 0
    assert "AveragePool has kernel 7x7: at most 4" in step.refusals[0].reason
    assert "has no factor 2" in step.refusals[0].reason


def test_read_statistics_are_refused(parse: Callable[..., Program], device: Any) -> None:
    text = "(float[2,8] x) => (float[2,8] y, float[A,B] m) " + LAST
    before = parse(text + "{ y, m = LayerNormalization(x, s, b) }")
    step = run(before, [Decompose()], device(BASIC)).steps[0]
    assert "its mean or deviation is read" in step.refusals[0].reason


def test_zero_variance_is_finite(decomposed: Callable[..., list[str]]) -> None:
    text = "(float[2,8] x) => (float[2,8] y) " + LAST
    body = "{ z = Mul(x, o) y = LayerNormalization(z, s, b) }"
    o = {"o": np.zeros(1, np.float32)}
    found = decomposed(text.replace(") =>", ", float[1] o) =>") + body, BASIC, weights=o)
    assert found[0] == "Mul"
