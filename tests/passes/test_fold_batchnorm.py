"""fold-batchnorm: the normalization disappears into the weights before it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from npuc.passes.base import run
from npuc.passes.fold_batchnorm import FoldBatchNorm
from npuc.profile import Profile
from npuc.program import Program

Array = np.ndarray[Any, Any]
NORM = "BatchNormalization<epsilon=0.001>"
# (host call, weight shapes, channels): x is [N,4,6,6], or [N,4] for Gemm.
HOSTS: dict[str, tuple[str, dict[str, tuple[int, ...]], int]] = {
    "Conv": ("Conv(x, w, c)", {"w": (8, 4, 3, 3), "c": (8,)}, 8),
    "Conv without bias": ("Conv(x, w)", {"w": (8, 4, 3, 3)}, 8),
    "Conv in groups": ("Conv<group=2>(x, w, c)", {"w": (8, 2, 3, 3), "c": (8,)}, 8),
    "depthwise Conv": ("Conv<group=4>(x, w)", {"w": (4, 1, 3, 3)}, 4),
    "ConvTranspose": ("ConvTranspose(x, w, c)", {"w": (4, 6, 2, 2), "c": (6,)}, 6),
    "ConvTranspose in groups": (
        "ConvTranspose<group=2>(x, w, c)",
        {"w": (4, 3, 2, 2), "c": (6,)},
        6,
    ),
    "Gemm": ("Gemm(x, w, c)", {"w": (4, 5), "c": (5,)}, 5),
    "Gemm transB": ("Gemm<transB=1>(x, w)", {"w": (5, 4)}, 5),
    "Gemm alpha beta": ("Gemm<alpha=0.5, beta=3.0>(x, w, c)", {"w": (4, 5), "c": (1, 5)}, 5),
    "Gemm scalar bias": ("Gemm(x, w, c)", {"w": (4, 5), "c": ()}, 5),
}


def weights(shapes: dict[str, tuple[int, ...]], channels: int, seed: int = 1) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    values = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    for name in ("g", "o", "m"):
        values[name] = rng.normal(size=channels)
    values["v"] = rng.uniform(0.1, 4, channels)
    return {name: value.astype(np.float32) for name, value in values.items()}


def text(host: str, values: dict[str, Array], rest: str = "y = ") -> str:
    size = "[N,4]" if host.startswith("Gemm") else "[N,4,6,6]"
    params = "".join(
        f", float{list(v.shape) if v.ndim else ''} {name}" for name, v in values.items()
    )
    rank = 2 if host.startswith("Gemm") else 4
    out = ",".join("NCHW"[:rank])
    return (
        f"(float{size} x{params}) => (float[{out}] y){{ h = {host} {rest}{NORM}(h, g, o, m, v) }}"
    )


@pytest.mark.parametrize("name", HOSTS)
def test_folds(
    name: str, parse: Callable[..., Program], keeps: Callable[..., Program], ops: Any
) -> None:
    host, shapes, channels = HOSTS[name]
    values = weights(shapes, channels)
    # 36 products of size about 1, scaled by g/√v of at most 10: round-off of float32 sums.
    after = keeps(parse(text(host, values), values), [FoldBatchNorm()], atol=3e-5)
    assert ops(after) == [name.split()[-1] if name == "depthwise Conv" else name.split()[0]]
    assert after.outputs[0].name == "y"


def test_two_normalizations_in_a_row(
    parse: Callable[..., Program], keeps: Callable[..., Program], ops: Any
) -> None:
    values = weights({"w": (8, 4, 3, 3)}, 8)
    body = text("Conv(x, w)", values, rest=f"i = {NORM}(h, g, o, m, v) j = Identity(i) y = ")
    body = body.replace("j = Identity(i) y", "y").replace("(h, g, o, m, v) }", "(i, g, o, m, v) }")
    after = keeps(parse(body, values), [FoldBatchNorm()], atol=1e-4)
    assert ops(after) == ["Conv"]
    assert after.steps[-1].changes == 2


X = "(float[N,4,6,6] x, float[4,4,1,1] w, float[4] g, float[4] o, float[4] m, float[4] v"
REFUSES = {
    "weight 'w' is shared": (
        X + ") => (float[N,4,6,6] y) { z = Conv(x, w) h = Conv(z, w)"
        " y = BatchNormalization(h, g, o, m, v) }"
    ),
    "is read elsewhere too": (
        X + ") => (float[N,4,6,6] y) { h = Conv(x, w) a = BatchNormalization(h, g, o, m, v)"
        " y = Add(a, h) }"
    ),
    "is an output of the model": (
        X + ") => (float[N,4,6,6] y, float[N,4,6,6] h) { h = Conv(x, w)"
        " y = BatchNormalization(h, g, o, m, v) }"
    ),
    "'k' is not a constant": (
        X + ", float[4,4,1,1] k) => (float[N,4,6,6] y) { h = Conv(x, k)"
        " y = BatchNormalization(h, g, o, m, v) }"
    ),
    "is in training mode": (
        X + ") => (float[N,4,6,6] y, float[4] rm, float[4] rv) { h = Conv(x, w)"
        " y, rm, rv = BatchNormalization<training_mode=1>(h, g, o, m, v) }"
    ),
}


@pytest.mark.parametrize("reason", REFUSES)
def test_refuses(reason: str, parse: Callable[..., Program], profile: Profile) -> None:
    program = parse(REFUSES[reason], weights({"w": (4, 4, 1, 1)}, 4))
    step = run(program, [FoldBatchNorm()], profile).steps[-1]
    assert step.changes == 0
    assert len(step.refusals) == 1
    assert step.refusals[0].node.startswith("batchnormalization")
    assert reason in step.refusals[0].reason


def test_shared_parameters_survive_for_the_other_reader(
    parse: Callable[..., Program], keeps: Callable[..., Program], ops: Any
) -> None:
    body = X + (
        ", float[4,4,1,1] k) => (float[N,4,6,6] y) { a = Conv(x, w)"
        " b = BatchNormalization(a, g, o, m, v) c = Relu(b) d = Conv(c, k)"
        " e = BatchNormalization(d, g, o, m, v) f = Relu(e)"
        " y = BatchNormalization(f, g, o, m, v) }"
    )
    values = weights({"w": (4, 4, 1, 1), "k": (4, 4, 1, 1)}, 4)
    after = keeps(parse(body, values), [FoldBatchNorm()], atol=1e-4)
    assert ops(after) == ["Conv", "Relu", "Conv", "Relu", "BatchNormalization"]
