"""What is measured of a node, over a table of nodes; what is unknown, and what does not apply."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from npuc.features import MEASURES, measure
from npuc.nodes import ABSENT, UNKNOWN

Shape = tuple[int | str, ...] | None


def node(
    op: str,
    *inputs: Shape | np.ndarray[Any, Any],
    out: Shape = None,
    opset: int = 20,
    dtype: ir.DataType = ir.DataType.FLOAT,
    **attributes: Any,
) -> ir.Node:
    """Build a node in a graph: a tuple is the shape of an input, an array a constant."""
    values, constants = [], []
    for index, given in enumerate(inputs):
        name = f"x{index}"
        if isinstance(given, np.ndarray):
            tensor = ir.tensor(given, name=name)
            value = ir.Value(
                name=name, shape=ir.Shape(given.shape), type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )  # fmt: skip
            constants.append(value)
        else:
            shape = None if given is None else ir.Shape(given)
            value = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype))
        values.append(value)
    made = ir.node(op, values, attributes, name="it")
    made.outputs[0].shape = None if out is None else ir.Shape(out)
    free = [value for value in values if value not in constants]
    ir.Graph(free, made.outputs, nodes=[made], initializers=constants, opset_imports={"": opset})
    return made


def floats(values: Any) -> np.ndarray[Any, Any]:
    return np.array(values, np.float32)


def ints(values: Any) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


def codes(values: Any) -> np.ndarray[Any, Any]:
    return np.array(values, np.int8)


def ones(*shape: int) -> np.ndarray[Any, Any]:
    return np.ones(shape, np.float32)


IMAGE = (2, 6, 9, 12)
CONV = node("Conv", IMAGE, ones(8, 3, 3, 5), out=(2, 8, 7, 8), group=2, strides=[2, 1])
PLAIN = node("Conv", IMAGE, ones(8, 6, 3, 3))
DEPTHWISE = node("Conv", None, ones(6, 1, 3, 3), group=6)
TRANSPOSE = node("ConvTranspose", IMAGE, ones(6, 4, 2, 2), group=2, output_padding=[1, 0])
SAME = node(
    "Conv", (1, 1, 7, 8), ones(1, 1, 3, 4), auto_pad="SAME_LOWER", strides=[2, 2], dilations=[2, 1]
)
POOL = node("MaxPool", IMAGE, kernel_shape=[2, 3], ceil_mode=1)
GEMM = node("Gemm", (5, 4), ones(7, 5), out=(4, 7), transA=1, transB=1, alpha=0.5)
MATMUL = node("MatMul", (3, 4, 5), ones(5, 7), out=(3, 4, 7))
RESIZE = node("Resize", IMAGE, floats([]), floats([1, 1, 2, 2]), mode="linear")
SIZES = node("Resize", IMAGE, floats([]), floats([]), ints([2, 6, 12, 24]),
             out=(2, 6, 12, 24))  # fmt: skip

TABLE = [
    (CONV, "kernel", (3, 5)),
    (CONV, "kernel_area", 15),
    (CONV, "stride", (2, 1)),
    (CONV, "dilation", (1, 1)),
    (CONV, "pad", (0, 0, 0, 0)),
    (CONV, "output_padding", ABSENT),
    (CONV, "group", 2),
    (CONV, "depthwise", False),
    (CONV, "rank", 4),
    (CONV, "batch", 2),
    (CONV, "channels", 6),
    (CONV, "height", 9),
    (CONV, "width", 12),
    (CONV, "last_dim", 12),
    (CONV, "output_channels", 8),
    (CONV, "dtype", "float32"),
    (CONV, "constant_weights", True),
    (CONV, "inputs", 2),
    (CONV, "axis", ABSENT),
    (CONV, "k", ABSENT),
    (PLAIN, "group", 1),
    (PLAIN, "rank", UNKNOWN),
    (DEPTHWISE, "depthwise", True),
    (DEPTHWISE, "channels", 6),
    (DEPTHWISE, "height", UNKNOWN),
    (node("Conv", IMAGE, (8, 6, 3, 3)), "constant_weights", False),
    (node("Conv", IMAGE, None), "kernel", UNKNOWN),
    (node("Conv", IMAGE, None), "depthwise", False),
    (node("Conv", (1, 1, 4, 4), ones(1, 1, 3, 3)), "depthwise", False),
    (TRANSPOSE, "channels", 6),
    (TRANSPOSE, "output_channels", 8),
    (TRANSPOSE, "output_padding", (1, 0)),
    # height: 4 outputs, (4 - 1)·2 + 5 - 7 = 4; width: 4 outputs, (4 - 1)·2 + 4 - 8 = 2
    (SAME, "pad", (2, 1, 2, 1)),
    (node("AveragePool", (1, 1, 4, 5), kernel_shape=[2, 2], auto_pad="SAME_UPPER"), "pad",
     (0, 0, 1, 1)),
    (node("AveragePool", (1, 1, 4, "w"), kernel_shape=[2, 2], auto_pad="SAME_UPPER"), "pad",
     UNKNOWN),
    # out = in·stride: 3 - 2 + 1 = 2 to cut in height, 4 - 2 = 2 in width
    (node("ConvTranspose", (1, 1, 4, 4), ones(1, 1, 3, 4), auto_pad="SAME_UPPER", strides=[2, 2],
          output_padding=[1, 0]), "pad", (1, 1, 1, 1)),
    (node("ConvTranspose", (1, 1, 4, 4), ones(1, 1, 3, 3), auto_pad="SAME_LOWER", strides=[2, 2]),
     "pad", (1, 1, 0, 0)),
    (POOL, "kernel", (2, 3)),
    (POOL, "stride", (1, 1)),
    (POOL, "ceil_mode", True),
    (POOL, "group", ABSENT),
    (node("GlobalAveragePool", IMAGE), "kernel", (9, 12)),
    (node("Pad", IMAGE, ints([0, 0, 1, 2, 0, 0, 1, 2])), "pad", (0, 0, 1, 2, 0, 0, 1, 2)),
    (node("Pad", IMAGE, ints([0, 0, 1, 2, 0, 0, 1, 2])), "mode", "constant"),
    (node("Pad", IMAGE, (8,)), "pad", UNKNOWN),
    (node("Softmax", (1, 5, 7)), "axis", 2),
    (node("Softmax", (1, 5, 7), opset=11), "axis", 1),
    (node("Softmax", (1, 5, 7), axis=1), "axis_length", 5),
    (node("Softmax", None), "axis", UNKNOWN),
    (node("Softmax", (1, "n")), "axis_length", UNKNOWN),
    (node("CumSum", (3, 4), ints(-1)), "axis", 1),
    (node("CumSum", (3, 4), ()), "axis", UNKNOWN),
    (node("Gather", (9, 4), (2, 3)), "index_rank", 2),
    (node("Gather", (9, 4), (2, 3)), "axis", 0),
    (node("ReduceMean", IMAGE, ints([-1, -2])), "reduced_axes", (2, 3)),
    (node("ReduceMean", IMAGE, opset=13, axes=[1]), "reduced_axes", (1,)),
    (node("ReduceMean", (3, 4)), "reduced_axes", (0, 1)),
    (node("ReduceMean", (3, 4), noop_with_empty_axes=1), "reduced_axes", ABSENT),
    (node("ReduceMean", (3, 4), (1,)), "reduced_axes", UNKNOWN),
    (GEMM, "k", 5),
    (GEMM, "trans_a", True),
    (GEMM, "alpha", 0.5),
    (GEMM, "beta", 1.0),
    (GEMM, "output_channels", 7),
    (MATMUL, "k", 5),
    (MATMUL, "output_channels", 7),
    (MATMUL, "rank", 3),
    (node("MatMul", None, ones(5, 7)), "k", 5),
    (node("MatMul", None, ones(5)), "k", 5),
    (node("MatMul", ones(4, 5), (5, 7)), "constant_weights", True),
    (node("MatMul", (4, 5), (5, 7)), "constant_weights", False),
    (RESIZE, "mode", "linear"),
    (RESIZE, "coordinates", "half_pixel"),
    (RESIZE, "integer_scale", True),
    (SIZES, "integer_scale", False),
    (node("Relu", IMAGE), "mode", ABSENT),
    (node("Relu", IMAGE), "kernel", ABSENT),
    (node("Relu", (3,)), "channels", ABSENT),
    (node("Relu", (3, 4)), "height", ABSENT),
    (node("Relu", (3, 4, 5)), "width", 5),
    (node("Relu", (3, 4, 5)), "height", ABSENT),
    (node("Sub", ones(1), (3, 4, 5)), "last_dim", 5),
    (node("Where", (3, 4), (3, 4), (3, 4), dtype=ir.DataType.INT64), "dtype", "int64"),
    (node("LpNormalization", (3, 4)), "p", 2),
]  # fmt: skip


@pytest.mark.parametrize(
    ("it", "name", "expected"),
    TABLE,
    ids=[f"{i}-{n.op_type}-{m}" for i, (n, m, _) in enumerate(TABLE)],
)
def test_measure(it: ir.Node, name: str, expected: object) -> None:
    assert measure(it, name) == expected
    assert type(measure(it, name)) is type(expected)


def test_every_measure_is_in_the_table() -> None:
    assert set(MEASURES) - {name for _, name, _ in TABLE} == {"weight_abs_sum"}


def test_the_sum_of_weights_is_that_of_their_codes() -> None:
    """Peak 2 is code 127: 1 is 63.5, which rounds to even 64; the other channel sums 2·127."""
    weights = floats([[[[2.0, -1.0]]], [[[3.0, 3.0]]]])
    assert measure(node("Conv", (1, 1, 4, 4), weights), "weight_abs_sum") == 254
    # The same weights with outputs along axis 1, and as rows of a Gemm.
    turned = np.ascontiguousarray(weights.reshape(2, 2).T)
    assert measure(node("MatMul", (1, 2), turned), "weight_abs_sum") == 254
    assert measure(node("Gemm", (1, 2), turned.T.copy(), transB=1), "weight_abs_sum") == 254
    assert measure(node("MatMul", (1, 2), weights[0, 0].T.copy()), "weight_abs_sum") == 127 + 64


def test_the_sum_of_integer_weights_is_exact() -> None:
    weights = codes([[-128, 127], [-128, 3]])
    assert measure(node("MatMulInteger", (1, 2), weights), "weight_abs_sum") == 256
    assert measure(node("MatMulInteger", (1, 2), (2, 2)), "weight_abs_sum") == ABSENT
    assert measure(node("Conv", (1, 1, 4, 4), (1, 1, 3, 3)), "weight_abs_sum") is UNKNOWN


def test_grouped_transposed_weights_are_summed_per_output() -> None:
    """[inputs 4, outputs of a group 1, 1]: group 0 sums inputs 0 and 1, group 1 inputs 2 and 3."""
    weights = codes([1, 2, 30, 40]).reshape(4, 1, 1, 1)
    made = node("ConvTranspose", (1, 4, 3, 3), weights, group=2)
    assert measure(made, "weight_abs_sum") == 70


def test_coded_data_has_the_dtype_of_its_codes() -> None:
    coded = ir.Value(name="q", shape=ir.Shape((2, 3)), type=ir.TensorType(ir.DataType.INT8))
    real = ir.node("DequantizeLinear", [coded])
    real.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    assert measure(ir.node("Relu", real.outputs), "dtype") == "int8"


def test_an_input_with_a_default_is_no_constant() -> None:
    """A caller may give another weight."""
    made = node("Conv", IMAGE, ones(8, 6, 3, 3))
    weight = made.inputs[1]
    assert weight is not None and made.graph is not None
    made.graph.inputs.append(weight)
    assert measure(made, "constant_weights") is False
