"""Attention in one kernel: any heads, rows, widths and masks, float and int8, against ONNX Runtime.

Codes of the softmax may differ by one from ONNX Runtime's where its value is within a rounding of
half a code, so results of int8 attention may differ by one code's share of the values.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Array = np.ndarray[Any, Any]
FLOAT_TOLERANCE = 2e-6
"""Of the largest result: sums of up to 70 products in another order, and an e^x of 2 units."""


@dataclass(frozen=True)
class Case:
    """Sizes of an attention; `share` heads of queries use the same keys and values."""

    batch: int = 1
    heads: int = 2
    share: int = 1
    rows: int = 5
    width: int = 7
    depth: int = 8
    columns: int = 8
    mask: str = ""
    together: bool = True
    """Whether heads lie side by side in one tensor [batch, rows, heads·size]."""
    codes: str = ""
    cpu: str = "native"


CASES = st.builds(
    Case,
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    share=st.integers(1, 3),
    rows=st.integers(1, 20),
    width=st.integers(1, 40),
    depth=st.integers(1, 35),
    columns=st.integers(1, 35),
    mask=st.sampled_from(["", "row", "causal", "input"]),
    together=st.booleans(),
    codes=st.sampled_from(["", "uint8", "int8"]),
    cpu=st.sampled_from(["native", "x86-64-v3"]),
)


def side(made: Any, floats: Any, case: Case, heads: int, rows: int, size: int, seed: int) -> str:
    """Add an input and return it as [batch, heads, rows, size]."""
    if not case.together:
        return str(made.input(floats((case.batch, heads, rows, size), seed)))
    data = made.input(floats((case.batch, rows, heads * size), seed))
    # A product of constants before it keeps the input from being all that there is to read.
    cut = made.node("Reshape", data, made.constant(np.array([case.batch, rows, heads, size])))
    return str(made.node("Transpose", cut, perm=[0, 2, 1, 3]))


def repeated(made: Any, case: Case, name: str, rows: int, size: int) -> str:
    """Repeat every head `share` times, as grouped-query attention does."""
    if case.share == 1:
        return name
    lone = made.node("Unsqueeze", name, made.constant(np.array([2])))
    shape = np.array([case.batch, case.heads, case.share, rows, size])
    wide = made.node("Expand", lone, made.constant(shape))
    flat = np.array([case.batch, case.heads * case.share, rows, size])
    return str(made.node("Reshape", wide, made.constant(flat)))


def coded(made: Any, case: Case, name: str, scale: float, zero: int) -> str:
    if not case.codes:
        return name
    point = zero - (128 if case.codes == "int8" else 0)
    args = made.constant(np.float32(scale)), made.constant(np.array(point, case.codes))
    return str(made.node("DequantizeLinear", made.node("QuantizeLinear", name, *args), *args))


def masked(made: Any, floats: Any, case: Case, scores: str) -> str:
    if case.mask == "row":
        values = np.where(np.arange(case.width) % 3 == 2, np.float32(-1e4), np.float32(0))
        return str(made.node("Add", scores, made.input(values.reshape(1, 1, 1, -1))))
    if case.mask == "causal":
        shape = (case.rows, case.width)
        return str(
            made.node("Add", made.constant(np.triu(np.full(shape, -np.inf, "f4"), 1)), scores)
        )
    if case.mask == "input":
        heads = case.heads * case.share
        whole = made.input(floats((case.batch, heads, case.rows, case.width), 9))
        return str(made.node("Add", scores, whole))
    return scores


def attention(made: Any, floats: Any, case: Case) -> None:
    heads = case.heads * case.share
    q = side(made, floats, case, heads, case.rows, case.depth, 0)
    k = side(made, floats, case, case.heads, case.width, case.depth, 1)
    v = side(made, floats, case, case.heads, case.width, case.columns, 2)
    k = repeated(made, case, k, case.width, case.depth)
    v = repeated(made, case, v, case.width, case.columns)
    turned = made.node("Transpose", k, perm=[0, 1, 3, 2])
    q, turned = coded(made, case, q, 0.02, 117), coded(made, case, turned, 0.03, 131)
    scores = made.node("MatMul", q, turned)
    scores = made.node("Div", scores, made.constant(np.float32(np.sqrt(case.depth))))
    soft = made.node("Softmax", masked(made, floats, case, scores), axis=-1)
    soft, v = coded(made, case, soft, 1 / 255, 0), coded(made, case, v, 0.025, 120)
    result = made.node("Transpose", made.node("MatMul", soft, v), perm=[0, 2, 1, 3])
    flat = np.array([case.batch, case.rows, heads * case.columns])
    made.output(made.node("Relu", made.node("Reshape", result, made.constant(flat))))


def check(graph: Any, answer: Any, floats: Any, case: Case) -> None:
    made = graph()
    attention(made, floats, case)
    result = answer(made, cpu=case.cpu)
    ((name, expected),) = result.expected.items()
    bound = FLOAT_TOLERANCE * float(np.abs(expected).max()) + 1e-7
    if case.codes:
        # At most every tenth code is off by one, and values reach 0.025·136.
        bound = 0.025 * 136 / 255 * (1 + case.width / 10)
    gap = np.abs(result.got[name].astype(np.float64) - expected)
    assert gap.max() <= bound, (case, gap.max(), bound)
    library = result.lowered.files["payload/model.so"]
    assert (b"attention_int8" if case.codes else b"attention") in library


@given(case=CASES)
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_attention_of_any_shape(
    graph: Callable[..., Any],
    answer: Callable[..., Any],
    floats: Callable[..., Array],
    case: Case,
) -> None:
    if case.depth == 1 or case.columns == 1:
        case = replace(case, depth=2, columns=2)
    check(graph, answer, floats, case)


@pytest.mark.parametrize("cpu", ["native", "x86-64-v3"])
@pytest.mark.parametrize("codes", ["uint8", "int8"])
def test_integer_sums_are_exact(
    graph: Callable[..., Any],
    answer: Callable[..., Any],
    floats: Callable[..., Array],
    codes: str,
    cpu: str,
) -> None:
    """Without differences among scores the softmax is 1/width: its codes are not in doubt."""
    case = Case(rows=9, width=37, depth=19, columns=21, codes=codes, cpu=cpu)
    made = graph()
    attention(made, floats, case)
    feed = {
        name: np.zeros_like(a) if at < 1 else a * 3
        for at, (name, a) in enumerate(made.feed.items())
    }
    (got,) = answer(made, feed, cpu=cpu).got.values()
    values = list(feed.values())[2].reshape(1, case.width, case.heads, case.columns)
    low, high = np.iinfo(codes).min, np.iinfo(codes).max
    zero = 120 - (128 if codes == "int8" else 0)
    coded_values = np.clip(np.rint(values / np.float32(0.025)) + zero, low, high) - zero
    share = np.rint(np.float32(1 / case.width) / np.float32(1 / 255))
    unit = np.float32(1 / 255) * np.float32(0.025)
    row = (share * coded_values.sum(axis=1)).astype(np.float32).reshape(1, 1, -1) * unit
    expected = np.maximum(np.repeat(row, case.rows, axis=1), 0)
    np.testing.assert_array_equal(got, expected)


def test_reshapes_around_codes_do_not_hide_attention(
    graph: Callable[..., Any], answer: Callable[..., Any], floats: Callable[..., Array]
) -> None:
    """As torch writes scaled_dot_product_attention: K' without its batch axis for a while."""
    case = Case(codes="uint8")
    made = graph()
    q, k, v = (made.input(floats((1, 2, 6, 16), seed)) for seed in range(3))
    flat = made.node("Reshape", k, made.constant(np.array([2, 6, 16])))
    turned = made.node("Transpose", flat, perm=[0, 2, 1])
    whole = made.node("Reshape", turned, made.constant(np.array([1, 2, 16, 6])))
    scores = made.node(
        "MatMul", coded(made, case, q, 0.02, 117), coded(made, case, whole, 0.03, 131)
    )
    soft = coded(made, case, made.node("Softmax", scores), 1 / 255, 0)
    made.output(made.node("MatMul", soft, coded(made, case, v, 0.025, 120)))
    assert b"attention_int8" in answer(made).lowered.files["payload/model.so"]


