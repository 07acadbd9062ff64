"""integer-arithmetic: the codes equal an independent model of products, bias and rounding.

The model reads scales and codes off the quantized program, multiplies in float64 (exact below
2⁵³) with torch and rounds with Python's integers by TFLite's single-rounding formula.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from npuc.passes import numerics
from npuc.passes.arithmetic.requantize import RULES
from npuc.passes.base import run
from npuc.passes.integer_arithmetic import IntegerArithmetic
from npuc.passes.quantize import Quantize
from npuc.profile import FloatFormat, Profile
from npuc.program import Program
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]
F32 = np.float32
UINT8 = {"activation_dtype": "uint8", "activation_range": [0, 255]}


@pytest.fixture
def device(integers: Callable[..., Profile]) -> Callable[..., Profile]:
    def make(**facts: Any) -> Profile:
        return integers(
            **{"whole": True, "fused": ["Relu", "Clip"], "activation_symmetric": False,
               "weight_range": [-127, 127], "requantize": "tflite-single", **facts}
        )  # fmt: skip

    return make


# name: (operators, x, w, bias, product in float64 of (x - z, w), axis of the channels in y)
def _conv(**options: Any) -> Callable[[Any, Any], Any]:
    def product(x: Any, w: Any) -> Any:
        kind = [torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d]
        return kind[x.ndim - 3](x, w, **options)

    return product


LAYERS: dict[str, tuple[str, list[int], list[int], list[int], Callable[..., Any], int]] = {
    "Conv": ("y = Conv(x, w, b)", [2, 4, 7, 7], [8, 4, 3, 3], [8], _conv(), 1),
    "Conv with everything": (
        "y = Conv<pads=[1,1,1,1], strides=[2,2], dilations=[2,2], group=2>(x, w, b)",
        [2, 4, 9, 9], [8, 2, 3, 3], [8], _conv(padding=1, stride=2, dilation=2, groups=2), 1,
    ),
    "depthwise Conv": (
        "y = Conv<group=4>(x, w, b)", [1, 4, 7, 7], [4, 1, 3, 3], [4], _conv(groups=4), 1
    ),
    "Conv in 1-D": ("y = Conv(x, w, b)", [2, 4, 9], [8, 4, 3], [8], _conv(), 1),
    "Conv in 3-D": ("y = Conv(x, w, b)", [1, 2, 4, 4, 4], [3, 2, 2, 2, 2], [3], _conv(), 1),
    "Conv without bias": ("y = Conv(x, w)", [2, 4, 7, 7], [8, 4, 3, 3], [], _conv(), 1),
    "Gemm": ("y = Gemm(x, w, b)", [3, 6], [6, 8], [8], lambda x, w: x @ w, 1),
    "Gemm, transposed": (
        "y = Gemm<transA=1, transB=1>(x, w, b)", [6, 3], [8, 6], [8], lambda x, w: x.T @ w.T, 1
    ),
    "Gemm, alpha and beta": (
        "y = Gemm<alpha=0.5, beta=2.0>(x, w, b)", [3, 6], [6, 8], [8], lambda x, w: x @ w, 1
    ),
    "Gemm, bias in a row": ("y = Gemm(x, w, b)", [3, 6], [6, 8], [1, 8], lambda x, w: x @ w, 1),
    "Gemm, weight on the left": (
        "y = Gemm(w, x)", [6, 3], [8, 6], [], lambda x, w: w @ x, 0
    ),
    "MatMul": ("y = MatMul(x, w)", [2, 3, 6], [6, 8], [], lambda x, w: x @ w, 2),
    "MatMul and bias": (
        "h = MatMul(x, w) y = Add(h, b)", [2, 3, 6], [6, 8], [8], lambda x, w: x @ w, 2
    ),
    "MatMul of a stack": ("y = MatMul(x, w)", [2, 3, 6], [2, 6, 8], [], lambda x, w: x @ w, 2),
    "MatMul, weight on the left": (
        "y = MatMul(w, x)", [2, 6, 3], [8, 6], [], lambda x, w: w @ x, 1
    ),
}  # fmt: skip


def build(name: str, clamp: str, parse: Any, rng: np.random.Generator) -> tuple[Program, Array]:
    """Return the layer in float with weights whose channels differ, and an input."""
    text, x, w, b, product, _ = LAYERS[name]
    weight = rng.normal(size=w)
    weights = {"w": weight.astype(F32)}
    if b:
        weights["b"] = rng.normal(size=b).astype(F32)
    shape = list(product(torch.zeros(x).double(), torch.zeros(w).double()).shape)
    given = "".join(f", float{list(v.shape)} {k}" for k, v in weights.items())
    if clamp:
        text = text.replace("y =", "c =") + f" y = {clamp}"
    bounds = "<float lo = {-0.3}, float hi = {1.1}>" if "lo" in clamp else ""
    before = parse(f"(float{x} x{given}) => (float{shape} y) {bounds} {{ {text} }}", weights)
    return before, rng.normal(size=x).astype(F32)


def stored(program: Program, name: str) -> Array | None:
    value = program.model.graph.initializers.get(name)
    return None if value is None or value.const_value is None else value.const_value.numpy()


def coding(program: Program, name: str) -> tuple[float, int]:
    scale, zero = stored(program, f"{name}_scale"), stored(program, f"{name}_zero_point")
    assert scale is not None and zero is not None
    return float(scale), int(zero)


def single_rounding(acc: int, m: float) -> int:
    fraction, e = math.frexp(m)
    q = int(Fraction(fraction) * 2**31 + Fraction(1, 2))
    return (acc * q + (1 << (30 - e))) >> (31 - e)


def model(name: str, clamp: str, program: Program, x: Array, types: Array) -> tuple[Array, float]:
    """Return codes of y and one step of it, from the quantized program's constants alone."""
    _, _, _, b, product, axis = LAYERS[name]
    info = np.iinfo(types.dtype)
    (sx, zx), (sy, zy) = coding(program, "x"), coding(program, "y")
    codes = np.clip(np.rint(x / F32(sx)) + zx, info.min, info.max).astype(np.int64)
    w, sw = stored(program, "w_quantized"), stored(program, "w_scale")
    assert w is not None and sw is not None
    acc = product(torch.tensor(codes - zx).double(), torch.tensor(w.astype(np.float64))).numpy()
    place = [-1 if i == axis else 1 for i in range(acc.ndim)]
    alpha = 0.5 if "alpha" in name else 1.0
    unit = sw.astype(np.float64).reshape(place if sw.ndim else ()) * sx * alpha
    if b:
        bias = stored(program, "b_quantized")
        if bias is None:  # left to the pass: the Add after a MatMul
            real = stored(program, "b")
            assert real is not None
            bias = np.rint(real.reshape(place) / unit)
        acc = acc + bias.reshape(place)
    if not sw.ndim and "Conv" not in name:
        unit = np.asarray(np.float64(F32(sx) * F32(sw)) * alpha)  # 1.2: FC per tensor
    m = np.broadcast_to(unit / sy, acc.shape)
    low, high = info.min, info.max
    if clamp.startswith("Relu"):
        low = max(low, zy)
    elif clamp:
        low, high = (zy + round(float(F32(v) / F32(sy))) for v in (-0.3, 1.1))  # no ties here
    y = [single_rounding(int(a), float(f)) for a, f in zip(acc.flat, m.flat, strict=True)]
    return np.clip(np.array(y).reshape(acc.shape) + zy, low, high), sy


