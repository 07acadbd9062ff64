"""Weights in groups of codes: what is coded and what refused, and what it keeps."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc.errors import PassError
from npuc.passes.base import run
from npuc.passes.lower_opset import LowerOpset
from npuc.passes.qdq.groups import nearest
from npuc.passes.round_floats import RoundFloats
from npuc.passes.weight_only import WeightOnly
from npuc.profile import FloatFormat, Profile, WeightScheme
from npuc.program import Program
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]
Parse = Callable[..., Program]
Feed = Callable[..., dict[str, Array]]
FOUR, EIGHT = WeightScheme(4, 32, False), WeightScheme(8, 32, True)


def noise(*shape: int) -> Array:
    """Return float32 noise of its own for every shape."""
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


PRODUCTS = {
    "matmul": ("(float[n, 80] x) => (float[n, 6] y) { y = MatMul (x, w) }", (80, 6)),
    "rank 3": ("(float[n, 5, 80] x) => (float[n, 5, 6] y) { y = MatMul (x, w) }", (80, 6)),
    "left": ("(float[80, 3] x) => (float[6, 3] y) { y = MatMul (w, x) }", (6, 80)),
    "gemm": ("(float[n, 80] x) => (float[n, 6] y) { y = Gemm (x, w) }", (80, 6)),
    "flipped gemm": (
        "(float[n, 64] x) => (float[n, 6] y) { y = Gemm <transB = 1> (x, w) }",
        (6, 64),
    ),
    "conv": (
        "(float[n, 8, 9, 9] x) => (float[n, 6, 7, 7] y) { y = Conv (x, w) }",
        (6, 8, 3, 3),
    ),
    "depthwise": (
        "(float[n, 6, 9, 9] x) => (float[n, 6, 7, 7] y)"
        " { y = Conv <kernel_shape = [3, 3], group = 6> (x, w) }",
        (6, 1, 3, 3),
    ),
}


def coded(before: Program, scheme: WeightScheme, profile: Profile, **options: Any) -> Program:
    """Code weights; the result must be valid, keep its ports, and have nothing left to code."""
    after = run(before, [WeightOnly(scheme, **options)], profile)
    onnx.checker.check_model(ir.to_proto(after.model), full_check=True)
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    again = run(after, [WeightOnly(scheme, **options)], profile)
    assert again.steps[-1].changes == 0
    return after


@pytest.mark.parametrize("scheme", [FOUR, EIGHT, WeightScheme(4, 0, True)], ids=str)
@pytest.mark.parametrize("opset", [20, 21])
@pytest.mark.parametrize("kind", PRODUCTS)
def test_a_product_reads_what_its_codes_stand_for(
    kind: str, opset: int, scheme: WeightScheme, parse: Parse, feed: Feed, profile: Profile
) -> None:
    """It is the answer of the weight that the codes stand for, to the bit."""
    text, shape = PRODUCTS[kind]
    weight = noise(*shape)
    before = parse(text, {"w": weight}, opset)
    after = coded(before, scheme, profile)
    assert after.steps[-1].changes == 1 and not after.steps[-1].refusals
    assert "w" not in after.model.graph.initializers
    across = weight.T if kind in ("matmul", "rank 3", "gemm") else weight.reshape(shape[0], -1)
    real = nearest(across, scheme, scheme.bits).real
    real = real.T if kind in ("matmul", "rank 3", "gemm") else real.reshape(shape)
    values = feed(before)
    want = OnnxRunner(parse(text, {"w": real}, opset))(values)
    assert np.array_equal(OnnxRunner(after)(values)["y"], want["y"])
    floor = {4: 10.0, 8: 38.0}[scheme.bits]  # a Gaussian loses about 19 and 43 dB in groups of 32
    exact = OnnxRunner(before)(values)["y"]
    assert 10 * np.log10((exact**2).sum() / ((want["y"] - exact) ** 2).sum()) > floor


REFUSED = {
    "no constant": (
        "(float[n, 2, 5, 5] x, float[3, 2, 1, 1] w) => (float[n, 3, 5, 5] y) { y = Conv (x, w) }",
        "not a constant",
        (),
    ),
    "skipped": (
        "(float[n, 4] x) => (float[n, 2] y) { y = MatMul (x, w) }",
        "skipped by name",
        (4, 2),
    ),
    "a stack": (
        "(float[3, 5, 4] x) => (float[3, 5, 2] y) { y = MatMul (x, w) }",
        "is a stack",
        (3, 4, 2),
    ),
    "scattered": (
        "(float[n, 2, 5, 5] x) => (float[n, 3, 5, 5] y) { y = ConvTranspose (x, w) }",
        "scatters",
        (2, 3, 1, 1),
    ),
    "a vector": ("(float[n, 4] x) => (float[n] y) { y = MatMul (x, w) }", "no matrix", (4,)),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_and_why(kind: str, parse: Parse, profile: Profile) -> None:
    text, reason, shape = REFUSED[kind]
    before = parse(text, {"w": noise(*shape)} if shape else {})
    skip = ("matmul_0",) if kind == "skipped" else ()
    after = coded(before, FOUR, profile, skip=skip)
    (refusal,) = after.steps[-1].refusals
    assert after.steps[-1].changes == 0 and reason in refusal.reason


def test_two_activations_are_no_business_of_it(parse: Parse, profile: Profile) -> None:
    before = parse("(float[2, 4] x, float[4, 3] z) => (float[2, 3] y) { y = MatMul (x, z) }")
    step = coded(before, FOUR, profile).steps[-1]
    assert step.changes == 0 and not step.refusals


def test_a_shared_weight_is_coded_once(parse: Parse, feed: Feed, profile: Profile) -> None:
    """And what else reads it, as a tied embedding does, keeps the float weight."""
    text = """(float[n, 40] x, int64[n] i) => (float[n, 6] y, float[n, 6] z)
    { a = MatMul (x, w)  b = Relu (x)  c = MatMul (b, w)  y = Add (a, c)  z = Gather (w, i) }"""
    before = parse(text, {"w": noise(40, 6)})
    after = coded(before, FOUR, profile)
    kinds = [node.op_type for node in after.model.graph]
    assert kinds.count("DequantizeLinear") == 1 and after.steps[-1].changes == 2
    assert "w" in after.model.graph.initializers
    values = {**feed(before), "i": np.array([3, 1])}
    assert np.array_equal(OnnxRunner(after)(values)["z"], OnnxRunner(before)(values)["z"])


def test_no_number_is_reported_with_its_place(parse: Parse, profile: Profile) -> None:
    weight = noise(4, 2)
    weight[1, 1] = np.nan
    before = parse("(float[n, 4] x) => (float[n, 2] y) { y = MatMul (x, w) }", {"w": weight})
    with pytest.raises(PassError, match="NaN or Inf") as caught:
        run(before, [WeightOnly(FOUR)], profile)
    assert any("'w'" in note and "matmul_0" in note for note in caught.value.__notes__)


def test_dequantized_weights_are_rounded_to_the_targets_float(parse: Parse, feed: Feed) -> None:
    """On a device with bfloat16 the product reads bfloat16, and scales stay what they are."""
    text, shape = PRODUCTS["matmul"]
    before = parse(text, {"w": noise(*shape)})
    rngd = Profile.load("rngd")
    after = run(before, [WeightOnly(FOUR), RoundFloats(FloatFormat(8, 7))], rngd)
    real = nearest(noise(*shape).T, FOUR, 4).real.T
    want = run(parse(text, {"w": real}), [RoundFloats(FloatFormat(8, 7))], rngd)
    values = feed(before)
    assert np.array_equal(OnnxRunner(after)(values)["y"], OnnxRunner(want)(values)["y"])


def test_the_step_tells_what_was_coded(parse: Parse, profile: Profile) -> None:
    """Bytes and the weights with more bits are options of the step, which reports keep."""
    text, shape = PRODUCTS["matmul"]
    before = parse(text, {"w": noise(*shape)})
    codes = {"w": nearest(noise(*shape).T, FOUR, 8)}
    options = coded(before, FOUR, profile, coded=codes).steps[-1].options
    assert options["wider"] == {"w": 8} and "480 values: 1.9 kB as float32" in str(
        options["weights"]
    )


def test_an_older_opset_takes_the_rows(parse: Parse, feed: Feed, profile: Profile) -> None:
    """The form without blocks goes through a target's opset limit."""
    text, shape = PRODUCTS["gemm"]
    before = parse(text, {"w": noise(*shape)}, 20)
    after = run(before, [LowerOpset(18), WeightOnly(FOUR)], profile)
    values = feed(before)
    want = OnnxRunner(run(before, [WeightOnly(FOUR)], profile))(values)["y"]
    assert after.opset <= 18 and np.array_equal(OnnxRunner(after)(values)["y"], want)
