"""`npuc inspect` and `npuc run`, on files of every kind, and on what a stranger may put in them."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from npuc import artifact, execute, stored
from npuc.answers import Floor, Reference
from npuc.cli import main
from npuc.errors import ArtifactError, UsageError
from npuc.look import look, text
from npuc.manifest import Manifest
from npuc.program import Program, Refusal, Step

STEPS = (
    Step("fold-constants", {}, 1),
    Step("fold-batchnorm", {}, 0, tuple(Refusal(f"n{i}", "read elsewhere") for i in range(5))),
    Step("simplify", {}, 0, rolled_back="y differs by 0.3 (floor 1e-7)"),
)


def double() -> Program:
    """y = x + x, with x of shape 1x3."""
    kind = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", shape=ir.Shape([1, 3]), type=kind)
    node = ir.node("Add", [x, x], name="n0")
    y = node.outputs[0]
    y.name, y.shape, y.type = "y", ir.Shape([1, 3]), kind
    graph = ir.Graph([x], [y], nodes=[node], opset_imports={"": 20}, name="g")
    return Program.from_model(ir.Model(graph, ir_version=10), STEPS)


def reference() -> Reference:
    x = np.array([[1, 2, 3]], np.float32)
    return Reference(({"x": x},), ({"y": 2 * x},), {"y": Floor(0.0, 0.0, 6.0)}, {"device": "cpu"})


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """An artifact for the target of `installed`, with a reference and a report."""
    program = double()
    about = Manifest(
        "fake", "float", "twin", program.inputs, program.outputs,
        vendor="fakecc was not run", toolchain={"fakecc": "1.0"}, steps=program.steps,
        placement={"Add": "fake"}, notes=("rounding is assumed",), settings={"level": 1},
    )  # fmt: skip
    files: dict[str, bytes | Path] = {
        **artifact.model_files(program, tmp_path / "model"),
        "reference.safetensors": stored.encode(reference()),
        "parity.json": b'{"passed": true}',
    }
    artifact.write(tmp_path / "a.npuc", about, files)
    return tmp_path / "a.npuc"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a target that runs the stored program under ONNX Runtime."""
    (tmp_path / "fake_runner.py").write_text(
        "from npuc.runners import OnnxRunner\n"
        "class Fake:\n"
        "    name = profile = toolchain = evidence = legalise = numerics = lower = 'fake'\n"
        "    def runner(self, files, program): return OnnxRunner(program)\n"
    )
    info = tmp_path / "fake_npu-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-npu\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[npuc.targets]\nfake = fake_runner:Fake\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fake_runner", raising=False)
    importlib.invalidate_caches()


def test_an_artifact_tells_its_history(made: Path) -> None:
    about = look(str(made))
    assert about["operators"] == {"Add": 1} and about["opset"] == 20
    assert about["parity"] == {"passed": True}
    shown = text(about)
    for line in (
        "target      fake, precision float",
        "evidence    twin: npuc's model of the chip's numerics, run on the host",
        "vendor      fakecc was not run",
        "parity      held when it was compiled",
        "x:1x3:float32",
        "fold-constants  1 change\n",
        "simplify        undone: y differs by 0.3 (floor 1e-7)",
        "fold-batchnorm  n0, n1, n2 and 2 more: read elsewhere",
        "fake  Add",
        "rounding is assumed",
        "reference.safetensors",
    ):
        assert line in shown, line


