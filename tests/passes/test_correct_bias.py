"""correct-bias: what codes add on average is taken from biases, coded or not."""

from typing import Any

import numpy as np
import pytest

from npuc.errors import PassError
from npuc.passes.base import run
from npuc.passes.correct_bias import CorrectBias
from npuc.passes.quantize import Quantize
from npuc.profile import Profile
from npuc.program import Program
from npuc.quantization.bias_shifts import measure
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(7)
VALUES: dict[str, Array] = {
    "w": RNG.normal(size=(6, 4)).astype(np.float32),
    "t": RNG.normal(size=(4, 6)).astype(np.float32),
    "c": RNG.normal(size=4).astype(np.float32),
    "v": RNG.normal(size=(4, 6, 1, 1)).astype(np.float32),
    "p": RNG.normal(size=(6, 1, 3, 3)).astype(np.float32),
    "q": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32),
    "e": RNG.normal(size=6).astype(np.float32),
}
FLAT, IMAGE = "float[5,6] x", "float[1,6,5,5] x"
CORRECTED = {
    "Gemm": (FLAT, "y = Gemm(x, w, c)"),
    "Gemm transB, alpha, beta": (FLAT, "y = Gemm<transB=1, alpha=0.5, beta=2.0>(x, t, c)"),
    "MatMul and Add": (FLAT, "m = MatMul(x, w) y = Add(m, c)"),
    "Conv": (IMAGE, "y = Conv(x, v, c)"),
    "Conv in groups, a kernel": (IMAGE, "y = Conv<group=2>(x, q, c)"),
    "depthwise Conv, a kernel": (IMAGE, "y = Conv<group=6>(x, p, e)"),
}
REFUSED = {
    "no bias": (FLAT, "y = MatMul(x, w)", "it has no bias"),
    "Conv without one": (IMAGE, "y = Conv(x, v)", "it has no bias"),
    "a bias that is computed": (
        FLAT,
        "m = MatMul(x, w) s = ReduceMean(x) y = Add(m, s)",
        "its bias is not a constant",
    ),
    "beta of zero": (FLAT, "y = Gemm<beta=0.0>(x, w, c)", "multiplied by zero"),
}


def program(parse: Any, inputs: str, body: str) -> Program:
    used = {k: v for k, v in VALUES.items() if f" {k})" in body or f" {k}," in body}
    params = "".join(f", float{list(v.shape)} {name}" for name, v in used.items())
    dims = ",".join("NCHW"[: 4 if inputs == IMAGE else 2])
    made: Program = parse(f"({inputs}{params}) => (float[{dims}] y){{ {body} }}", used)
    return made


def calls(made: Program, count: int = 200) -> list[dict[str, Array]]:
    """Inputs far from zero on average, with a tail beyond the range that is calibrated."""
    rng = np.random.default_rng(0)
    shape = [d for d in made.inputs[0].shape if isinstance(d, int)]
    return [{"x": rng.gamma(2.0, size=shape).astype(np.float32)} for _ in range(count)]


def quantized(made: Program, profile: Profile) -> Program:
    """Clip a tenth of the inputs, so that codes shift what every product answers."""
    return run(made, [Quantize({"x": (0.0, 4.0)})], profile)


def mean_error(made: Program, other: Program, samples: list[dict[str, Array]]) -> Array:
    """Return the mean over samples and places of each output channel's error."""
    one, two = OnnxRunner(made), OnnxRunner(other)
    axes = (0, 2, 3) if len(made.outputs[0].shape) == 4 else (0,)
    errors = [two(call)["y"].astype(np.float64) - one(call)["y"] for call in samples]
    return np.asarray(np.mean([e.mean(axis=axes) for e in errors], axis=0))


@pytest.mark.parametrize("name", CORRECTED)
def test_the_mean_error_goes(name: str, parse: Any, integers: Any) -> None:
    made = program(parse, *CORRECTED[name])
    profile, samples = integers(), calls(made)
    coded = quantized(made, profile)
    after = run(coded, [CorrectBias(measure(coded, made, samples))], profile)
    step = after.steps[-1]
    assert (step.changes, step.refusals) == (1, ())
    before = np.abs(mean_error(made, coded, samples)).max()
    left = np.abs(mean_error(made, after, samples)).max()
    assert before > 0.02
    # What is left: float32 sums, and half a step of a coded bias (4/127 · max|w|/127 / 2). A kernel
    # reads the middle of an image more often than its edge, and their means over 200 samples are
    # not the same.
    assert left < (before / 5 if "kernel" in name else 5e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str, parse: Any, integers: Any) -> None:
    inputs, body, reason = REFUSED[name]
    made = program(parse, inputs, body)
    coded = quantized(made, integers())
    after = run(coded, [CorrectBias(measure(coded, made, calls(made, 4)))], integers())
    assert after.steps[-1].changes == 0
    assert reason in after.steps[-1].refusals[0].reason


def test_measuring_again_finds_nothing_more_to_do(parse: Any, integers: Any) -> None:
    made = program(parse, *CORRECTED["Gemm"])
    profile, samples = integers(), calls(made)
    coded = quantized(made, profile)
    shifts = measure(coded, made, samples)
    # Codes shift a product by the same whatever its bias is.
    after = run(coded, [CorrectBias(shifts)], profile)
    again = measure(after, made, samples)
    assert [x.tobytes() for x in again.values()] == [x.tobytes() for x in shifts.values()]


def test_products_that_stayed_in_float_are_left_alone(parse: Any, integers: Any) -> None:
    made = program(parse, *CORRECTED["Gemm"])
    node = made.model.graph[0].name or ""
    after = run(made, [CorrectBias({node: np.ones(4)})], integers())
    assert after.serialized() == made.serialized()


def test_without_weights_to_correct_nothing_is_measured(parse: Any) -> None:
    made = parse("(float[2,3] x) => (float[N,C] y){ y = Relu(x) }")
    assert measure(made, made, calls(made, 1)) == {}


def test_a_device_without_integers(parse: Any, profile: Profile) -> None:
    with pytest.raises(PassError, match="no integer scheme"):
        run(program(parse, *CORRECTED["Gemm"]), [CorrectBias({})], profile)
