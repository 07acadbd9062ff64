"""Pooling windows against a count of every place."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc.passes.arithmetic.tflite_windows import Window, fits
from npuc.program import Program
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]
CASES: list[dict[str, Any]] = [
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [0, 1, 2, 0], "ceil_mode": 1},
    {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1},
    {"kernel_shape": [3, 3], "pads": [1, 0, 1, 2], "count_include_pad": 1},
    {"kernel_shape": [2, 3], "dilations": [2, 1], "pads": [1, 1, 0, 0]},
    {"kernel_shape": [4, 3], "strides": [3, 2], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [4, 3], "strides": [3, 2], "auto_pad": "SAME_LOWER"},
    {"kernel_shape": [2, 2], "strides": [3, 3], "auto_pad": "VALID"},
    {"kernel_shape": [7, 8]},
]


def pool(attributes: dict[str, Any], shape: Sequence[int]) -> ir.Model:
    """Return an AveragePool alone, its result's shape inferred."""
    node = onnx.helper.make_node("AveragePool", ["x"], ["y"], **attributes)
    float32 = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [node],
        "pool",
        [onnx.helper.make_tensor_value_info("x", float32, shape)],
        [onnx.helper.make_tensor_value_info("y", float32, None)],
    )
    opset = onnx.helper.make_opsetid("", 20)
    proto = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def sums(x: Array, window: Window) -> Array:
    """Sum the values of every window, in loops over places."""
    ends = zip(window.begin, window.end, strict=True)
    padded = np.pad(x, [(0, 0), (0, 0), *ends])
    total = np.zeros((*x.shape[:2], *window.outputs))
    for place in itertools.product(*map(range, window.outputs)):
        for tap in itertools.product(*map(range, window.kernel)):
            at = [
                p * s + t * d
                for p, s, t, d in zip(place, window.stride, tap, window.dilation, strict=True)
            ]
            to: tuple[Any, ...] = (..., *place)
            source: tuple[Any, ...] = (..., *at)
            total[to] += padded[source]
    return total


@pytest.mark.parametrize("attributes", CASES, ids=str)
def test_sums_over_counts_are_the_operator(attributes: dict[str, Any]) -> None:
    """What ONNX Runtime averages is the sum of each window over its count."""
    model = pool(attributes, [1, 2, 7, 8])
    node = model.graph[0]
    result = node.outputs[0].shape
    assert result is not None
    window = Window.of(node, [1, 2, 7, 8], result.numpy())
    x = np.random.default_rng(0).normal(size=(1, 2, 7, 8)).astype(np.float32)
    want = OnnxRunner(Program.from_model(model))({"x": x})["y"]
    np.testing.assert_allclose(sums(x, window) / window.count(), want, rtol=0, atol=1e-6)
    assert fits(window)
    assert (window.padded() >= 0).all()
    for axis in range(2):
        start, stop = window.tap(axis, window.kernel[axis] - 1)
        length = [7, 8][axis] + window.begin[axis] + window.end[axis]
        assert start < stop <= length


def test_a_window_of_padding_alone_does_not_fit() -> None:
    """A kernel that sees no value would divide by zero."""
    node = ir.node("AveragePool", [ir.val("x")], {"kernel_shape": [1], "pads": [1, 1]})
    assert not fits(Window.of(node, [1, 1, 4], [1, 1, 6]))
