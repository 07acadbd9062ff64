"""Channel statistics: what numpy computes of all values at once, from one pass."""

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from npuc.errors import ParityError, UsageError
from npuc.program import Program
from npuc.quantization.channel_stats import ChannelObserver, collect
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]
NET = """(float[N,3,S,S] x) => (float[N,4,S,S] y) <float[4,3,1,1] w =
    {1,2,3,4,5,6,7,8,9,-10,11,-12}> { c = Conv(x, w) y = Relu(c) }"""


def program(text: str = NET) -> Program:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> g {text}')
    return Program.from_model(ir.from_proto(onnx.shape_inference.infer_shapes(proto)))


def samples(count: int, size: int = 5) -> list[dict[str, Array]]:
    rng = np.random.default_rng(0)
    shape = (1, 3, size, size)
    return [{"x": rng.normal(0.3, 1, shape).astype(np.float32)} for _ in range(count)]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    arrays=st.integers(1, 4).flatmap(
        lambda rank: st.lists(
            hnp.arrays(np.float32, hnp.array_shapes(min_dims=rank, max_dims=rank, max_side=5),
                       elements=st.floats(-1e3, 1e3, width=32)),
            min_size=1, max_size=3)),
    axis=st.integers(-1, 0),
)  # fmt: skip
def test_any_axis_of_any_shape(arrays: list[Array], axis: int) -> None:
    same = [a for a in arrays if a.shape[axis] == arrays[0].shape[axis]]
    seen = ChannelObserver(axis)
    assert all(seen.see(array) for array in same)
    found = seen.statistics()
    assert found is not None
    rows = np.concatenate([np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1) for a in same], 1)
    wide = rows.astype(np.float64)
    np.testing.assert_array_equal(found.low, wide.min(axis=1))
    np.testing.assert_array_equal(found.high, wide.max(axis=1))
    np.testing.assert_array_equal(found.peak, np.abs(wide).max(axis=1))
    # Summed in float32 in any order: each of n terms may be rounded n times, by 2^-24 of the sum
    # of magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, equation 3.5). Squares
    # below the least normal float32 are lost.
    unit = (rows.shape[1] + 1) * 2.0**-24
    assert (abs(found.mean - wide.mean(axis=1)) <= unit * abs(wide).mean(axis=1)).all()
    np.testing.assert_allclose(found.square, (wide**2).mean(axis=1), rtol=unit, atol=1e-37)
    assert found.count == rows.shape[1]


@pytest.mark.parametrize("size", [1e30, 1e-15])
def test_squares_beyond_float32(size: float) -> None:
    values = np.full((2, 20000), size, np.float32)
    seen = ChannelObserver(0)
    assert seen.see(values)
    found = seen.statistics()
    assert found is not None
    # Equal values are rounded the same way each time: the bound of `_dots`, not what is usual.
    np.testing.assert_allclose(found.mean, size, rtol=1e-5)
    np.testing.assert_allclose(found.square, size * size, rtol=1e-5)


def test_sums_beyond_float32() -> None:
    values = np.repeat(np.array([3e38, -3e38], np.float32), 10000)[None]
    seen = ChannelObserver(0)
    assert seen.see(values)
    found = seen.statistics()
    assert found is not None
    assert found.mean == 0  # in float64 they cancel exactly
    np.testing.assert_allclose(found.square, float(np.float32(3e38)) ** 2, rtol=1e-12)


def test_inputs_and_inner_tensors_of_a_program() -> None:
    net, calls = program(), samples(7)
    found = collect(net, calls, {"x": 1, "c": 1, "y": -1})
    inner = [OnnxRunner(net, extra=("c",))(call) for call in calls]
    want = np.concatenate([call["c"] for call in inner])
    assert list(found) == ["x", "c", "y"]
    assert found["x"].peak.shape == (3,) and found["y"].peak.shape == (5,)
    # Three products in float32 may be summed in another order: a few ulps of the largest.
    np.testing.assert_allclose(found["c"].high, want.max(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(found["c"].mean, want.mean(axis=(0, 2, 3)), atol=1e-4)


def test_the_same_samples_give_the_same_bits() -> None:
    one, other = (collect(program(), samples(9), {"c": 1})["c"] for _ in range(2))
    assert one.mean.tobytes() == other.mean.tobytes()
    assert one.square.tobytes() == other.square.tobytes()


def test_samples_of_several_sizes() -> None:
    mixed = [*samples(2, 4), *samples(1, 6)]
    assert collect(program(), mixed, {"c": 1})["c"].count == 2 * 16 + 36


def test_what_cannot_be_observed() -> None:
    with pytest.raises(UsageError, match="no tensor 'q', 'r'"):
        collect(program(), samples(1), {"q": 0, "r": 0})
    with pytest.raises(UsageError, match="has no axis 4"):
        collect(program(), samples(1), {"c": 4})
    with pytest.raises(UsageError, match="6 channels; before it had 4"):
        collect(program(), [*samples(1, 4), *samples(1, 6)], {"c": 2})
    with pytest.raises(UsageError, match="no calibration samples"):
        collect(program(), [], {"c": 1})
    with pytest.raises(UsageError, match="sample 0 has no x"):
        collect(program(), [{"z": np.zeros(1)}], {"c": 1})
    bad = samples(2)
    bad[1]["x"][0, 0, 0, 0] = np.nan
    with pytest.raises(ParityError, match="'x' holds NaN or Inf on calibration sample 1"):
        collect(program(), bad, {"x": 1})


def test_a_split_into_hundreds() -> None:
    size = 9000  # more sizes than what is handed over beside the model's message
    parts = ", ".join(f"p{at}" for at in range(size))
    text = f"""(float[{size},2] x) => (float[1,2] y)
      <int64[{size}] sizes = {{{", ".join(["1"] * size)}}}>
      {{ {parts} = Split<axis = 0>(x, sizes)  y = Add(p0, p1) }}"""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> g {text}')
    net = Program.from_model(ir.from_proto(proto))
    call = {"x": np.arange(size * 2, dtype=np.float32).reshape(size, 2)}
    (found,) = collect(net, [call], {"y": -1}).values()
    np.testing.assert_array_equal(found.low, [2.0, 4.0])
    np.testing.assert_array_equal(OnnxRunner(net)(call)["y"], [[2.0, 4.0]])
