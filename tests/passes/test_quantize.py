"""quantize: the QDQ graph computes exactly what an independent numpy model of the scheme says."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc.passes.base import run
from npuc.passes.quantize import Quantize
from npuc.profile import Profile
from npuc.program import Program
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]
F32 = np.float32


def fake(
    x: Array, scale: Array | np.float32, low: int = -128, high: int = 127, zero: int = 0
) -> Array:
    """Quantize and dequantize in float32, ties to even: the ONNX operators' definition."""
    codes = np.clip(np.rint(x / scale) + F32(zero), F32(low), F32(high))
    return np.asarray((codes - F32(zero)) * scale, F32)


def weight_scale(w: Array, axes: tuple[int, ...]) -> Array:
    peak: Array = np.abs(w).max(axis=axes, keepdims=True)
    return np.asarray(peak.astype(np.float64) / 127, F32)


def answer(program: Program, x: Array) -> Array:
    return OnnxRunner(program)({program.inputs[0].name: x})["y"]


def constants(program: Program) -> dict[str, Array]:
    every = program.model.graph.initializers.items()
    return {name: v.const_value.numpy() for name, v in every if v.const_value is not None}


def wild(rng: np.random.Generator, *shape: int, axis: int) -> Array:
    """Weights whose channels along `axis` differ in size by up to 10 ⁶."""
    size = [shape[i] if i == axis else 1 for i in range(len(shape))]
    gain = np.logspace(-4, 2, shape[axis]).reshape(size)
    return (rng.normal(size=shape) * gain).astype(F32)


# name: (call, shape of x, shape of w, channel axis, axes reduced, shape of y)
LAYERS: dict[str, tuple[str, list[int], list[int], int, tuple[int, ...]]] = {
    "Conv": ("Conv(x, w, b)", [2, 4, 7, 7], [8, 4, 3, 3], 0, (1, 2, 3)),
    "depthwise Conv": ("Conv<group=4>(x, w, b)", [2, 4, 7, 7], [8, 1, 3, 3], 0, (1, 2, 3)),
    "Conv1d": ("Conv(x, w, b)", [2, 4, 9], [8, 4, 3], 0, (1, 2)),
    "ConvTranspose": ("ConvTranspose(x, w, b)", [2, 4, 5, 5], [4, 8, 2, 2], 1, (0, 2, 3)),
    "ConvTranspose in groups": (
        "ConvTranspose<group=2>(x, w, b)",
        [2, 4, 5, 5],
        [4, 4, 2, 2],
        1,
        (0, 2, 3),
    ),
    "Gemm": ("Gemm(x, w, b)", [3, 6], [6, 8], 1, (0,)),
    "Gemm transB": ("Gemm<transB=1>(x, w, b)", [3, 6], [8, 6], 0, (1,)),
    "Gemm transA": ("Gemm<transA=1>(x, w, b)", [6, 3], [6, 8], 1, (0,)),
    "Gemm alpha beta": ("Gemm<alpha=0.5, beta=2.0>(x, w, b)", [3, 6], [6, 8], 1, (0,)),
    "MatMul": ("MatMul(x, w)", [2, 3, 6], [6, 8], 1, (0,)),
    "MatMul of a stack": ("MatMul(x, w)", [2, 3, 6], [2, 6, 8], 2, (0, 1)),
    "MatMul, weight on the left": ("MatMul(w, x)", [2, 6, 3], [8, 6], 0, (1,)),
}


def layer(name: str, w: Array, b: Array | None = None) -> str:
    call, x, _, _, _ = LAYERS[name]
    rank = max(len(x), w.ndim)
    bias = f", float{list(b.shape)} b" if b is not None and " b)" in call else ""
    dims = ",".join("ABCDEFGH"[:rank])
    return f"(float{x} x, float{list(w.shape)} w{bias}) => (float[{dims}] y) {{ y = {call} }}"


