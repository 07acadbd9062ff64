"""decompose: matrix products, convolutions, Einsum and Attention."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from npuc.passes.base import run
from npuc.passes.decompose import Decompose
from npuc.profile import Limit
from npuc.program import Program

RNG = np.random.default_rng(5)


def normal(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


W, WT, BIAS = normal(12, 5), normal(5, 12), normal(5)
K1, K2 = normal(6, 2, 3), normal(6, 2, 3, 3)
KT, DW = normal(4, 3, 2, 2), normal(4, 1, 3, 3)
GEMM = "Gemm<transB=1, alpha=0.5, beta=2.0>"
# Sums of up to 48 products of normal values in another order: below 60, one part in 2^22.
NOISE = 2e-5
# (ports and body, weights, limits, what the device has, what it becomes)
Case = tuple[str, Mapping[str, Any], tuple[Limit, ...], str, str | None]
SMALL = Limit(("MatMul",), "k", "A", "test", most=6)
ONE_GROUP = Limit(("Conv", "ConvTranspose"), "group", "A", "test", most=1)
PLAIN = Limit(("Conv",), "dilation", "A", "test", most=1)
IMAGES = Limit(("Conv", "MaxPool", "AveragePool", "ConvTranspose"), "rank", "A", "test", least=4)
PRODUCTS: dict[str, Case] = {
    "Gemm": (
        "(float[3,12] x, float[5,12] w, float[5] b) => (float[A,B] y) { y = "
        + GEMM
        + "(x, w, b) }",
        {"w": WT, "b": BIAS},
        (),
        "MatMul Mul Add",
        "MatMul Mul Add",
    ),
    "Gemm of two inputs, turned": (
        "(float[12,3] x, float[12,5] z) => (float[A,B] y) { y = Gemm<transA=1>(x, z) }",
        {},
        (),
        "MatMul Transpose",
        "Transpose MatMul",
    ),
    "Gemm by Conv": (
        "(float[3,12] x, float[5,12] w, float[5] b) => (float[A,B] y)"
        "{ y = Gemm<transB=1>(x, w, b) }",
        {"w": WT, "b": BIAS},
        (),
        "Conv Reshape Transpose",
        "Reshape Transpose Conv Transpose Reshape",
    ),
    "MatMul by Gemm": (
        "(float[2,3,12] x, float[12,5] w) => (float[A,B,C] y) { y = MatMul(x, w) }",
        {"w": W},
        (),
        "Gemm Reshape",
        "Reshape Gemm Reshape",
    ),
    "MatMul by Conv": (
        "(float[2,3,12] x, float[12,5] w) => (float[A,B,C] y) { y = MatMul(x, w) }",
        {"w": W},
        (),
        "Conv Reshape Transpose",
        "Reshape Transpose Conv Transpose Reshape",
    ),
    "MatMul in parts": (
        "(float[2,3,12] x, float[12,5] w) => (float[A,B,C] y) { y = MatMul(x, w) }",
        {"w": W},
        (SMALL,),
        "MatMul Slice Add",
        "Slice MatMul Slice MatMul Add",
    ),
    "MatMul of two inputs in parts": (
        "(float[2,3,12] x, float[2,12,5] z) => (float[A,B,C] y) { y = MatMul(x, z) }",
        {},
        (SMALL,),
        "MatMul Slice Add",
        "Slice Slice MatMul Slice Slice MatMul Add",
    ),
    "Conv over a sequence": (
        "(float[2,6,9] x, float[6,2,3] w) => (float[A,B,C] y)"
        "{ y = Conv<group=3, pads=[2,1], strides=[2], dilations=[2]>(x, w) }",
        {"w": K1},
        (IMAGES,),
        "Conv Reshape",
        "Reshape Conv Reshape",
    ),
    "pools over a sequence": (
        "(float[2,6,9] x) => (float[A,B,C] y) { h = MaxPool<kernel_shape=[3], strides=[2]>(x)"
        " y = AveragePool<kernel_shape=[3], pads=[1,1]>(h) }",
        {},
        (IMAGES,),
        "MaxPool AveragePool Reshape",
        "Reshape MaxPool Reshape Reshape AveragePool Reshape",
    ),
    "Conv over patches": (
        "(float[2,2,9,6] x, float[6,2,3,3] w) => (float[A,B,C,D] y)"
        "{ y = Conv<strides=[3,3]>(x, w) }",
        {"w": K2},
        (Limit(("Conv",), "stride", "A", "test", most=2),),
        "Conv Reshape Transpose",
        "Reshape Transpose Reshape Conv",
    ),
    "Conv by phases of its stride": (
        "(float[2,2,11,9] x, float[6,2,3,3] w, float[6] b) => (float[A,B,C,D] y)"
        "{ y = Conv<strides=[2,3], pads=[1,0,2,1]>(x, w, b) }",
        {"w": K2, "b": normal(6)},
        (Limit(("Conv",), "stride", "A", "test", most=1),),
        "Conv Pad Slice Reshape Transpose",
        None,
    ),
    "Conv over a sequence by phases": (
        "(float[2,2,21] x, float[6,2,7] w) => (float[A,B,C] y) { y = Conv<strides=[4]>(x, w) }",
        {"w": normal(6, 2, 7)},
        (Limit(("Conv",), "stride", "A", "test", most=1),),
        "Conv Pad Slice Reshape Transpose",
        None,
    ),
    "Conv in pieces of its kernel": (
        "(float[2,4,9,9] x, float[4,2,1,7] w, float[4] b) => (float[A,B,C,D] y)"
        "{ y = Conv<group=2, strides=[1,2], pads=[0,2,0,3]>(x, w, b) }",
        {"w": normal(4, 2, 1, 7), "b": normal(4)},
        (Limit(("Conv",), "kernel", "A", "test", most=4),),
        "Conv Pad Slice Add",
        "Pad Slice Conv Slice Conv Add",
    ),
    "Conv in groups": (
        "(float[2,6,9,9] x, float[6,2,3,3] w) => (float[A,B,C,D] y) { y = Conv<group=3>(x, w) }",
        {"w": K2},
        (ONE_GROUP,),
        "Conv",
        "Conv",
    ),
    "ConvTranspose in groups": (
        "(float[2,4,5,5] x, float[4,3,2,2] w) => (float[A,B,C,D] y)"
        "{ y = ConvTranspose<group=2, strides=[2,2], output_padding=[1,0]>(x, w) }",
        {"w": KT},
        (ONE_GROUP,),
        "ConvTranspose",
        "ConvTranspose",
    ),
    "Conv, dilated and depthwise": (
        "(float[2,4,9,9] x, float[4,1,3,3] w) => (float[A,B,C,D] y)"
        "{ y = Conv<group=4, dilations=[2,3], pads=[2,3,2,3]>(x, w) }",
        {"w": DW},
        (PLAIN,),
        "Conv",
        "Conv",
    ),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_products(case: str, decomposed: Callable[..., list[str]]) -> None:
    text, weights, limits, supported, becomes = PRODUCTS[case]
    found = decomposed(text, supported, *limits, weights=weights, atol=NOISE)
    assert becomes is None or found == becomes.split()


EINSUMS = {
    "bhid,bhjd->bhij": ([2, 3, 4, 5], [2, 3, 6, 5], "4"),
    "bhij,bhjd->bihd": ([2, 3, 4, 6], [2, 3, 6, 5], "4"),
    "ij,jk": ([3, 4], [4, 5], "2"),
    "bi,bj->bij": ([2, 3], [2, 4], "3"),
    "ij,ij->": ([3, 4], [3, 4], "0"),
    "ijk,kl->li": ([2, 3, 4], [4, 5], "2"),
    "nchw,cq->nqhw": ([1, 4, 2, 3], [4, 5], "4"),
    "i,j->ji": ([3], [4], "2"),
    "ijk->kj": ([2, 3, 4], None, "2"),
}


@pytest.mark.parametrize("equation", EINSUMS)
def test_einsum(equation: str, decomposed: Callable[..., list[str]]) -> None:
    left, right, rank = EINSUMS[equation]
    dims = ",".join("ABCDEFG"[: int(rank)])
    out = f"float[{dims}]" if dims else "float"
    second = "" if right is None else f", float{right} z"
    names = "x" if right is None else "x, z"
    text = f'(float{left} x{second}) => ({out} y) {{ y = Einsum<equation="{equation}">({names}) }}'
    assert decomposed(text, "Transpose Reshape MatMul ReduceSum", atol=NOISE)


ATTENTION = "MatMul Softmax Transpose Mul Add Reshape Expand Where"
ATTENTIONS = {
    "four axes": ("float[2,3,4,8] q, float[2,3,6,8] k, float[2,3,6,5] v", "", ""),
    "scaled": ("float[2,3,4,8] q, float[2,3,6,8] k, float[2,3,6,5] v", "<scale=0.2>", ""),
    "flat": (
        "float[2,4,24] q, float[2,6,24] k, float[2,6,15] v",
        "<q_num_heads=3, kv_num_heads=3>",
        "",
    ),
    "grouped": ("float[2,6,4,8] q, float[2,2,6,8] k, float[2,2,6,8] v", "", ""),
    "causal": ("float[1,2,4,8] q, float[1,2,4,8] k, float[1,2,4,8] v", "<is_causal=1>", ""),
    "masked": ("float[1,2,4,8] q, float[1,2,6,8] k, float[1,2,6,8] v, float[4,6] m", "", ", m"),
    "masked by booleans": (
        "float[1,2,4,8] q, float[1,2,6,8] k, float[1,2,6,8] v",
        "",
        ", m",
    ),
}


@pytest.mark.parametrize("case", ATTENTIONS)
def test_attention(case: str, decomposed: Callable[..., list[str]]) -> None:
    ports, attributes, mask = ATTENTIONS[case]
    weights = {}
    if case == "masked by booleans":
        ports += ", bool[4,6] m"
        weights["m"] = np.tril(np.ones((4, 6), bool), 1)
    rank = "A,B,C" if case == "flat" else "A,B,C,D"
    text = f"({ports}) => (float[{rank}] y) {{ y = Attention{attributes}(q, k, v{mask}) }}"
    found = decomposed(text, ATTENTION, weights=weights, atol=2e-6, opset=23)
    assert "Softmax" in found


REFUSED = {
    "diagonal": (
        '(float[3,3] x) => (float[A] y) { y = Einsum<equation="ii->i">(x) }',
        "takes a diagonal",
    ),
    "ellipsis": (
        "(float[2,3,3] x, float[3,4] z) => (float[A,B,C] y)"
        '{ y = Einsum<equation="...ij,jk->...ik">(x, z) }',
        "has an ellipsis",
    ),
    "three operands": (
        '(float[3,3] x) => (float[A,B] y) { y = Einsum<equation="ij,jk,kl->il">(x, x, x) }',
        "it has 3 operands",
    ),
    "softcap": (
        "(float[1,2,4,8] x) => (float[A,B,C,D] y) { y = Attention<softcap=2.0>(x, x, x) }",
        "it has a softcap",
    ),
    "a Gemm with beta": (
        "(float[3,4] x, float[3] b) => (float[A,B] y) { y = Gemm<beta=0.5, transB=1>(x, x, b) }",
        "as product and sum: the device has no Mul",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_the_reason(case: str, parse: Callable[..., Program], device: Any) -> None:
    text, reason = REFUSED[case]
    has = "MatMul Transpose Reshape ReduceSum Softmax"
    step = run(parse(text, opset=23), [Decompose()], device(has)).steps[0]
    assert step.changes == 0
    assert reason in " ".join(r.reason for r in step.refusals)