def test_a_damaged_artifact_is_not_described(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(made.read_bytes())
    data[data.index(b'{"passed"')] ^= 1
    made.write_bytes(data)
    assert main(["inspect", str(made)]) == 7
    assert "parity.json does not match its hash" in capsys.readouterr().err


@pytest.mark.parametrize("parity", [b"", b"[]", b"[" * 100_000, b"\xff"])
def test_a_malformed_report_is_an_error(tmp_path: Path, parity: bytes) -> None:
    about = Manifest("fake", "float", "twin", (), ())
    artifact.write(tmp_path / "a.npuc", about, {"parity.json": parity})
    with pytest.raises(ArtifactError, match=r"parity\.json"):
        look(str(tmp_path / "a.npuc"))


def test_names_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = Manifest("fake", "float", "twin", (), (), notes=("\x1b[2J\rgone\x9b",))
    artifact.write(tmp_path / "a.npuc", about, {"payload/x": b""})
    assert main(["inspect", str(tmp_path / "a.npuc")]) == 0
    assert "\\x1b[2J\\rgone\\x9b" in capsys.readouterr().out
    assert main(["inspect", "\x1b[2J"]) == 3
    assert "\x1b" not in capsys.readouterr().err


def test_models_show_ports_and_operators(tmp_path: Path) -> None:
    double().save(tmp_path / "m.onnx")
    about = look(str(tmp_path / "m.onnx"))
    assert (about["kind"], about["operators"]) == ("onnx", {"Add": 1})
    assert "Inputs\n  x:1x3:float32\n\nOutputs\n  y:1x3:float32" in text(about)


def test_weights_show_their_tensors(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"w": np.zeros((2, 3), np.float16), "n": np.array(1)}, tmp_path / "w.safetensors")
    assert "n  scalar:I64\n  w  2x3:F16" in text(look(str(tmp_path / "w.safetensors")))


def test_other_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x7fELF" + bytes(99))
    assert text(look(str(tmp_path / "x"))).endswith("a program or shared library (ELF), 103 B\n")
    assert look(str(tmp_path))["what"] == "a directory"
    with pytest.raises(UsageError):
        look("zoo:no-such-model")


@pytest.mark.usefixtures("installed")
def test_run_answers_the_stored_sample(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = made.with_name("y.npz")
    assert main(["run", str(made), "-o", str(out)]) == 0
    assert capsys.readouterr().out == "1 call; the first answers\n  y:1x3:float32  2 4 6\n"
    with np.load(out) as answers:
        np.testing.assert_array_equal(answers["y"], np.array([[2, 4, 6]], np.float32))
    assert main(["run", str(made), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["outputs"] == [
        {"name": "y", "dtype": "float32", "shape": [1, 3], "first": [2.0, 4.0, 6.0]}
    ]


@pytest.mark.usefixtures("installed")
def test_run_answers_every_call_in_a_file(made: Path) -> None:
    calls = made.with_name("x.npz")
    np.savez(calls, x=np.arange(6, dtype=np.float32).reshape(2, 3))
    answers = execute.run(made, calls)
    assert [a["y"].tolist() for a in answers] == [[[0, 2, 4]], [[6, 8, 10]]]
    execute.save(answers, made.with_name("y.npz"))
    with np.load(made.with_name("y.npz")) as written:
        assert written["y"].shape == (2, 3)
    np.savez(calls, x=np.zeros((1, 4), np.float32))
    with pytest.raises(UsageError):
        execute.run(made, calls)


def test_run_needs_the_target_and_a_sample(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown target 'fake'"):
        execute.run(made, None)


@pytest.mark.usefixtures("installed")
def test_run_without_a_sample_says_what_to_give(tmp_path: Path) -> None:
    program = double()
    about = Manifest("fake", "float", "twin", program.inputs, program.outputs)
    files: dict[str, bytes | Path] = dict(artifact.model_files(program, tmp_path / "model"))
    artifact.write(tmp_path / "b.npuc", about, files)
    with pytest.raises(UsageError, match="holds no sample"):
        execute.run(tmp_path / "b.npuc", None)


def test_a_reference_comes_back_as_it_was() -> None:
    arrays: dict[str, Any] = {
        "bf16": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3),
        "scalar": np.array(3.0, np.float32),
        "empty": np.zeros((0, 3), np.uint16),
        "flag": np.array([True, False]),
        "turned": np.arange(6.0).reshape(2, 3).T,
    }
    made = Reference((arrays, arrays), (arrays, arrays), {"flag": Floor(0.1, np.inf, 1)}, {"a": 1})
    data = stored.encode(made)
    assert data == stored.encode(made)
    read = stored.decode(data)
    assert len(read.samples) == 2 and read.floor == made.floor and read.fingerprint == {"a": 1}
    for name, array in arrays.items():
        assert read.outputs[1][name].dtype == array.dtype
        np.testing.assert_array_equal(read.outputs[1][name], array)


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, bytes(8) + b"{}"])
def test_a_malformed_reference_is_an_error(data: bytes) -> None:
    with pytest.raises(ArtifactError, match="stored reference"):
        stored.decode(data)
