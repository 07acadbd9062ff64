"""Count which multiply-accumulate operators of a QDQ model really have 8-bit operands."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"})
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
"""Their products count as well, and in none of the formats compared here do they take codes."""

_KERNELS = frozenset(
    {"QLinearConv", "QLinearMatMul", "QGemm", "QAttention", "ConvInteger", "MatMulInteger"}
    | {"MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
)
_MOVES = frozenset(
    {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Split"}
    | {"Gather", "Expand"}
)
_BYTE = frozenset({onnx.TensorProto.INT8, onnx.TensorProto.UINT8})


def share(path: Path) -> tuple[int, int]:
    """Return how many operators multiply and accumulate 8-bit numbers, and how many in all.

    An operand is 8-bit where it comes out of a DequantizeLinear of (u)int8, directly or through
    what only moves numbers about. Functions of the model are looked into.
    """
    model = onnx.inliner.inline_local_functions(onnx.load(path))
    graph = model.graph
    made = {name: node for node in graph.node for name in node.output}
    types = {item.name: item.data_type for item in graph.initializer}
    types |= {
        node.output[0]: attribute.t.data_type
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    inputs = {item.name: item.type.tensor_type.elem_type for item in graph.input}
    products = [node for node in graph.node if node.op_type in _PRODUCTS | _RECURRENT]
    coded = [
        node
        for node in products
        if node.op_type in _PRODUCTS
        and all(_is_byte(name, made, types | inputs) for name in _operands(node))
    ]
    return len(coded), len(products)


def kernels(path: Path) -> int:
    """Return how many operators ONNX Runtime, as it optimizes a model here, runs on integers."""
    import onnxruntime as ort

    options: Any = ort.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(optimized)
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return sum(node.op_type in _KERNELS for node in onnx.load(optimized).graph.node)


def _operands(node: onnx.NodeProto) -> list[str]:
    return list(node.input) if node.op_type == "Einsum" else list(node.input[:2])


def _is_byte(name: str, made: Mapping[str, onnx.NodeProto], types: Mapping[str, int]) -> bool:
    node = made.get(name)
    while node is not None and node.op_type in _MOVES:
        node = made.get(node.input[0])
    if node is None or node.op_type != "DequantizeLinear":
        return False
    code = node.input[0]
    if code in types:
        return types[code] in _BYTE
    source = made.get(code)
    while source is not None and source.op_type in _MOVES:
        source = made.get(source.input[0])
    if source is None or source.op_type != "QuantizeLinear":
        return False
    if len(source.input) > 2:
        return types.get(source.input[2]) in _BYTE
    wanted = [a.i for a in source.attribute if a.name == "output_dtype"]
    return not wanted or wanted[0] in _BYTE  # without both it is uint8
