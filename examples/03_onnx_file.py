"""Compile an ONNX file, calibrated and checked on real data: npuc needs no torch model."""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import npuc

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
folder.mkdir(parents=True, exist_ok=True)

# Any tool may have written the file; this one holds a linear classifier of digits.
data, target = load_digits(return_X_y=True)
data = (data / 16).astype(np.float32)
fitted = LogisticRegression(max_iter=500).fit(data[:1400], target[:1400])
weights = [
    numpy_helper.from_array(fitted.coef_.astype(np.float32), "weight"),
    numpy_helper.from_array(fitted.intercept_.astype(np.float32), "bias"),
]
graph = helper.make_graph(
    [helper.make_node("Gemm", ["pixels", "weight", "bias"], ["scores"], name="classify", transB=1)],
    "digits",
    [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 64])],
    [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
    weights,
)
opset = helper.make_opsetid("", 20)
path = folder / "digits.onnx"
onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)

# Calls in memory: input name → array. Files (.npz, or a folder of them) do as well.
calibration = [{"pixels": data[i : i + 1]} for i in range(64)]
samples = [{"pixels": data[i : i + 1]} for i in range(1400, 1432)]

(compiled,) = npuc.compile(
    path, target="cpu", precision="int8", output=folder / "digits.npuc",
    dims={"batch": 1}, calibration=calibration, samples=samples,
)  # fmt: skip
print(compiled.report.table())
sys.exit(compiled.report.exit_code)
