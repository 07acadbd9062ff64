"""align-channels: more channels, the same answer to the bit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from npuc.passes.align_channels import AlignChannels
from npuc.passes.base import run
from npuc.passes.writer import shape_of
from npuc.program import Program

RNG = np.random.default_rng(11)


def normal(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


WEIGHTS = {
    "w": normal(6, 3, 3, 3),
    "b": normal(6),
    "v": normal(16, 6, 1, 1),
    "u": normal(6, 1, 3, 3),
}
PORTS = "(float[N,3,8,8] x, float[6,3,3,3] w, float[6] b, float[16,6,1,1] v, float[6,1,3,3] u)"
# (nodes, operators then, weights' shapes then)
CASES = {
    "the last layer": ("y = Conv(x, w, b)", ["Conv", "Slice"], [(8, 3, 3, 3)]),
    "between two": (
        "h = Conv(x, w, b) i = Relu(h) y = Conv(i, v)",
        ["Conv", "Relu", "Conv"],
        [(8, 3, 3, 3), (16, 8, 1, 1)],
    ),
    "sigmoid of nothing is a half": (
        "h = Conv(x, w) i = Sigmoid(h) j = MaxPool<kernel_shape=[2,2]>(i) y = Conv(j, v)",
        ["Conv", "Sigmoid", "MaxPool", "Conv"],
        [(8, 3, 3, 3), (16, 8, 1, 1)],
    ),
    "read by another operator too": (
        "h = Conv(x, w) i = Conv(h, v) j = GlobalAveragePool(h) k = GlobalAveragePool(i)"
        " y = Concat<axis=1>(j, k)",
        ["Conv", "Slice", "Conv", "GlobalAveragePool", "GlobalAveragePool", "Concat"],
        [(8, 3, 3, 3), (16, 6, 1, 1)],
    ),
    "before a depthwise one": (
        "h = Conv(x, w) y = Conv<group=6>(h, u)",
        ["Conv", "Slice", "Conv"],
        [(8, 3, 3, 3), (6, 1, 3, 3)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_layers(
    case: str, parse: Callable[..., Program], keeps: Callable[..., Program], device: Any, ops: Any
) -> None:
    text, becomes, shapes = CASES[case]
    used = {k: w for k, w in WEIGHTS.items() if f" {k})" in text or f" {k}," in text}
    ports = ", ".join(p for p in PORTS[1:-1].split(", ") if p[-1] in (*used, "x"))
    before = parse(f"({ports}) => (float[A,B,C,D] y) {{ {text} }}", used)
    # Vectorized sums may be blocked otherwise for more channels: 27 products of normal values.
    after = keeps(before, [AlignChannels()], 4e-6, on=device(align__channels=8))
    assert ops(after) == becomes
    weights = [n.inputs[1] for n in after.model.graph if n.op_type == "Conv"]
    assert [shape_of(w) for w in weights] == shapes


@pytest.mark.parametrize("turned", [0, 1])
def test_gemm(
    turned: int, parse: Callable[..., Program], keeps: Callable[..., Program], device: Any, ops: Any
) -> None:
    shape = (5, 12) if turned else (12, 5)
    text = (
        f"(float[N,12] x, float[{shape[0]},{shape[1]}] w, float[1,5] b) => (float[A,B] y)"
        f"{{ y = Gemm<transB={turned}>(x, w, b) }}"
    )
    before = parse(text, {"w": normal(*shape), "b": normal(1, 5)})
    after = keeps(before, [AlignChannels()], 2e-6, on=device(align__channels=4))
    assert ops(after) == ["Gemm", "Slice"]
    assert after.outputs[0].name == "y"


def test_a_multiple_already(
    parse: Callable[..., Program], keeps: Callable[..., Program], device: Any
) -> None:
    text = "(float[N,6,8,8] x, float[16,6,1,1] v) => (float[A,B,C,D] y) { y = Conv(x, v) }"
    before = parse(text, {"v": WEIGHTS["v"]})
    assert keeps(before, [AlignChannels()], on=device(align__channels=16)).steps[0].changes == 0
    assert keeps(before, [AlignChannels()], on=device()).steps[0].changes == 0


def test_refuses(parse: Callable[..., Program], device: Any) -> None:
    text = (
        "(float[1,6,8,8] x, float[6,1,3,3] u, float[6,6,1,1] z) => (float[A,B,C,D] y)"
        "{ h = Conv<group=6>(x, u) y = Conv(h, z) }"
    )
    step = run(
        parse(text, {"u": WEIGHTS["u"]}), [AlignChannels()], device(align__channels=8)
    ).steps[0]
    assert [r.reason for r in step.refusals] == ["it has groups", "its weight is not a constant"]