RANGES = {"x": (-2.5, 2.0), "y": (-7.0, 9.0)}


@pytest.mark.parametrize("clamp", ["", "Relu(c)", "Clip(c, lo, hi)"], ids=["", "Relu", "Clip"])
@pytest.mark.parametrize("facts", [{}, UINT8, {"weight_per_channel": False}],
                         ids=["int8", "uint8", "per tensor"])  # fmt: skip
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_bit_for_bit(
    name: str, facts: dict[str, Any], clamp: str, parse: Any, device: Any, rng: Any
) -> None:
    before, x = build(name, clamp, parse, rng)
    profile = device(**facts)
    quantized = run(before, [Quantize(RANGES)], profile)
    after = run(quantized, [IntegerArithmetic()], profile)
    onnx.checker.check_model(ir.to_proto(after.model), full_check=True)
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    assert (after.steps[-1].changes, after.steps[-1].refusals) == (1, ())
    kinds = [node.op_type for node in after.model.graph]
    assert ("ConvInteger" if "Conv" in name else "MatMulInteger") in kinds
    assert not {"Conv", "Gemm", "MatMul", "Relu", "Clip"} & set(kinds)

    types = np.zeros(0, facts.get("activation_dtype", "int8"))
    codes, step = model(name, clamp, quantized, x, types)
    zero = coding(quantized, "y")[1]
    expected = (codes - zero).astype(F32) * F32(step)
    got = OnnxRunner(after)({"x": x})["y"]
    np.testing.assert_array_equal(got, expected)
    assert len(np.unique(codes)) > 3


