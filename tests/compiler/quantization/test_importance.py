"""Importance: the mean squared error of a layer's output, for errors that are independent."""

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from npuc.passes.graphs import infer_types
from npuc.profile import Fact, Profile
from npuc.program import Program
from npuc.quantization import importance
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]
FACTS = {
    "int8.ops": ["Conv", "ConvTranspose", "Gemm", "MatMul", "Add"],
    "int8.weight_range": [-127, 127],
    "int8.weight_per_channel": True,
    "int8.activation_range": [0, 255],
    "int8.activation_dtype": "uint8",
    "int8.activation_symmetric": False,
}
PROFILE = Profile("t", "T", {k: Fact(v, "A", "t") for k, v in FACTS.items()}, {"t": "test"})

LAYERS = {
    "Conv": ("y = Conv(x, w)", (1, 4, 5, 5), (6, 4, 1, 1), 1),
    "grouped": ("y = Conv<group=2>(x, w)", (1, 4, 5, 5), (6, 2, 1, 1), 1),
    "depthwise": ("y = Conv<group=4>(x, w)", (1, 4, 5, 5), (4, 1, 1, 1), 1),
    "ConvTranspose": ("y = ConvTranspose<group=2>(x, w)", (1, 4, 5, 5), (4, 3, 1, 1), 1),
    "Gemm": ("y = Gemm(x, w)", (7, 4), (4, 3), -1),
    "Gemm turned": ("y = Gemm<transB=1>(x, w)", (7, 4), (3, 4), -1),
    "Gemm turned input": ("y = Gemm<transA=1>(x, w)", (4, 7), (4, 3), 0),
    "Gemm left": ("y = Gemm(w, x)", (4, 7), (3, 4), 0),
    "MatMul": ("y = MatMul(x, w)", (2, 7, 4), (4, 3), -1),
    "MatMul left": ("y = MatMul(w, x)", (2, 4, 7), (3, 4), -2),
}  # fmt: skip


def program(body: str, shape: tuple[int, ...], weights: dict[str, Array]) -> Program:
    dims = ",".join(map(str, shape))
    text = (
        f'<ir_version: 10, opset_import: ["" : 20]> g (float[{dims}] x) => (float y) {{ {body} }}'
    )
    model = onnx.parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return Program.from_model(ir.from_proto(onnx.shape_inference.infer_shapes(model)))


def found(net: Program) -> Any:
    scheme = PROFILE.int_scheme
    assert scheme is not None
    copy = net.clone()
    infer_types(copy.model)
    return importance.of(copy.model, scheme)


def weight(shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("kind", LAYERS)
def test_it_is_what_an_error_in_each_channel_does(kind: str) -> None:
    """Against the layer itself, run on an error in one channel after the other."""
    body, shape, sizes, axis = LAYERS[kind]
    net = program(body, shape, {"w": weight(sizes)})
    item = found(net)["x"]
    assert item.axis % len(shape) == axis % len(shape)
    runner, effect = OnnxRunner(net), []
    for channel in range(4):
        error = np.zeros(shape, np.float32)
        np.moveaxis(error, axis, 0)[channel] = 1
        effect.append(float(np.square(runner({"x": error})["y"].astype(np.float64)).sum()))
    share = np.array(effect) / max(effect)
    # Weights are whole numbers up to LEVELS, and never none.
    np.testing.assert_allclose(item.weights / importance.LEVELS, share, atol=1 / importance.LEVELS)


def test_several_readers_add_up() -> None:
    first, second = weight((4, 3)), 2 * weight((4, 3))[::-1].copy()
    net = program(
        "a = MatMul(x, w) b = MatMul(x, v) y = Sub(a, b)", (5, 4), {"w": first, "v": second}
    )
    power = np.square(first.astype(float)).sum(1) + np.square(second.astype(float)).sum(1)
    np.testing.assert_array_equal(
        found(net)["x"].weights, np.maximum(1, np.rint(255 * power / power.max()))
    )


@pytest.mark.parametrize(
    "body",
    [
        "y = MatMul(x, x)",
        "a = MatMul(x, w) b = MatMul(w, x) y = Add(a, b)",
        "a = MatMul(x, w) y = Add(a, x)",
    ],
)
def test_no_importance_where_channels_have_none(body: str) -> None:
    net = program(body, (4, 4), {"w": weight((4, 4))})
    names = found(net)
    assert "x" not in names
