"""What each operator on the allow-list may be: the types it was proven for, and its limits."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from npuc.passes.graphs import constant
from npuc.targets.tvm.rewrites import ints, shape_of, text

T = ir.DataType
FLOAT = frozenset({T.FLOAT})
WHOLE = frozenset({T.INT32, T.INT64})
NUMBER = FLOAT | WHOLE
TRUTH = frozenset({T.BOOL})
BYTE = frozenset({T.INT8, T.UINT8})
DOUBLE = frozenset({T.DOUBLE})
ANY = NUMBER | TRUTH | BYTE | DOUBLE

Check = Callable[[ir.Node], str]


@dataclass(frozen=True, slots=True)
class Rule:
    """Types of the first input (of the second for Where), and a check that says what is wrong."""

    types: frozenset[ir.DataType]
    check: Check = lambda node: ""


def _known(*positions: int) -> Check:
    """The inputs at these positions are constants, or absent."""

    def check(node: ir.Node) -> str:
        for position in positions:
            value = node.inputs[position] if position < len(node.inputs) else None
            if value is not None and constant(value) is None:
                return f"input {position} ({value.name}) is computed at run time"
        return ""

    return check


def _one_output(node: ir.Node) -> str:
    extra = [v for v in node.outputs[1:] if v.name and (v.uses() or v.is_graph_output())]
    return f"its output {extra[0].name!r} is used; only the first is computed" if extra else ""


def _all(*checks: Check) -> Check:
    return lambda node: next((reason for c in checks if (reason := c(node))), "")


def _attribute(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _convolution(node: ir.Node) -> str:
    rank = len(shape_of(node.inputs[0]))
    if rank != 4:
        return f"a convolution over {rank - 2} dimensions"
    if "output_shape" in node.attributes:
        return "output_shape: give pads instead"
    if min(ints(node, "pads", (0,))) < 0:
        return "negative pads"
    if node.op_type != "ConvTranspose":
        return ""
    kernel = shape_of(node.inputs[1])[2:]
    dilations, pads = ints(node, "dilations", (1, 1)), ints(node, "pads", (0, 0, 0, 0))
    more = ints(node, "output_padding", (0, 0))
    for axis in range(2):
        reach = dilations[axis] * (kernel[axis] - 1)
        if pads[axis] > reach or pads[axis + 2] - more[axis] > reach:
            return f"pads {pads} cut off more than a filter's reach"
    return ""


def _weights(node: ir.Node) -> str:
    """Filters are constants, or dequantized ones."""
    value = node.inputs[1]
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "DequantizeLinear":
        value = producer.inputs[0]
    return "" if constant(value) is not None else "its filters are computed at run time"


def _pool(node: ir.Node) -> str:
    rank = len(shape_of(node.inputs[0]))
    if rank not in (3, 4):
        return f"a pool over {rank - 2} dimensions"
    if _attribute(node, "ceil_mode", 0):
        return "ceil_mode: windows that start in the padding differ"
    if _attribute(node, "storage_order", 0):
        return "storage_order 1"
    return ""


def _resize(node: ir.Node) -> str:
    data, result = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if len(data) != 4 or data[:2] != result[:2]:
        return "only height and width of a 4-D tensor"
    if "axes" in node.attributes or text(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return "axes or keep_aspect_ratio_policy"
    if _attribute(node, "antialias", 0):
        return "antialias"
    mode, place = (
        text(node, "mode", "nearest"),
        text(node, "coordinate_transformation_mode", "half_pixel"),
    )
    if mode not in ("nearest", "linear") or place not in (
        "half_pixel",
        "asymmetric",
        "align_corners",
    ):
        return f"mode {mode} with {place}"
    if any(
        after < before or after % before for before, after in zip(data[2:], result[2:], strict=True)
    ):
        return "only to a whole multiple of the size"
    if mode == "nearest" and place == "align_corners":
        return "nearest with align_corners"
    return ""


def _quantization(node: ir.Node) -> str:
    codes = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
    allowed = BYTE | ({T.INT32} if node.op_type == "DequantizeLinear" else frozenset())
    if codes is None or codes.dtype not in allowed:
        return f"codes of type {codes.dtype if codes is not None else None}"
    if _attribute(node, "block_size", 0):
        return "blocks"
    scale = constant(node.inputs[1])
    if scale is None or scale.dtype != np.float32:
        return "its scale is not a float32 constant"
    if scale.ndim > 1:
        return f"a scale of {scale.ndim} dimensions"
    return _known(2)(node)


def _dropout(node: ir.Node) -> str:
    training = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if len(node.inputs) > 2 and node.inputs[2] is not None and training is None:
        return "training_mode is computed at run time"
    return "it drops at random" if training is not None and training.any() else _one_output(node)


def _batch_norm(node: ir.Node) -> str:
    return "training_mode" if _attribute(node, "training_mode", 0) else _one_output(node)


def _infinity(node: ir.Node) -> str:
    both = _attribute(node, "detect_negative", 1) and _attribute(node, "detect_positive", 1)
    return "" if both else "only one sign"


def _split(node: ir.Node) -> str:
    empty = [v for v in node.outputs if 0 in shape_of(v)]
    return "an empty part" if empty else _known(1)(node)


def _modulo(node: ir.Node) -> str:
    return "fmod" if _attribute(node, "fmod", 0) else ""


def _cast(node: ir.Node) -> str:
    to = node.outputs[0].dtype
    return "" if to in ANY else f"to {to}"


def _same_type(node: ir.Node) -> str:
    kinds = {v.dtype for v in node.inputs if v is not None}
    return "" if len(kinds) == 1 else "inputs of several types"


def _zero_points(node: ir.Node) -> str:
    """Zero points are constants: one for the data, one or one per output for the weights."""
    if reason := _known(2, 3)(node):
        return reason
    if reason := _types(node, 1, BYTE):
        return reason
    for position in range(2, len(node.inputs)):
        zero = constant(node.inputs[position])
        if zero is None or zero.size == 1:
            continue
        if position == 2 or zero.ndim > 1:
            return f"zero points of shape {zero.shape} for input {position - 2}"
    return ""


def _types(node: ir.Node, position: int, types: frozenset[ir.DataType]) -> str:
    value = node.inputs[position]
    if value is None or value.dtype in types:
        return ""
    return f"its input {value.name} is of type {value.dtype}"


def _matrices(node: ir.Node) -> str:
    ranks = [len(shape_of(v)) for v in node.inputs[:2]]
    return "" if min(ranks) > 0 else "a scalar"


def _indices(node: ir.Node) -> str:
    """Indices are constants within the data's bounds."""
    indices = constant(node.inputs[1])
    if indices is None:
        return "its indices are computed at run time"
    data = shape_of(node.inputs[0])
    if node.op_type == "GatherElements":
        bounds = np.array(data[_attribute(node, "axis", 0)])
    else:
        skipped = _attribute(node, "batch_dims", 0)
        bounds = np.array(data[skipped : skipped + indices.shape[-1]])
    inside = (indices >= -bounds) & (indices < bounds)
    return "" if bool(np.all(inside)) else "an index is out of bounds"


