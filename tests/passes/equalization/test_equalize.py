"""equalize: which channels are scaled, which are left alone and why; the function stays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from npuc.passes.equalization.channels import trace
from npuc.passes.equalization.rules import RULES
from npuc.passes.equalize import factors, observed, rescale
from npuc.program import Program
from npuc.quantization import channel_stats

Array = np.ndarray[Any, Any]
Build = Callable[..., Program]
RNG = np.random.default_rng(17)


IMAGE, WORDS = "float[1,4,6,6]", "float[1,5,8]"
OUT = "float[1,6,6,6]"
CONV = "a = Conv<pads=[1,1,1,1]>(x, w, b) "
ATTENTION = (
    "q1 = MatMul(x, q) q2 = Reshape(q1, heads) q3 = Transpose<perm=[0,2,1,3]>(q2)"
    " k1 = MatMul(x, {k}) k2 = Reshape(k1, {each}) k3 = Transpose<perm=[0,2,3,1]>(k2)"
    " v1 = MatMul(x, {v}) v2 = Reshape(v1, {each}) v3 = Transpose<perm=[0,2,1,3]>(v2) {spread}"
    " s1 = MatMul(q3, {k3}) s2 = Mul(s1, root) s3 = Softmax(s2) o1 = MatMul(s3, {v3})"
    " o2 = Transpose<perm=[0,2,1,3]>(o1) o3 = Reshape(o2, words) y = MatMul(o3, n)"
)
FULL = {"k": "r", "v": "m", "each": "heads", "k3": "k3", "v3": "v3", "spread": ""}
GROUPED = {**FULL, "k": "f", "v": "h", "each": "head", "k3": "k4", "v3": "v4"}
# (x, y, nodes, the constants that are scaled)
CASES: dict[str, tuple[str, str, str, str]] = {
    "Relu": (IMAGE, OUT, CONV + "i = Relu(a) y = Conv(i, v, c)", "w b v"),
    "LeakyRelu": (IMAGE, OUT, CONV + "i = LeakyRelu(a) y = Conv(i, v)", "w b v"),
    "PRelu": (IMAGE, OUT, CONV + "i = PRelu(a, p) y = Conv(i, v)", "w b v"),
    "Clip at zero": (IMAGE, OUT, CONV + "i = Clip(a, zero) y = Conv(i, v)", "w b v"),
    "depthwise between": (
        IMAGE,
        OUT,
        CONV + "i = Relu(a) j = Conv<group=8, pads=[1,1,1,1]>(i, u) h0 = Relu(j) y = Conv(h0, v)",
        "w b u v",
    ),
    "groups": (
        IMAGE,
        OUT,
        CONV + "i = Relu(a) j = Conv<group=2>(i, g) y = Conv(j, v)",
        "w b g v",
    ),
    "pooling and padding": (
        IMAGE,
        "float[1,6,4,3]",
        CONV + "i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) j = Pad(i, pads)"
        " h0 = AveragePool<kernel_shape=[2,2]>(j) y = Conv(h0, v)",
        "w b v",
    ),
    "global pooling, then Gemm": (
        IMAGE,
        "float[1,5]",
        CONV + "i = GlobalAveragePool(a) j = Flatten(i) y = Gemm(j, k)",
        "w b k",
    ),
    "a weight per position": (
        IMAGE,
        "float[1,5]",
        CONV + "i = MaxPool<kernel_shape=[3,3], strides=[3,3]>(a) j = Flatten(i)"
        " y = Gemm<transB=1>(j, l)",
        "w b l",
    ),
    "ConvTranspose in groups": (
        IMAGE,
        "float[1,6,12,12]",
        CONV + "i = Relu(a) j = ConvTranspose<group=2, strides=[2,2]>(i, d, c) y = Conv(j, e)",
        "w b d c e",
    ),
    "residual sum": (
        IMAGE,
        OUT,
        CONV + "i = Relu(a) j = Conv(i, t) h0 = Add(j, i) l0 = Relu(h0) y = Conv(l0, v)",
        "w b t v",
    ),
    "Split and Concat": (
        IMAGE,
        OUT,
        CONV + "i, j = Split<axis=1>(a, halves) h0 = Relu(i) l0 = Concat<axis=1>(j, h0)"
        " y = Conv(l0, v)",
        "w b v",
    ),
    "channel shuffle": (
        IMAGE,
        OUT,
        CONV + "i = Reshape(a, pairs) j = Transpose<perm=[0,2,1,3,4]>(i) h0 = Reshape(j, whole)"
        " y = Conv(h0, v)",
        "w b v",
    ),
    "gated, the gate held": (
        IMAGE,
        OUT,
        CONV + "i = GlobalAveragePool(x) f0 = Conv(i, g0) j = Sigmoid(f0) h0 = Mul(j, a)"
        " y = Conv(h0, v)",
        "w b v",
    ),
    "LayerNormalization → several": (
        WORDS,
        WORDS,
        "a = LayerNormalization(x, s, o) i = MatMul(a, q) j = MatMul(a, r) h0 = Tanh(i)"
        " l0 = Sigmoid(j) y = Mul(h0, l0)",
        "s o q r",
    ),
    "RMSNorm in six operators": (
        WORDS,
        WORDS,
        "a = Pow(x, two) i = ReduceMean(a, last) j = Add(i, tiny) h0 = Sqrt(j) l0 = Div(x, h0)"
        " n0 = Mul(l0, s) y = MatMul(n0, q)",
        "s q",
    ),
    "attention": (WORDS, WORDS, ATTENTION.format(**FULL), "q r m n"),
    "heads that share keys, expanded": (
        WORDS,
        WORDS,
        ATTENTION.format(
            **{**GROUPED, "spread": "ke = Transpose<perm=[0,1,3,2]>(k3) kx = Expand(ke, spread)"
               " k4 = Transpose<perm=[0,1,3,2]>(kx) v4 = Expand(v3, spread)"}
        ),
        "q f h n",
    ),
    "heads that share keys, tiled": (
        WORDS,
        WORDS,
        ATTENTION.format(
            **{**GROUPED, "spread": "k4 = Tile(k3, repeats) v4 = Tile(v3, repeats)"}
        ),
        "q f h n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("whole", [False, True], ids=["products", "all operators"])
@pytest.mark.parametrize("case", CASES)
def test_scaled(
    case: str, whole: bool, build: Build, integers: Any, equalized: Any, scaled: Any
) -> None:
    x, y, nodes, changed = CASES[case]
    ops = ["Relu", "Add", "MaxPool", "Concat", "Mul", "Softmax"] if whole else []
    profile = integers(ops=["Conv", "ConvTranspose", "Gemm", "MatMul", *ops])
    before = build(x, y, nodes)
    after = equalized(before, profile)
    assert sorted(scaled(after)) == sorted(changed.split())
    assert after.steps[-1].changes == len(changed.split())
    assert not after.steps[-1].refusals


# (x, y, nodes, what is scaled all the same, why the rest is not)
LEFT: dict[str, tuple[str, str, str, str, str]] = {
    "a clamp at six": (
        IMAGE,
        OUT,
        CONV + "i = Clip(a, zero, six) y = Conv(i, v)",
        "",
        "Clip(0.0, 6.0) is not homogeneous: what enters it keeps its scale",
    ),
    "a large weight of two": (
        "float[1,136,1,1]",
        "float[1,136,1,1]",
        "a = Conv(x, big) i = Relu(a) y = Conv(i, big)",
        "",
        "its weight 'big' is shared with another operator",
    ),
    "a small weight of two": (
        "float[1,8,6,6]",
        OUT,
        "a = Conv(x, t) i = Relu(a) j = Conv(i, t) h0 = Relu(j) y = Conv(h0, v)",
        "t t v",
        "",
    ),
    "not homogeneous": (IMAGE, OUT, CONV + "i = HardSwish(a) y = Conv(i, v)", "", ""),
    "a softmax": (WORDS, WORDS, "a = MatMul(x, q) i = Softmax(a) y = MatMul(i, r)", "", ""),
    "an input": (WORDS, WORDS, "a = Relu(x) y = MatMul(a, r)", "", ""),
    "positions differ": (
        IMAGE,
        "float[1,8,6,5]",
        "a = Conv(x, g0) i = Transpose<perm=[0,3,2,1]>(a) j = Transpose<perm=[0,3,2,1]>(i)"
        " h0 = MatMul(j, x6) y = Relu(h0)",
        "",
        "",
    ),
    "added to what is held": (
        IMAGE,
        OUT,
        CONV + "h0 = Sigmoid(a) i = Conv(h0, t) j = Add(i, h0) y = Conv(j, v)",
        "",
        "",
    ),
    "half precision": (
        IMAGE,
        OUT,
        CONV + "i = Cast<to=10>(a) j = Mul(i, half) h0 = Cast<to=1>(j) y = Conv(h0, v)",
        "",
        "",
    ),
    "filled with ones": (
        IMAGE,
        "float[1,6,8,7]",
        CONV + "i = Pad(a, pads, six) y = Conv(i, v)",
        "",
        "",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_left_alone(case: str, build: Build, integers: Any, equalized: Any, scaled: Any) -> None:
    x, y, nodes, changed, reason = LEFT[case]
    after = equalized(build(x, y, nodes), integers())
    assert after.steps[-1].changes == len(changed.split())
    assert sorted({r.reason for r in after.steps[-1].refusals}) == ([reason] if reason else [])


def test_what_a_sum_ties_together_has_one_factor(
    build: Build, integers: Any, equalized: Any, scaled: Any
) -> None:
    factor = scaled(equalized(build(*CASES["residual sum"][:3]), integers()))
    given = 1 / factor["w"][:, 0, 0, 0]
    assert given.max() / given.min() > 2
    np.testing.assert_allclose(factor["b"], 1 / given, rtol=1e-5)
    np.testing.assert_allclose(factor["v"], np.tile(given, (6, 1))[..., None, None], rtol=1e-5)
    both = given[None] / given[:, None]  # read by columns, given by rows
    np.testing.assert_allclose(factor["t"][..., 0, 0], both, rtol=1e-5)


def test_queries_and_keys_are_inverse(
    build: Build, integers: Any, equalized: Any, scaled: Any
) -> None:
    factor = scaled(equalized(build(*CASES["attention"][:3]), integers()))
    for name in "qrm":  # columns alone: the input is held
        np.testing.assert_allclose(factor[name], np.tile(factor[name][:1], (8, 1)), rtol=1e-5)
        assert factor[name].max() / factor[name].min() > 1.5
    np.testing.assert_allclose(factor["q"] * factor["r"], 1, rtol=1e-5)
    np.testing.assert_allclose(factor["n"] * factor["m"][0][:, None], 1, rtol=1e-5)


def test_heads_that_share_keys_have_their_factors(
    build: Build, integers: Any, equalized: Any, scaled: Any
) -> None:
    for case in ("heads that share keys, expanded", "heads that share keys, tiled"):
        factor = scaled(equalized(build(*CASES[case][:3]), integers()))
        np.testing.assert_allclose(factor["q"][0, :4], factor["q"][0, 4:], rtol=1e-5)
        np.testing.assert_allclose(factor["q"][0, :4] * factor["f"][0], 1, rtol=1e-5)
        np.testing.assert_allclose(factor["n"][:4, 0] * factor["h"][0], 1, rtol=1e-5)


def test_a_normalization_takes_and_gives(
    build: Build, integers: Any, equalized: Any, scaled: Any
) -> None:
    before = build(
        "float[1,8,6,6]",
        OUT,
        "a = Conv(x, t) i = Relu(a) f0 = Conv<group=8, pads=[1,1,1,1]>(i, u)"
        " j = BatchNormalization(f0, o, b, o, s) h0 = Relu(j) y = Conv(h0, v)",
    )
    after = equalized(before, integers())
    assert sorted(scaled(after)) == ["b", "o", "t", "u", "v"]


@pytest.mark.parametrize("case", CASES)
def test_again(case: str, build: Build, integers: Any, equalized: Any, feed: Any) -> None:
    """What is even stays as it is, up to the steps in which the strength is searched."""
    first = equalized(build(*CASES[case][:3]), integers())
    scheme = integers().int_scheme
    axes = observed(first.model.clone(), scheme)
    seen = channel_stats.collect(first, [feed(first, 1, seed) for seed in range(6)], axes)
    found = factors(first.model.clone(), scheme, seen)
    spreads = {name: float(np.ptp(np.log(f))) for name, f in found.items() if f.size}
    assert spreads and max(spreads.values()) < 0.5, spreads


@pytest.mark.parametrize("case", CASES)
def test_the_scale_that_a_network_comes_in_does_not_matter(
    case: str, build: Build, equalized: Any, integers: Any
) -> None:
    plain = build(*CASES[case][:3])
    other = plain.clone()
    channels = trace(other.model, RULES)
    roots, signs = channels.variables.resolved()
    logs = np.random.default_rng(5).normal(0, 1.3, roots.size)
    logs = np.where(roots > 0, logs[roots] * signs, 0)
    rescale(other.model, channels.absorbed, logs)
    one, two = (
        equalized(Program.from_model(program.model), integers()) for program in (plain, other)
    )
    first, second = (
        {v.name.split("_")[0]: v.const_value.numpy() for v in p.model.graph.initializers.values()}
        for p in (one, two)
    )
    for name in CASES[case][3].split():
        ratio = np.log(second[name] / first[name])
        # What a group of channels has in common changes no code, and is left as it came.
        assert np.ptp(ratio) < 1e-5, name
