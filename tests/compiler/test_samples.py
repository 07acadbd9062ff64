"""Real inputs at other sizes, calls split into fixed batches, inputs read from files."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from npuc.errors import ParityError, UsageError
from npuc.program import Port, Program, Tensors
from npuc.runners import OnnxRunner
from npuc.samples import Rebatched, bind_check, load_inputs, sizes_of, variants

HEADER = '<ir_version: 10, opset_import: ["" : 20]> '


def _program(text: str) -> Program:
    return Program.from_model(ir.from_onnx_text(HEADER + text))


TWO = """g (float[batch, seq] a, float[seq, batch, 2] b) => (float[batch, seq] y, float[seq] t)
{ z = ReduceSum<keepdims=0>(b) y = Add(a, z) t = ReduceSum<keepdims=0>(a, zero) }"""


def _two(batch: int, seq: int) -> Tensors:
    return {
        "a": np.arange(batch * seq, dtype=np.float32).reshape(batch, seq),
        "b": np.arange(seq * batch * 2, dtype=np.float32).reshape(seq, batch, 2),
    }


def test_a_second_size_for_every_dimension_from_real_data() -> None:
    program = _program("g (float[b, s] a, float[s, b, 2] b) => (float[b, s] y) { y = Relu(a) }")
    sample = _two(1, 5)
    real, batch, seq = variants([sample], program)
    assert real == [sample]
    assert batch[0]["a"].shape == (2, 5) and batch[0]["b"].shape == (5, 2, 2)
    assert seq[0]["a"].shape == (1, 4) and seq[0]["b"].shape == (4, 1, 2)
    assert np.array_equal(batch[0]["a"][1], sample["a"][0])
    assert np.array_equal(seq[0]["b"], sample["b"][:4])
    again = variants([sample], program)
    assert all(np.array_equal(again[1][0][k], batch[0][k]) for k in sample)
    assert variants([], program) == [[]]


def test_a_call_is_checked_against_the_ports_all_faults_at_once() -> None:
    program = _program("g (float[b, 3] a, int64[b] i) => (float[b, 3] y) { y = Relu(a) }")
    assert sizes_of({"a": np.ones((4, 3), "f4"), "i": np.ones(4, "i8")}, program) == {"b": 4}
    with pytest.raises(UsageError) as caught:
        bind_check({"a": np.ones((4, 2), "f8"), "extra": np.ones(1)}, program)
    for words in ("a is float64", "a has shape 4x2", "'i' is missing", "no input 'extra'"):
        assert words in caught.value.message
    assert "a:bx3:float32" in caught.value.hint
    with pytest.raises(UsageError, match="'b' is 4, and 5 in i"):
        bind_check({"a": np.ones((4, 3), "f4"), "i": np.ones(5, "i8")}, program)


class Counting:
    """A runner that counts its calls."""

    name = "counting"

    def __init__(self, program: Program) -> None:
        self.inner = OnnxRunner(program)
        self.calls = 0

    def __call__(self, inputs: Tensors) -> Tensors:
        self.calls += 1
        return self.inner(inputs)


def _pair(text: str, **sizes: int) -> tuple[Program, Program]:
    fixed = text
    for symbol, size in sizes.items():
        fixed = fixed.replace(symbol, str(size))
    return _program(fixed), _program(text)


def test_larger_calls_are_split_and_joined() -> None:
    text = "g (float[NN, 3] x, float[3] w) => (float[NN, 3] y) { y = Mul(x, w) }"
    fixed, dynamic = _pair(text, NN=2)
    runner = Counting(fixed)
    x, w = np.arange(18, dtype=np.float32).reshape(6, 3), np.array([1, 2, 3], np.float32)
    rebatched = Rebatched(runner, fixed, dynamic)
    assert np.array_equal(rebatched({"x": x, "w": w})["y"], x * w)
    assert runner.calls == 3 and rebatched.name == "counting"
    assert np.array_equal(rebatched({"x": x[:2], "w": w})["y"], x[:2] * w)
    with pytest.raises(ParityError, match=r"NN=5 \(compiled for 2\)"):
        rebatched({"x": x[:5], "w": w})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("g (float[3, NN] x) => (float[3, NN] y) { y = Relu(x) }", "not a plain batch"),
        ("g (float[NN, 3] x) => (float[3] y) { y = ReduceMax<keepdims=0>(x) }", "not a plain"),
    ],
)
def test_what_is_no_batch_is_not_split(text: str, words: str) -> None:
    fixed, dynamic = _pair(text, NN=2)
    shape = (3, 4) if "[3, NN]" in text else (4, 3)
    runner = Counting(dynamic)
    with pytest.raises(ParityError, match=words):
        Rebatched(runner, fixed, dynamic)({"x": np.ones(shape, np.float32)})
    assert runner.calls == 0


PORTS = (Port("x", "float32", (2, 3)), Port("ids", "int64", ("n",)))


def test_arrays_become_calls(tmp_path: Path, npz: Any) -> None:
    stacked = npz({"x": np.ones((4, 2, 3), "f4"), "ids": np.ones((4, 7), "i8")})
    assert [c["ids"].shape for c in load_inputs(stacked, PORTS)] == [(7,)] * 4
    one = npz({"x": np.ones((2, 3), "f4"), "ids": np.ones(7, "i8")})
    assert len(load_inputs(one, PORTS)) == 1
    port = (Port("image", "float32", (2, 3)),)
    batches = npz({"arr_0": np.arange(18, dtype=np.float32).reshape(6, 3)})
    calls = load_inputs(batches, port)
    assert len(calls) == 3 and calls[1]["image"][0, 0] == 6
    wide = load_inputs(npz({"arr_0": np.ones((2, 3))}), port)  # numpy's default float64
    assert wide[0]["image"].dtype == np.float32
    folder = tmp_path / "folder"
    folder.mkdir()
    np.save(folder / "x.npy", np.ones((5, 2, 3), "f4"))
    np.save(folder / "ids.npy", np.ones((5, 2), "i4"))
    assert len(load_inputs(folder, PORTS)) == 5
    (folder / "x.npy").unlink()
    (folder / "ids.npy").unlink()
    for index in (2, 1):
        np.savez(folder / f"{index}.npz", image=np.full((2, 3), index, "f4"))
    assert [c["image"][0, 0] for c in load_inputs(folder, port)] == [1, 2]


def test_every_fault_of_every_file_at_once(tmp_path: Path, sentinel: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(sentinel), "w"))

    np.savez(folder / "a.npz", x=np.ones((2, 4), "f4"), ids=np.ones(3, "f4"))
    np.savez(folder / "b.npz", x=np.ones((3, 2, 3), "f4"), ids=np.ones((2, 5), "i8"), y=np.ones(1))
    np.savez(folder / "c.npz", x=np.array([Payload()], dtype=object), ids=np.ones(3, "i8"))
    (folder / "d.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(UsageError) as caught:
        load_inputs(folder, PORTS)
    for words in (
        "a.npz: x has shape (2, 4), expected x:2x3:float32",
        "a.npz: ids is float32, expected int64",
        "b.npz: the model has no input 'y'",
        "c.npz: x: not a plain numpy array",
        "d.npz: not an .npz archive",
    ):
        assert words in caught.value.message
    assert not sentinel.exists()
    with pytest.raises(UsageError, match="no such file"):
        load_inputs(tmp_path / "none", PORTS)
    (tmp_path / "bare").mkdir()
    with pytest.raises(UsageError, match=r"no \.npz"):
        load_inputs(tmp_path / "bare", PORTS)


def test_different_numbers_of_calls(npz: Any) -> None:
    path = npz({"x": np.ones((4, 2, 3), "f4"), "ids": np.ones((3, 7), "i8")})
    with pytest.raises(UsageError, match="different numbers of calls"):
        load_inputs(path, PORTS)


def test_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("x.npy", b"")
    data = bytearray(path.read_bytes())
    directory = data.rindex(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(UsageError, match="zip bomb"):
        load_inputs(path, (Port("x", "float32", (2, 3)),))
