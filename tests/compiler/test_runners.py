"""The oracle: what it answers, what it says where ONNX Runtime refuses, intermediate values."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc import program as programs
from npuc import runners
from npuc.errors import ParityError
from npuc.program import Program
from npuc.runners import OnnxRunner

HEAD = '<ir_version: 10, opset_import: ["" : 20]>'
TEXT = f"""{HEAD}
net (float[n, 4] x, int64[2] at) => (float[n, 2] y, bool[n, 2] z)
<float[4, 4] w = {{1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 3, 0, 0, 0, 0, 4}}>
{{ m = MatMul (x, w)  y = Gather <axis = 1> (m, at)  zero = Constant <value_float = 0.0> ()
  z = Greater (y, zero) }}"""


def build(text: str) -> Program:
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), True)
    return Program.from_model(ir.from_proto(proto))


def call(rows: int = 3) -> dict[str, np.ndarray]:
    x = np.arange(4 * rows, dtype=np.float32).reshape(rows, 4) - 2
    return {"x": x, "at": np.array([3, 1])}


def test_it_answers_by_name_and_shape() -> None:
    got = OnnxRunner(build(TEXT), "exported")(call())
    want = (call()["x"] * [1, 2, 3, 4])[:, [3, 1]]
    assert list(got) == ["y", "z"]
    assert np.array_equal(got["y"], want) and got["y"].dtype == np.float32
    assert np.array_equal(got["z"], want > 0) and got["z"].dtype == np.bool_


def test_an_answer_survives_the_next_call() -> None:
    runner = OnnxRunner(build(TEXT))
    first = runner(call())["y"]
    kept = first.copy()
    runner({**call(), "x": np.full((3, 4), 9, np.float32)})
    assert np.array_equal(first, kept)


def test_inputs_need_not_be_contiguous() -> None:
    x = np.asfortranarray(call()["x"])
    assert np.array_equal(OnnxRunner(build(TEXT))({**call(), "x": x})["y"],
                          OnnxRunner(build(TEXT))(call())["y"])  # fmt: skip


def test_a_scalar_input_stays_a_scalar() -> None:
    program = build(f"{HEAD} net (float s) => (float y) {{ y = Exp (s) }}")
    got = OnnxRunner(program)({"s": np.zeros((), np.float32)})["y"]
    assert got.shape == () and got == 1


def test_intermediate_values() -> None:
    program = build(TEXT)
    got = OnnxRunner(program, extra=["m"])(call())
    assert list(got) == ["y", "z", "m"]
    assert np.array_equal(got["m"], call()["x"] * [1, 2, 3, 4])
    assert [p.name for p in program.outputs] == ["y", "z"]
    assert len(program.model.graph.outputs) == 2  # the program itself is as it was


def test_a_failing_call_names_the_shapes() -> None:
    runner = OnnxRunner(build(TEXT))
    with pytest.raises(ParityError) as caught:
        runner({**call(), "at": np.array([3, 9])})
    assert "fails at inputs x:3x4, at:2:" in caught.value.message
    assert "out of" in caught.value.message and "\n" not in caught.value.message
    assert caught.value.exit_code == 6


def test_a_program_that_is_no_onnx_is_refused() -> None:
    program = build(TEXT)
    copy = program.clone()
    next(iter(copy.model.graph)).op_type = "NoSuchOperator"
    with pytest.raises(ParityError, match=r"ONNX Runtime rejects the program: .*NoSuchOperator"):
        OnnxRunner(copy)


def test_models_beyond_protobufs_limit_go_through_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both ways answer alike, and the file is gone afterwards."""
    want = OnnxRunner(build(TEXT))(call())
    for place in (programs, runners):
        monkeypatch.setattr(place, "PROTO_LIMIT", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert build(TEXT).serialized() is None
    got = OnnxRunner(build(TEXT))(call())
    assert all(np.array_equal(want[name], got[name]) for name in want)
    assert list(tmp_path.iterdir()) == []


def replaced(program: Program, tensor: "ir.Tensor[Any]") -> None:
    """Give a program another weight w."""
    weight = program.model.graph.initializers["w"]
    weight.const_value, weight.dtype, weight.shape = tensor, tensor.dtype, tensor.shape


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16", "INT8", "UINT8",
                                  "INT16", "INT32", "INT64", "BOOL", "INT4"])  # fmt: skip
def test_large_weights_of_every_type_answer_as_small_ones_do(kind: str) -> None:
    """Those that are handed over beside the message, and those that stay in it."""
    dtype = ir.DataType[kind]
    drawn = np.random.default_rng(0).integers(-7, 8, (520, 520)).astype(dtype.numpy())
    head = HEAD.replace("20", "21")  # which knows INT4
    program = build(f"{head} net (int64[n] at) => (float[n, 520] y) <float[1] w = {{0}}> "
                    "{ f = Cast <to = 1> (w)  y = Gather (f, at) }")  # fmt: skip
    replaced(program, ir.Tensor(drawn, dtype=dtype))
    at = np.array([519, 0, 7])
    got = OnnxRunner(program)({"at": at})["y"]
    assert np.array_equal(got, drawn[at].astype(np.float32))
    assert len(program.serialized() or b"") > drawn.size // 2  # the program itself is as it was


def test_weights_that_are_views_are_handed_over_as_they_read() -> None:
    """A transposed tensor, and one of which nobody else keeps the memory."""
    program = build(f"{HEAD} net (float[n, 200] x) => (float[n, 300] y) "
                    "<float[1, 1] w = {0}> { y = MatMul (x, w) }")  # fmt: skip
    drawn = np.random.default_rng(1).normal(size=(300, 200)).astype(np.float32)
    replaced(program, ir.Tensor(drawn.T))
    runner = OnnxRunner(program)
    others = [np.full((200, 300), 9, np.float32) for _ in range(4)]  # where a copy may have been
    assert np.array_equal(runner({"x": np.eye(200, dtype=np.float32)})["y"], drawn.T), len(others)


def test_nothing_is_optimized_away() -> None:
    """x·0 is NaN at Inf, which an optimizer that returns the constant 0 would hide."""
    program = build(
        f"{HEAD} net (float[1] x) => (float[1] y) <float[1] o = {{0}}> {{ y = Mul (x, o) }}"
    )
    got = OnnxRunner(program)({"x": np.array([np.inf], np.float32)})["y"]
    assert np.isnan(got).all()
