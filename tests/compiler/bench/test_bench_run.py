"""`npuc bench` on a real artifact: what it measures is there, and what it cannot do is said."""

import json
from pathlib import Path

import numpy as np
import pytest

from npuc import artifact as artifacts
from npuc import pipeline
from npuc.cli import main
from npuc.members import MODEL, WEIGHTS


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "resnet.npuc"
    pipeline.compile("zoo:digits-resnet", target="cpu", precision="int8", output=path)
    return path


def test_a_run_measures_every_side_and_every_kernel(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tmp_path / "b.json", tmp_path / "b.html"
    opened = artifacts.read(artifact)
    other = tmp_path / "mine.onnx"
    for member, name in ((MODEL, other.name), (WEIGHTS, Path(WEIGHTS).name)):
        opened.extract(member, tmp_path / name)
    words = ["bench", str(artifact), "--seconds", "0.05", "--threads", "1", "-q"]
    words += ["--against", f"onnxruntime,openvino,{other}"]
    assert main([*words, "--json", str(files[0]), "--html", str(files[1])]) == 0
    assert "Longest of" in capsys.readouterr().out
    assert "<svg" in files[1].read_text()
    data = json.loads(files[0].read_text())
    assert (data["threads"], data["batch"], data["precision"]) == (1, 1, "int8")
    own, ort, openvino, mine = data["sides"]
    assert mine["name"] == "mine.onnx" and mine["difference"] == ort["difference"]
    for side in (own, ort, mine):
        seconds = side["seconds"]
        assert 0 < seconds["min"] <= seconds["p50"] <= seconds["p90"] <= seconds["p99"]
        assert side["peak_bytes"] > side["model_bytes"] > 0
    # These tests' own process is far larger, and must not count.
    assert own["peak_bytes"] != ort["peak_bytes"] and own["model_bytes"] < 100e6
    # A code's width of the last quantized tensors, as far as it reaches the answer.
    assert ort["difference"] < 0.2
    assert openvino["why"] or openvino["calls"]
    products = [k for k in data["kernels"] if k["operations"]]
    # digits-resnet: stem, 3 blocks of 2, 2 shortcuts, the head.
    assert sum(o.split()[0] in ("Conv", "Gemm") for k in products for o in k["operators"]) == 10
    assert all(
        k["arithmetic"] == "integer" and 0 < k["seconds"] < 1 and k["bytes"] for k in products
    )
    assert all(rate > 1e8 for rate in data["peaks"].values())
    assert 0 < data["reached"]["arithmetic"] < 1


def test_other_inputs_may_be_given(artifact: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=np.zeros((1, 1, 16, 16), np.float32))
    words = ["bench", str(artifact), "--seconds", "0.01", "--against", "none", "-q"]
    assert main([*words, "--inputs", str(tmp_path / "x.npz")]) == 0


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["--against", "tensorrt"], 2, "cannot compare with tensorrt"),
        (["--against", "none.onnx"], 2, "cannot compare with none.onnx"),
        (["--threads", "0"], 2, "0 threads"),
        (["--seconds", "0"], 2, "0.0 seconds"),
        (["--json", "none/x.json"], 8, "none"),
        (["--inputs", "none.npz"], 2, "none.npz"),
    ],
)
def test_what_cannot_be_done_is_said(
    artifact: Path, words: list[str], code: int, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(artifact), "-q", *words]) == code
    assert why in capsys.readouterr().err


def test_what_is_no_artifact_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.npuc").write_text("no zip")
    assert main(["bench", str(tmp_path / "x.npuc"), "-q"]) == 7
    assert main(["bench", str(tmp_path / "y.npuc"), "-q"]) == 2


def test_a_damaged_library_ends_with_its_own_code(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = bytearray(artifact.read_bytes())
    at = raw.find(b"\x7fELF")
    raw[at + 4096] ^= 0xFF
    damaged = tmp_path / "damaged.npuc"
    damaged.write_bytes(raw)
    assert main(["bench", str(damaged), "-q", "--seconds", "0.01"]) == 7
    assert "does not match its hash" in capsys.readouterr().err
