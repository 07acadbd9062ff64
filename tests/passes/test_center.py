"""center: offsets move from a tensor's channels into what reads it, and the answer stays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from npuc.passes.base import run
from npuc.passes.center import Center
from npuc.program import Program
from npuc.quantization.channel_stats import collect
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(5)
WIDE = np.array([9, -7, 5, -8, 6, -9], np.float32)
"""Offsets far wider than what the channels hold: the union of their ranges is what a scale sees."""
VALUES: dict[str, Array] = {
    "g": np.ones(6, np.float32),
    "b": WIDE,
    "w": RNG.normal(size=(6, 4)).astype(np.float32),
    "c": RNG.normal(size=4).astype(np.float32),
    "k": RNG.normal(size=(6, 6)).astype(np.float32),
    "u": RNG.normal(size=(5, 6, 1, 1)).astype(np.float32),
    "v": RNG.normal(scale=0.3, size=(6, 6, 3, 3)).astype(np.float32),
    "d": RNG.normal(size=5).astype(np.float32),
    "e": WIDE,
}
FLAT, IMAGE = "float[3,6] x", "float[1,6,5,5] x"
# graph inputs, body, output shape, the tensor whose channels are centered
MOVED = {
    "LayerNormalization to Gemm": (FLAT, "h = LayerNormalization(x, g, b) y = Gemm(h, w, c)", "h"),
    "to MatMul and Add": (
        FLAT,
        "h = LayerNormalization(x, g, b) m = MatMul(h, w) y = Add(m, c)",
        "h",
    ),
    "through Identity": (
        FLAT,
        "h = LayerNormalization(x, g, b) i = Identity(h) y = Gemm(i, w, c)",
        "h",
    ),
    "two readers": (
        FLAT,
        "h = LayerNormalization(x, g, b) p = Gemm(h, w, c) q = Gemm(h, w, c) y = Add(p, q)",
        "h",
    ),
    "MatMul's own Add": (FLAT, "m = MatMul(x, k) h = Add(m, b) y = Gemm(h, w, c)", "h"),
    "Gemm with alpha and beta": (
        FLAT,
        "h = Gemm<alpha=0.5, beta=2.0>(x, k, b) y = Gemm<alpha=3.0, beta=0.5>(h, w, c)",
        "h",
    ),
    "Conv to Conv of 1x1": (
        IMAGE,
        "h = Conv<pads=[1,1,1,1]>(x, v, e) y = Conv(h, u, d)",
        "h",
    ),
}
LEFT = {
    "a Relu between": (FLAT, "n = LayerNormalization(x, g, b) h = Relu(n) y = Gemm(h, w, c)", "n"),
    "another reader": (
        FLAT,
        "h = LayerNormalization(x, g, b) p = Gemm(h, w, c) s = Softmax(h) q = Gemm(s, w, c) "
        "y = Add(p, q)",
        "h",
    ),
    "padding": (IMAGE, "h = Conv(x, u2, e) y = Conv<pads=[1,1,1,1]>(h, v, b)", "h"),
    "no bias in the reader": (FLAT, "h = LayerNormalization(x, g, b) y = MatMul(h, w)", "h"),
    "no offset in the producer": (FLAT, "h = MatMul(x, k) y = Gemm(h, w, c)", "h"),
}


def program(parse: Callable[..., Program], inputs: str, body: str) -> Program:
    values = VALUES | {"u2": RNG.normal(size=(6, 6, 1, 1)).astype(np.float32)}
    used = {k: v for k, v in values.items() if f" {k})" in body or f" {k}," in body}
    params = "".join(f", float{list(v.shape)} {name}" for name, v in used.items())
    rank = 4 if inputs == IMAGE else 2
    dims = ",".join("NCHW"[:rank])
    return parse(f"({inputs}{params}) => (float[{dims}] y){{ {body} }}", used)


def statistics(made: Program, name: str) -> Any:
    port = made.inputs[0]
    rng, shape = np.random.default_rng(0), [d for d in port.shape if isinstance(d, int)]
    calls = [{"x": rng.normal(size=shape).astype(np.float32)} for _ in range(16)]
    return collect(made, calls, {name: 1})


@pytest.mark.parametrize("name", MOVED)
def test_moves(name: str, parse: Any, feed: Any, integers: Any) -> None:
    shapes, body, tensor = MOVED[name]
    made = program(parse, shapes, body)
    before = statistics(made, tensor)
    after = run(made, [Center(before)], integers())
    assert after.steps[-1].changes == 1
    inputs = feed(made)
    expected, got = OnnxRunner(made)(inputs)["y"], OnnxRunner(after)(inputs)["y"]
    # Sums of some 50 products near 30 in float32, added up in another order.
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-4)
    seen, old = statistics(after, tensor)[tensor], before[tensor]
    # Centered channels reach equally far to both sides.
    np.testing.assert_allclose(-seen.low, seen.high, rtol=1e-3)
    assert seen.high.max() - seen.low.min() < 0.7 * (old.high.max() - old.low.min())
    again = run(after, [Center(statistics(after, tensor))], integers())
    assert again.steps[-1].changes == 0


@pytest.mark.parametrize("name", LEFT)
def test_leaves_alone(name: str, parse: Any, integers: Any) -> None:
    inputs, body, tensor = LEFT[name]
    made = program(parse, inputs, body)
    after = run(made, [Center(statistics(made, tensor))], integers())
    assert after.steps[-1].changes == 0
    assert after.serialized() == made.serialized()


def test_what_is_centered_already_stays(parse: Any, integers: Any) -> None:
    body = "h = LayerNormalization(x, g, b) y = Gemm(h, w, c)"
    values = {k: VALUES[k] for k in "gwc"} | {"b": np.zeros(6, np.float32)}
    params = "".join(f", float{list(v.shape)} {name}" for name, v in values.items())
    made = parse(f"(float[3,6] x{params}) => (float[N,C] y){{ {body} }}", values)
    assert run(made, [Center(statistics(made, "h"))], integers()).steps[-1].changes == 0
