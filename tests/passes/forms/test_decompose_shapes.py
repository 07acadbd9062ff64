"""decompose: operators that move data; all of them are exact."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from npuc.passes.base import run
from npuc.passes.decompose import Decompose
from npuc.profile import Limit
from npuc.program import Program
from npuc.runners import OnnxRunner

X = "(float[2,8,4,6] x) => (float[A,B,C,D] y) "
RANKS = {"Gather one": "A,B,C", "Expand": "A,B,C,D,E", "Flatten": "A,B"}
# (body, opset, what the device has, what it becomes)
CASES = {
    "Flatten": ("{ h = Flatten<axis=2>(x) y = Relu(h) }", 20, "Reshape Relu", "Reshape Relu"),
    "Squeeze": (
        "<int64[1] a = {0}> { h = Unsqueeze(x, a) i = Relu(h) y = Squeeze(i, a) }",
        20,
        "Reshape Relu",
        "Reshape Relu Reshape",
    ),
    "Split": (
        "<int64[2] s = {3, 5}> { h, y = Split<axis=1>(x, s) }",
        20,
        "Slice",
        "Slice Slice",
    ),
    "Slice": (
        "<int64[2] s = {1, 2}, int64[2] e = {-1, 9}, int64[2] a = {-1, 1}>"
        "{ y = Slice(x, s, e, a) }",
        20,
        "Split",
        "Split Split",
    ),
    "Slice every second": (
        "<int64[2] s = {1, 0}, int64[2] e = {99, 99}, int64[2] a = {2, 3}, int64[2] t = {2, 3}>"
        "{ y = Slice(x, s, e, a, t) }",
        20,
        "Reshape Split",
        "Reshape Split Reshape Reshape Split Reshape",
    ),
    "Gather": (
        "<int64[4] i = {1, 2, 0, -1}> { y = Gather<axis=3>(x, i) }",
        20,
        "Slice Concat",
        "Slice Slice Slice Concat",
    ),
    "Gather one": ("<int64 i = {-2}> { y = Gather<axis=1>(x, i) }", 20, "Slice Reshape", None),
    "Gather by product": (
        "<int64[4] i = {1, 2, 0, -1}> { y = Gather<axis=3>(x, i) }",
        20,
        "MatMul",
        "MatMul",
    ),
    "Expand": (
        "<int64[5] n = {3, 2, 8, 4, 6}> { y = Expand(x, n) }",
        20,
        "Reshape Tile",
        "Reshape Tile",
    ),
    "Expand by copies": (
        "<int64[4] n = {2, 8, 4, 6}, int64[1] a = {1}>{ h = ReduceMax(x, a) y = Expand(h, n) }",
        20,
        "ReduceMax Concat",
        "ReduceMax Concat",
    ),
    "Tile": ("<int64[4] n = {1, 2, 1, 3}> { y = Tile(x, n) }", 20, "Concat", "Concat Concat"),
    "Pad": (
        "<int64[8] p = {0, 1, 0, 2, 0, 0, 0, 3}, float v = {1.5}> { y = Pad(x, p, v) }",
        20,
        "Concat",
        "Concat Concat",
    ),
    "Pad reflected": (
        '<int64[8] p = {0, 0, 2, 1, 0, 0, 0, 3}> { y = Pad<mode="reflect">(x, p) }',
        20,
        "Slice Concat",
        None,
    ),
    "Pad by its edge": (
        '<int64[4] p = {2, 1, 0, 3}, int64[2] a = {-2, 3}> { y = Pad<mode="edge">(x, p, , a) }',
        20,
        "Slice Concat",
        None,
    ),
    "DepthToSpace DCR": (
        "{ y = DepthToSpace<blocksize=2>(x) }",
        20,
        "Reshape Transpose",
        "Reshape Transpose Reshape",
    ),
    "DepthToSpace CRD": (
        '{ y = DepthToSpace<blocksize=2, mode="CRD">(x) }',
        20,
        "Reshape Transpose",
        "Reshape Transpose Reshape",
    ),
    "DepthToSpace DCR by ConvTranspose": (
        "{ y = DepthToSpace<blocksize=2>(x) }",
        20,
        "ConvTranspose",
        "ConvTranspose",
    ),
    "DepthToSpace CRD by ConvTranspose": (
        '{ y = DepthToSpace<blocksize=2, mode="CRD">(x) }',
        20,
        "ConvTranspose",
        "ConvTranspose",
    ),
    "SpaceToDepth": (
        "{ y = SpaceToDepth<blocksize=2>(x) }",
        20,
        "Reshape Transpose",
        "Reshape Transpose Reshape",
    ),
    "SpaceToDepth by Conv": ("{ y = SpaceToDepth<blocksize=2>(x) }", 20, "Conv", "Conv"),
    "Split, opset 11": (
        "{ h, y = Split<axis=1, split=[3, 5]>(x) }",
        11,
        "Slice",
        "Slice Slice",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_answers_exactly_alike(case: str, decomposed: Callable[..., list[str]]) -> None:
    text, opset, supported, becomes = CASES[case]
    ports = X.replace("A,B,C,D", RANKS.get(case, "A,B,C,D"))
    found = decomposed(ports + text, supported, opset=opset)
    assert becomes is None or found == becomes.split()


SECOND = Limit(("Concat", "Slice"), "axis", "A", "test", among=(1,))


def test_concat_along_the_axis_that_a_device_has(decomposed: Callable[..., list[str]]) -> None:
    text = X + "{ h = Relu(x) y = Concat<axis=-1>(x, h) }"
    found = decomposed(text, "Relu Concat Reshape", SECOND)
    assert found == ["Relu", "Reshape", "Reshape", "Concat", "Reshape"]


def test_slice_along_the_axis_that_a_device_has(
    parse: Callable[..., Program], keeps: Callable[..., Program], device: Any, ops: Any
) -> None:
    body = "<int64[1] s = {1}, int64[1] e = {6}, int64[1] a = {3}, int64[1] t = {2}>"
    before = parse(X + body + "{ y = Slice(x, s, e, a, t) }")
    four = Limit(("Slice",), "width", "A", "test", most=5)  # 6 of them here, 24 channels then
    after = keeps(before, [Decompose()], sizes=(1,), on=device("Slice Reshape", four))
    assert ops(after) == ["Reshape", "Slice", "Reshape"]


@pytest.mark.parametrize("keep", [0, 1])
def test_argmax_along_the_axis_that_a_device_has(
    keep: int, decomposed: Callable[..., list[str]]
) -> None:
    limit = Limit(("ArgMax",), "axis", "A", "test", among=(1,))
    ports = f"(float[2,8,4,6] x) => (int64[{'A,B,C,D' if keep else 'A,B,C'}] y)"
    body = f"{{ y = ArgMax<axis=-1, keepdims={keep}>(x) }}"
    found = decomposed(ports + body, "ArgMax Transpose Reshape", limit)
    assert found[:3] == ["Transpose", "ArgMax", "Transpose"]


REFUSED = {
    "step": (
        "<int64[1] s = {0}, int64[1] e = {99}, int64[1] a = {3}, int64[1] t = {4}>"
        "{ y = Slice(x, s, e, a, t) }",
        "Reshape Split",
        "step 4 does not divide its axis",
    ),
    "backwards": (
        "<int64[1] s = {-1}, int64[1] e = {-99}, int64[1] a = {3}, int64[1] t = {-1}>"
        "{ y = Slice(x, s, e, a, t) }",
        "Reshape Split",
        "step -1 does not divide",
    ),
    "wrapped": (
        '<int64[8] p = {0, 0, 2, 1, 0, 0, 0, 3}> { y = Pad<mode="wrap">(x, p) }',
        "Concat Slice",
        "its mode is wrap",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_the_reason(case: str, parse: Callable[..., Program], device: Any) -> None:
    text, supported, reason = REFUSED[case]
    step = run(parse(X + text), [Decompose()], device(supported)).steps[0]
    assert reason in " ".join(r.reason for r in step.refusals)


def test_indices_of_two_axes(
    parse: Callable[..., Program], device: Any, ops: Callable[[Program], list[str]]
) -> None:
    text = "(float[9,8] x, int64[3,2] i) => (float[3,2,8] y) { y = Gather(x, i) }"
    limit = Limit(("Gather",), "index_rank", "A", "test", most=1)
    before = parse(text)
    after = run(before, [Decompose()], device("Gather Reshape", limit))
    assert ops(after) == ["Reshape", "Gather", "Reshape"]
    values = {
        "x": np.arange(72, dtype=np.float32).reshape(9, 8),
        "i": np.array([[0, 8], [-1, 3], [3, 3]]),
    }
    np.testing.assert_array_equal(OnnxRunner(after)(values)["y"], OnnxRunner(before)(values)["y"])


def test_indices_that_are_computed_are_refused(parse: Callable[..., Program], device: Any) -> None:
    text = "(float[2,8] x, int64[3] i) => (float[3,8] y) { y = Gather(x, i) }"
    step = run(parse(text), [Decompose()], device("Slice Concat MatMul")).steps[0]
    assert "its indices is not a constant" in step.refusals[0].reason