@pytest.mark.parametrize("name", LAYERS)
def test_answers_as_the_scheme_says(
    name: str,
    parse: Callable[..., Program],
    integers: Callable[..., Profile],
    rng: np.random.Generator,
) -> None:
    call, x_shape, w_shape, axis, reduced = LAYERS[name]
    w = wild(rng, *w_shape, axis=axis)
    gain = np.abs(w).max(axis=reduced)
    groups = 2 if "in groups" in name else 1
    b = (rng.normal(size=8) * np.tile(gain.reshape(-1)[-8:], groups)[:8]).astype(F32)
    has_bias = " b)" in call
    before = parse(layer(name, w, b), {"w": w, "b": b} if has_bias else {"w": w})
    x = rng.normal(size=x_shape).astype(F32)
    after = run(before, [Quantize({"x": (-2.0, 1.5)})], integers())

    # The same layer in float, on operands that went through the integer codes.
    sx, sw = F32(2.0 / 127), weight_scale(w, reduced)
    values = {"w": fake(w, sw)}
    if has_bias:
        ratio = F32(0.5 / 2.0) if "alpha" in name else F32(1)
        sb = sw.reshape(-1) * sx * ratio
        sb = np.tile(sb, groups)
        values["b"] = (np.rint(b.astype(np.float64) / sb).astype(np.int32) * sb).astype(F32)
    expected = answer(parse(layer(name, w, b), values), fake(x, sx))
    # Equal operands, equal kernel: bit for bit.
    np.testing.assert_array_equal(answer(after, x), expected)

    stored = constants(after)
    assert stored["w_quantized"].dtype == np.int8
    np.testing.assert_array_equal(stored["w_scale"], sw.reshape(-1)[: stored["w_scale"].size])
    dequantize = next(n for n in after.model.graph if n.name == "w_dequantized")
    assert dequantize.attributes.get_int("axis", -99) == axis
    assert after.inputs == before.inputs and after.outputs == before.outputs
    assert after.steps[-1].changes == 1 and after.steps[-1].refusals == ()


@pytest.mark.parametrize("name", LAYERS)
def test_is_valid_and_a_fixed_point(
    name: str,
    parse: Callable[..., Program],
    integers: Callable[..., Profile],
    rng: np.random.Generator,
) -> None:
    w = rng.normal(size=LAYERS[name][2]).astype(F32)
    b = rng.normal(size=8).astype(F32)
    weights = {"w": w, "b": b} if " b)" in LAYERS[name][0] else {"w": w}
    once = run(parse(layer(name, w, b), weights), [Quantize({"x": (-2.0, 1.5)})], integers())
    onnx.checker.check_model(ir.to_proto(once.model), full_check=True)
    again = run(once, [Quantize({"x": (-2.0, 1.5)})], integers())
    assert (again.steps[-1].changes, again.steps[-1].refusals) == (0, ())


