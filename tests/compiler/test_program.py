"""A program is written as ONNX that ONNX Runtime loads, with its weights beside it."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from npuc.program import Program


def in_parts(count: int) -> Program:
    """x · W, cut into `count` columns, of which the first and the last are added."""
    names = [f"part{at}" for at in range(count)]
    weights = np.random.default_rng(0).standard_normal((64, count)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("Split", ["y", "sizes"], names, axis=1),
            helper.make_node("Add", [names[0], names[-1]], ["z"]),
        ],
        "parts",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 64])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 1])],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.ones(count, np.int64), "sizes"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    proto.ir_version = 10
    return Program.from_model(ir.from_proto(proto))


@pytest.mark.parametrize("count", [64, 128, 1024])
def test_onnx_runtime_loads_what_is_saved_beside_large_weights(tmp_path: Path, count: int) -> None:
    program = in_parts(count)
    path = tmp_path / "program.onnx"
    program.save(path)
    assert (tmp_path / "program.safetensors").stat().st_size > 64 * count * 4
    x = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)
    (answer,) = ort.InferenceSession(path).run(None, {"x": x})
    whole = program.serialized()
    assert whole is not None
    (wanted,) = ort.InferenceSession(whole).run(None, {"x": x})
    assert np.array_equal(np.asarray(answer), np.asarray(wanted))


def test_weights_stay_outside(tmp_path: Path) -> None:
    in_parts(512).save(tmp_path / "program.onnx")
    held = onnx.load(tmp_path / "program.onnx", load_external_data=False).graph.initializer
    outside = [t.name for t in held if t.data_location == TensorProto.EXTERNAL]
    assert outside == ["w"]