def test_what_is_used_elsewhere_is_still_computed(
    graph: Callable[..., Any], answer: Callable[..., Any], floats: Callable[..., Array]
) -> None:
    made = graph()
    q, k, v = (made.input(floats((1, 2, 6, 16), seed)) for seed in range(3))
    soft = made.node(
        "Softmax", made.node("MatMul", q, made.node("Transpose", k, perm=[0, 1, 3, 2]))
    )
    made.output(soft, made.node("MatMul", soft, v))
    assert answer(made).faults(FLOAT_TOLERANCE) == []


def test_nan_stays_in_its_row(
    graph: Callable[..., Any], answer: Callable[..., Any], floats: Callable[..., Array]
) -> None:
    made = graph()
    query = floats((1, 2, 6, 16), 0)
    query[0, 1, 3, 5] = np.nan
    q = made.input(query)
    k, v = (made.input(floats((1, 2, 6, 16), seed)) for seed in (1, 2))
    scores = made.node("MatMul", q, made.node("Transpose", k, perm=[0, 1, 3, 2]))
    made.output(made.node("MatMul", made.node("Softmax", scores), v))
    result = answer(made)
    (got,), (expected,) = result.got.values(), result.expected.values()
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    assert result.faults(FLOAT_TOLERANCE) == []