ASYMMETRIC = {"activation_symmetric": False}
SCHEMES: dict[str, dict[str, Any]] = {
    "int8": {},
    "int8 without -128": {"activation_range": [-127, 127], "weight_range": [-127, 127]},
    "asymmetric int8": ASYMMETRIC,
    "asymmetric uint8": {
        **ASYMMETRIC,
        "activation_dtype": "uint8",
        "activation_range": [0, 255],
    },
    "symmetric uint8": {"activation_dtype": "uint8", "activation_range": [0, 255]},
    "uint8 weights": {"weight_dtype": "uint8", "weight_range": [0, 255]},
    "per tensor": {"weight_per_channel": False},
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bounds", [(-2.0, 1.5), (0.0, 3.0), (0.5, 3.0), (-3.0, -1.0)], ids=str)
def test_every_scheme(
    scheme: str,
    bounds: tuple[float, float],
    parse: Callable[..., Program],
    integers: Callable[..., Profile],
    rng: np.random.Generator,
) -> None:
    w = rng.normal(size=(6, 8)).astype(F32)
    before = parse(layer("MatMul", w), {"w": w})
    facts = SCHEMES[scheme]
    after = run(before, [Quantize({"x": bounds})], integers(**facts))
    qlow, qhigh = facts.get("activation_range", (-128, 127))
    low, high = min(bounds[0], 0), max(bounds[1], 0)
    if facts.get("activation_symmetric", True):
        zero = 128 if qlow == 0 else 0
        scale = F32(max(-low, high) / (qhigh - zero))
    else:
        scale = F32((high - low) / (qhigh - qlow))
        zero = int(qlow + np.rint(-low / float(scale)))
    wlow, whigh = facts.get("weight_range", (-128, 127))
    wzero = 128 if wlow == 0 else 0
    axes = (0, 1) if scheme == "per tensor" else (0,)
    sw = (np.abs(w).max(axis=axes, keepdims=True).astype(np.float64) / (whigh - wzero)).astype(F32)
    x = np.concatenate([rng.normal(size=(2, 2, 6)) * 3, np.zeros((2, 1, 6))], axis=1).astype(F32)
    values = {"w": fake(w, sw, wlow, whigh, wzero)}
    expected = answer(parse(layer("MatMul", w), values), fake(x, scale, qlow, qhigh, zero))
    np.testing.assert_array_equal(answer(after, x), expected)
    np.testing.assert_array_equal(answer(after, x)[:, 2], 0)  # zero is exact


def test_one_pair_per_tensor_and_only_where_integers_are_used(
    parse: Callable[..., Program], integers: Callable[..., Profile], ops: Any
) -> None:
    w = np.eye(4, dtype=F32)
    before = parse(
        """(float[2,4] x, float[4,4] v, float[4,4] w) => (float[2,4] y, float[2,4] z)
        { a = MatMul(x, w) b = MatMul(x, v) c = Tanh(x) d = Add(a, c)
        y = Add(b, d) z = Relu(a) }""",
        {"w": w, "v": 2 * w},
    )
    after = run(before, [Quantize({"x": (-1, 1)})], integers())
    assert ops(after).count("QuantizeLinear") == 1
    assert ops(after).count("DequantizeLinear") == 3
    tanh = next(n for n in after.model.graph if n.op_type == "Tanh")
    assert tanh.inputs[0] is not None and tanh.inputs[0].name == "x"


def test_two_activations_and_a_fixed_softmax_scale(
    parse: Callable[..., Program], integers: Callable[..., Profile], rng: np.random.Generator
) -> None:
    before = parse(
        """(float[2,4,4] x) => (float[2,4,4] y)
        { p = Softmax(x) t = Transpose<perm=[0,2,1]>(p) y = MatMul(t, x) }"""
    )
    profile = integers(fixed_scales={"Softmax": 1 / 127})
    after = run(before, [Quantize({"x": (-2, 2)})], profile)
    x = rng.normal(size=(2, 4, 4)).astype(F32)
    e = np.exp(x - x.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    t = fake(p.swapaxes(1, 2).astype(F32), F32(1 / 127))
    # Codes are equal unless a softmax value lies on a tie of the two exponentials' rounding.
    np.testing.assert_allclose(answer(after, x), t @ fake(x, F32(2 / 127)), rtol=0, atol=1e-6)
    assert constants(after)["t_scale"] == F32(1 / 127)


def test_asymmetric_fixed_scale_starts_at_the_lowest_code(
    parse: Callable[..., Program], integers: Callable[..., Profile]
) -> None:
    before = parse("(float[2,4,4] x) => (float[2,4,4] y) { p = Softmax(x) y = MatMul(p, x) }")
    facts = {**ASYMMETRIC, "fixed_scales": {"Softmax": 1 / 256}}
    stored = constants(run(before, [Quantize({"x": (-2, 2)})], integers(**facts)))
    assert int(stored["p_zero_point"]) == -128
    assert float(stored["p_scale"]) == 1 / 256


def test_a_weight_read_along_two_axes_is_coded_twice(
    parse: Callable[..., Program], integers: Callable[..., Profile], rng: np.random.Generator
) -> None:
    w = wild(rng, 6, 6, axis=0)
    before = parse(
        "(float[3,6] x, float[6,6] w) => (float[3,6] y) { h = MatMul(x, w) i = Tanh(h)"
        " y = Gemm<transB=1>(i, w) }",
        {"w": w},
    )
    after = run(before, [Quantize({"x": (-2, 2), "i": (-1, 1)})], integers())
    x = rng.normal(size=(3, 6)).astype(F32)
    first = fake(x, F32(2 / 127)) @ fake(w, weight_scale(w, (0,)))
    second = fake(np.tanh(first), F32(1 / 127)) @ fake(w, weight_scale(w, (1,))).T
    np.testing.assert_allclose(answer(after, x), second, rtol=1e-5, atol=1e-4)
    assert "w" not in constants(after)


def test_a_dead_channel_and_a_tiny_one_keep_their_bias(
    parse: Callable[..., Program], integers: Callable[..., Profile], rng: np.random.Generator
) -> None:
    w = rng.normal(size=(6, 4)).astype(F32)
    w[:, 1] = 0
    w[:, 2] = 1e-20
    b = np.array([1, 3.25, -5, 0.5], F32)
    before = parse(
        "(float[3,6] x, float[6,4] w, float[4] b) => (float[3,4] y) { y = Gemm(x, w, b) }",
        {"w": w, "b": b},
    )
    after = run(before, [Quantize({"x": (-2, 2)})], integers())
    stored = constants(after)
    assert (stored["w_scale"] > 0).all() and (stored["w_quantized"][:, 1] == 0).all()
    assert np.abs(stored["b_quantized"].astype(np.int64)).max() <= 2**30
    got = answer(after, np.zeros((3, 6), F32))
    # Half a step of each bias's own scale.
    assert (np.abs(got - b) <= stored["b_scale"] / 2 + 1e-6).all()


def test_a_weight_of_zeros_has_scale_one(
    parse: Callable[..., Program], integers: Callable[..., Profile]
) -> None:
    w = np.zeros((6, 8), F32)
    after = run(parse(layer("MatMul", w), {"w": w}), [Quantize({"x": (-1, 1)})], integers())
    np.testing.assert_array_equal(constants(after)["w_scale"], np.ones(8, F32))


def test_other_operators_of_the_scheme(
    parse: Callable[..., Program], integers: Callable[..., Profile], rng: np.random.Generator
) -> None:
    before = parse(
        "(float[2,4] x) => (float[2,4] y) <float[4] k = {1, 2, 3, 4}> { a = Add(x, k) y = Tanh(a) }"
    )
    after = run(before, [Quantize({"x": (-2, 2)})], integers(ops=["Add"]))
    x = rng.normal(size=(2, 4)).astype(F32)
    k = fake(np.array([1, 2, 3, 4], F32), F32(4 / 127))
    np.testing.assert_allclose(answer(after, x), np.tanh(fake(x, F32(2 / 127)) + k), atol=1e-6)


def test_onnxruntime_fuses_it_into_integer_kernels(
    parse: Callable[..., Program],
    integers: Callable[..., Profile],
    rng: np.random.Generator,
    tmp_path: Any,
) -> None:
    import onnxruntime as ort

    weights = {
        "w": rng.normal(size=(8, 4, 3, 3)).astype(F32),
        "b": rng.normal(size=8).astype(F32),
        "v": rng.normal(size=(8, 8, 3, 3)).astype(F32),
    }
    before = parse(
        "(float[1,4,9,9] x, float[8,4,3,3] w, float[8] b, float[8,8,3,3] v) => (float[1,8,5,5] y)"
        "{ h = Conv(x, w, b) i = Relu(h) y = Conv(i, v) }",
        weights,
    )
    facts = {**ASYMMETRIC, "activation_dtype": "uint8", "activation_range": [0, 255]}
    after = run(before, [Quantize({"x": (-2, 2), "i": (0, 9)})], integers(**facts))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 4
    proto = after.serialized()
    assert proto is not None
    ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert "QLinearConv" in kinds and "Relu" not in kinds


def test_constants_that_are_no_weights_may_have_more_codes(parse: Any, integers: Any) -> None:
    """Four bits are for what is multiplied and summed; a summand keeps its eight."""
    rng = np.random.default_rng(4)
    weights = {n: rng.normal(size=s).astype(np.float32) for n, s in (("w", (4, 4)), ("c", (3, 4)))}
    body = "(float[3,4] x, float[4,4] w, float[3,4] c) => (float[3,4] y)"
    program = parse(body + " { m = MatMul (x, w)  y = Add (m, c) }", weights)
    device = integers(ops=["MatMul", "Add"], weight_range=[-7, 7], constant_range=[-127, 127])
    ranges = {"x": (-1.0, 1.0), "m": (-3.0, 3.0)}
    model = run(program, [Quantize(ranges)], device).model
    peaks = {}
    for name in ("w", "c"):
        tensor = model.graph.initializers[f"{name}_quantized"].const_value
        assert tensor is not None
        peaks[name] = int(np.abs(tensor.numpy().astype(int)).max())
    assert peaks == {"w": 7, "c": 127}
