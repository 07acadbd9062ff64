"""decompose: Resize as another Resize, a convolution or matrices; the weights it has."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npuc.passes.base import run
from npuc.passes.decompose import Decompose
from npuc.passes.forms.interpolation import COORDINATES, NEAREST, Rule, matrix
from npuc.profile import Limit
from npuc.program import Program
from npuc.runners import OnnxRunner

X = "(float[1,3,5,6] x) => (float[A,B,C,D] y) "
TWICE = "<float[4] s = {1, 1, 2, 2}> "
TO_SIZES = "<int64[4] s = {1, 3, 8, 11}> "
TORCH = Limit(("Resize",), "coordinates", "A", "test", among=("pytorch_half_pixel",))
# (body, limits, what the device has, what it becomes); the weights of linear and cubic are
# float32, products of two of them and at most 16 values below 4.
NOISE = 3e-6
CASES: dict[str, tuple[str, tuple[Limit, ...], str, str]] = {
    "nearest by ConvTranspose": (
        TWICE + '{ y = Resize<mode="nearest">(x, , s) }', (), "ConvTranspose", "ConvTranspose",
    ),
    "nearest by Expand": (
        TWICE + '{ y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric",'
        ' nearest_mode="floor">(x, , s) }',
        (), "Reshape Expand", "Reshape Expand Reshape Reshape Expand Reshape",
    ),
    "nearest to any size": (
        TO_SIZES + '{ y = Resize<mode="nearest">(x, , , s) }', (), "MatMul", "MatMul MatMul",
    ),
    "linear": (
        TWICE + '{ y = Resize<mode="linear">(x, , s) }', (), "MatMul", "MatMul MatMul",
    ),
    "linear to any size": (
        TO_SIZES + '{ y = Resize<mode="linear", coordinate_transformation_mode='
        '"align_corners">(x, , , s) }',
        (), "MatMul", "MatMul MatMul",
    ),
    "cubic": (TWICE + '{ y = Resize<mode="cubic">(x, , s) }', (), "MatMul", "MatMul MatMul"),
    "channels": (
        '<float[4] s = {1, 2, 1, 1}> { y = Resize<mode="linear">(x, , s) }',
        (), "MatMul Reshape", "Reshape MatMul Reshape",
    ),
    "named otherwise": (
        TWICE + '{ y = Resize<mode="linear">(x, , s) }', (TORCH,), "Resize", "Resize",
    ),
    "nearest, named otherwise": (
        TWICE + '{ y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric",'
        ' nearest_mode="floor">(x, , s) }',
        (TORCH,), "Resize", "Resize",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_answers_alike(case: str, decomposed: Callable[..., list[str]]) -> None:
    text, limits, supported, becomes = CASES[case]
    assert decomposed(X + text, supported, *limits, atol=NOISE) == becomes.split()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    size=st.integers(1, 9),
    wanted=st.integers(1, 20),
    by_scale=st.booleans(),
    mode=st.sampled_from(["nearest", "linear", "cubic"]),
    coordinates=st.sampled_from(COORDINATES),
    nearest=st.sampled_from(NEAREST),
    outside=st.booleans(),
)
def test_weights_are_those_of_onnx_runtime(
    size: int,
    wanted: int,
    by_scale: bool,
    mode: str,
    coordinates: str,
    nearest: str,
    outside: bool,
    parse: Callable[..., Program],
) -> None:
    scale = np.float32(wanted / size)
    if by_scale:
        wanted = int(np.floor(np.float32(size) * scale))
    outside = outside and mode == "cubic"
    second = (
        f"float[4] s = {{1, 1, 1, {scale!s}}}"
        if by_scale
        else f"int64[4] s = {{1, 1, 1, {wanted}}}"
    )
    text = (
        f"(float[1,1,1,{size}] x) => (float[A,B,C,D] y) <{second}> "
        f'{{ y = Resize<mode="{mode}", coordinate_transformation_mode="{coordinates}", '
        f'nearest_mode="{nearest}", exclude_outside={int(outside)}>'
        f"(x, , {'s' if by_scale else ', s'}) }}"
    )
    runner = OnnxRunner(parse(text))
    used = float(scale) if by_scale else wanted / size
    weights = matrix(size, wanted, used, Rule(mode, coordinates, nearest, -0.75, outside))
    for column, row in enumerate(np.eye(size, dtype=np.float32)):
        got = runner({"x": row.reshape(1, 1, 1, size)})["y"].reshape(-1)
        # Coordinates are computed in float32 there: 20 · eps, times a slope of at most 2.
        np.testing.assert_allclose(weights[:, column], got, atol=1e-5)


REFUSED = {
    "antialiased": (TWICE + '{ y = Resize<mode="linear", antialias=1>(x, , s) }', "antialiased"),
    "other values": (
        TWICE + '{ y = Resize<mode="linear", coordinate_transformation_mode="asymmetric">'
        "(x, , s) }",
        "no other coordinates read the same values",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_the_reason(case: str, parse: Callable[..., Program], device: Any) -> None:
    text, reason = REFUSED[case]
    step = run(parse(X + text), [Decompose()], device("Resize", TORCH)).steps[0]
    if case == "antialiased":
        step = run(parse(X + text), [Decompose()], device("MatMul")).steps[0]
    assert reason in step.refusals[0].reason
