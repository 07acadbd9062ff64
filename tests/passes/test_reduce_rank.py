"""reduce-rank: the same values, no tensor of a higher rank than the device has."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npuc.passes.base import run
from npuc.passes.reduce_rank import ReduceRank
from npuc.program import Program
from npuc.runners import OnnxRunner


def shape(name: str, *dims: int) -> str:
    return f"int64[{len(dims)}] {name} = {{{', '.join(map(str, dims))}}}"


IMAGE = "(float[2,12,4,6] x) => (float[A,B,C,D] y) "
TOKENS = "(float[2,5,24] x) => (float[A,B,C,D] y) "
HEADS = shape("s", 2, 5, 3, 2, 4)
# (model, what it becomes)
CASES = {
    "pixel shuffle": (
        IMAGE + f"<{shape('s', 2, 3, 2, 2, 4, 6)}, {shape('t', 2, 3, 8, 12)}>"
        "{ h = Reshape(x, s) i = Transpose<perm=[0,1,4,2,5,3]>(h) y = Reshape(i, t) }",
        "Reshape Transpose Reshape Transpose Reshape",
    ),
    "windows": (
        IMAGE + f"<{shape('s', 2, 12, 2, 2, 3, 2)}, {shape('t', 12, 12, 2, 2)}>"
        "{ h = Reshape(x, s) i = Transpose<perm=[0,2,4,1,3,5]>(h) y = Reshape(i, t) }",
        None,
    ),
    "heads, split and squeezed": (
        TOKENS + f"<{HEADS}, {shape('a', 0)}> {{ h = Reshape(x, s)"
        " i = Transpose<perm=[2,0,3,1,4]>(h) j, k, l = Split<axis=0, num_outputs=3>(i)"
        " m = Squeeze(k, a) y = Softmax(m) }",
        None,
    ),
    "heads, sliced and gathered": (
        TOKENS + f"<{HEADS}, {shape('f', 1)}, {shape('g', 2)}, {shape('a', 0)}, int64 i0 = {{2}}>"
        "{ h = Reshape(x, s) i = Transpose<perm=[2,0,3,1,4]>(h) j = Slice(i, f, g, a)"
        " k = Squeeze(j, a) l = Gather<axis=0>(i, i0) y = Add(k, l) }",
        None,
    ),
    "one head for many": (
        "(float[2,3,5,4] x) => (float[A,B,C,D] y)"
        f"<{shape('a', 2)}, {shape('n', 2, 3, 2, 5, 4)}, {shape('s', 2, 6, 5, 4)}>"
        "{ h = Unsqueeze(x, a) i = Expand(h, n) y = Reshape(i, s) }",
        "Reshape Expand Reshape",
    ),
    "elementwise and broadcast": (
        IMAGE + f"<{shape('s', 2, 3, 4, 2, 2, 6)}, {shape('t', 2, 12, 4, 6)}, {shape('ax', 2, 3)}>"
        "{ h = Reshape(x, s) i = Relu(h) m = ReduceMax<keepdims=1>(i, ax) j = Sub(i, m)"
        " k = Exp(j) n = ReduceSum(k, ax) o = Div(k, n) y = Reshape(o, t) }",
        None,
    ),
    "a product of batches": (
        IMAGE + f"<{shape('s', 2, 3, 2, 2, 4, 6)}, {shape('t', 2, 3, 4, 16)}>"
        "{ h = Reshape(x, s) i = Transpose<perm=[0,1,2,3,5,4]>(h) j = MatMul(h, i)"
        " y = Reshape(j, t) }",
        None,
    ),
}


def ranks(program: Program) -> int:
    values = [v for n in program.model.graph for v in n.outputs]
    return max(len(v.shape) for v in values if v.shape is not None)


@pytest.mark.parametrize("case", CASES)
def test_patterns(
    case: str, parse: Callable[..., Program], keeps: Callable[..., Program], device: Any, ops: Any
) -> None:
    text, becomes = CASES[case]
    before = parse(text)
    assert ranks(before) > 4
    # Products sum in the same order; a softmax over merged axes may vectorize otherwise.
    after = keeps(before, [ReduceRank()], 1e-6, on=device(ops__rank_max=4))
    assert not after.steps[0].refusals
    assert ranks(after) <= 4
    assert becomes is None or ops(after) == becomes.split()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(order=st.permutations(range(6)), sizes=st.lists(st.integers(1, 3), min_size=6, max_size=6))
def test_any_permutation(
    order: list[int], sizes: list[int], parse: Callable[..., Program], device: Any
) -> None:
    count = int(np.prod(sizes))
    text = (
        f"(float[1,{count}] x) => (float[A,B] y) <{shape('s', *sizes)}, {shape('t', 1, -1)}>"
        f"{{ h = Reshape(x, s) i = Transpose<perm={list(order)}>(h) y = Reshape(i, t) }}"
    )
    after = run(parse(text), [ReduceRank()], device(ops__rank_max=4))
    assert not after.steps[0].refusals and ranks(after) <= 4
    values = np.arange(count, dtype=np.float32).reshape(1, count)
    expected = values.reshape(sizes).transpose(order).reshape(1, count)
    np.testing.assert_array_equal(OnnxRunner(after)({"x": values})["y"], expected)


REFUSED = {
    "an input": (
        "(float[1,2,3,4,5] x) => (float[A,B] y) <int64[2] t = {6, 20}> { y = Reshape(x, t) }",
        "'x' has rank 5, the device 4; it is an input of the model",
    ),
    "an output": (
        f"(float[2,60] x) => (float[A,B,C,D,E] y) <{shape('s', 1, 2, 3, 4, 5)}>"
        "{ h = Relu(x) y = Reshape(h, s) }",
        "'y' has rank 5, the device 4; it is an output of the model",
    ),
    "broadcast both ways": (
        f"(float[2,12,4,6] x) => (float[A,B,C,D] y) <{shape('s', 2, 12, 2, 2, 6)}, "
        f"{shape('a', 0, 2, 4)}, {shape('t', 2, 12, 4, 6)}>"
        "{ h = Reshape(x, s) m = ReduceMax(h, a) i = Add(h, m) y = Reshape(i, t) }",
        "its axes merge to rank 5, the device has 4",
    ),
    "no rule": (
        f"(float[2,60] x) => (float[A,B] y) <{shape('s', 1, 2, 3, 4, 5)}, {shape('t', 2, 60)},"
        " int64 a = {2}> { h = Reshape(x, s) i = CumSum(h, a) y = Reshape(i, t) }",
        "CumSum has rank 5: at most 4",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_the_reason(case: str, parse: Callable[..., Program], device: Any) -> None:
    text, reason = REFUSED[case]
    step = run(parse(text), [ReduceRank()], device(ops__rank_max=4)).steps[0]
    assert reason in " / ".join(r.reason for r in step.refusals)


def test_nothing_happens_where_nothing_is_public(
    parse: Callable[..., Program], keeps: Callable[..., Program], device: Any
) -> None:
    after = keeps(parse(CASES["windows"][0]), [ReduceRank()], on=device())
    assert after.steps[0].changes == 0 and not after.steps[0].refusals


def test_a_device_of_rank_three(
    parse: Callable[..., Program], keeps: Callable[..., Program], device: Any
) -> None:
    text = (
        f"(float[6,60] x) => (float[A,B] y) <{shape('s', 2, 3, 4, 15)}, {shape('t', 6, 60)}>"
        "{ h = Reshape(x, s) i = Transpose<perm=[2,0,1,3]>(h) y = Reshape(i, t) }"
    )
    after = keeps(parse(text), [ReduceRank()], on=device(ops__rank_max=3))
    assert ranks(after) == 3
