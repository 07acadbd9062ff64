"""quantize on devices without floats: what is coded, where, and with whose scale."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc.passes.base import run
from npuc.passes.qdq.sites import observed
from npuc.passes.quantize import Quantize
from npuc.profile import Profile
from npuc.program import Program
from npuc.quantization import calibrate
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]
F32 = np.float32
OPS = ["Conv", "Gemm", "MatMul", "Add", "Mul", "Softmax", "Sigmoid", "GlobalAveragePool", "Concat"]


@pytest.fixture
def device(integers: Callable[..., Profile]) -> Callable[..., Profile]:
    def make(**facts: Any) -> Profile:
        return integers(
            **{"whole": True, "fused": ["Relu", "Clip"], "ops": OPS, "activation_symmetric": False,
               "weight_range": [-127, 127], **facts}
        )  # fmt: skip

    return make


def quantized(
    before: Program, profile: Profile, samples: Sequence[Mapping[str, Array]] | None = None
) -> Program:
    scheme = profile.int_scheme
    assert scheme is not None
    rng = np.random.default_rng(1)
    calls = samples or [
        {p.name: rng.normal(size=[int(d) for d in p.shape]).astype(F32) for p in before.inputs}
        for _ in range(4)
    ]
    ranges = calibrate.collect(before, calls, scheme)
    after = run(before, [Quantize(ranges)], profile)
    onnx.checker.check_model(ir.to_proto(after.model), full_check=True)
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    return after


def pair(program: Program, name: str) -> tuple[float, int]:
    """Scale and zero point of the QuantizeLinear whose input was once called `name`."""
    constants = program.model.graph.initializers
    stored = [constants[f"{name}_{what}"].const_value for what in ("scale", "zero_point")]
    assert stored[0] is not None and stored[1] is not None
    return float(stored[0].numpy()), int(stored[1].numpy())


CONV = "float[1,3,6,6] x, float[4,3,3,3] w, float[4] b"


def conv_weights() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        "w": rng.normal(size=(4, 3, 3, 3)).astype(F32),
        "b": rng.normal(size=4).astype(F32),
    }


def test_the_callers_results_are_codes(parse: Any, device: Any, ops: Any) -> None:
    before = parse(f"({CONV}) => (float[1,4,4,4] y) {{ y = Conv(x, w, b) }}", conv_weights())
    after = quantized(before, device())
    assert ops(after)[-3:] == ["Conv", "QuantizeLinear", "DequantizeLinear"]
    x = np.random.default_rng(5).normal(size=(1, 3, 6, 6)).astype(F32)
    scale, zero = pair(after, "y")
    codes = OnnxRunner(after)({"x": x})["y"] / F32(scale) + zero
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-4)  # two float32 roundings
    assert len(np.unique(np.rint(codes))) > 20


def test_a_fused_clamp_belongs_to_the_operator_before(parse: Any, device: Any, ops: Any) -> None:
    text = f"({CONV}) => (float[1,4,4,4] y) {{ h = Conv(x, w, b) y = Relu(h) }}"
    before = parse(text, conv_weights())
    after = quantized(before, device())
    assert ops(after)[-4:] == ["Conv", "Relu", "QuantizeLinear", "DequantizeLinear"]
    assert pair(after, "y")[1] == -128  # never below zero: all codes are for what is above
    apart = quantized(before, device(fused=[]))
    assert ops(apart)[-4:] == ["Conv", "QuantizeLinear", "DequantizeLinear", "Relu"]
    assert [r.reason for r in apart.steps[-1].refusals] == [
        "Relu is not an operator of the device's integer scheme"
    ]


def test_a_clamp_with_another_reader_before_it_is_an_operator(parse: Any, device: Any) -> None:
    text = (
        f"({CONV}) => (float[1,4,4,4] y, float[1,4,4,4] z)"
        "{ y = Conv(x, w, b) z = Relu(y) }"
    )  # fmt: skip
    after = quantized(parse(text, conv_weights()), device())
    assert pair(after, "y") != pair(after, "z")
    relu = next(node for node in after.model.graph if node.op_type == "Relu")
    assert relu.inputs[0] is not None and relu.inputs[0].name == "y"  # the dequantized one


def test_a_bias_belongs_to_its_product(parse: Any, device: Any, ops: Any, rng: Any) -> None:
    weights = {"w": rng.normal(size=(4, 5)).astype(F32), "b": rng.normal(size=5).astype(F32)}
    text = (
        "(float[2,3,4] x, float[4,5] w, float[5] b) => (float[2,3,5] y)"
        "{ h = MatMul(x, w) y = Add(b, h) }"
    )
    after = quantized(parse(text, weights), device())
    assert ops(after)[-4:] == ["MatMul", "Add", "QuantizeLinear", "DequantizeLinear"]
    assert "b" in after.model.graph.initializers  # it is for the integer arithmetic to code


@pytest.mark.parametrize(
    ("moves", "shape"),
    [
        ("MaxPool<kernel_shape=[2,2]>(h)", [1, 4, 3, 3]),
        ("Transpose<perm=[0,2,3,1]>(h)", [1, 4, 4, 4]),
        ("Flatten(h)", [1, 64]),
        ("DepthToSpace<blocksize=2>(h)", [1, 1, 8, 8]),
        ("GlobalMaxPool(h)", [1, 4, 1, 1]),
    ],
    ids=lambda v: str(v).split("<")[0].split("(")[0],
)
def test_what_moves_keeps_the_scale(moves: str, shape: list[int], parse: Any, device: Any) -> None:
    text = (
        f"({CONV}) => (float{shape} y)"
        f"{{ h = Conv(x, w, b) m = {moves} t = Add(m, m) y = Identity(t) }}"
    )
    before = parse(text, conv_weights())
    profile = device()
    after = quantized(before, profile)
    assert pair(after, "h") == pair(after, "m") != pair(after, "t")
    assert observed(before.model, profile.int_scheme) == ("x", "h", "t")
    # The second pair changes nothing: what it codes has these codes already.
    x = np.random.default_rng(5).normal(size=(1, 3, 6, 6)).astype(F32)
    extra = OnnxRunner(after, extra=["m", "m_dequantized"])({"x": x})
    np.testing.assert_array_equal(extra["m"], extra["m_dequantized"])


def test_padding_with_another_number_than_zero_stays_in_float(parse: Any, device: Any) -> None:
    text = (
        f"({CONV}) => (float[1,4,6,6] y) <int64[8] p = {{0,0,1,1,0,0,1,1}}, float f = {{2.5}}>"
        "{ h = Conv(x, w, b) y = Pad(h, p, f) }"
    )
    after = quantized(parse(text, conv_weights()), device())
    assert [r.reason for r in after.steps[-1].refusals] == [
        "Pad is not an operator of the device's integer scheme"
    ]


def test_fixed_scales_hold_for_results(parse: Any, device: Any) -> None:
    text = "(float[2,4] x) => (float[2,4] y, float[2,4] z) { y = Softmax(x) z = Sigmoid(x) }"
    facts = {"Softmax": 1 / 256, "Sigmoid": 1 / 128}
    profile = device(fixed_scales=facts)
    before = parse(text)
    assert observed(before.model, profile.int_scheme) == ("x",)
    after = quantized(before, profile)
    assert pair(after, "y") == (1 / 256, -128)
    assert pair(after, "z") == (1 / 128, -128)


def test_weights_per_channel_only_where_the_device_has_them(
    parse: Any, integers: Any, rng: Any
) -> None:
    weights = {
        "w": rng.normal(size=(4, 3, 1, 1)).astype(F32),
        "v": rng.normal(size=(36, 5)).astype(F32),
    }
    text = (
        "(float[1,3,3,3] x, float[4,3,1,1] w, float[36,5] v) => (float[1,5] y)"
        "{ h = Conv(x, w) f = Flatten(h) y = MatMul(f, v) }"
    )
    before = parse(text, weights)
    ranges = {"x": (-2.0, 2.0), "f": (-2.0, 2.0)}
    after = run(before, [Quantize(ranges)], integers(per_channel_ops=["Conv"]))
    stored = {n: v.const_value for n, v in after.model.graph.initializers.items()}
    shapes = [tuple(stored[n].shape) for n in ("w_scale", "v_scale")]  # type: ignore[union-attr]
    assert shapes == [(4,), ()]


def test_a_device_with_floats_codes_no_results(parse: Any, device: Any, ops: Any) -> None:
    text = f"({CONV}) => (float[1,4,4,4] y) {{ h = Conv(x, w, b) y = Relu(h) }}"
    after = run(parse(text, conv_weights()), [Quantize({"x": (-3, 3)})], device(whole=False))
    assert ops(after)[-2:] == ["Conv", "Relu"]
    assert after.steps[-1].refusals == ()


def test_every_float_operator_is_listed(parse: Any, device: Any) -> None:
    text = "(float[2,4] x) => (float[2,4] y) { a = Add(x, x) t = Tanh(a) y = Mul(t, a) }"
    step = quantized(parse(text), device()).steps[-1]
    assert [(r.node, r.reason) for r in step.refusals] == [
        ("tanh_1", "Tanh is not an operator of the device's integer scheme")
    ]


def test_a_result_that_was_always_zero_stays_and_is_listed(parse: Any, device: Any) -> None:
    before = parse("(float[2,4] x) => (float[2,4] y) { a = Add(x, x) y = Mul(a, x) }")
    after = run(before, [Quantize({"x": (-1, 1), "a": (-2, 2), "y": (0, 0)})], device())
    assert [r.reason for r in after.steps[-1].refusals] == [
        "its result stays in float: tensor 'y' was always zero on the calibration samples"
    ]


def test_a_mask_does_not_take_the_codes_of_what_it_masks(parse: Any, device: Any) -> None:
    text = "(float[2,8] x, float[2,8] m) => (float[2,8] y) { a = Add(x, m) y = Softmax(a) }"
    before = parse(text)
    rng = np.random.default_rng(0)
    mask = np.where(np.arange(8) < 5, 0, -1e9).astype(F32) * np.ones((2, 1), F32)
    calls = [{"x": rng.normal(size=(2, 8)).astype(F32), "m": mask} for _ in range(4)]
    after = quantized(before, device(), calls)
    assert len(after.steps[-1].refusals) == 1
    assert "their sum is computed in float" in after.steps[-1].refusals[0].reason
    exact, got = (OnnxRunner(p)(calls[0])["y"] for p in (before, after))
    # A step is 22/255 of the logits: p(1-p) of it, halved, and half a step of 1/255 at the end.
    np.testing.assert_allclose(got, exact, atol=0.015)
    assert (got[:, 5:] == 0).all() and exact[0].max() > 0.3


def test_a_second_run_changes_nothing(parse: Any, device: Any) -> None:
    text = (
        f"({CONV}) => (float[1,4] y)"
        "{ h = Conv(x, w, b) r = Relu(h) g = GlobalAveragePool(r) f = Flatten(g) y = Softmax(f) }"
    )
    before = parse(text, conv_weights())
    profile = device()
    once = quantized(before, profile)
    again = run(once, [Quantize({"x": (-1, 1)})], profile)
    assert (again.steps[-1].changes, again.steps[-1].refusals) == (0, ())


def test_rows_of_low_scores_survive_a_mask(parse: Any, device: Any) -> None:
    """The least score of all rows is coded, not only what lies near the greatest of one row."""
    text = "(float[2,8] x, float[2,8] m) => (float[2,8] y) { a = Add(x, m) y = Softmax(a) }"
    before = parse(text)
    rng = np.random.default_rng(4)
    rows = np.array([[40.0], [-30.0]], F32)
    mask = np.where(np.arange(8) < 5, 0, np.finfo(F32).min).astype(F32) * np.ones((2, 1), F32)
    calls = [{"x": rng.normal(size=(2, 8)).astype(F32) + rows, "m": mask} for _ in range(4)]
    after = quantized(before, device(), calls)
    want, got = (OnnxRunner(p)(calls[0])["y"] for p in (before, after))
    # 90 units of score in 255 steps: a third of a unit, which moves a share by a third of itself.
    assert np.abs(got - want).max() < 0.15
    assert (got[:, 5:] < 0.01).all()
