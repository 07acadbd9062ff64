"""Factors in 8-bit floats: where they are rounded, what is refused, and what it keeps."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc.errors import PassError
from npuc.passes.base import run
from npuc.passes.round_factors import RoundFactors
from npuc.passes.round_floats import RoundFloats
from npuc.profile import FloatFormat, Profile
from npuc.program import Program
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]
Parse = Callable[..., Program]
Feed = Callable[..., dict[str, Array]]
TYPES = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
LARGEST = {"e4m3": 448.0, "e5m2": 57344.0}
LINEAR = "(float[n, 24] x) => (float[n, 6] y) { y = Gemm (x, w, b) }"


def noise(*shape: int) -> Array:
    """Return float32 noise of its own for every shape."""
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def short(x: Array, k: int, name: str) -> Array:
    """Round by ml_dtypes, saturating, at a scale of 2^k."""
    end = LARGEST[name]
    small = np.clip(np.ldexp(x, -k), -end, end).astype(TYPES[name])
    return np.ldexp(small.astype(np.float32), k)


def power(peak: float, name: str) -> int:
    """Return the least k that takes a peak into the format, by trying."""
    end = LARGEST[name]
    return next(k for k in range(-60, 60) if peak / 2.0**k <= end)


def rounded(
    before: Program, ranges: dict[str, tuple[float, float]], profile: Profile, **options: Any
) -> Program:
    """Round factors; the result must be valid, keep its ports, and be a fixed point."""
    item = RoundFactors(ranges, **options)
    after = run(before, [item], profile)
    onnx.checker.check_model(ir.to_proto(after.model), full_check=True)
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    assert run(after, [item], profile).steps[-1].changes == 0
    return after


@pytest.mark.parametrize("name", TYPES)
def test_a_product_of_rounded_factors(
    name: str, parse: Parse, feed: Feed, profile: Profile
) -> None:
    """Activations by one scale, weights by one for each output, the bias as it is.

    What lies beyond the calibrated range saturates.
    """
    weights = {"w": noise(24, 6) * np.logspace(-3, 3, 6, dtype=np.float32), "b": noise(6)}
    before = parse(LINEAR, weights)
    after = rounded(before, {"x": (-1.0, 0.8)}, profile, format=name)
    assert after.steps[-1].changes == 1 and not after.steps[-1].refusals
    values = {"x": feed(before, 7)["x"] * 3}
    peaks = np.abs(weights["w"]).max(axis=0)
    columns = [short(weights["w"][:, i], power(float(peaks[i]), name), name) for i in range(6)]
    x = short(values["x"], power(1.0, name), name)
    want = x.astype(np.float64) @ np.stack(columns, axis=1) + weights["b"]
    got = OnnxRunner(after)(values)["y"]
    # 1e-6: ONNX Runtime sums 24 exact products in float32.
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6 * np.abs(want).max())


def test_in_bfloat16_the_scales_change_nothing(parse: Parse, feed: Feed) -> None:
    """Powers of two pass the rounding of every result: only the result of the sum is rounded."""
    rngd, bf16 = Profile.load("rngd"), FloatFormat(8, 7)
    before = parse(LINEAR, {"w": noise(24, 6), "b": np.zeros(6, np.float32)})
    factors = RoundFactors({"x": (-4.0, 4.0)})
    values = feed(before)
    values["x"] = values["x"].astype(ml_dtypes.bfloat16).astype(np.float32)
    exact = OnnxRunner(run(before, [factors], rngd))(values)["y"]
    got = OnnxRunner(run(before, [factors, RoundFloats(bf16)], rngd))(values)["y"]
    assert np.array_equal(got, exact.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_one_tensor_is_rounded_once_for_all_who_read_it(parse: Parse, profile: Profile) -> None:
    text = """(float[n, 8] x) => (float[n, 8] y)
    { a = MatMul (x, w)  c = MatMul (x, v)  s = Relu (x)  y = Add (a, c) }"""
    before = parse(text, {"w": noise(8, 8), "v": noise(8, 8) + 1})
    after = rounded(before, {"x": (-3.0, 3.0)}, profile)
    kinds = [node.op_type for node in after.model.graph]
    assert kinds.count("Clip") == 1 and after.steps[-1].changes == 2
    (relu,) = (node for node in after.model.graph if node.op_type == "Relu")
    assert relu.inputs[0] is not None and relu.inputs[0].name == "x"


def test_both_factors_may_be_activations(parse: Parse, feed: Feed, profile: Profile) -> None:
    before = parse("(float[2, 4] x, float[4, 3] z) => (float[2, 3] y) { y = MatMul (x, z) }")
    after = rounded(before, {"x": (-3.0, 3.0), "z": (-2.0, 2.0)}, profile)
    values = feed(before)
    x, z = (short(values[n], power(p, "e4m3"), "e4m3") for n, p in (("x", 3.0), ("z", 2.0)))
    want = x.astype(np.float64) @ z
    np.testing.assert_allclose(OnnxRunner(after)(values)["y"], want, rtol=1e-6, atol=1e-6)


def test_weights_alone(parse: Parse, feed: Feed, profile: Profile) -> None:
    """Where a device multiplies them with wider activations, no range is needed."""
    before = parse(LINEAR, {"w": noise(24, 6), "b": noise(6)})
    after = rounded(before, {}, profile, activations=False)
    assert after.steps[-1].changes == 1
    assert [node.op_type for node in after.model.graph] == ["Gemm"]


REFUSED = {
    "no range": ({}, (), "no calibrated range"),
    "only zeros": ({"x": (0.0, 0.0)}, (), "always zero"),
    "skipped": ({"x": (-1.0, 1.0)}, ("gemm_0",), "skipped by name"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_and_why(kind: str, parse: Parse, profile: Profile) -> None:
    ranges, skip, reason = REFUSED[kind]
    before = parse(LINEAR, {"w": noise(24, 6), "b": noise(6)})
    after = rounded(before, dict(ranges), profile, skip=skip)
    (refusal,) = after.steps[-1].refusals
    assert after.steps[-1].changes == 0 and reason in refusal.reason


def test_no_number_and_no_format(parse: Parse, profile: Profile) -> None:
    weight = noise(24, 6)
    weight[2, 2] = np.inf
    before = parse(LINEAR, {"w": weight, "b": noise(6)})
    with pytest.raises(PassError, match="'w' of 'gemm_0' holds NaN or Inf"):
        run(before, [RoundFactors({"x": (-1.0, 1.0)})], profile)
    with pytest.raises(PassError, match="no 8-bit float 'e3m4'"):
        run(before, [RoundFactors({}, "e3m4")], profile)
