"""Products of bfloat16 factors: exact where numbers are small integers, in any order of sums."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from npuc.passes.arithmetic.round_to import function, function_name, round_to
from npuc.profile import FloatFormat
from npuc.targets.tvm import runtime

Array = np.ndarray[Any, Any]
BF16 = FloatFormat(8, 7)
LEVELS = (
    "native",
    "x86-64-v3",
    pytest.param("x86-64-v4+avx512bf16", marks=pytest.mark.slow),
    pytest.param("aarch64", marks=pytest.mark.slow),
)
ONCE = settings(
    deadline=None, max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SIZES = st.sampled_from((1, 2, 3, 5, 7, 8, 15, 16, 17, 33, 48, 67, 130))
FEW = st.sampled_from((1, 2, 3))


def rounded(made: Any, value: str) -> str:
    """Round a tensor of a graph to bfloat16."""
    if not made.functions:
        made.functions.append(ir.to_proto(function(BF16, 20)))
    name: str = made.node(function_name(BF16), value, domain="ai.npuc")
    return name


def small(numbers: np.random.Generator, *shape: int) -> Array:
    """Return integers that bfloat16 holds, whose products add up exactly in float32."""
    return numbers.integers(-15, 16, size=shape).astype(np.float32)


@pytest.mark.parametrize("cpu", LEVELS)
@ONCE
@given(
    sizes=st.lists(st.tuples(SIZES, SIZES, SIZES, st.booleans()), min_size=4, max_size=6),
    seed=st.integers(0, 2**32),
)
def test_products_of_every_shape_are_exact(
    graph: Callable[..., Any], anywhere: Callable[..., Any], cpu: str,
    sizes: list[tuple[int, int, int, bool]], seed: int,
) -> None:  # fmt: skip
    """[rows, depth] times [depth, columns], some with a bias, a Relu and another rounding."""
    made, numbers, wanted = graph(), np.random.default_rng(seed), []
    for rows, depth, columns, more in sizes:
        x, w = small(numbers, rows, depth), small(numbers, depth, columns)
        y = made.node("MatMul", rounded(made, made.input(x)), made.constant(w))
        expected = x @ w
        if more:
            bias, last = small(numbers, columns), small(numbers, columns, 3)
            y = made.node("Relu", made.node("Add", y, made.constant(bias)))
            y = made.node("MatMul", rounded(made, y), made.constant(last))
            # Sums beyond bfloat16's 8 bits are rounded before the second product.
            expected = round_to(np.maximum(expected + bias, 0), BF16).astype(np.float64) @ last
        made.output(y)
        wanted.append(expected)
    got, _ = anywhere(made, cpu)
    for name, expected in zip(made.outputs, wanted, strict=True):
        # Exact but for sums above 2²⁴, of rounded results: 2⁻²⁴ each, at most 130 of them.
        np.testing.assert_allclose(got[name], expected, rtol=1e-5, atol=0.5)
        if np.abs(expected).max(initial=0) < 2**18:
            np.testing.assert_array_equal(got[name], expected.astype(np.float32))


@pytest.mark.parametrize("cpu", LEVELS)
@ONCE
@given(
    shapes=st.lists(
        st.tuples(FEW, st.sampled_from((1, 2, 3)), SIZES, SIZES, FEW, FEW, st.integers(0, 2)),
        min_size=4, max_size=6,
    ),
    seed=st.integers(0, 2**32),
)  # fmt: skip
def test_convolutions_agree_with_onnxruntime_bit_by_bit(
    graph: Callable[..., Any], anywhere: Callable[..., Any], cpu: str,
    shapes: list[tuple[int, ...]], seed: int,
) -> None:  # fmt: skip
    """Groups, odd channels, images of three channels, strides, borders; transposed ones, too."""
    made, numbers = graph(), np.random.default_rng(seed)
    for batch, groups, own, out, kernel, stride, kind in shapes:
        x = made.input(small(numbers, batch, groups * own, 9, 8))
        if kind == 2:
            w = small(numbers, groups * own, out, kernel, kernel)
            y = made.node("ConvTranspose", rounded(made, x), made.constant(w), group=groups,
                          strides=[stride, stride])  # fmt: skip
        else:
            w = small(numbers, groups * out, own, kernel, kernel)
            pads = [kind * (kernel - 1)] * 4
            y = made.node("Conv", rounded(made, x), made.constant(w), group=groups, pads=pads,
                          strides=[stride, stride])  # fmt: skip
        made.output(y)
    got, expected = anywhere(made, cpu)
    for name in made.outputs:
        np.testing.assert_array_equal(got[name], expected[name])


def test_a_factor_is_stored_once_in_two_bytes(
    graph: Callable[..., Any], answer: Callable[..., Any], floats: Callable[..., Array]
) -> None:
    """A value that a sum reads too is kept as it is; what is no product's factor is, as well."""
    made = graph()
    x = made.input(floats((1, 24, 6, 6)))
    y = made.node("Conv", rounded(made, x), made.constant(bfloats(floats((24, 24, 1, 1)))))
    z = made.node("Conv", rounded(made, y), made.constant(bfloats(floats((24, 24, 1, 1), 1))))
    made.output(made.node("Add", y, z))
    deep = made.constant(bfloats(floats((24, 1, 3, 3), 2)))
    made.output(made.node("Conv", rounded(made, z), deep, group=24))
    found = answer(made)
    # A few sums of 24 products, each rounded otherwise than ONNX Runtime's by 2⁻²³ and then, at a
    # tie, to the other bfloat16: 2⁻⁸ of one factor.
    assert not found.faults(2e-3)
    calls = kernels(found.lowered)
    assert sum("bf16" in kernel for kernel in calls) == 2, calls
    assert any("depthwise" in kernel for kernel in calls), calls