def _where(node: ir.Node) -> str:
    value = node.inputs[1]
    return "" if value is not None and value.dtype in ANY else "values of another type"


def _reduction(node: ir.Node) -> str:
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is None and _attribute(node, "noop_with_empty_axes", 0):
        return "noop_with_empty_axes without axes"
    return _known(1)(node)


ALLOWED: dict[str, Rule] = {
    **dict.fromkeys(
        [
            "Acos",
            "Acosh",
            "Asin",
            "Asinh",
            "Atan",
            "Atanh",
            "Cos",
            "Elu",
            "Erf",
            "Exp",
            "Gelu",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "HardSigmoid",
            "HardSwish",
            "IsNaN",
            "LeakyRelu",
            "Log",
            "LogSoftmax",
            "Mish",
            "PRelu",
            "Reciprocal",
            "Relu",
            "Selu",
            "Sigmoid",
            "Sin",
            "Softmax",
            "Softplus",
            "Softsign",
            "Tan",
            "Tanh",
            "ThresholdedRelu",
            "Hardmax",
            "InstanceNormalization",
            "LRN",
            "Einsum",
            "Mean",
            "Sum",
        ],
        Rule(FLOAT),
    ),
    **dict.fromkeys(["Abs", "Neg", "Add", "Sub", "Mul", "Div"], Rule(NUMBER | DOUBLE, _same_type)),
    "Sign": Rule(NUMBER),
    # Of doubles, TVM's maximum drops NaN.
    **dict.fromkeys(["Min", "Max"], Rule(NUMBER | BYTE, _same_type)),
    **dict.fromkeys(["Ceil", "Floor", "Round", "Sqrt"], Rule(FLOAT | DOUBLE)),
    **dict.fromkeys(
        ["Less", "LessOrEqual", "Greater", "GreaterOrEqual"],
        Rule(NUMBER | BYTE | DOUBLE, _same_type),
    ),
    **dict.fromkeys(["BitwiseAnd", "BitwiseOr", "BitwiseXor"], Rule(WHOLE, _same_type)),
    **dict.fromkeys(["And", "Or", "Xor", "Not"], Rule(TRUTH)),
    **dict.fromkeys(
        [
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMean",
            "ReduceSumSquare",
        ],
        Rule(FLOAT, _reduction),
    ),
    **dict.fromkeys(["ReduceSum", "ReduceProd"], Rule(NUMBER, _reduction)),
    **dict.fromkeys(["ReduceMax", "ReduceMin"], Rule(NUMBER | BYTE, _reduction)),
    **dict.fromkeys(["ArgMax", "ArgMin"], Rule(FLOAT)),
    **dict.fromkeys(["Identity", "Transpose", "Flatten", "Concat"], Rule(ANY)),
    **dict.fromkeys(["Reshape", "Expand", "Tile", "Squeeze", "Unsqueeze"], Rule(ANY, _known(1))),
    "Gather": Rule(ANY),
    # A wrong index of these would read or write foreign memory: it must be known.
    **dict.fromkeys(["GatherElements", "GatherND"], Rule(NUMBER | TRUTH, _indices)),
    "ScatterND": Rule(NUMBER, _indices),
    "AveragePool": Rule(FLOAT, _pool),
    "MaxPool": Rule(FLOAT | BYTE, _all(_pool, _one_output)),
    "DequantizeLinear": Rule(BYTE | {T.INT32}, _quantization),
    "QuantizeLinear": Rule(FLOAT, _quantization),
    "BatchNormalization": Rule(FLOAT, _batch_norm),
    "Cast": Rule(ANY, _cast),
    "Clip": Rule(NUMBER | BYTE, _known(1, 2)),
    "Conv": Rule(FLOAT, _all(_convolution, _weights)),
    "ConvInteger": Rule(BYTE, _all(_convolution, _weights, _zero_points)),
    "ConvTranspose": Rule(FLOAT, _all(_convolution, _weights)),
    "DepthToSpace": Rule(FLOAT),
    "Dropout": Rule(FLOAT, _dropout),
    "Equal": Rule(NUMBER | BYTE | DOUBLE, _same_type),
    "Gemm": Rule(FLOAT),
    "IsInf": Rule(FLOAT, _infinity),
    "LayerNormalization": Rule(FLOAT, _one_output),
    "MatMul": Rule(FLOAT, _matrices),
    "MatMulInteger": Rule(BYTE, _all(_matrices, _zero_points)),
    "Mod": Rule(WHOLE, _modulo),
    "Pad": Rule(NUMBER | BYTE, _known(1, 2, 3)),
    "Pow": Rule(FLOAT, _same_type),
    "Resize": Rule(FLOAT, _all(_resize, _known(1, 2, 3))),
    "Slice": Rule(ANY, _known(1, 2, 3, 4)),
    "Shrink": Rule(FLOAT, lambda node: "" if shape_of(node.inputs[0]) else "a scalar"),
    "SpaceToDepth": Rule(FLOAT),
    "Split": Rule(ANY, _split),
    # ONNX Runtime, which says what is right, has it for no other types.
    "Trilu": Rule(FLOAT | {T.INT64, T.BOOL}, _known(1)),
    "Where": Rule(TRUTH, _where),
}
"""Operator → what was proven of it, on a model that `rewrites.prepare` returned."""
