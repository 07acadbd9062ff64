"""What the stand-ins check of the files they are handed."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx


def model(path: Any, low: int, high: int, newest_ir: int) -> onnx.ModelProto:
    """Load a float32 ONNX file as a vendor's older ONNX does; raises `ValueError` for any fault."""
    if not isinstance(path, str) or not path.endswith(".onnx"):
        raise ValueError(f"model must be the path of an .onnx file, not {path!r}")
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ValueError(f"{tensor.name} is in another file")
    onnx.checker.check_model(proto, full_check=True)
    (version,) = (o.version for o in proto.opset_import if o.domain == "")
    if not low <= version <= high:
        raise ValueError(f"opset {version}; {low} to {high} are supported")
    if proto.ir_version > newest_ir:
        raise ValueError(f"IR version {proto.ir_version}; {newest_ir} is the newest known")
    if coded := [n.name for n in proto.graph.node if "QuantizeLinear" in n.op_type]:
        raise ValueError(f"quantized already: {coded}")
    return proto


def inputs(proto: onnx.ModelProto) -> dict[str, list[int]]:
    """Return input name → shape; raises `ValueError` for a dimension that is no number."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    found = {}
    for value in proto.graph.input:
        if value.name not in weights:
            dims = value.type.tensor_type.shape.dim
            if any(d.WhichOneof("value") != "dim_value" for d in dims):
                raise ValueError(f"{value.name}: dynamic shape")
            found[value.name] = [d.dim_value for d in dims]
    return found


def tensors(proto: onnx.ModelProto) -> set[str]:
    """Return the names of all float32 values that are computed or put in."""
    typed = onnx.shape_inference.infer_shapes(proto).graph
    values = (*typed.input, *typed.value_info, *typed.output)
    kinds = {v.name: v.type.tensor_type.elem_type for v in values}
    weights = {tensor.name for tensor in proto.graph.initializer}
    return {name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT} - weights


def array(path: Path, shape: list[int]) -> "np.ndarray[Any, Any]":
    """Load one calibration array; raises `ValueError` where its shape is another."""
    loaded: np.ndarray[Any, Any] = np.load(path, allow_pickle=False)
    if list(loaded.shape) != shape:
        raise ValueError(f"{path.name}: shape {loaded.shape}, the model takes {shape}")
    return loaded
