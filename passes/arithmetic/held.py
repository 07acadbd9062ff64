"""What a float32 tensor of a graph stands for on a device, and which operators keep it so."""

from enum import Enum

import onnx_ir as ir

MOVES = frozenset(
    {
        "CenterCropPad",
        "Clip",
        "Compress",
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "GlobalMaxPool",
        "Identity",
        "If",
        "Loop",
        "Max",
        "MaxPool",
        "MaxRoiPool",
        "Min",
        "Pad",
        "ReduceMax",
        "ReduceMin",
        "Relu",
        "Reshape",
        "ReverseSequence",
        "Scan",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "TopK",
        "Transpose",
        "Trilu",
        "Unsqueeze",
        "Where",
    }
)
"""Operators whose outputs are values of their inputs: rounding again would change nothing."""

BOUNDED = frozenset({"Clip", "Pad"})
"""Operators whose constants are limits or filling, which an integer path holds as codes."""

PARAMETERS = {
    "QuantizeLinear": {1, 2},
    "DequantizeLinear": {1, 2},
    "Resize": {1, 2},
    "NonMaxSuppression": {3, 4},
}
"""Inputs that say what to compute; the compiler reads them, the device does not store them."""


class Held(Enum):
    """What a float32 tensor of the graph stands for on the device."""

    FLOAT = "a rounded float"
    CODES = "integer codes times their scale"
    ACCUMULATOR = "an integer accumulator times its scale"


def moves(node: ir.Node) -> bool:
    """Whether each output value of a node is one of its input values."""

    def attribute(name: str, default: str) -> str:
        found = node.attributes.get(name)
        return default if found is None else found.as_string()

    if node.op_type in ("ScatterElements", "ScatterND"):
        return attribute("reduction", "none") == "none"
    if node.op_type == "Resize":
        return attribute("mode", "nearest") == "nearest"
    return node.op_type in MOVES and node.domain == ""