@pytest.mark.parametrize("facts", [{}, UINT8], ids=["int8", "uint8"])
def test_both_sides_of_a_product_have_one_signedness(
    facts: dict[str, Any], parse: Any, device: Any, rng: Any
) -> None:
    before, _ = build("MatMul, weight on the left", "", parse, rng)
    profile = device(**facts)
    after = run(before, [Quantize(RANGES), IntegerArithmetic()], profile)
    node = next(n for n in after.model.graph if n.op_type == "MatMulInteger")
    kinds = {v.dtype for v in node.inputs if v is not None}
    assert kinds == {ir.DataType.UINT8 if facts else ir.DataType.INT8}


def test_a_product_of_activations(parse: Any, device: Any, rng: Any) -> None:
    before = parse("(float[2,3,4] x, float[2,4,5] v) => (float[2,3,5] y) { y = MatMul(x, v) }")
    profile = device()
    ranges = {"x": (-3, 1), "v": (-1, 2), "y": (-6, 6)}
    quantized = run(before, [Quantize(ranges)], profile)
    after = run(quantized, [IntegerArithmetic()], profile)
    feed = {"x": rng.normal(size=(2, 3, 4)).astype(F32), "v": rng.normal(size=(2, 4, 5))}
    got = OnnxRunner(after)(feed)["y"]
    sides = []
    for name in ("x", "v"):
        scale, zero = coding(quantized, name)
        codes = np.rint(np.asarray(feed[name], F32) / F32(scale)) + zero
        sides.append(codes.clip(-128, 127) - zero)
    (sx, _), (sv, _), (sy, zy) = (coding(quantized, n) for n in "xvy")
    m = float(F32(sx) * F32(sv)) / sy
    codes = np.array([single_rounding(int(a), m) for a in (sides[0] @ sides[1]).flat])
    expected = (codes + zy).clip(-128, 127) - zy
    np.testing.assert_array_equal(got.reshape(-1), expected.astype(F32) * F32(sy))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["Conv with everything", "MatMul and bias"])
def test_every_rule_is_within_a_code_of_the_float_program(
    name: str, rule: str, parse: Any, device: Any, rng: Any
) -> None:
    before, x = build(name, "", parse, rng)
    profile = device(requantize=rule)
    quantized = run(before, [Quantize(RANGES)], profile)
    after = run(quantized, [IntegerArithmetic()], profile)
    step = coding(quantized, "y")[0]
    gap = (OnnxRunner(after)({"x": x})["y"] - OnnxRunner(quantized)({"x": x})["y"]) / step
    np.testing.assert_array_less(np.abs(gap), 1.001)
    assert {f.name for f in after.model.functions.values()} == {RULES[rule].operator}


