"""Bad calibration data through the whole of npuc: an error, or a note on what it does."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from npuc import artifact, pipeline
from npuc.errors import NpucError, ParityError, UsageError
from npuc.members import MODEL
from npuc.program import Program
from npuc.quantization import faults as calibration_faults
from npuc.quantization.ranges import Ranges

Array = np.ndarray[Any, Any]
Calls = list[dict[str, Array]]
NET = """<ir_version: 10, opset_import: ["" : 20]> net (float[n, 3, 8, 8] x) => (float[n, 5] y) {
    a = Conv<pads=[1, 1, 1, 1]>(x, w0) b = Relu(a) c = Conv<pads=[1, 1, 1, 1]>(b, w1)
    d = Relu(c) e = GlobalAveragePool(d) f = Flatten(e) y = Gemm(f, w2) }"""
SHAPES = {"w0": (8, 3, 3, 3), "w1": (16, 8, 3, 3), "w2": (16, 5)}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work beside a small network with two convolutions."""
    monkeypatch.chdir(tmp_path)
    model = onnx.parser.parse_model(NET)
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        array = (0.3 * rng.normal(size=shape)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, "net.onnx")
    return tmp_path


def images(count: int, scale: float = 1.0, seed: int = 1, size: int = 1) -> Calls:
    rng = np.random.default_rng(seed)
    return [{"x": (scale * rng.random((size, 3, 8, 8))).astype(np.float32)} for _ in range(count)]


def notes(calibration: Any, **options: Any) -> list[str]:
    done = compiled(calibration, **options)
    # An ONNX file's noise is estimated, which every such report says.
    others = ("evenly", "doubtful reference: its noise is estimated")
    return [note for note in done.report.notes if not any(text in note for text in others)]


def compiled(calibration: Any, **options: Any) -> pipeline.Compiled:
    given = {"samples": images(8, seed=9), "target": "cpu", "precision": "int8", **options}
    (done,) = pipeline.compile("net.onnx", calibration=calibration, **given)
    return done


def test_good_data_needs_no_word() -> None:
    assert notes(images(32)) == []


def test_narrow_data_clips() -> None:
    (note,) = notes(images(16, scale=0.1))
    assert "of the held-out values of 'x' lie outside its calibrated range" in note
    share, gain = float(note.split("%")[0]), float(note.split(" dB")[0].split()[-1])
    assert 80 < share < 95 and gain > 20
    assert "calibrate on data like that which the model will see" in note


def test_wide_data_leaves_no_codes() -> None:
    """Bytes where the model takes 0 to 1."""
    (note,) = notes(images(16, scale=255.0))
    assert "the held-out values of 'x' reach from" in note and "use 0.4% of its" in note
    assert float(note.split(" dB")[0].split()[-1]) > 20


def test_a_single_sample() -> None:
    found = notes(images(1))
    assert found[0].startswith("there is a single calibration sample")
    assert "dB more" in found[0] or "costs nothing" in found[0]


def test_samples_that_are_all_alike() -> None:
    assert notes(images(1) * 6)[0].startswith("all 6 calibration samples are the same one")


def test_constant_samples() -> None:
    found = notes([{"x": np.full((1, 3, 8, 8), v, np.float32)} for v in (0.5, 0.5)])
    assert any("input 'x' is constant (0.5) in all calibration samples" in n for n in found)
    assert any("dB more" in note for note in found)


def test_samples_that_are_zero() -> None:
    found = notes([{"x": np.zeros((1, 3, 8, 8), np.float32)}] * 4)
    assert any(n.startswith("always zero in calibration") and "'x'" in n for n in found)
    assert any("stays in float" in note for note in found)


def spoiled(value: float) -> Calls:
    calls = images(4)
    calls[2]["x"][0, 1, 2, 3] = value
    return calls


BAD: Sequence[tuple[str, Any, type[NpucError], str]] = [
    ("empty", [], UsageError, "--calibration: there is not one sample"),
    ("nan", spoiled(np.nan), UsageError, "call 2: x holds 1 NaN"),
    ("inf", spoiled(np.inf), ParityError, "'x' holds NaN or Inf on calibration sample 2"),
    ("shape", [{"x": np.zeros((1, 4, 8, 8), np.float32)}], UsageError, "shape 1x4x8x8"),
    ("dtype", [{"x": np.zeros((1, 3, 8, 8), np.int64)}], UsageError, "x is int64"),
    ("name", [{"z": np.zeros((1, 3, 8, 8), np.float32)}], UsageError, "input 'x' is missing"),
]


@pytest.mark.parametrize("kind,calls,error,text", BAD, ids=[row[0] for row in BAD])
def test_data_that_cannot_be_used(
    kind: str, calls: Calls, error: type[NpucError], text: str, folder: Path
) -> None:
    with pytest.raises(error, match=text):
        compiled(calls)
    assert list(folder.glob("*.npuc")) == []


def test_an_empty_file(folder: Path) -> None:
    np.savez(folder / "none.npz", x=np.zeros((0, 1, 3, 8, 8), np.float32))
    with pytest.raises(UsageError, match=r"there is not one sample in .*none\.npz"):
        compiled(folder / "none.npz")


def test_a_table_in_the_place_of_data(folder: Path) -> None:
    first = compiled(images(8), calibration_table="t.json")
    model = artifact.read(first.artifact_path)[MODEL]
    again = compiled(None, calibration_table="t.json")
    assert artifact.read(again.artifact_path)[MODEL] == model
    text = "\n".join(again.report.notes)
    assert "they were not observed" in text and "RANDOM" not in text
    data = json.loads((folder / "t.json").read_text())
    data["tensors"]["x"]["range"] = [0, 0.1]
    (folder / "t.json").write_text(json.dumps(data))
    edited = compiled(None, calibration_table="t.json")
    assert any("values of 'x' lie outside" in note for note in edited.report.notes)


def regrouped(calls: Calls, size: int) -> Calls:
    arrays = [call["x"] for call in calls]
    parts = [arrays[i : i + size] for i in range(0, len(arrays), size)]
    return [{"x": np.concatenate(part)} for part in parts]


@pytest.mark.parametrize("observer", ["min-max", "entropy", "output"])
def test_the_same_bytes_however_calibration_is_batched(observer: str) -> None:
    """Whole artifacts: equalization, ranges, weights and biases all come from the samples."""
    calls = images(16)
    models = {
        artifact.read(
            compiled(regrouped(calls, size), observer=observer, dims={"n": 1}).artifact_path
        )[MODEL]
        for size in (1, 4, 16, 1)
    }
    assert len(models) == 1


def test_nothing_held_out() -> None:
    program = Program.load(Path("net.onnx"))
    oddities = calibration_faults.of_calls(images(1), program)
    ranges = Ranges({"x": (0, 1)}, {"x": (0, 1)}, 1, "min-max")
    (note,) = calibration_faults.of_ranges(program, ranges, [], lambda _: program, oddities)
    assert note.endswith("no other samples are here to tell what that costs")
