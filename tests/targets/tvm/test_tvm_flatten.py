"""Reshapes that keep the last axis end no kernel, and change no value."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from npuc.targets.tvm.flatten import _rows

Array = np.ndarray[Any, Any]
TOLERANCE = 2e-6
"""Of the largest result: sums of 24 products in another order, and an erf of 2 units."""


def reshaped(made: Any, name: str, *shape: int) -> str:
    return str(made.node("Reshape", name, made.constant(np.array(shape))))


def block(made: Any, floats: Any, x: str, batch: int, rows: int, depth: int) -> str:
    """x + gelu(x·W + b)·V, written as exporters write it."""
    flat = reshaped(made, x, batch * rows, depth)
    w, v = (made.constant(floats(s, 5)) for s in ((depth, 24), (24, depth)))
    inner = made.node("Gemm", flat, w, made.constant(floats((24,), 6)))
    active = made.node("Sigmoid", reshaped(made, inner, batch, rows, 24))
    back = made.node("MatMul", reshaped(made, active, batch * rows, 24), v)
    return str(made.node("Add", x, reshaped(made, back, batch, rows, depth)))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_residual_block_is_two_kernels(
    graph: Callable[..., Any], answer: Callable[..., Any], floats: Callable[..., Array], batch: int
) -> None:
    made = graph()
    made.output(block(made, floats, made.input(floats((batch, 5, 20))), batch, 5, 20))
    result = answer(made)
    assert result.faults(TOLERANCE) == []
    library = result.lowered.files["payload/model.so"]
    assert b"reshape" not in library


MOVES = st.lists(
    st.sampled_from(["matrix", "back", "four", "relu", "add", "product", "quantize", "whole"]),
    min_size=1,
    max_size=8,
)


@given(moves=MOVES, batch=st.integers(1, 2), rows=st.integers(1, 4), shown=st.booleans())
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_chain_of_moves_gives_what_it_gave(
    graph: Callable[..., Any],
    answer: Callable[..., Any],
    floats: Callable[..., Array],
    moves: list[str],
    batch: int,
    rows: int,
    shown: bool,
) -> None:
    made = graph()
    value = made.input(floats((batch, rows, 12)))
    shape: tuple[int, ...] = (batch, rows, 12)
    for at, move in enumerate(moves):
        if move in ("matrix", "back", "four"):
            shapes = {"matrix": (batch * rows, 12), "back": (batch, rows, 12)}
            shape = shapes.get(move, (batch, rows, 3, 4))
            value = reshaped(made, value, *shape)
        elif move == "relu":
            value = made.node("Relu", value)
        elif move == "add":
            value = made.node("Add", value, made.constant(floats(shape[-1:], at)))
        elif move == "whole":
            value = made.node("Add", value, made.input(floats(shape, at)))
        elif move == "product":
            value = made.node("MatMul", value, made.constant(floats((shape[-1],) * 2, at)))
        else:
            args = made.constant(np.float32(0.125)), made.constant(np.array(100, np.uint8))
            value = made.node("DequantizeLinear", made.node("QuantizeLinear", value, *args), *args)
        if shown:
            made.output(value)
    made.output(made.node("Sigmoid", value))
    assert answer(made).faults(TOLERANCE) == []


def test_rows_keep_the_axes_they_were_made_of() -> None:
    assert _rows((2, 5, 3, 4), (10, 12)) == (2, 5, 12)
    assert _rows((10, 3, 4), (10, 12)) == (10, 12)
    assert _rows((2, 5, 3, 4), (2, 60)) == (2, 60)
    assert _rows((2, 5, 3, 4), (30, 4)) == (2, 5, 3, 4)