@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
def test_a_narrow_accumulator(overflow: str, parse: Any, device: Any) -> None:
    """600 products of 127·127 pass 2²³, one of the sums does not."""
    w = np.ones((600, 2), F32)
    w[300:, 1] = 0
    before = parse("(float[1,600] x, float[600,2] w) => (float[1,2] y) { y = MatMul(x, w) }",
                   {"w": w})  # fmt: skip
    profile = device(
        accumulator_bits=24, overflow=overflow, activation_symmetric=True, requantize="two-stage"
    )
    ranges = {"x": (-1.0, 1.0), "y": (-700.0, 700.0)}
    after = run(before, [Quantize(ranges), IntegerArithmetic()], profile)
    got = OnnxRunner(after)({"x": np.ones((1, 600), F32)})["y"][0]
    total = 600 * 127 * 127
    held = total - 2**24 if overflow == "wrap" else 2**23 - 1
    # A code is 700 / 127; the multiplier's error, 2⁻¹⁵, is far below half of one.
    np.testing.assert_allclose(got, [held / 127**2, 300], atol=0.51 * 700 / 127)


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, tuple[float, float]]]] = {
    "read as a float, by the caller": ("y = MatMul(x, w)", {"whole": False}, {}),
    "read as a float, by Relu": (
        "h = MatMul(x, w) r = Relu(h) y = MatMul(r, w)",
        {"whole": False, "fused": []},
        {"r": (0, 4)},
    ),
    "ConvTranspose has no integer operator": (
        "s = Unsqueeze(x, n) t = ConvTranspose(s, v) y = Flatten(t)",
        {"ops": ["ConvTranspose"]},
        {"t": (-3, 3), "s": (-2, 2)},
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_stays_as_it_is(reason: str, parse: Any, device: Any, rng: Any) -> None:
    text, facts, ranges = REFUSED[reason]
    weights = {"w": rng.normal(size=(4, 4)).astype(F32)} if " w)" in text else {
        "v": rng.normal(size=(4, 1, 1)).astype(F32)
    }  # fmt: skip
    given = ", ".join(f"float{list(v.shape)} {k}" for k, v in weights.items())
    extra = "<int64[1] n = {2}>" if "Unsqueeze" in text else ""
    before = parse(f"(float[4,4] x, {given}) => (float[4,d] y) {extra} {{ {text} }}", weights)
    profile = device(**facts)
    every = {"x": (-2.0, 2.0), "y": (-4.0, 4.0), **ranges}
    quantized = run(before, [Quantize(every)], profile)
    after = run(quantized, [IntegerArithmetic()], profile)
    assert any(reason in r.reason for r in after.steps[-1].refusals)
    x = rng.normal(size=(4, 4)).astype(F32)
    same, got = (OnnxRunner(p)({"x": x})["y"] for p in (quantized, after))
    np.testing.assert_allclose(got, same, rtol=0, atol=1e-6)


def test_a_multiplier_out_of_reach_is_reported(parse: Any, device: Any, rng: Any) -> None:
    before, _ = build("MatMul", "", parse, rng)
    profile = device(requantize="q16")
    ranges = {"x": (-2.5, 2.0), "y": (-1e-9, 1e-9)}
    step = run(before, [Quantize(ranges), IntegerArithmetic()], profile).steps[-1]
    assert step.changes == 0
    assert "q16: a multiplier must be below 2¹⁶" in step.refusals[0].reason


def test_fewer_codes_than_the_type_has(parse: Any, device: Any, rng: Any) -> None:
    before, x = build("MatMul", "", parse, rng)
    profile = device(activation_range=[-100, 99])
    narrow = {"x": (-1.0, 1.0), "y": (-1.0, 1.0)}
    quantized = run(before, [Quantize(narrow)], profile)
    after = run(quantized, [IntegerArithmetic()], profile)
    assert after.steps[-1].changes == 1
    step, zero = coding(quantized, "y")
    codes = np.rint(OnnxRunner(after)({"x": 9 * x})["y"] / step) + zero
    assert (codes.min(), codes.max()) == (-100, 99)


def test_shorter_floats_leave_integers_alone(parse: Any, device: Any, rng: Any) -> None:
    """With codes at both ends, a bfloat16 only shows where codes become the caller's floats."""
    before, x = build("Conv", "Relu(c)", parse, rng)
    profile = device()
    quantized = run(before, [Quantize(RANGES)], profile)
    x = torch.tensor(x).bfloat16().float().numpy()  # what is copied to the device
    exact = run(quantized, numerics(profile, "int8", None), profile)
    short = run(quantized, numerics(profile, "int8", FloatFormat(8, 7)), profile)
    expected = torch.tensor(OnnxRunner(exact)({"x": x})["y"]).bfloat16().float().numpy()
    np.testing.assert_array_equal(OnnxRunner(short)({"x": x})["y"], expected)
    assert [step.name for step in short.steps[-2:]] == ["integer-arithmetic", "round-floats"]


@pytest.mark.parametrize(
    ("facts", "precision", "names"),
    [
        ({"requantize": "float32-even"}, "int8", []),
        ({"requantize": "float32-even", "accumulator_bits": 24}, "int8", ["integer-arithmetic"]),
        ({"requantize": "q16"}, "int8", ["integer-arithmetic"]),
        ({"requantize": "q16"}, "float", []),
    ],
)
def test_numerics_of_a_device(
    facts: dict[str, Any], precision: str, names: list[str], device: Any
) -> None:
    assert [item.name for item in numerics(device(**facts), precision, None)] == names
