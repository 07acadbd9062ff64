"""What real profiles lack, and what npuc makes of it: every row is a gap that it closes."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc.legality import place
from npuc.passes import legalise
from npuc.passes.base import run
from npuc.profile import Profile
from npuc.program import Program
from npuc.runners import OnnxRunner

RNG = np.random.default_rng(2)


def normal(*shape: int) -> Any:
    return RNG.normal(0, 0.3, shape).astype(np.float32)


IMAGE = "(float[1,8,12,12] x) => (float[A,B,C,D] y) "
ROWS = "(float[1,6,16] x) => (float[A,B,C] y) "
ONES = "<float[16] s = {1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}>"
# Sums of at most a few hundred products below 10, in another order.
NOISE = 2e-5
Gap = tuple[str, str, Mapping[str, Any], int]
# gap: (device, model, weights, opset)
GAPS: dict[str, Gap] = {
    "Gelu": ("rk3588", ROWS + "{ y = Gelu(x) }", {}, 20),
    "Gelu, tanh": ("rk3588", ROWS + '{ y = Gelu<approximate="tanh">(x) }', {}, 20),
    "HardSwish": ("warboy", IMAGE + "{ y = HardSwish(x) }", {}, 20),
    "HardSigmoid": ("warboy", IMAGE + "{ y = HardSigmoid<alpha=0.3>(x) }", {}, 20),
    "Mish": ("warboy", IMAGE + "{ y = Mish(x) }", {}, 20),
    "Mish on Ethos-U55": ("ethos-u55", IMAGE + "{ y = Mish(x) }", {}, 20),
    "Softplus": ("ethos-u55", IMAGE + "{ y = Softplus(x) }", {}, 20),
    "PRelu": (
        "warboy",
        IMAGE.replace(") =>", ", float[8,1,1] s) =>") + "{ y = PRelu(x, s) }",
        {"s": np.abs(normal(8, 1, 1))},
        20,
    ),
    "Swish": ("rk3588", IMAGE + "{ y = Swish(x) }", {}, 24),
    "LayerNormalization": ("warboy", ROWS + ONES + "{ y = LayerNormalization(x, s) }", {}, 20),
    "RMSNormalization": ("rk3588", ROWS + ONES + "{ y = RMSNormalization(x, s) }", {}, 23),
    "GroupNormalization": (
        "rk3588",
        IMAGE + "<float[8] s = {1,2,3,4,5,6,7,8}>{ y = GroupNormalization<num_groups=2>(x, s, s) }",
        {},
        21,
    ),
    "InstanceNormalization": (
        "ethos-u55",
        IMAGE + "<float[8] s = {1,2,3,4,5,6,7,8}>{ y = InstanceNormalization(x, s, s) }",
        {},
        20,
    ),
    "LogSoftmax": ("warboy", ROWS + "{ y = LogSoftmax(x) }", {}, 20),
    "Softmax over axis 2": ("rk3588", ROWS + "{ y = Softmax<axis=2>(x) }", {}, 20),
    "ReduceMean": ("warboy", ROWS + "<int64[1] a = {1}>{ y = ReduceMean(x, a) }", {}, 20),
    "ReduceMean over tokens": (
        "dx-m1",
        IMAGE + "<int64[1] a = {3}>{ y = ReduceMean(x, a) }",
        {},
        20,
    ),
    "ReduceSum over H, W": (
        "dx-m1",
        IMAGE + "<int64[2] a = {2, 3}>{ y = ReduceSum(x, a) }",
        {},
        20,
    ),
    "ReduceL2": ("rk3588", ROWS + "<int64[1] a = {1}>{ y = ReduceL2(x, a) }", {}, 20),
    "Div": ("warboy", "(float[1,9] x, float[1,9] z) => (float[A,B] y) { y = Div(x, z) }", {}, 20),
    "Neg": ("rk3588", ROWS + "{ y = Neg(x) }", {}, 20),
    "Reciprocal": (
        "rk3588",
        ROWS + "<float c = {9}>{ h = Add(x, c) y = Reciprocal(h) }",
        {},
        20,
    ),
    "Pow": ("dx-m1", ROWS + "<float c = {2}>{ y = Pow(x, c) }", {}, 20),
    "Abs": ("dx-m1", ROWS + "{ y = Abs(x) }", {}, 20),
    "Where": (
        "dx-m1",
        ROWS + "<bool[1,6,1] m = {1,0,1,1,0,1}, float c = {-9}>{ y = Where(m, x, c) }",
        {},
        20,
    ),
    "Max of two": ("dx-m1", ROWS + "<float c = {0.2}>{ y = Max(x, c) }", {}, 20),
    "CumSum": ("rk3588", ROWS + "<int64 a = {2}>{ y = CumSum(x, a) }", {}, 20),
    "Trilu": ("rk3588", ROWS + "{ y = Trilu(x) }", {}, 20),
    "Einsum": (
        "rk3588",
        "(float[1,2,6,4] x, float[1,2,6,4] z) => (float[A,B,C,D] y)"
        '{ y = Einsum<equation="bhid,bhjd->bhij">(x, z) }',
        {},
        20,
    ),
    "Attention": (
        "rk3588",
        "(float[1,4,6,8] q, float[1,2,6,8] k, float[1,2,6,8] v) => (float[A,B,C,D] y)"
        "{ y = Attention<is_causal=1>(q, k, v) }",
        {},
        23,
    ),
    "Resize, half_pixel": (
        "dx-m1",
        IMAGE + '<float[4] s = {1,1,2,2}>{ y = Resize<mode="linear">(x, , s) }',
        {},
        20,
    ),
    "Resize by 1.5": (
        "dx-m1",
        IMAGE + '<float[4] s = {1,1,1.5,1.5}>{ y = Resize<mode="linear">(x, , s) }',
        {},
        20,
    ),
    "Resize, cubic": (
        "warboy",
        IMAGE + '<float[4] s = {1,1,2,2}>{ y = Resize<mode="cubic">(x, , s) }',
        {},
        20,
    ),
    "Resize by 3, linear": (
        "ethos-u55",
        IMAGE + '<float[4] s = {1,1,3,3}>{ y = Resize<mode="linear">(x, , s) }',
        {},
        20,
    ),
    "DepthToSpace": ("dx-m1", IMAGE + "{ y = DepthToSpace<blocksize=2>(x) }", {}, 20),
    "Unsqueeze": (
        "dx-m1",
        "(float[1,9] x) => (float[A,B,C] y) <int64[1] a = {1}>{ y = Unsqueeze(x, a) }",
        {},
        20,
    ),
    "Gather": ("warboy", IMAGE + "<int64[3] i = {1,2,0}>{ y = Gather<axis=2>(x, i) }", {}, 20),
    "Slice of a batch": (
        "rk3588",
        "(float[3,4,2] x) => (float[A,B,C] y) <int64[1] s = {1}, int64[1] e = {2}>"
        "{ y = Slice(x, s, e) }",
        {},
        20,
    ),
    "Pad, reflected": (
        "dx-m1",
        IMAGE + '<int64[8] p = {0,0,1,1,0,0,1,1}>{ y = Pad<mode="reflect">(x, p) }',
        {},
        20,
    ),
    "Concat over W": (
        "warboy",
        IMAGE + "{ h = Relu(x) y = Concat<axis=3>(x, h) }",
        {},
        20,
    ),
    "Expand": (
        "dx-m1",
        "(float[1,8,1,1] x) => (float[A,B,C,D] y) <int64[4] n = {1,8,3,4}>{ y = Expand(x, n) }",
        {},
        20,
    ),
    "MaxPool 13x13": (
        "rk3588",
        IMAGE + "{ y = MaxPool<kernel_shape=[13,13], pads=[6,6,6,6]>(x) }",
        {},
        20,
    ),
    "MaxPool, ceil_mode": (
        "rk3588",
        IMAGE + "{ y = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x) }",
        {},
        20,
    ),
    "Conv in groups on a device of one": (
        "dx-m1",
        IMAGE.replace(") =>", ", float[8,4,2,2] w) =>")
        + "{ y = ConvTranspose<group=4, strides=[2,2]>(x, w) }",
        {"w": normal(8, 4, 2, 2)},
        20,
    ),
    "depthwise Conv 7x7": (
        "dx-m1",
        IMAGE.replace(") =>", ", float[8,1,7,7] w) =>")
        + "{ y = Conv<group=8, pads=[3,3,3,3]>(x, w) }",
        {"w": normal(8, 1, 7, 7)},
        20,
    ),
    "Conv of stride 8": (
        "rk3588",
        "(float[1,1,96] x, float[4,1,32] w) => (float[A,B,C] y) { y = Conv<strides=[8]>(x, w) }",
        {"w": normal(4, 1, 32)},
        20,
    ),
    "Conv 1x21": (
        "dx-m1",
        "(float[1,2,1,64] x, float[4,2,1,21] w) => (float[A,B,C,D] y) { y = Conv(x, w) }",
        {"w": normal(4, 2, 1, 21)},
        20,
    ),
    "rank 6": (
        "rk3588",
        IMAGE + "<int64[6] s = {1,2,2,2,12,12}, int64[4] t = {1,2,24,24}>"
        "{ h = Reshape(x, s) i = Transpose<perm=[0,1,4,2,5,3]>(h) y = Reshape(i, t) }",
        {},
        20,
    ),
    "LSTM": (
        "dx-m1",
        "(float[3,1,4] x, float[1,8,4] w, float[1,8,2] r) => (float[A,B,C,D] y)"
        "{ y = LSTM<hidden_size=2>(x, w, r) }",
        {"w": normal(1, 8, 4), "r": normal(1, 8, 2)},
        20,
    ),
}


@pytest.mark.parametrize("gap", GAPS)
def test_gaps_are_closed(gap: str, parse: Callable[..., Program]) -> None:
    name, text, weights, opset = GAPS[gap]
    profile = Profile.load(name)
    before = parse(text, weights, opset)
    assert place(before, profile), f"{name} has no such gap any more: {gap}"
    after = run(before, legalise(profile), profile)
    assert not place(after, profile), place(after, profile)
    onnx.checker.check_model(ir.to_proto(after.model), full_check=True)
    runner, expected = OnnxRunner(after), OnnxRunner(before)
    for seed in range(2):
        rng = np.random.default_rng(seed)
        values = {
            p.name: rng.normal(size=[int(d) for d in p.shape]).astype(p.dtype)
            for p in before.inputs
        }
        got = runner(values)
        for port, value in expected(values).items():
            np.testing.assert_allclose(got[port], value, rtol=2e-6, atol=NOISE, err_msg=gap)
    again = run(after, legalise(profile), profile)
    assert {s.name: s.changes for s in again.steps[len(after.steps) :] if s.changes} == {}


def test_a_device_of_which_nothing_is_known_asks_for_nothing() -> None:
    assert legalise(Profile("test", "Test", {}, {})) == ()


def test_passes_follow_from_facts_and_not_from_names(device: Any) -> None:
    full = device("Conv", ops__rank_max=4, ops__dtypes=["int8"], align__channels=8, shapes__batch=1)
    assert [p.name for p in legalise(full)] == [
        "check-batch",
        "decompose-rnn",
        "decompose",
        "reduce-rank",
        "narrow-int64",
        "align-channels",
    ]
