"""Float rounding of the twin, bit for bit against the pass's own reference."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from npuc.passes.arithmetic.round_to import function, function_name, round_to
from npuc.profile import FloatFormat

Array = np.ndarray[Any, Any]


def awkward() -> Array:
    """Every exponent, ties and their neighbours, subnormals, infinities, NaN, both zeros."""
    fields = np.arange(0, 255, dtype=np.uint32) << 23
    low = np.array([0, 1, 0x7FFFFF, 0x400000], np.uint32)
    steps = np.concatenate([np.uint32(1) << np.arange(23, dtype=np.uint32), low])
    around = np.concatenate([steps, steps - 1, steps + 1, steps | (steps << 1)]) & 0x7FFFFF
    bits = (fields[:, None] | around[None, :]).reshape(-1)
    every = np.concatenate([bits, bits | np.uint32(1 << 31)]).astype(np.uint32)
    special = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], np.float32)
    return np.concatenate([every.view(np.float32), special])


@pytest.mark.parametrize("fmt", [(8, 7), (6, 9), (5, 10), (4, 3), (8, 22), (2, 1)])
@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("cpu", ["native", "x86-64-v3"])
def test_alone_and_after_a_kernel(
    graph: Callable[..., Any],
    answer: Callable[..., Any],
    fmt: tuple[int, int],
    cpu: str,
    flush: bool,
) -> None:
    """Alone it is an operator of its own; behind a product it is the kernel's ending."""
    form = FloatFormat(*fmt)
    values = awkward()
    made = graph()
    made.functions.append(ir.to_proto(function(form, 20, flush=flush)))
    name, data = function_name(form, flush=flush), made.input(values.reshape(1, -1))
    made.output(made.node(name, data, domain="ai.npuc"))
    column = made.input(values[np.isfinite(values)].reshape(-1, 1))
    product = made.node("MatMul", column, made.constant(np.ones((1, 17), np.float32)))
    made.output(made.node(name, product, domain="ai.npuc"))
    results = answer(made, cpu=cpu)
    alone, after = results.got.values()
    assert same(alone.reshape(-1), round_to(values, form, flush=flush))
    # A product with 1 is exact but for the sign of zero: 0 + -0·1 is 0.
    expected = round_to(values[np.isfinite(values)] + np.float32(0), form, flush=flush)
    assert same(after, np.broadcast_to(expected[:, None], after.shape))
    for got, onnx in zip(results.got.values(), results.expected.values(), strict=True):
        assert same(got, onnx)


def same(a: Array, b: Array) -> bool:
    """Whether two arrays have the same bits, any NaN being equal to any other."""
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    equal = (a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))
    return bool(equal.all())
