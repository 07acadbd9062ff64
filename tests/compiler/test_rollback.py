"""A third-party pass that breaks a model for other sizes is undone, named, and costs no answer.

onnxsim believes the shapes that a file declares. torch.onnx.export declares wrong ones for an
LSTM with a dynamic number of steps, and onnxsim builds the example's 8 steps into a Reshape and
reports success. npuc's simplify hides declared shapes from onnxsim, so that this does not happen;
the guard behind it is tested here with onnxsim as it is usually called.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxsim
import pytest
import torch

from npuc import artifact, plugins
from npuc.passes import simplify
from npuc.pipeline import compile

EXPORT = """
import logging, sys, torch
from npuc.models.lstm import RowLSTM
logging.disable(logging.CRITICAL)
torch.manual_seed(0)
model = RowLSTM(8, 16, 10).eval().requires_grad_(False)
shapes = {"rows": {0: "batch", 1: "time"}}
torch.onnx.export(model, (torch.randn(2, 8, 8),), sys.argv[1], dynamo=True, opset_version=20,
                  external_data=False, verbose=False, dynamic_shapes=shapes)
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torch.onnx.export writes it, in its own process: torch caches what it traced."""
    path = tmp_path_factory.mktemp("lstm") / "lstm.onnx"
    subprocess.run([sys.executable, "-W", "ignore", "-c", EXPORT, str(path)], check=True)
    return path


def test_onnxsim_reports_success_on_a_model_that_it_broke(exported: Path) -> None:
    """The premise: where this fails, onnxsim or torch was mended and this file can go."""
    simple, ok = onnxsim.simplify(onnx.load(exported))
    assert ok
    values = [onnx.numpy_helper.to_array(t).tolist() for t in simple.graph.initializer]
    assert [-1, 8, 10] in values


def test_the_guard_rolls_onnxsim_back_and_names_the_size(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simplify, "_strip", lambda model: None)
    rng = np.random.default_rng(0)
    calls = [{"rows": rng.standard_normal((1, 8, 8), np.float32)} for _ in range(3)]
    [done] = compile(
        exported, target="cpu", precision="float", samples=calls, output=tmp_path / "a.npuc"
    )
    assert done.passed
    [row] = [row for row in done.report.rows if row.stage == "simplify"]
    assert row.state == "rolled back"
    assert "rows:1x7x8" in row.note  # the size, the recorded one being 1x8x8
    opened = artifact.read(done.artifact_path)
    [step] = [step for step in opened.manifest.steps if step.name == "simplify"]
    assert "rows:1x7x8" in step.rolled_back and step.changes == 0


def test_onnxsim_without_declared_shapes_keeps_the_model(exported: Path, tmp_path: Path) -> None:
    [done] = compile(exported, target="cpu", precision="float", output=tmp_path / "a.npuc")
    states = {row.stage: (row.state, row.sizes) for row in done.report.rows}
    assert done.passed and states["simplify"] == ("ok", 3)


@pytest.mark.parametrize("steps", [8, 16])
def test_the_zoo_lstm_takes_any_number_of_steps(tmp_path: Path, steps: int) -> None:
    from npuc import models

    dims = {} if steps == 8 else {"time": steps}
    [done] = compile(
        "zoo:digits-lstm", target="cpu", precision="float", dims=dims, output=tmp_path / "a.npuc"
    )
    assert done.passed, done.report.failures
    assert dict(done.report.dims) == {"batch": 1, "time": steps}
    [row] = [row for row in done.report.rows if row.stage == "simplify"]
    assert row.sizes == 3  # as recorded, another batch, another number of steps

    zoo = models.get("digits-lstm")
    rows = torch.cat([zoo.samples(1)[0][0]] * (steps // 8), 1)
    with torch.no_grad():
        want = zoo.module()(rows).numpy()
    opened = artifact.read(done.artifact_path)
    program = artifact.program(opened)
    runner = plugins.find("cpu").runner(opened, program)
    [got] = runner({"rows": rows.numpy()}).values()
    # float32 rounding of sums over some hundred terms of size one
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
