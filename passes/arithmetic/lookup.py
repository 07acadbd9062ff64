"""Functions of one int8 tensor as tables of 256 codes, as devices hold them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir

from npuc.errors import PassError
from npuc.passes.arithmetic.tflite_kernels import Coding, half_away
from npuc.passes.graphs import constant, label

Array = np.ndarray[Any, Any]
CODES = np.arange(-128, 128, dtype=np.int64)
"""What a table is indexed by: entry i belongs to code i - 128."""
FUNCTIONS = frozenset(
    {
        "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Cos", "Cosh",
        "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "Log", "Mish", "Neg", "PRelu", "Pow",
        "Reciprocal", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus",
        "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
    }
)  # fmt: skip
"""Operators that give one number for one number, later inputs being constants of one number."""


def table(function: Callable[[Array], Array], source: Coding, out: Coding) -> Array:
    """Return the code of f for each code, as the LUTs of the TFLite kernels hold it, as int8.

    z_out + round(f32(f32(f(f32(s·(q - z)))) · f32(1 / s_out))), ties away from zero, saturated;
    NaN becomes the lowest code, as QuantizeLinear has it. `function` maps doubles to doubles.
    Formula: LiteRT ``LUTPopulate``. It is TFLite's for Sigmoid, Tanh, Exp, Gelu and Log, checked
    against LiteRT 2.3.0, and for Elu; for an operator without such a kernel npuc assumes it.
    """
    reals = np.float32(source.scale) * (CODES - source.zero).astype(np.float32)
    with np.errstate(all="ignore"):  # poles and overflow give ±Inf, which saturates
        values = np.asarray(function(reals.astype(np.float64))).astype(np.float32)
        rounded = half_away((values * (np.float32(1) / np.float32(out.scale))).astype(np.float64))
    codes = np.where(np.isnan(rounded), -np.inf, rounded) + out.zero
    return np.asarray(np.clip(codes, -128, 127), np.int8)


def function_of(node: ir.Node) -> Callable[[Array], Array] | str:
    """Return what an operator of `FUNCTIONS` computes in double, or why it is no such function.

    Sigmoid is computed as TFLite does, exponential and quotient rounded to float32; others by
    ONNX's reference implementation.
    """
    if node.op_type == "Sigmoid":
        return _sigmoid
    parameters: dict[str, Array] = {}
    for value in node.inputs[1:]:
        if value is None:
            continue
        array = constant(_behind(value))
        if array is None or array.size != 1:
            return f"input {value.name!r} is not a constant of one number"
        parameters[value.name or ""] = _real(value, array)
    return lambda x: _evaluate(node, x, parameters)


def _sigmoid(x: Array) -> Array:
    power = np.exp(-x).astype(np.float32)
    return np.asarray(np.float32(1) / (np.float32(1) + power))


def _behind(value: ir.Value) -> ir.Value | None:
    """Return the codes where a value is dequantized, else the value."""
    producer = value.producer()
    coded = producer is not None and producer.op_type == "DequantizeLinear"
    return producer.inputs[0] if producer is not None and coded else value


def _real(value: ir.Value, array: Array) -> Array:
    producer = value.producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return array.astype(np.float64) if array.dtype.kind == "f" else array
    parts = [constant(v) for v in producer.inputs[1:3]]
    if any(part is None for part in parts):
        raise PassError(f"the scale of {value.name!r} is not a constant")
    scale, zero = (np.asarray(part).astype(np.float64) for part in (*parts, np.zeros(1))[:2])
    return np.asarray((array.astype(np.float64) - zero) * scale)


def _evaluate(node: ir.Node, x: Array, parameters: Mapping[str, Array]) -> Array:
    """Run one operator on a vector of doubles; raises `PassError` where there is no reference."""
    proto = onnx.NodeProto()
    proto.CopyFrom(ir.serde.serialize_node(node))
    proto.input[0], proto.output[0] = "x", "y"
    double = onnx.TensorProto.DOUBLE
    graph = onnx.helper.make_graph(
        [proto],
        "function",
        [onnx.helper.make_tensor_value_info("x", double, x.shape)],
        [onnx.helper.make_tensor_value_info("y", double, x.shape)],
        [onnx.numpy_helper.from_array(array, name) for name, array in parameters.items()],
    )
    opset = onnx.helper.make_opsetid("", (node.graph.opset_imports if node.graph else {})[""])
    model = onnx.helper.make_model(graph, opset_imports=[opset])
    try:
        run = onnx.reference.ReferenceEvaluator(model)
    except NotImplementedError as error:
        raise PassError(f"no reference computes {node.op_type} ({label(node)})") from error
    answer = run.run(None, {"x": x})
    assert isinstance(answer, list)
    return np.asarray(answer[0]).reshape(x.shape)
