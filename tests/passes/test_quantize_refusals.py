"""quantize: what it refuses or leaves in float, with the reason, and its errors."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from npuc.errors import PassError
from npuc.passes.base import run
from npuc.passes.quantize import Quantize
from npuc.profile import Profile
from npuc.program import Program

Array = np.ndarray[Any, Any]
F32 = np.float32


MATMUL = "(float[2,4] x, float[4,4] w) => (float[2,4] y) { y = MatMul(x, w) }"
REFUSED: dict[str, tuple[str, dict[str, tuple[float, float]]]] = {
    "weight 'k' is not a constant": (
        "(float[1,4,3,3] x, float[4,4,1,1] k) => (float[1,4,3,3] y) { y = Conv(x, k) }",
        {"x": (-1, 1)},
    ),
    "no calibrated range": (
        "(float[2,4] x, float[4,4] w, float[2,4] u) => (float[2,4] y)"
        "{ y = MatMul(x, w) z = MatMul(u, w) }",
        {"x": (-1, 1)},
    ),
    "was always zero": (MATMUL, {"x": (0, 0)}),
    "is int64; only float32": (
        "(int64[2,4] x) => (int64[2,4] y) <int64[4,4] q = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}>"
        "{ y = MatMul(x, q) }",
        {"x": (-1, 1)},
    ),
    "is float16; only float32": (
        "(float16[2,4] x, float16[4,4] u) => (float16[2,4] y) { y = MatMul(x, u) }",
        {"x": (-1, 1)},
    ),
    "inside the body of a control-flow operator": (
        """(float[2,4] x, bool c, float[4,4] w) => (float[2,4] y) { y = If(c) <
        then_branch = t () => (float[2,4] p) { p = MatMul(x, w) },
        else_branch = e () => (float[2,4] q) { q = Identity(x) }> }""",
        {"x": (-1, 1)},
    ),
    "all its inputs are constants": (
        "(float[2,4] x, float[4,4] w) => (float[2,4] y, float[4,4] z)"
        "{ z = MatMul(w, w) y = Relu(x) }",
        {"x": (-1, 1)},
    ),
    "run decompose-rnn first": (
        "(float[2,1,4] x, float[1,4,4] r, float[1,4,4] w) => (float[2,1,1,4] y)"
        "{ y = RNN<hidden_size=4>(x, r, w) }",
        {"x": (-1, 1)},
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(
    reason: str, parse: Callable[..., Program], integers: Callable[..., Profile]
) -> None:
    text, ranges = REFUSED[reason]
    weights = {"w": np.ones((1, 4, 4) if "RNN" in text else (4, 4), F32)} if " w" in text else {}
    profile = integers(ops=["Conv", "MatMul", "RNN"])
    step = run(parse(text, weights), [Quantize(ranges)], profile).steps[-1]
    assert len(step.refusals) == 1
    assert reason in step.refusals[0].reason
    assert step.refusals[0].node


def test_skips_by_name_and_says_so(
    parse: Callable[..., Program], integers: Callable[..., Profile], ops: Any
) -> None:
    before = parse(MATMUL, {"w": np.ones((4, 4), F32)})
    after = run(before, [Quantize({"x": (-1, 1)}, skip=("matmul_0",))], integers())
    assert ops(after) == ["MatMul"]
    assert [(r.node, r.reason) for r in after.steps[-1].refusals] == [
        ("matmul_0", "skipped by name")
    ]
    assert after.steps[-1].options == {"skip": ("matmul_0",)}


def test_a_row_bias_stays_in_float(
    parse: Callable[..., Program], integers: Callable[..., Profile], rng: np.random.Generator
) -> None:
    w, b = (rng.normal(size=(4, 4)).astype(F32) for _ in range(2))
    before = parse(
        "(float[4,4] x, float[4,4] w, float[4,4] b) => (float[4,4] y) { y = Gemm(x, w, b) }",
        {"w": w, "b": b},
    )
    step = run(before, [Quantize({"x": (-1, 1)})], integers()).steps[-1]
    assert step.changes == 1
    assert "not per channel and stays in float" in step.refusals[0].reason


ERRORS: dict[str, tuple[dict[str, tuple[float, float]], float]] = {
    "x .*nan": ({"x": (float("nan"), 1.0)}, 1),
    "x .*inf": ({"x": (-1.0, float("inf"))}, 1),
    "x .1.0, -1.0": ({"x": (1.0, -1.0)}, 1),
    "none of the 1 tensors to quantize has a calibrated range": ({"other": (-1.0, 1.0)}, 1),
    "holds NaN or Inf(.|\n)*weight 'w' of 'matmul_0'": ({"x": (-1.0, 1.0)}, float("nan")),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors(
    message: str, parse: Callable[..., Program], integers: Callable[..., Profile]
) -> None:
    ranges, value = ERRORS[message]
    before = parse(MATMUL, {"w": np.full((4, 4), value, F32)})
    with pytest.raises(PassError) as caught:
        run(before, [Quantize(ranges)], integers())
    assert re.search(message, str(caught.value))


def test_errors_of_the_target_and_the_opset(
    parse: Callable[..., Program], integers: Callable[..., Profile], profile: Profile
) -> None:
    weights = {"w": np.ones((4, 4), F32)}
    with pytest.raises(PassError, match="has no integer scheme"):
        run(parse(MATMUL, weights), [Quantize({"x": (-1, 1)})], profile)
    with pytest.raises(PassError, match="needs opset 13; the model has 11"):
        run(parse(MATMUL, weights, opset=11), [Quantize({"x": (-1, 1)})], integers())
    wide = integers(activation_dtype="int16", activation_range=[-32768, 32767])
    with pytest.raises(PassError, match="needs opset 21; the model has 20"):
        run(parse(MATMUL, weights), [Quantize({"x": (-1, 1)})], wide)