def test_other_weights_and_formats_stay_in_float32(
    graph: Callable[..., Any], answer: Callable[..., Any], floats: Callable[..., Array]
) -> None:
    """What is not bfloat16 on both sides is multiplied as it was."""
    made = graph()
    x = made.input(floats((5, 32)))
    made.output(made.node("MatMul", rounded(made, x), made.constant(floats((32, 8)))))
    left = rounded(made, made.input(floats((5, 32), 1)))
    right = rounded(made, made.input(floats((32, 5), 2)))
    made.output(made.node("MatMul", left, right))
    found = answer(made)
    assert not found.faults(1e-5)  # 32 products in another order
    assert not any("bf16" in kernel for kernel in kernels(found.lowered))


def test_storing_rounds_as_the_reference(
    graph: Callable[..., Any], answer: Callable[..., Any]
) -> None:
    """Every exponent, ties and their neighbours, infinities: times one they are what is stored."""
    bits = np.arange(1 << 16, dtype=np.uint32)
    around = [(bits << 16) | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]
    values = np.concatenate(around).astype(np.uint32).view(np.float32)
    normal = np.isfinite(values) & (np.abs(values) >= np.finfo(np.float32).tiny)
    values = np.concatenate([values[normal], np.array([0.0, np.nan], np.float32)])
    made = graph()
    x = made.input(values.reshape(-1, 1))
    made.output(made.node("MatMul", rounded(made, x), made.constant(np.ones((1, 1), np.float32))))
    found = answer(made)
    (got,) = found.got.values()
    np.testing.assert_array_equal(got[:, 0], round_to(values, BF16))
    assert any("bf16" in kernel for kernel in kernels(found.lowered))


def bfloats(array: Array) -> Array:
    """Return the nearest bfloat16 values."""
    return round_to(array, BF16)


def kernels(lowered: Any) -> list[str]:
    """Return the names of the kernels that a compiled program calls."""
    from npuc.targets.tvm import origins

    machine = runtime.opened(lowered.files["payload/model.so"])
    return [kernel for kernel, _ in origins.calls(machine)]
